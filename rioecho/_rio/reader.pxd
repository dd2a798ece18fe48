# Reading a number of bytes; see _rio/reader.pyx.

from cpython.bytes cimport PyBytes_FromStringAndSize

from rioecho._core.buffer cimport buffer_consume, buffer_start
from rioecho._core.posix cimport rio_assert, rio_flag_mine
from rioecho._rio.channel cimport rio_call
from rioecho._rio.receiver cimport Receiver


cdef class Reader(Receiver):
    cdef size_t skipped    # number of bytes of the current line that an interrupted skipline() has discarded

    cdef int check_as_file(self, object n, bint none) except -1
    cdef size_t hold(self, size_t n, object timeout) except? 0
    cdef size_t hold_some(self, object timeout, size_t wanted) except? 0
    cdef size_t next_step(self) noexcept
    cdef object read_buffer(self, object buffer, bint full, object timeout)
    cdef bytes read_all(self, object timeout)
    cdef bytes read_n(self, size_t n, object timeout, bint exactly)
    cdef bint goes_direct(self, size_t n) noexcept
    cdef int incomplete(self, object expected) except -1
    cdef size_t fill_result(self, rio_call *call, size_t n, size_t size) except? 0
    cdef bytes take_result(self, size_t n)
    cdef object read_direct(self, char *data, size_t n, object timeout)


cdef inline void consume(Reader self, size_t n) noexcept:
    """Remove the first n bytes from the input buffer, after the caller has copied them."""
    rio_assert(rio_flag_mine(&self.reading))
    buffer_consume(&self.inp, n)
    self.skipped = 0


cdef inline bytes take(Reader self, size_t n):
    """Return the first n bytes of the input buffer and remove them."""
    cdef bytes result = PyBytes_FromStringAndSize(buffer_start(&self.inp), n)
    consume(self, n)
    return result
