"""The primitives that threads of a server wait for: a latch that opens once, a pipe that wakes, and the stop.

They are written in C so that a signal handler may use them during another use, so that a server without memory can
still be stopped (nothing here allocates), and so that a handler that raises leaves no state behind.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PY_LOCK_ACQUIRED,
    PY_LOCK_INTR,
    PyLockStatus,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
)
from libc.errno cimport errno
from libc.stdint cimport INT64_MAX, int64_t

from rioecho._core.convert cimport os_error, to_nanoseconds
from rioecho._core.fdio cimport deadline_after, milliseconds_until
from rioecho._core.posix cimport (
    POLLIN,
    RIO_FREE,
    close,
    getpid,
    poll,
    pollfd,
    read,
    rio_bool_get,
    rio_bool_set,
    rio_flag_state,
    rio_flag_take,
    rio_monotonic_ns,
    rio_pipe,
    write,
)


cdef extern from "pythread.h" nogil:
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int interruptible)


cdef enum:
    # Maximum time of one wait for a lock. A signal that is delivered to another thread does not interrupt the wait, but
    # its handler has to run in this thread.
    MAX_WAIT_US = 1_000_000


@cython.final
cdef class Latch:
    """A latch, closed at first. ``open()`` opens it permanently and releases all waiting threads."""

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError
        PyThread_acquire_lock(self.lock, NOWAIT_LOCK)

    def __dealloc__(self):
        if self.lock != NULL:
            self.open_once()
            PyThread_free_lock(self.lock)

    cdef bint open_once(self) noexcept:
        if not rio_flag_take(&self.opened):
            return False
        PyThread_release_lock(self.lock)
        return True

    def open(self):
        """Open the latch; report whether it was closed."""
        return self.open_once()

    @property
    def is_open(self):
        """Whether the latch has been opened."""
        return rio_flag_state(&self.opened) != RIO_FREE

    def wait(self, seconds=None):
        """Wait up to ``seconds`` until the latch is open; report whether it is. None means no limit.

        Signal handlers run while it waits.
        """
        cdef int64_t until = deadline_after(to_nanoseconds(seconds))
        cdef int64_t left
        cdef PyLockStatus status = PY_LOCK_ACQUIRED
        while rio_flag_state(&self.opened) == RIO_FREE:
            left = MAX_WAIT_US if until == INT64_MAX else max((until - rio_monotonic_ns()) // 1000, <int64_t>0)
            with nogil:
                status = PyThread_acquire_lock_timed(self.lock, min(left, <int64_t>MAX_WAIT_US), 1)
                if status == PY_LOCK_ACQUIRED:
                    PyThread_release_lock(self.lock)   # for the next waiting thread
            PyErr_CheckSignals()
            if status != PY_LOCK_ACQUIRED and status != PY_LOCK_INTR and left < MAX_WAIT_US:
                return False
        return True


@cython.final
cdef class WakePipe:
    """A pipe that ``wake()`` makes readable, from any thread and from a signal handler.

    With ``armed=False``, notifications are dropped until ``arm(True)``. Raises ``OSError`` if no descriptor is left.
    """

    def __cinit__(self, *, bint armed=True):
        cdef int ends[2]
        self.fd = self.writer = -1
        self.begun = True
        self.armed = armed
        if rio_pipe(ends) < 0:
            raise os_error(errno)
        self.fd, self.writer = ends[0], ends[1]

    def __dealloc__(self):
        if self.begun:
            self.close()

    cdef void notify(self) noexcept:
        with cython.critical_section(self):   # otherwise close() could free the number for an unrelated file
            if self.writer >= 0 and rio_bool_get(&self.armed):
                write(self.writer, b"w", 1)   # if the pipe is full, it is readable anyway

    def wake(self):
        """Make the pipe readable."""
        self.notify()

    def arm(self, bint wanted):
        """Accept notifications from now on if ``wanted``, otherwise drop them."""
        rio_bool_set(&self.armed, wanted)

    def close(self):
        """Close both ends. Closing again does nothing, and ``wake()`` does nothing afterwards."""
        with cython.critical_section(self):
            if self.writer >= 0:
                close(self.writer)
                close(self.fd)
            self.writer = self.fd = -1

    cdef void clear(self) noexcept:
        cdef char ignored[4096]
        while read(self.fd, ignored, sizeof(ignored)) == <ssize_t>sizeof(ignored):
            pass


@cython.final
cdef class Stop:
    """The stop of a server and its drain deadline, ``drain`` seconds after the request (None: no deadline).

    ``fd`` becomes readable at ``request()``; the accept loop and every echo wait for it.
    """

    def __cinit__(self, drain):
        self.owner = getpid()
        self.drain = to_nanoseconds(drain)
        self.pipe = WakePipe()

    @property
    def fd(self):
        """The descriptor to wait for, or -1 after ``close()``."""
        return self.pipe.fd

    def request(self):
        """Request the stop. May be called from any thread and from a signal handler; only the first call counts.

        In a forked child this does nothing: the server is the parent's.
        """
        if getpid() != self.owner:
            return
        if rio_flag_take(&self.asked):
            self.asked_at = rio_monotonic_ns()
        self.pipe.notify()

    def close(self):
        """Close the descriptors."""
        self.pipe.close()

    @property
    def is_ours(self):
        """Whether this process created the stop, rather than a parent of a forked child."""
        return getpid() == self.owner

    @property
    def requested(self):
        """Whether the stop was requested."""
        return rio_flag_state(&self.asked) != RIO_FREE

    cdef int64_t deadline(self, int64_t grace) noexcept:
        """Return the drain deadline on the monotonic clock, as if the stop were requested now if it was not before."""
        cdef int64_t at = self.asked_at if rio_flag_state(&self.asked) != RIO_FREE else 0
        if at == 0:
            at = rio_monotonic_ns()
        if self.drain < 0 or self.drain > INT64_MAX - at - grace:
            return INT64_MAX
        return at + self.drain + grace

    @property
    def is_over(self):
        """Whether the stop was requested and the drain deadline has passed."""
        return rio_flag_state(&self.asked) != RIO_FREE and rio_monotonic_ns() >= self.deadline(0)

    def time_left(self, double grace=0.0):
        """Return the seconds until the drain deadline plus ``grace``; None if there is no deadline.

        Before the request, return the whole drain timeout plus ``grace``.
        """
        cdef int64_t deadline = self.deadline(<int64_t>(grace * 1e9))
        if deadline != INT64_MAX and not self.requested:
            return self.drain / 1e9 + grace
        return None if deadline == INT64_MAX else max(deadline - rio_monotonic_ns(), <int64_t>0) / 1e9

    def pause(self, WakePipe wakes not None, double seconds, bint draining=False):
        """Wait up to ``seconds`` until ``wakes`` is readable; report whether the stop was requested.

        The request ends the wait; with ``draining``, the drain deadline does instead. Allocates nothing.
        """
        cdef pollfd fds[2]
        cdef int64_t until = deadline_after(<int64_t>(seconds * 1e9))
        if draining:
            until = min(until, self.deadline(0))
        fds[0].fd, fds[0].events, fds[0].revents = wakes.fd, POLLIN, 0
        fds[1].fd, fds[1].events, fds[1].revents = -1 if draining else self.pipe.fd, POLLIN, 0
        with nogil:
            poll(fds, 2, milliseconds_until(until))
        if fds[0].revents:
            wakes.clear()
        return rio_flag_state(&self.asked) != RIO_FREE
