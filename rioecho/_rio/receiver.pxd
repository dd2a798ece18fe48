# One read from the source, into the input buffer; see _rio/receiver.pyx.

from rioecho._rio.limits cimport rio_call
from rioecho._rio.output cimport Output


cdef enum:
    # Maximum number of bytes behind the result that a read may take, so that the line which follows is there.
    AHEAD = 1 << 13


cdef class Receiver(Output):
    cdef bint brief   # whether the next read into the buffer is short, as a body that goes direct may follow

    cdef ssize_t recv_some(self, rio_call *call, char *data, size_t n) except -1
    cdef ssize_t recv_waiting(self, rio_call *call, char *data, size_t n) except -1
    cdef ssize_t recv_through(self, rio_call *call, char *data, size_t n, short *want) except -2
    cdef int booked(self) except -1
    cdef ssize_t fill_once(self, rio_call *call, size_t need) except -1
    cdef ssize_t fill_towards(self, rio_call *call, char end, size_t limit) except -1
    cdef ssize_t fill_room(self, rio_call *call, size_t n) except -1


cdef inline bint takes_no_more(Receiver self) noexcept:
    """Report whether no byte behind what the caller wants may be read: ``bufsize=1``, as with ``io``."""
    return self.inp.base == 1
