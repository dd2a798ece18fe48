# Sending; see _rio/sender.pyx.

from libc.stdint cimport int64_t

from rioecho._rio.limits cimport rio_call
from rioecho._rio.lines cimport LineReader


cdef class Sender(LineReader):
    # Of a file that is open for both: the position of its first byte behind those that unread() has put in front, plus
    # 1; 0 if there are none.
    cdef int64_t foreign_end

    cdef int send(self, rio_call *call, const char *data, size_t n, ssize_t keep, size_t *sent) except -1
    cdef int send_waiting(self, rio_call *call, const char *data, size_t n, ssize_t keep, size_t *sent) except -1
    cdef int read_ahead(self, rio_call *call, size_t n) except -1
    cdef int wait_to_send(self, rio_call *call, short want) except -1
    cdef bint take_ahead(self, rio_call *call) except -1
    cdef ssize_t receive_ahead(self, rio_call *call) except -2
    cdef int note_reset(self, rio_call *call) except -1
    cdef void unclaim(self, ssize_t put, bint reset) noexcept
    cdef int send_all(self, rio_call *call, const char *data, size_t n, size_t *sent) except -1
    cdef int borrow_reading(self, rio_call *call) except -1
    cdef int64_t place_read_to(self) except? -1
    cdef void return_reading(self) noexcept
    cdef int push(self, rio_call *call, ssize_t keep) except -1
