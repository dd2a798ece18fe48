# Calls in new threads; see tasks.pyx.

from libc.stdint cimport int64_t, uint64_t

from rioecho._core.posix cimport rio_flag
from rioecho._server.notify cimport Latch


cdef class WaitGroup:
    cdef uint64_t running   # number of running tasks, plus 1 until close()
    cdef rio_flag closed
    cdef Latch empty
    cdef void add(self, int64_t n) noexcept
