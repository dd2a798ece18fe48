"""A descriptor with a buffer for each direction: reads and writes under a deadline, and the tie between the two.

Here, and only here, a Rio waits. Around every wait the same order holds: try without waiting, with the GIL (there is
data more often than not, and giving the GIL up beside a busy thread costs milliseconds); if there is nothing, send
what output is held, as far as the peer takes it; then give the GIL up and wait for whichever direction moves first.
After every wait Python's signal handlers have run and the source is looked at again, for both may have closed it.

No byte is held in a local variable while anything can raise: it is in a buffer, in the caller's memory, or not read.
"""

from io import UnsupportedOperation

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport EAGAIN, ECONNRESET, EINTR
from libc.stdint cimport INT64_MAX

from rioecho._core.buffer cimport (
    buffer_added,
    buffer_consume,
    buffer_free,
    buffer_held,
    buffer_init,
    buffer_reserve,
    buffer_room,
    buffer_start,
    buffer_trim,
)
from rioecho._core.convert cimport check_source, descriptor_of, os_error, to_nanoseconds
from rioecho._core.fdio cimport (
    FD_FILE,
    deadline_after,
    fd_never_waits,
    fd_open,
    fd_read,
    fd_read_waiting,
    fd_try_write,
    fd_wait,
    fd_write,
    would_block,
)
from rioecho._core.posix cimport (
    O_RDONLY,
    O_WRONLY,
    POLLIN,
    POLLOUT,
    RIO_CLOSED,
    RIO_FREE,
    rio_flag_put,
    rio_flag_state,
    rio_flag_take,
    rio_monotonic_ns,
    rio_signals_hold,
    rio_signals_release,
    sched_yield,
    sigset_t,
)

from rioecho._rio.tls cimport RECORD

from rioecho.errors import ConcurrentCall


