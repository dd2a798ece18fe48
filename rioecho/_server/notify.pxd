# The primitives that threads of a server wait for; see notify.pyx.

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport int64_t

from rioecho._core.posix cimport rio_flag


cdef class Latch:
    cdef PyThread_type_lock lock   # held until the latch is opened
    cdef rio_flag opened
    cdef bint open_once(self) noexcept


cdef class WakePipe:
    cdef bint begun                # whether the next fields are set: an object whose arguments are refused is all zeros
    cdef readonly int fd           # the reading end, or -1
    cdef int writer                # the writing end, or -1
    cdef int armed                 # whether notifications are written
    cdef void notify(self) noexcept
    cdef void clear(self) noexcept


cdef class Stop:
    cdef WakePipe pipe
    cdef rio_flag asked            # taken by the first request
    cdef int owner                 # ID of the process that created it
    cdef int64_t asked_at          # time of the request, nanoseconds of the monotonic clock
    cdef int64_t drain             # drain timeout in nanoseconds, or -1: no limit
    cdef int64_t deadline(self, int64_t grace) noexcept
