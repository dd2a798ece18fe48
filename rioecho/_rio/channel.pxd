# The state of a Rio and the stage between the descriptor and the framing; see _rio/channel.pyx.

from libc.stdint cimport int64_t

from rioecho._core.buffer cimport rio_buffer
from rioecho._core.fdio cimport rio_fd
from rioecho._core.posix cimport RIO_FREE, rio_flag_put, rio_flag_take, sigset_t
from rioecho._rio.tls cimport Tls


cdef enum ownership:
    BORROWED   # closing the Rio leaves the descriptor open
    OWNED      # closing the Rio closes it; dropping the Rio warns and closes it
    AS_FILE    # as the standard library's socket files: dropping the Rio flushes and closes it


cdef struct rio_call:
    # One call's time. The clock is not read before the call has to make a system call.
    int64_t timeout    # nanoseconds; 0 never waits, -1 waits for ever
    int64_t deadline   # on the monotonic clock; 0: not started
    size_t turns       # system calls made so far


cdef class Channel:
    cdef rio_fd f
    cdef int reading         # a flag for each side, taken for a call: RIO_FREE, RIO_TAKEN, RIO_CLOSED
    cdef int writing
    cdef int sending         # taken while `out` is changed or sent from, whichever side does it
    cdef unsigned long sender   # the thread that took it
    cdef bint can_read
    cdef bint can_write
    cdef ownership own
    cdef rio_buffer inp
    cdef rio_buffer out
    cdef size_t line_limit
    cdef int64_t timeout_ns  # as in rio_call
    cdef object source       # the descriptor as it was passed; kept alive
    cdef object clock        # asked for gettimeout() at every call instead of `timeout_ns`, if not None
    cdef Tls tls             # the transport, if the source is a TLS socket
    cdef object out_error    # an error in sending that a read met, for the next write or flush
    cdef bint reset          # that error was a reset, which the next end of the input stands for
    cdef object __weakref__

    cdef int open(self, object source, size_t bufsize, size_t line_limit) except -1
    cdef int refuse(self, int *side) except -1
    cdef int start(self, rio_call *call, object timeout) except -1
    cdef object timeout_of(self, object sock)
    cdef bint expired(self, rio_call *call) noexcept
    cdef int give_up(self, rio_call *call) except -1
    cdef int turn(self, rio_call *call) except -1
    cdef int before_wait(self) except -1
    cdef int wait_for(self, rio_call *call, short want, bint tied) except -1

    cdef ssize_t recv_some(self, rio_call *call, char *data, size_t n) except -1
    cdef ssize_t fill_once(self, rio_call *call, size_t need) except -1
    cdef int booked(self) except -1

    cdef bint unsent(self) noexcept
    cdef short tied_flush(self) except -1

    cdef int raise_kept(self) except -1
    cdef int lock_out(self) except -1
    cdef void unlock_out(self) noexcept
    cdef ssize_t send_once(self, rio_call *call, const char *data, size_t n, int *err, short *want) except -2
    cdef int after_send(self, rio_call *call, int err, short want) except -1
    cdef int send_all(self, rio_call *call, const char *data, size_t n, size_t *sent) except -1
    cdef int push(self, rio_call *call, size_t keep) except -1
    cdef int hold_signals(self, sigset_t *before) except -1
    cdef void release_signals(self, const sigset_t *before) noexcept


cdef inline int enter(Channel self, int *side) except -1:
    """Begin a call of one side, or raise: closed, or another call under way."""
    if not rio_flag_take(side):
        return self.refuse(side)
    return 0


cdef inline void leave(int *side) noexcept:
    rio_flag_put(side, RIO_FREE)