cdef class Channel:
    cdef int open(self, object source, size_t bufsize, size_t line_limit) except -1:
        """Take a descriptor, or an object that has one. Nothing is allocated and nothing is read."""
        cdef int err
        buffer_init(&self.inp, bufsize)
        buffer_init(&self.out, bufsize)
        self.line_limit = line_limit
        self.own = BORROWED
        err = fd_open(&self.f, descriptor_of(source))
        if err:
            raise os_error(err)
        self.can_read = self.f.access != O_WRONLY
        self.can_write = self.f.access != O_RDONLY
        self.source = source
        return 0

    def __dealloc__(self):
        buffer_free(&self.inp)
        buffer_free(&self.out)

    cdef int refuse(self, int *side) except -1:
        """Say why a side could not be entered."""
        if rio_flag_state(side) == RIO_CLOSED:
            raise ValueError("I/O operation on a closed or detached Rio")
        name = "reading" if side == &self.reading else "writing"
        raise ConcurrentCall(
            f"another call is {name} on this Rio, in another thread or under this signal handler: "
            "one reader and one writer may work at the same time"
        )

    # ---- one call's time

    cdef int start(self, rio_call *call, object timeout) except -1:
        """Fill in a call's time from its `timeout` argument; ... stands for the Rio's own."""
        call.deadline = 0
        call.turns = 0
        if timeout is not ...:
            call.timeout = to_nanoseconds(timeout)
        elif self.clock is not None:
            call.timeout = to_nanoseconds(self.timeout_of(self.clock))
        else:
            call.timeout = self.timeout_ns
        return 0

    cdef object timeout_of(self, object sock):
        """A socket's own timeout; a TLS socket's is another one for the moment of each call."""
        return sock.gettimeout() if self.tls is None else self.tls.timeout()

    cdef bint expired(self, rio_call *call) noexcept:
        """Start the call's time at its first system call; afterwards, is it over?"""
        if call.timeout <= 0:
            return False
        if call.deadline == 0:
            call.deadline = deadline_after(call.timeout)
            return False
        return rio_monotonic_ns() >= call.deadline

    cdef int give_up(self, rio_call *call) except -1:
        if call.timeout == 0:
            raise BlockingIOError(EAGAIN, "the call would have to wait, and its timeout is 0; what is held is kept")
        raise TimeoutError(f"timed out after {call.timeout / 1e9:g} s; what is held is kept")

    cdef int turn(self, rio_call *call) except -1:
        """Before every system call that moves data, the first and each repetition."""
        if call.turns:
            PyErr_CheckSignals()   # after EINTR; and a peer that never lets us wait must not lock out Ctrl-C
        check_source(self.source, self.f.fd)
        if self.expired(call):
            self.give_up(call)
        call.turns += 1
        return 0

    cdef int before_wait(self) except -1:
        """A signal that comes from here on interrupts the wait; one that came before would not."""
        PyErr_CheckSignals()
        return check_source(self.source, self.f.fd)

    cdef int wait_for(self, rio_call *call, short want, bint tied) except -1:
        """Wait for `want`; if tied, send held output meanwhile as far as the peer takes it."""
        cdef int ready, err = 0
        cdef short events
        cdef int64_t deadline
        self.expired(call)
        deadline = 0 if call.timeout == 0 else INT64_MAX if call.timeout < 0 else call.deadline
        while True:
            events = want
            if tied:
                events |= self.tied_flush()
            self.before_wait()
            with nogil:
                ready = fd_wait(self.f.fd, events, deadline, &err)
            if ready < 0 and err != EINTR:
                raise os_error(err)
            PyErr_CheckSignals()
            check_source(self.source, self.f.fd)
            if ready == 0:
                self.give_up(call)
            if ready > 0 and (ready & ~POLLOUT or want & POLLOUT):
                return 0

    # ---- reading

    cdef ssize_t recv_some(self, rio_call *call, char *data, size_t n) except -1:
        """One read that gets something: 1 to n bytes, or 0 at the end of the input. Waits as long as the call may."""
        cdef ssize_t got = 0
        cdef int err = 0
        cdef short want = POLLIN
        cdef bint ready = self.f.kind == FD_FILE
        if not self.can_read:
            raise UnsupportedOperation("this Rio is not readable: its descriptor is open for writing only")
        while True:
            self.turn(call)
            if self.tls is not None:
                got = self.tls.recv(data, n, &want)
                err = EAGAIN
            elif fd_never_waits(&self.f):
                got = fd_read(&self.f, data, n, &err)
            elif ready:
                with nogil:
                    got = fd_read_waiting(&self.f, data, n, &err)
            else:
                got = -1   # a blocking descriptor that is no socket is read only once poll(2) has seen data
                err = EAGAIN
            if got < 0 and would_block(err) and call.timeout < 0 and self.tls is None:
                self.tied_flush()
                if not self.unsent():
                    # No deadline and no output to watch: the read can do the waiting itself, which saves a poll(2).
                    # If O_NONBLOCK is set, it does not, and we go on below.
                    self.before_wait()
                    with nogil:
                        got = fd_read_waiting(&self.f, data, n, &err)
            if got == 0 and self.reset:
                # The kernel tells of a reset once, and it has told a send of ours: this is not the end of the input.
                self.reset = False
                raise os_error(ECONNRESET)
            if got >= 0:
                return got
            if would_block(err):
                self.wait_for(call, want, tied=True)
                ready = True
            elif err != EINTR:
                raise os_error(err)

    cdef int booked(self) except -1:
        """After bytes have come in and are in safety: raise now what a signal handler raises, not after the caller
        has taken them."""
        if self.tls is not None:
            self.tls.raise_late()
        PyErr_CheckSignals()
        return 0

    cdef ssize_t fill_once(self, rio_call *call, size_t need) except -1:
        """One read into the buffer, grown if it could not hold `need` bytes: how many came, 0 at the end."""
        cdef ssize_t got
        buffer_trim(&self.inp)
        if self.tls is not None:
            need = max(need, buffer_held(&self.inp) + RECORD)
        if buffer_reserve(&self.inp, need) < 0:
            raise MemoryError
        got = self.recv_some(call, self.inp.data + self.inp.w, buffer_room(&self.inp))
        buffer_added(&self.inp, got)
        self.booked()
        return got

    # ---- output that a read sends

    cdef bint unsent(self) noexcept:
        return buffer_held(&self.out) > 0 or (self.tls is not None and self.tls.begun is not None)

    cdef short tied_flush(self) except -1:
        """Send what output is held and the peer takes without waiting: the poll event to wait for to go on, or 0.

        An error is kept for the writing side. That side may be at work in another thread; then it does the sending.
        """
        cdef ssize_t put
        cdef int err = 0
        cdef short want = POLLOUT
        cdef short blocked = 0
        cdef size_t held
        cdef sigset_t before
        if not self.unsent() or self.out_error is not None:
            return 0
        self.hold_signals(&before)
        try:
            if not rio_flag_take(&self.sending):
                return 0
            self.sender = PyThread_get_thread_ident()
            try:
                while self.unsent():
                    held = buffer_held(&self.out)
                    if self.tls is not None:
                        put = self.tls.send(buffer_start(&self.out), held, &want)
                        err = EAGAIN
                    else:
                        put = fd_try_write(&self.f, buffer_start(&self.out), held, &err)
                    if put >= 0:
                        buffer_consume(&self.out, put)
                    elif would_block(err):
                        blocked = want
                        break
                    elif err != EINTR:
                        raise os_error(err)
            except OSError as error:
                self.out_error = error
                self.reset = isinstance(error, ConnectionResetError)
            finally:
                self.unlock_out()
        finally:
            self.release_signals(&before)
        if self.tls is not None:
            self.tls.raise_late()
        return blocked

    # ---- writing

    cdef int raise_kept(self) except -1:
        """Raise, once, the error that a read met in sending."""
        error = self.out_error
        if error is not None:
            self.out_error = None
            raise error
        return 0

    cdef int lock_out(self) except -1:
        """Take `sending`, to look at `out`. A read that has it is in the middle of a send that does not wait."""
        cdef unsigned long me = PyThread_get_thread_ident()
        while not rio_flag_take(&self.sending):
            if self.sender == me:   # this is a signal handler inside that very read
                raise ConcurrentCall("a read under this signal handler is sending what was written before")
            with nogil:
                sched_yield()
        self.sender = me
        return 0

    cdef void unlock_out(self) noexcept:
        self.sender = 0
        rio_flag_put(&self.sending, RIO_FREE)

    cdef ssize_t send_once(self, rio_call *call, const char *data, size_t n, int *err, short *want) except -2:
        """One write: a count, or -1 with the errno. Waits only where the call may wait for ever."""
        cdef ssize_t put
        if self.tls is not None:
            err[0] = EAGAIN
            return self.tls.send(data, n, want)
        if fd_never_waits(&self.f):
            return fd_write(&self.f, data, n, err)
        with nogil:
            put = fd_write(&self.f, data, n, err) if call.timeout < 0 else fd_try_write(&self.f, data, n, err)
        return put

    cdef int after_send(self, rio_call *call, int err, short want) except -1:
        """A write got nowhere: wait until it can, or raise."""
        if would_block(err):
            self.wait_for(call, want, tied=False)
        elif err != EINTR:
            raise os_error(err)
        return 0

    cdef int send_all(self, rio_call *call, const char *data, size_t n, size_t *sent) except -1:
        """Send from the caller's memory; nothing is held in `out`. `sent` counts as the bytes go."""
        cdef ssize_t put
        cdef int err = 0
        cdef short want = POLLOUT
        cdef sigset_t before
        while sent[0] < n:
            self.turn(call)
            self.hold_signals(&before)
            try:
                put = self.send_once(call, data + sent[0], n - sent[0], &err, &want)
                if put > 0:
                    sent[0] += put
            finally:
                self.release_signals(&before)
            if self.tls is not None:
                self.tls.raise_late()
            if put < 0:
                self.after_send(call, err, want)
        return 0

    cdef int push(self, rio_call *call, size_t keep) except -1:
        """Send held output until at most `keep` bytes of it are left."""
        cdef ssize_t put
        cdef int err = 0
        cdef short want = POLLOUT
        cdef sigset_t before
        while buffer_held(&self.out) > keep or (keep == 0 and self.unsent()):
            self.turn(call)
            self.hold_signals(&before)
            try:
                self.lock_out()
                try:
                    put = self.send_once(call, buffer_start(&self.out), buffer_held(&self.out), &err, &want)
                    if put > 0:
                        buffer_consume(&self.out, put)
                finally:
                    self.unlock_out()
            finally:
                self.release_signals(&before)
            if self.tls is not None:
                self.tls.raise_late()
            if put < 0:
                self.after_send(call, err, want)
        return 0

    # ---- signals around a TLS send: see _rio/tls.pyx

    cdef int hold_signals(self, sigset_t *before) except -1:
        """Over TLS, hold signals back in this thread; the handlers of those that came before have run."""
        if self.tls is not None:
            rio_signals_hold(before)
            try:
                PyErr_CheckSignals()
            except BaseException:
                rio_signals_release(before)
                raise
        return 0

    cdef void release_signals(self, const sigset_t *before) noexcept:
        if self.tls is not None:
            rio_signals_release(before)
