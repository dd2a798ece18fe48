"""How long one call may wait: the time limits of a Rio, and the clock of each call.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN
from libc.stdint cimport INT64_MAX, int64_t

from rioecho._core.convert cimport to_nanoseconds
from rioecho._core.fdio cimport deadline_after, fd_wait
from rioecho._core.posix cimport rio_flag_mine, rio_monotonic_ns, rio_time_get, rio_time_set, sched_yield
from rioecho._rio.channel cimport Channel
from rioecho._rio.transport cimport OWN_TIMEOUT, Transport


cdef class Limits(Channel):
    @property
    def timeout(self):
        """The default time limit of one call in seconds; ``None`` for no limit. It can be set.

        The ``timeout`` argument of a method takes precedence.
        """
        cdef int64_t ns = rio_time_get(&self.timeout_ns)
        cdef Transport transport
        if ns == ASK_CLOCK:
            with cython.critical_section(self):   # another thread may be closing
                clock, transport = self.clock, self.transport
            if clock is not None:
                return clock.gettimeout() if transport is None else transport.timeout()
        return None if ns < 0 else ns / 1e9

    @timeout.setter
    def timeout(self, seconds):
        cdef int64_t ns = self.time_limit(seconds)
        rio_time_set(&self.timeout_ns, ns)

    cdef int64_t time_limit(self, object timeout) except -2:
        """Convert a timeout. Raises ``ValueError`` if the source has none that could be set."""
        cdef int64_t ns = to_nanoseconds(timeout)
        cdef Transport transport
        with cython.critical_section(self):   # another thread may be closing
            transport = self.transport
        if ns >= 0 and transport is not None and transport.untimed:
            raise ValueError("the source has no settimeout(), so a call cannot have a time limit")
        return ns

    cdef int inherit_timeout(self, object source) except -1:
        """Take over the time limit of a socket, or of another Rio."""
        if isinstance(source, Limits):
            self.timeout_ns = to_nanoseconds(source.timeout)
        elif hasattr(source, "gettimeout"):
            self.timeout_ns = to_nanoseconds(self.timeout_of(source))
        return 0

    # ---- the time limit of one call

    cdef int start(self, rio_call *call, object timeout) except -1:
        """Initialise a call from its ``timeout`` argument; ``...`` selects the timeout of the Rio."""
        call.deadline = 0
        call.turns = call.waits = 0
        call.per_wait = False
        if timeout is not ...:
            call.timeout = to_nanoseconds(timeout)
            return 0
        call.timeout = rio_time_get(&self.timeout_ns)
        if call.timeout == ASK_CLOCK:
            call.per_wait = True
            self.ask_clock(call)
        return 0

    cdef object timeout_of(self, object sock):
        """Return a socket's own timeout. A TLS socket's ``gettimeout()`` is 0 while an operation is in progress."""
        return sock.gettimeout() if self.transport is None else self.transport.timeout()

    cdef bint expired(self, rio_call *call) noexcept:
        """Report whether the call's timeout has expired. The time starts with the first call of this function."""
        if call.timeout <= 0:
            return False
        if call.deadline == 0:
            call.deadline = deadline_after(call.timeout)
            return False
        return rio_monotonic_ns() >= call.deadline

    cdef int give_up(self, rio_call *call) except -1:
        if call.timeout == 0:
            raise BlockingIOError(EAGAIN, "the call would block and its timeout is 0; buffered bytes are kept")
        raise self.timed_out(call)

    cdef object timed_out(self, rio_call *call):
        """Return the error of a call whose timeout has expired; for a file with the text that programs compare."""
        if not call.per_wait:
            return TimeoutError(f"timed out after {call.timeout / 1e9:g} s; buffered bytes are kept")
        if self.transport is None:
            return TimeoutError("timed out")
        return TimeoutError(self.transport.timed_out(rio_flag_mine(&self.writing)))

    cdef int turn(self, rio_call *call) except -1:
        """Prepare for a system call that moves data: run signal handlers, check the source and the timeout."""
        if call.turns:
            if call.per_wait and call.deadline == 0 and self.transport is None:
                self.ask_clock(call)   # a new wait, for which settimeout() counts again
            PyErr_CheckSignals()   # after EINTR, and so that Ctrl-C works even if the peer is never slow
        self.check_owner()
        if not (call.per_wait and call.deadline == 0) and self.expired(call):   # else the time begins with the wait
            self.give_up(call)
        call.turns += 1
        return 0

    cdef int ask_clock(self, rio_call *call) except -1:
        """Store the timeout that the socket has now."""
        call.timeout = to_nanoseconds(self.timeout_of(self.clock))
        return 0

    cdef int before_wait(self) except -1:
        """Run the handlers of signals that arrived before the wait, which they would not interrupt."""
        PyErr_CheckSignals()
        return self.check_owner()

    # ---- a source that waits itself

    cdef int64_t patience(self, rio_call *call) except -3:
        """Return how long an attempt of a source that waits itself may wait."""
        if call.timeout >= 0 and self.transport.untimed:
            raise ValueError("the source has no settimeout(), so a call cannot have a time limit")
        self.expired(call)   # read the clock if that has not been done
        if call.per_wait:
            return OWN_TIMEOUT
        if call.timeout <= 0:
            return call.timeout
        return max(call.deadline - rio_monotonic_ns(), <int64_t>1000)

    cdef int poll_source(self, rio_call *call, short want, bint blocked) except -1:
        """Go on after an attempt of a source that waits itself has moved nothing; it may want to be polled.

        Not for longer than ``SLICE`` if unsent output is ``blocked``. Raises at the end of the call's time.
        """
        cdef int64_t deadline = INT64_MAX
        cdef int fd, err = 0
        PyErr_CheckSignals()
        if call.timeout == 0 or self.expired(call):
            self.give_up(call)
        if want == 0:
            with nogil:
                sched_yield()
            return 0
        fd = self.source.fileno()
        if call.timeout > 0:
            deadline = call.deadline
        if blocked:
            deadline = min(deadline, deadline_after(SLICE))
        with nogil:
            fd_wait(fd, want, deadline, &err)
        PyErr_CheckSignals()
        return 0
