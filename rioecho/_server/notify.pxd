# What threads of a server wait for; see notify.pyx.

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport int64_t

from rioecho._core.posix cimport rio_flag


cdef class Latch:
    cdef PyThread_type_lock lock   # held until the latch is opened
    cdef rio_flag opened
    cdef bint open_once(self) noexcept


cdef class WakePipe:
    cdef readonly int fd           # its reading end
    cdef int writer
    cdef int armed
    cdef void notify(self) noexcept
    cdef void clear(self) noexcept


cdef class Stop:
    cdef WakePipe pipe
    cdef rio_flag asked            # taken from the first request on
    cdef int owner                 # the process that made it
    cdef int64_t asked_at          # nanoseconds of the monotonic clock
    cdef int64_t drain             # nanoseconds, or -1: no limit
    cdef int64_t deadline(self, int64_t grace) noexcept
