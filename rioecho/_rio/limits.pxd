# How long one call may wait; see _rio/limits.pyx.

from libc.stdint cimport int64_t

from rioecho._rio.channel cimport Channel


cdef enum:
    SLICE = 20_000_000   # nanoseconds that a source may wait to read while it does not take unsent output
    SAME = -3   # as the timeout of a write: that of the Rio
    ASK_CLOCK = -2   # in place of a timeout: call clock.gettimeout() at the beginning of each call


cdef struct rio_call:
    # The time limit of one call. The clock is first read when the call makes its first system call.
    int64_t timeout    # nanoseconds; 0: do not block, -1: wait without limit
    bint per_wait      # the timeout is the socket's and for each wait, as in socket.makefile(), not for the whole call
    int64_t deadline   # on the monotonic clock; 0: the clock has not been read yet
    int64_t idle       # nanoseconds in which a byte must move; -1: no limit
    int64_t idle_end   # when they are over, on the monotonic clock; 0: they have not begun
    bint writing       # whether it is bytes that go which end an idle time
    size_t ahead       # number of bytes that a write may still read while it waits
    size_t turns       # number of system calls made so far
    size_t waits       # number of waits since bytes were moved


cdef class Limits(Channel):
    cdef int64_t timeout_ns  # as in rio_call, or ASK_CLOCK
    cdef int64_t send_ns     # of a socket whose kernel limits differ: that of a write; else SAME
    cdef int64_t idle_ns     # as in rio_call
    cdef int wake_fd         # a descriptor that is readable when no call may wait, or -1

    cdef int wake_by(self, object waker) except -1
    cdef int inherit_timeout(self, object source) except -1
    cdef void inherit_kernel_timeout(self) noexcept
    cdef int64_t time_limit(self, object timeout) except -2
    cdef int64_t idle_limit(self, object timeout) except -2
    cdef int start(self, rio_call *call, object timeout) except -1
    cdef int start_writing(self, rio_call *call, object timeout) except -1
    cdef object timeout_of(self, object sock)
    cdef bint expired(self, rio_call *call) noexcept
    cdef bint idled(self, rio_call *call) noexcept
    cdef int64_t wait_end(self, rio_call *call) noexcept
    cdef int give_up(self, rio_call *call) except -1
    cdef object timed_out(self, rio_call *call)
    cdef int turn(self, rio_call *call) except -1
    cdef int ask_clock(self, rio_call *call) except -1
    cdef int before_wait(self) except -1
    cdef int raise_woken(self) except -1
    cdef int64_t patience(self, rio_call *call) except -3
    cdef int poll_source(self, rio_call *call, short want, bint blocked) except -1


cdef inline void begin_wait(rio_call *call) noexcept:
    """Begin a new idle time, and a timeout that is for each wait. Called where bytes have been moved."""
    call.waits = 0
    call.idle_end = 0
    if call.per_wait:
        call.deadline = 0


cdef inline bint waits_freely(Limits self, const rio_call *call) noexcept:
    """Report whether nothing ends a wait but bytes, so that the system call that moves them can itself block."""
    return call.timeout < 0 and call.idle < 0 and self.wake_fd < 0
