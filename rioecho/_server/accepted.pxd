# A connection between accept(2) and its engine; see accepted.pyx.

from libc.stdint cimport uint64_t

from rioecho._core.counts cimport Counts
from rioecho._core.posix cimport rio_flag, sockaddr_storage
from rioecho._server.notify cimport WakePipe


cdef class AcceptCounts:
    cdef uint64_t n_accepted
    cdef uint64_t n_refused


cdef class Accepted:
    cdef readonly int fd          # or -1: it is closed, or the engine's own
    cdef public bint announced    # in the log
    cdef rio_flag owner           # free: the acceptor's; taken: an engine's
    cdef sockaddr_storage address
    cdef AcceptCounts tally
    cdef Counts counts            # where its end is counted, if this object sees to that
    cdef WakePipe closings        # and who is told of it
    cdef bint take(self) noexcept
    cdef void put_back(self) noexcept
    cdef int detach(self) noexcept
    cdef void finish(self, bint failed) noexcept
