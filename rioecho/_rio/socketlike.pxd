# The transport of a Rio over an object with recv() and send() of its own; see _rio/socketlike.pyx.

from libc.stdint cimport int64_t, uintptr_t

from rioecho._rio.registry cimport Registered
from rioecho._rio.transport cimport Transport


cdef enum reason:
    FAILED        # an error of the source
    WOULD_BLOCK   # the source has no data or no room, and does not wait
    TIMED_OUT     # the source has waited as long as it was told to
    ENDED         # the input has ended


cdef class Patience(Registered):
    cdef object guard            # an RLock for the fields below; it is held while the timeout is set
    cdef bint settable           # whether it has settimeout()
    cdef object own              # its own timeout while an attempt has set another one
    cdef object current          # what was set last; this object itself if that is unknown
    cdef bint altered            # whether `own` is to be put back
    cdef Py_ssize_t users[2]     # number of attempts in progress, to read and to send
    cdef int64_t limits[2]       # time that the last of them may wait
    cdef size_t changes          # number of changes of the timeout

    cdef int64_t shortest(self) noexcept
    cdef bint in_use(self) noexcept
    cdef bint enter(self, int side, int64_t patience) except -1
    cdef object leave(self, int side)
    cdef int set(self, int64_t limit) except -1
    cdef object timeout(self)


cdef class SocketLike(Transport):
    cdef object into, get, put   # its methods: recv_into or recv, and send
    cdef Patience patience
    cdef bint has_fd             # whether poll() can be asked when the source would block
    cdef size_t room             # for least_room()
    cdef int zeros               # number of sends in succession that accepted nothing
    cdef uintptr_t other_thread   # a thread that runs no signal handlers, or 0; atomic

    cdef int refuse(self) except -1
    cdef ssize_t recv_once(self, char *data, size_t n) except -2
    cdef ssize_t send_once(self, bytes data) except -2
    cdef ssize_t no_progress(
        self, object error, int64_t patience, int64_t began, bint early, short event, short *want
    ) except -2


cdef reason reason_of(object error) except *
