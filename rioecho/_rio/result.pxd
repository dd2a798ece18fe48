# A bytes object as the memory of an input buffer. While a large result is read, it is the buffer: its bytes are copied
# once, from the kernel, and are never held anywhere else. A read that is interrupted leaves it there, and the next one
# continues in it. The buffer's own memory is put aside in the meantime.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_INCREF
from libc.stdint cimport SIZE_MAX

from rioecho._core.buffer cimport (
    buffer_adopt,
    buffer_clear,
    buffer_consume,
    buffer_held,
    buffer_move,
    buffer_put,
    buffer_reserve,
    buffer_trim,
    rio_buffer,
)
from rioecho._core.posix cimport rio_bytes_end, rio_bytes_give, rio_bytes_object, rio_bytes_resize, rio_bytes_taken


cdef enum:
    # Minimum length of a result that is made by truncating a larger one in place. A shorter result is copied: it would
    # keep whole pages of the larger one.
    CUT_MIN = 1 << 15
    # Maximum number of bytes of memory behind the end of a result. Resizing it for less would defeat glibc's malloc: it
    # maps pages for each block that is larger than all mapped ones it has seen freed.
    SPARE = 1 << 14


cdef inline bint result_begun(const rio_buffer *b) noexcept:
    """Report whether the held bytes are the beginning of a bytes object, which a large read continues."""
    return b.give != NULL and b.r == 0 and b.mark == SIZE_MAX


cdef inline int result_begin(rio_buffer *b, rio_buffer *aside, size_t size) except -1:
    """Make a new bytes object of ``size`` bytes the memory of the buffer. On an error nothing has changed."""
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    Py_INCREF(result)
    buffer_adopt(b, PyBytes_AS_STRING(result), size, rio_bytes_give, aside)
    buffer_trim(aside, 0)
    return 0


cdef inline int result_grow(rio_buffer *b, rio_buffer *aside, size_t size) except -1:
    """Enlarge the bytes object, in place if possible: for a large one that moves pages, and copies nothing."""
    cdef char *data = rio_bytes_resize(b.data, size)
    if data == NULL:
        return result_begin(b, aside, size)
    b.data = data
    b.cap = size
    return 0


cdef inline bytes result_end(rio_buffer *b, rio_buffer *aside, size_t n):
    """Remove the first n held bytes and return the object that they fill; None, with nothing changed, if none."""
    cdef char *data = b.data
    cdef size_t more = buffer_held(b) - n
    if not result_begun(b) or n < CUT_MIN or (more and buffer_reserve(aside, more) < 0):
        return None
    if more:
        buffer_put(aside, data + n, more)
    if b.cap - n > SPARE:
        data = rio_bytes_resize(data, n)
        if data == NULL:
            buffer_consume(aside, more)
            return None
    rio_bytes_end(data, n)
    buffer_clear(b)
    buffer_move(b, aside)
    return rio_bytes_taken(rio_bytes_object(data))   # the reference of the buffer
