# Writing; see _rio/writer.pyx.

from rioecho._core.buffer cimport buffer_held, buffer_put, buffer_room
from rioecho._core.posix cimport RIO_HAS_GIL, rio_flag_put_briefly, rio_flag_take_briefly
from rioecho._rio.channel cimport Channel, leave_writing
from rioecho._rio.limits cimport rio_call
from rioecho._rio.sender cimport Sender


# Writes one object of the caller's to a file and returns its length. Counts what was accepted of it in ``taken``.
ctypedef object (*put_function)(object file, object item, size_t *taken)

cdef int note_written(object error, size_t n) except -1
cdef int put_each(object file, object items, put_function put) except -1


cdef class Writer(Sender):
    cdef int check_writable(self) except -1
    cdef int begin_writing(self, rio_call *call, object timeout, size_t ahead) except -1
    cdef object put_noted(self, object data, object read_ahead)
    cdef object put_object(self, object data, size_t *taken, size_t ahead)
    cdef object put_item(self, rio_call *call, object item, size_t *taken)
    cdef int put(self, const char *data, size_t n, size_t *taken) except -1
    cdef int put_in(self, rio_call *call, const char *data, size_t n, size_t *taken) except -1
    cdef int check_half_close(self) except -1
    cdef int shut(self) except -1
    cdef int reserve_output(self) except -1
    cdef void keep_rest(self, const char *data, size_t n) noexcept


cdef inline bint hold_at_once(Channel self, const char *data, size_t n) noexcept:
    """Copy ``data`` to the buffer if that is all that ``put()`` would do: no allocation, no error, no system call.

    Reports whether it was; if not, nothing has changed. The caller holds ``writing``, or the GIL while it is free.
    """
    cdef bint done = False
    if rio_flag_take_briefly(&self.sending):
        if buffer_held(&self.out) == 0:
            self.out.r = self.out.w = 0
        if (
            0 < n <= buffer_room(&self.out)
            and buffer_held(&self.out) + n < self.out.base
            and self.out_error is None
            and self.takes_output
        ):
            buffer_put(&self.out, data, n)
            done = True
        rio_flag_put_briefly(&self.sending)
    return done


cdef inline bint put_at_once(Channel self, const char *data, size_t n) noexcept:
    """Begin a write, do what ``hold_at_once()`` does, and end it. Reports whether it was done."""
    cdef bint done = False
    if rio_flag_take_briefly(&self.writing):
        done = hold_at_once(self, data, n)
        if not RIO_HAS_GIL:
            leave_writing(self)
    return done
