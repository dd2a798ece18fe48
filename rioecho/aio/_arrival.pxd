# What has come for a Rio of asyncio; see aio/_arrival.pyx.

from libc.stdint cimport int64_t

from rioecho.aio._call cimport Call
from rioecho.aio._protocol cimport Endpoint


cdef class Arrival(Endpoint):
    cdef object transport    # None before the connection is made and after it is lost
    cdef Call reader         # the call that waits, or None
    cdef object waiter       # its future
    cdef bint woken          # whether it is to try again
    cdef object error        # what ended the connection; None for an orderly end
    cdef object lost_waiter  # the future of the end of the connection
    cdef size_t spare_size   # number of bytes in the spare
    cdef int64_t came        # when bytes last came, if there is an idle timeout
    cdef bint can_read       # whether the transport is one that is read from
    cdef bint lost           # whether the connection has ended
    cdef bint has_closed     # whether close() or abort() was called

    cdef int wake(self) except -1
    cdef int steer(self) except -1
    cdef bint choked(self) noexcept
    cdef int came_new(self) except -1
    cdef int read_last_words(self) except -1
    cdef int read_decrypted(self, object tls) except -1
    cdef int raise_lost(self) except -1
    cdef int shut(self) except -1
