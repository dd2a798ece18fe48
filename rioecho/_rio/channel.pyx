"""The state of a Rio: a descriptor, a buffer and a flag for each direction, and the time limit of one call.

State is checked only while its flag is held. A check made before taking the flag is stale as soon as Python code has
run: a signal handler, a ``fileno()`` or ``gettimeout()`` written in Python, or another thread.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN

from rioecho._core.buffer cimport buffer_free, buffer_init
from rioecho._core.convert cimport check_source, descriptor_of, os_error, to_nanoseconds
from rioecho._core.fdio cimport deadline_after, fd_open
from rioecho._core.flag cimport flags_link, flags_unlink
from rioecho._core.posix cimport (
    O_RDONLY,
    O_WRONLY,
    RIO_CLOSED,
    rio_assert,
    rio_flag_closed,
    rio_flag_mine,
    rio_flag_put,
    rio_flag_take,
    rio_monotonic_ns,
    rio_time_get,
)

from rioecho.errors import ConcurrentCall


cdef class Channel:
    def __cinit__(self):
        self.flags.flags[:] = [&self.reading, &self.writing, &self.sending]
        self.flags.orphaned = RIO_FREE   # the other thread's call was waiting or running Python: the state is valid
        flags_link(&self.flags)

    def __dealloc__(self):
        flags_unlink(&self.flags)
        buffer_free(&self.inp)
        buffer_free(&self.out)
        buffer_free(&self.aside)

    cdef int open(self, object source, size_t bufsize, size_t line_limit) except -1:
        """Set the descriptor, from an int or an object that has one. Allocates and reads nothing."""
        cdef int err
        buffer_init(&self.inp, bufsize)
        buffer_init(&self.out, bufsize)
        buffer_init(&self.aside, bufsize)
        self.line_limit = line_limit
        self.own = BORROWED
        err = fd_open(&self.f, descriptor_of(source))
        if err:
            raise os_error(err)
        self.can_read = self.f.access != O_WRONLY
        self.can_write = self.f.access != O_RDONLY
        self.source = source
        return 0

    # ---- the two sides

    cdef int refuse(self, rio_flag *side) except -1:
        """Raise the reason why a side could not be entered."""
        if rio_flag_closed(side):
            raise ValueError("I/O operation on a closed or detached Rio")
        name = "reading" if side == &self.reading else "writing"
        raise ConcurrentCall(
            f"another call is {name} on this Rio, in another thread or under this signal handler: "
            "one reader and one writer may work at the same time"
        )

    cdef bint enter_both(self) except -1:
        """Begin a call of both sides, or raise ``ConcurrentCall``. Returns False if the Rio is closed."""
        if not rio_flag_take(&self.reading):
            if rio_flag_closed(&self.reading):
                return False
            self.refuse(&self.reading)
        if not rio_flag_take(&self.writing):
            leave_reading(self)
            self.refuse(&self.writing)
        return True

    cdef object forget(self):
        """Close both sides, which the caller has entered. Returns the source, which the caller then owns."""
        cdef object source, _clock, _transport, _error   # references are dropped at the end, when the state is complete
        rio_assert(rio_flag_mine(&self.reading))
        rio_assert(rio_flag_mine(&self.writing))
        rio_assert(not rio_flag_mine(&self.sending))
        rio_flag_put(&self.writing, RIO_CLOSED)
        rio_flag_put(&self.reading, RIO_CLOSED)
        with cython.critical_section(self):   # a property may be about to take a reference
            source, _clock, _transport, _error = self.source, self.clock, self.transport, self.out_error
            self.source = self.clock = self.transport = self.out_error = None
        buffer_free(&self.inp)
        buffer_free(&self.out)
        buffer_free(&self.aside)
        return source

    # ---- the time limit of one call

    cdef int start(self, rio_call *call, object timeout) except -1:
        """Initialise a call from its ``timeout`` argument; ``...`` selects the timeout of the Rio."""
        call.deadline = 0
        call.turns = 0
        call.per_wait = False
        if timeout is not ...:
            call.timeout = to_nanoseconds(timeout)
            return 0
        call.timeout = rio_time_get(&self.timeout_ns)
        if call.timeout == ASK_CLOCK:
            call.per_wait = True
            call.timeout = to_nanoseconds(self.timeout_of(self.clock))
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
        if call.per_wait:
            raise TimeoutError("timed out")   # the text of the socket module, which programs compare
        raise TimeoutError(f"timed out after {call.timeout / 1e9:g} s; buffered bytes are kept")

    cdef int turn(self, rio_call *call) except -1:
        """Prepare for a system call that moves data: run signal handlers, check the source and the timeout."""
        if call.turns:
            PyErr_CheckSignals()   # after EINTR, and so that Ctrl-C works even if the peer is never slow
        check_source(self.source, self.f.fd)
        if self.expired(call):
            self.give_up(call)
        call.turns += 1
        return 0

    cdef int before_wait(self) except -1:
        """Run the handlers of signals that arrived before the wait, which they would not interrupt."""
        PyErr_CheckSignals()
        return check_source(self.source, self.f.fd)
