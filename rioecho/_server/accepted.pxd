# A connection between accept(2) and its engine; see accepted.pyx.

from libc.stdint cimport uint64_t

from rioecho._core.counts cimport Counts
from rioecho._core.posix cimport rio_flag, sockaddr_storage
from rioecho._server.hosts cimport HostTable, host_t
from rioecho._server.notify cimport WakePipe


cdef class AcceptCounts:
    cdef uint64_t n_accepted
    cdef uint64_t n_refused


cdef class Accepted:
    cdef bint begun               # whether the next fields are set: an object whose arguments are refused is all zeros
    cdef int fd                   # -1 once closed or detached
    cdef public bint announced    # whether "Connected to" was logged
    cdef rio_flag owner           # free: the acceptor; taken: an engine
    cdef sockaddr_storage address
    cdef AcceptCounts tally
    cdef HostTable hosts          # where the connection is counted for its address, or None
    cdef host_t *host             # to be released there, or NULL
    cdef Counts counts            # where the close is counted, or None
    cdef WakePipe closings        # notified of the close
    cdef bint take(self) noexcept
    cdef void put_back(self) noexcept
    cdef int detach(self) noexcept
    cdef host_t *detach_host(self) noexcept
    cdef void finish(self, bint failed) noexcept
