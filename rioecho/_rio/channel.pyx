"""The state of a Rio: a descriptor, a buffer and a flag for each direction.

State is checked only while its flag is held. A check made before taking the flag is stale as soon as Python code has
run: a signal handler, a ``fileno()`` or ``gettimeout()`` written in Python, or another thread.
"""

from _thread import allocate_lock

cimport cython
from cpython.exc cimport PyErr_CheckSignals

from rioecho._core.buffer cimport buffer_free, buffer_init
from rioecho._core.convert cimport check_source, open_stream
from rioecho._core.fdio cimport FD_SOCKET, fd_has_position, fd_is_stream
from rioecho._core.posix cimport (
    O_RDONLY,
    O_WRONLY,
    RIO_CLOSED,
    RIO_FREE,
    rio_assert,
    rio_bool_set,
    rio_flag_closed,
    rio_flag_fence,
    rio_flag_mine,
    rio_flag_put,
    rio_flag_state,
    rio_flag_take,
    sched_yield,
)
from rioecho._rio.input cimport leave, let_others_in
from rioecho._rio.transport cimport Transport

from rioecho.errors import ConcurrentCall


cdef object LOOK_AGAIN = 0.05   # seconds after which a call that waits for its turn looks for itself


cdef class Channel:
    def __cinit__(self):
        self.flags.flags[1] = &self.writing
        self.flags.flags[2] = &self.sending
        self.flags.flags[3] = &self.lent

    def __dealloc__(self):
        buffer_free(&self.out)
        buffer_free(&self.aside)

    cdef int open(self, object source, int fd, size_t bufsize, size_t line_limit) except -1:
        """Set the descriptor and the object that has it. Allocates and reads nothing.

        ``fd`` is -1 if ``transport``, which has been set before, does without it, and for a closed socket, on which
        every system call fails with EBADF.
        """
        buffer_init(&self.inp, bufsize)
        buffer_init(&self.out, bufsize)
        buffer_init(&self.aside, bufsize)
        self.line_limit = line_limit
        self.own = BORROWED
        self.source = source
        if fd < 0:
            self.f.fd = -1
            self.f.kind = FD_SOCKET
            self.can_read = self.can_write = self.takes_output = True
            return 0
        if self.transport is not None and self.transport.is_stream:
            fd_is_stream(&self.f, fd)
        else:
            open_stream(fd, &self.f)
        if fd_has_position(&self.f):
            # A file that is open for both has one position: output is written at once, before a read moves it.
            buffer_init(&self.out, 0)
        self.can_read = self.f.access != O_WRONLY
        self.can_write = self.takes_output = self.f.access != O_RDONLY
        return 0

    # ---- the two sides

    cdef int refuse(self, rio_flag *side) except -1:
        """Raise the reason why a side could not be entered."""
        if rio_flag_closed(side):
            # A file of makefile() says what the standard library's says, which programs compare.
            raise ValueError(
                "I/O operation on closed file." if self.own == AS_FILE else "I/O operation on a closed or detached Rio"
            )
        name = "reading" if side == &self.reading else "writing"
        raise ConcurrentCall(
            f"another call is {name} on this Rio, in another thread or under this signal handler: "
            "one reader and one writer may work at the same time"
        )

    cdef bint await_return(self) except -1:
        """Enter the reading side if a write in another thread has borrowed it; see ``borrow_reading()``."""
        cdef bint lent
        while not rio_flag_closed(&self.reading) and not rio_flag_mine(&self.reading):
            lent = rio_flag_state(&self.lent) != RIO_FREE
            if rio_flag_take(&self.reading):
                return True
            if not lent:
                return False
            PyErr_CheckSignals()
            with nogil:
                sched_yield()
        return False

    cdef int wait_turn(self, rio_flag *side) except -1:
        """Begin a call of a side that could not be entered at once, or raise the reason."""
        if not self.take_in_turn(side):
            self.refuse(side)
        return 0

    cdef bint take_in_turn(self, rio_flag *side) except -1:
        """Begin a call of one side. Returns False if the Rio is closed.

        If another call is in progress, raises ``ConcurrentCall``, or for a file of makefile() waits until it has ended:
        the calls of several threads take turns, as on the standard library's file, which has a lock. Signal handlers
        run in the meantime. A call that interrupted the other one, in the same thread, cannot wait for it, nor one that
        interrupted this thread's attempt inside OpenSSL, for whose end the other one may be waiting.

        The other call wakes this one when it has waited itself. With the GIL that is enough, and costs a call that
        finds its bytes in the buffer nothing: it keeps the GIL until it leaves. Only if Python code runs in it, a
        finalizer for example, this one finds out by itself.
        """
        gate = None
        while not rio_flag_take(side):
            if rio_flag_closed(side):
                return False
            if side == &self.reading and self.resume(False):
                return True
            if side == &self.reading and self.await_return():
                return True
            if self.own != AS_FILE or rio_flag_mine(side) or self.stands_in_way():
                self.refuse(side)
            if gate is None:   # and then look again: the holder may have left before it could see this one
                gate = self.new_gate()
            elif gate.acquire(timeout=LOOK_AGAIN):
                gate = None
        return True

    cdef bint stands_in_way(self) noexcept:
        cdef Transport transport
        with cython.critical_section(self):   # another thread may be closing
            transport = self.transport
        return transport is not None and transport.stands_in_way()

    cdef object new_gate(self):
        """Return a locked lock, which ``call_waiting()`` releases."""
        gate = allocate_lock()
        gate.acquire()
        with cython.critical_section(self):
            if self.waiting is None:
                self.waiting = []
            self.waiting.append(gate)
            rio_bool_set(&self.crowded, True)
        rio_flag_fence()
        return gate

    cdef void call_waiting(self) noexcept:
        """Wake the threads that wait for their turn, all of them: each looks whether it is the turn of its side."""
        cdef list gates
        with cython.critical_section(self):
            gates, self.waiting = self.waiting, None
            rio_bool_set(&self.crowded, False)
        for gate in gates or ():
            gate.release()

    cdef bint enter_both(self) except -1:
        """Begin a call of both sides. Returns False if the Rio is closed.

        If another call is in progress, raises ``ConcurrentCall``, or for a file waits until it has ended. While it
        waits for one side it does not hold the other one, which the awaited call may need.
        """
        cdef rio_flag *first = &self.reading
        cdef rio_flag *second = &self.writing
        while self.take_in_turn(first):
            if rio_flag_take(second):
                return True
            leave(self, first)
            first, second = second, first
        return False

    cdef int check_open(self) except -1:
        if rio_flag_closed(&self.reading):
            self.refuse(&self.reading)
        if self.raw_closed():
            raise ValueError("I/O operation on a file whose raw stream was closed")
        return 0

    cdef bint raw_closed(self) except -1:
        """Report whether this is a file whose ``raw`` has been closed."""
        with cython.critical_section(self):
            raw = self.raw
        return raw is not None and raw.closed

    cdef object forget(self):
        """Close both sides, which the caller has entered. Returns the source, which the caller then owns."""
        # References are dropped at the end, when the state is complete.
        cdef object source, _clock, _transport, _error, _waker
        rio_assert(rio_flag_mine(&self.reading))
        rio_assert(rio_flag_mine(&self.writing))
        rio_assert(not rio_flag_mine(&self.sending))
        self.end_frames(None, False)
        rio_flag_put(&self.writing, RIO_CLOSED)
        rio_flag_put(&self.reading, RIO_CLOSED)
        with cython.critical_section(self):   # a property may be about to take a reference
            source, _clock, _transport, _error = self.source, self.clock, self.transport, self.out_error
            _waker = self.waker
            self.source = self.clock = self.transport = self.out_error = self.waker = None
        buffer_free(&self.inp)
        buffer_free(&self.out)
        buffer_free(&self.aside)
        let_others_in(self)
        return source

    # ---- the source

    cdef int check_owner(self) except -1:
        """Raise OSError (EBADF) if the descriptor is no longer the source's."""
        raw = self.raw
        if raw is not None and self.f.fd >= 0:
            # The same answer from the socket, in C, as raw.fileno(), in Python, which takes three times as long.
            sock = raw._sock   # None if `raw` has been closed
            if sock is not None and sock.fileno() == self.f.fd:
                return 0
        return check_source(self.source, self.f.fd)
