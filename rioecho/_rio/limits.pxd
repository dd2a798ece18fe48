# How long one call may wait; see _rio/limits.pyx.

from libc.stdint cimport int64_t

from rioecho._rio.channel cimport Channel


cdef enum:
    SLICE = 20_000_000   # nanoseconds that a source may wait to read while it does not take unsent output
    ASK_CLOCK = -2   # in place of a timeout: call clock.gettimeout() at the beginning of each call


cdef struct rio_call:
    # The time limit of one call. The clock is first read when the call makes its first system call.
    int64_t timeout    # nanoseconds; 0: do not block, -1: wait without limit
    bint per_wait      # the timeout is the socket's and for each wait, as in socket.makefile(), not for the whole call
    int64_t deadline   # on the monotonic clock; 0: the clock has not been read yet
    size_t turns       # number of system calls made so far
    size_t waits       # number of waits since bytes were moved


cdef class Limits(Channel):
    cdef int64_t timeout_ns  # as in rio_call, or ASK_CLOCK

    cdef int inherit_timeout(self, object source) except -1
    cdef int64_t time_limit(self, object timeout) except -2
    cdef int start(self, rio_call *call, object timeout) except -1
    cdef object timeout_of(self, object sock)
    cdef bint expired(self, rio_call *call) noexcept
    cdef int give_up(self, rio_call *call) except -1
    cdef object timed_out(self, rio_call *call)
    cdef int turn(self, rio_call *call) except -1
    cdef int ask_clock(self, rio_call *call) except -1
    cdef int before_wait(self) except -1
    cdef int64_t patience(self, rio_call *call) except -3
    cdef int poll_source(self, rio_call *call, short want, bint blocked) except -1


cdef inline void begin_wait(rio_call *call) noexcept:
    """Let the next wait have a timeout of its own, if it is for each wait. Called where bytes have been moved."""
    call.waits = 0
    if call.per_wait:
        call.deadline = 0
