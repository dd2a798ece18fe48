# How the bytes of a source move whose I/O is not its descriptor's; see _rio/transport.pyx.

from libc.stdint cimport int64_t, uintptr_t

from rioecho._rio.registry cimport Registered


cdef enum:
    OWN_TIMEOUT = -2   # as a `patience` argument: wait as the source's own timeout says, once
    RECORD = 16384     # maximum payload of a TLS record (RFC 8446, 5.1)


cdef class Transport(Registered):
    cdef bint waits      # whether it waits itself, as long as `patience` says; else poll(2) waits between its attempts
    cdef bint untimed    # of those that wait: whether they have no time limit that could be set
    cdef bint is_stream   # of those that do not wait: whether the descriptor is known to be a socket that carries bytes
    cdef bint own_errors   # whether its errors need not be OSErrors
    cdef bint holds_signals   # whether the caller of send() must block signals in this thread until it has counted
    cdef object raised   # an exception raised in the middle of an attempt, for raise_late()
    cdef uintptr_t raised_in   # the thread that owns `raised`, or 0; atomic
    cdef int half_sent   # whether a part of the last record is unsent, which send() with n = 0 sends; atomic

    cdef ssize_t recv(self, char *data, size_t n, int64_t patience, short *want) except -2
    cdef ssize_t send(self, const char *data, size_t n, int64_t patience, short *want) except -2
    cdef int raise_late(self) except -1
    cdef void keep(self, object error) noexcept
    cdef object timeout(self)
    cdef str timed_out(self, bint writing)
    cdef bint lost(self) noexcept
    cdef bint stands_in_way(self) noexcept
    cdef size_t least_room(self) noexcept
