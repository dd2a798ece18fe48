"""What ends a wait: the time limits of a Rio, the clock of each call, and a descriptor that wakes it.

A call has two limits: its timeout, for the whole call, and the idle time, which begins anew whenever bytes have moved.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EBADF, errno
from libc.stdint cimport INT64_MAX, int64_t

from rioecho._core.convert cimport check_source, descriptor_of, os_error, to_nanoseconds
from rioecho._core.fdio cimport FD_SOCKET, WOKEN, deadline_after, fd_ready, fd_wait, fd_wait_or_wake
from rioecho._core.posix cimport (
    F_GETFL,
    POLLIN,
    POLLNVAL,
    fcntl,
    rio_flag_mine,
    rio_monotonic_ns,
    rio_socket_limit_ns,
    rio_time_get,
    rio_time_set,
    sched_yield,
)
from rioecho._rio.channel cimport Channel
from rioecho._rio.transport cimport OWN_TIMEOUT, Transport

from rioecho.errors import Woken


cdef enum:
    BRIEFLY = 1000   # nanoseconds that a source that waits itself may wait where it should not wait


cdef str fate(const rio_call *call):
    """Say where the bytes of a call are whose time is over."""
    return "what was accepted and not sent stays buffered" if call.writing else "the bytes received are kept"


cdef class Limits(Channel):
    def __cinit__(self):
        self.timeout_ns = self.idle_ns = self.wake_fd = -1
        self.send_ns = SAME

    @property
    def timeout(self):
        """The default time limit of one call in seconds; ``None`` for no limit. It can be set.

        The ``timeout`` argument of a method takes precedence. Where the kernel's ``SO_RCVTIMEO`` and ``SO_SNDTIMEO``
        are the default, this is the former; setting it is for both directions.
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
        rio_time_set(&self.send_ns, SAME)

    @property
    def idle_timeout(self):
        """The time in seconds in which at least one byte must come, or go; ``None`` for no limit. It can be set.

        A call that waits for longer raises ``TimeoutError``, whatever its ``timeout``.
        """
        cdef int64_t ns = rio_time_get(&self.idle_ns)
        return None if ns < 0 else ns / 1e9

    @idle_timeout.setter
    def idle_timeout(self, seconds):
        cdef int64_t ns = self.idle_limit(seconds)
        rio_time_set(&self.idle_ns, ns)

    cdef int64_t idle_limit(self, object timeout) except -2:
        """Convert an idle timeout. Raises ``ValueError`` for 0, and as ``time_limit()`` does."""
        cdef int64_t ns = self.time_limit(timeout)
        if ns == 0:
            raise ValueError("idle_timeout must be None or more than 0 seconds")
        return ns

    cdef int wake_by(self, object waker) except -1:
        """Set the descriptor that wakes calls, an int or an object with ``fileno()``."""
        cdef Transport transport = self.transport
        cdef int fd = descriptor_of(waker)
        if fcntl(fd, F_GETFL) < 0:
            raise os_error(errno)
        if transport is not None and transport.untimed:
            raise ValueError("the source waits itself and has no settimeout(), so wake_fd cannot end its waits")
        self.waker = waker
        self.wake_fd = fd
        return 0

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
            self.send_ns = rio_time_get(&(<Limits>source).send_ns)
        elif hasattr(source, "gettimeout"):
            self.timeout_ns = to_nanoseconds(self.timeout_of(source))
        else:
            self.inherit_kernel_timeout()
        return 0

    cdef void inherit_kernel_timeout(self) noexcept:
        """Take over the limits that a socket has in the kernel, SO_RCVTIMEO and SO_SNDTIMEO."""
        if self.f.kind == FD_SOCKET and self.f.fd >= 0 and self.transport is None:
            self.timeout_ns = rio_socket_limit_ns(self.f.fd, False)
            self.send_ns = rio_socket_limit_ns(self.f.fd, True)

    # ---- the time limit of one call

    cdef int start(self, rio_call *call, object timeout) except -1:
        """Initialise a call from its ``timeout`` argument; ``...`` selects the timeout of the Rio."""
        call.deadline = call.idle_end = 0
        call.turns = call.waits = call.ahead = 0
        call.per_wait = call.writing = False
        call.idle = rio_time_get(&self.idle_ns)
        if timeout is not ...:
            call.timeout = to_nanoseconds(timeout)
            return 0
        call.timeout = rio_time_get(&self.timeout_ns)
        if call.timeout == ASK_CLOCK:
            call.per_wait = True
            self.ask_clock(call)
        return 0

    cdef int start_writing(self, rio_call *call, object timeout) except -1:
        """Initialise a call that writes, as ``start()`` does."""
        cdef int64_t ns
        self.start(call, timeout)
        call.writing = True
        if timeout is ...:
            ns = rio_time_get(&self.send_ns)
            if ns != SAME:
                call.timeout = ns
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

    cdef bint idled(self, rio_call *call) noexcept:
        """Report whether no byte has moved for too long. That time starts as that of ``expired()`` does.

        Asked only after an attempt that moved nothing.
        """
        if call.idle < 0 or call.timeout == 0:
            return False
        if call.idle_end == 0:
            call.idle_end = deadline_after(call.idle)
            return False
        return rio_monotonic_ns() >= call.idle_end

    cdef int64_t wait_end(self, rio_call *call) noexcept:
        """Return the time at which the next wait has to end, after ``expired()`` and ``idled()`` were asked."""
        cdef int64_t end = 0 if call.timeout == 0 else INT64_MAX if call.timeout < 0 else call.deadline
        return end if call.idle < 0 else min(end, call.idle_end)

    cdef int give_up(self, rio_call *call) except -1:
        if call.timeout == 0:
            raise BlockingIOError(EAGAIN, f"the call would block and its timeout is 0; {fate(call)}")
        raise self.timed_out(call)

    cdef object timed_out(self, rio_call *call):
        """Return the error of a call whose timeout has expired; for a file with the text that programs compare."""
        if call.idle >= 0 and call.idle_end and (call.timeout < 0 or call.idle_end < call.deadline):
            return TimeoutError(
                f"idle: no byte {'went' if call.writing else 'came'} for {call.idle / 1e9:g} s; {fate(call)}"
            )
        if not call.per_wait:
            return TimeoutError(f"timed out after {call.timeout / 1e9:g} s; {fate(call)}")
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

    cdef int raise_woken(self) except -1:
        """Raise ``Woken``, or OSError (EBADF) if the descriptor that wakes was closed."""
        cdef int err = 0
        check_source(self.waker, self.wake_fd)
        if fd_wait(self.wake_fd, POLLIN, 0, &err) & POLLNVAL:
            raise OSError(EBADF, "wake_fd was closed")
        raise Woken

    # ---- a source that waits itself

    cdef int64_t patience(self, rio_call *call) except -3:
        """Return how long an attempt of a source that waits itself may wait.

        What wakes a call cannot be waited for at the same time. So the first attempt does not wait, and later ones only
        for ``SLICE``, each after a look at the descriptor.
        """
        cdef int64_t end, limit = -1
        if call.timeout >= 0 and self.transport.untimed:
            raise ValueError("the source has no settimeout(), so a call cannot have a time limit")
        self.expired(call)   # read the clock if that has not been done
        self.idled(call)
        if call.per_wait and call.idle < 0 and self.wake_fd < 0:
            return OWN_TIMEOUT
        if call.timeout == 0:
            return 0
        end = self.wait_end(call)
        if end != INT64_MAX:
            limit = max(end - rio_monotonic_ns(), <int64_t>BRIEFLY)
        if self.wake_fd >= 0:
            if call.waits == 0:
                return BRIEFLY
            if fd_ready(self.wake_fd, POLLIN):
                self.raise_woken()
            limit = SLICE if limit < 0 else min(limit, <int64_t>SLICE)
        return limit

    cdef int poll_source(self, rio_call *call, short want, bint blocked) except -1:
        """Go on after an attempt of a source that waits itself has moved nothing; it may want to be polled.

        Not for longer than ``SLICE`` if unsent output is ``blocked``. Raises at the end of the call's time.
        """
        cdef int64_t deadline
        cdef int fd, ready, err = 0
        PyErr_CheckSignals()
        call.waits += 1
        if call.timeout == 0 or self.expired(call) or self.idled(call):
            self.give_up(call)
        if want == 0:
            with nogil:
                sched_yield()
            return 0
        fd = self.source.fileno()
        deadline = self.wait_end(call)
        if blocked:
            deadline = min(deadline, deadline_after(SLICE))
        with nogil:
            ready = fd_wait_or_wake(fd, want, self.wake_fd, deadline, &err)
        PyErr_CheckSignals()
        if ready == WOKEN and fd_wait(fd, want, 0, &err) <= 0:
            self.raise_woken()
        return 0
