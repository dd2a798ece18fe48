"""The output buffer with its lock, and the tie between the two directions: what a read sends, and every wait.

What only a writer does is in _rio/sender.pyx and _rio/writer.pyx.

A Rio waits only here and in ``recv_some()`` of _rio/receiver.pyx, always in the same order. First it tries without
blocking and with the GIL: there usually is data, and releasing the GIL next to a busy thread costs milliseconds. If
the call would block, it sends buffered output until the socket buffer is full. Then it releases the GIL and waits for
either direction. After every wait it runs Python's signal handlers and checks the source again, because a handler or
another thread may have closed it.

The flag ``sending`` guards the output buffer: ``lock()`` takes it, and state is checked only after that. While it is
held, no Python code runs except that of a source with methods of its own, which must not wait then, so it is held
briefly; the only wait under it is a write to a blocking descriptor without a deadline, or of a read's own output to a
source that has no timeout.

While anything can raise, no received byte is in a local variable only: each is in a buffer, in the caller's memory or
not yet read.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, ECONNRESET, EINTR
from libc.stdint cimport INT64_MAX, int64_t

from rioecho._core.buffer cimport (
    buffer_consistent,
    buffer_consume,
    buffer_drop_last,
    buffer_held,
    buffer_put,
    buffer_reserve,
    buffer_start,
)
from rioecho._core.convert cimport os_error
from rioecho._core.fdio cimport (
    FD_SOCKET,
    WOKEN,
    fd_never_waits,
    fd_try_write,
    fd_wait,
    fd_wait_or_wake,
    fd_write,
    would_block,
)
from rioecho._core.posix cimport (
    POLLOUT,
    RIO_FREE,
    RIO_HAS_GIL,
    rio_assert,
    rio_bool_get,
    rio_bool_set,
    rio_flag_mine,
    rio_flag_put,
    rio_flag_state,
    rio_flag_take,
    rio_signals_hold,
    rio_signals_release,
    sched_yield,
)
from rioecho._rio.input cimport let_others_in
from rioecho._rio.limits cimport Limits, waits_freely

from rioecho.errors import ConcurrentCall


cdef enum:
    YIELDS = 1000   # how many times a call with timeout 0 yields to another one that is in its way before it raises


cdef class Output(Limits):
    # ---- the lock

    cdef int lock(self, rio_call *call, sigset_t *before) except -1:
        """Take ``sending`` within the call's time limit.

        A caller that will send passes ``before``: for some transports this blocks signals in this thread and stores the
        previous mask there (see ``Transport.holds_signals``). A caller that only checks passes NULL.

        Raises ``ConcurrentCall`` if this thread already holds the lock, because a signal handler or a method of the
        source is running in the middle of a send.
        """
        cdef size_t yields = 0
        while not self.lock_at_once(before):
            self.let_holder_go_on(call, &yields)
        return 0

    cdef int let_holder_go_on(self, rio_call *call, size_t *yields) except -1:
        """Yield to the holder of the lock. Raises ``ConcurrentCall`` if that is an interrupted call of this thread."""
        if rio_flag_mine(&self.sending):
            raise ConcurrentCall("a call under this one is sending what was written before")
        PyErr_CheckSignals()
        yields[0] += 1
        if self.expired(call) or (call.timeout == 0 and yields[0] > YIELDS):
            self.give_up(call)
        with nogil:
            sched_yield()
        return 0

    cdef bint lock_at_once(self, sigset_t *before) except -1:
        """Take ``sending`` as ``lock()`` does, without waiting. Reports whether it was free."""
        if before == NULL:
            if not rio_flag_take(&self.sending):
                return False
            rio_bool_set(&self.at_send, False)   # still set where a fork left the thread behind that sent
            return True
        self.hold_signals(before)
        if not rio_flag_take(&self.sending):
            self.release_signals(before)
            return False
        rio_bool_set(&self.at_send, True)
        return True

    cdef void unlock(self, const sigset_t *before) noexcept:
        rio_assert(buffer_held(&self.out) <= self.out.base)
        rio_assert(buffer_consistent(&self.out))
        if before != NULL:
            rio_bool_set(&self.at_send, False)
        rio_flag_put(&self.sending, RIO_FREE)
        if before != NULL:
            self.release_signals(before)

    cdef int hold_signals(self, sigset_t *before) except -1:
        """Block signals in this thread if the transport needs it. Runs the handlers of those that arrived before."""
        if self.transport is not None and self.transport.holds_signals:
            rio_signals_hold(before)
            try:
                PyErr_CheckSignals()
            except BaseException:
                rio_signals_release(before)
                raise
        return 0

    cdef void release_signals(self, const sigset_t *before) noexcept:
        if self.transport is not None and self.transport.holds_signals:
            rio_signals_release(before)

    # ---- buffered output, under the lock

    cdef bint owes(self, ssize_t keep) noexcept:
        """Report whether more than ``keep`` bytes are buffered; for NOTHING, whether anything is unsent.

        The caller holds the lock.
        """
        rio_assert(rio_flag_mine(&self.sending))
        if keep != NOTHING:
            return buffer_held(&self.out) > <size_t>keep
        return buffer_held(&self.out) > 0 or (self.transport is not None and rio_bool_get(&self.transport.half_sent))

    cdef bint is_claimed(self) noexcept:
        """Report whether a writer, which holds ``writing``, is sending the buffered bytes without the lock.

        In the child of a fork nobody holds ``writing`` for a thread of the parent.
        """
        rio_assert(rio_flag_mine(&self.sending))
        return self.claimed and rio_flag_state(&self.writing) != RIO_FREE

    cdef bint has_unsent(self, rio_call *call, ssize_t keep) except -1:
        """Report what ``owes()`` does. The result may be out of date when the caller receives it."""
        cdef bint answer
        self.lock(call, NULL)
        answer = self.owes(keep)
        self.unlock(NULL)
        return answer

    cdef bint may_owe(self) except -1:
        """Report whether anything is unsent, without waiting for the lock: true if another caller has it."""
        cdef bint answer = True
        # With the GIL no other thread comes in between, and looking takes less than the lock.
        if RIO_HAS_GIL and buffer_held(&self.out) == 0 and rio_flag_state(&self.sending) == RIO_FREE:
            return self.transport is not None and rio_bool_get(&self.transport.half_sent) and self.out_error is None
        if self.lock_at_once(NULL):
            answer = self.owes(NOTHING) and self.out_error is None
            self.unlock(NULL)
        return answer

    cdef int raise_kept(self, rio_call *call) except -1:
        """Raise the error that a read met while it sent buffered output. It is raised once."""
        self.lock(call, NULL)
        error = self.out_error
        self.out_error = None
        self.unlock(NULL)
        if error is not None:
            raise error
        return 0

    cdef int raise_reset(self, rio_call *call) except -1:
        """At EOF, raise ``ConnectionResetError`` if a write got it: the kernel reports a reset only once."""
        cdef bint reset
        if self.f.kind != FD_SOCKET:
            return 0   # there is none, and a write that waits may have the lock for long
        if rio_flag_mine(&self.sending):
            return 0   # this call interrupted a send of this thread, which does not know yet
        self.lock(call, NULL)
        reset = self.reset
        self.reset = False
        self.unlock(NULL)
        if reset:
            raise os_error(ECONNRESET)
        return 0

    cdef int hold_output(self, rio_call *call, const char *data, size_t n) except -1:
        """Append data to the output buffer. The caller has made sure that it fits in ``bufsize``."""
        cdef bint done = False
        rio_assert(rio_flag_mine(&self.writing))
        self.lock(call, NULL)
        if buffer_reserve(&self.out, buffer_held(&self.out) + n) == 0:
            buffer_put(&self.out, data, n)
            done = True
        self.unlock(NULL)
        if not done:
            raise MemoryError
        return 0

    cdef size_t take_back(self, size_t n) noexcept:
        """Remove the unsent ones of the last n bytes from the output buffer. Returns their number."""
        cdef size_t unsent
        rio_assert(rio_flag_mine(&self.writing))
        while not rio_flag_take(&self.sending):
            if rio_flag_mine(&self.sending):
                return 0   # a coroutine of this thread is sending them
            with nogil:
                sched_yield()
        unsent = min(n, buffer_held(&self.out))
        buffer_drop_last(&self.out, unsent)
        self.unlock(NULL)
        return unsent

    # ---- sending

    cdef ssize_t send_once(self, rio_call *call, const char *data, size_t n, int *err, short *want) except -2:
        """Make one write. Returns the number of bytes, or -1 with the errno in ``err``.

        Blocks only if nothing but bytes ends a wait of the call, and never if ``call`` is NULL. Over TLS, ``want``
        receives the events to wait for.
        """
        cdef ssize_t put
        cdef bint blocks
        rio_assert(rio_flag_mine(&self.sending))
        if self.transport is not None:
            err[0] = EAGAIN
            try:
                return self.transport.send(data, n, 0, want)
            except ConnectionResetError:
                self.reset = True
                raise
        if call == NULL or fd_never_waits(&self.f):
            put = fd_try_write(&self.f, data, n, err) if call == NULL else fd_write(&self.f, data, n, err)
        else:
            blocks = waits_freely(self, call)
            with nogil:
                put = fd_write(&self.f, data, n, err) if blocks else fd_try_write(&self.f, data, n, err)
        if put < 0 and err[0] == ECONNRESET:
            self.reset = True
        return put

    # ---- output that a read sends

    cdef short tied_flush(self) except -1:
        """Send buffered output without blocking. Returns the poll event to wait for before continuing, or 0.

        An error is stored for the writing side. If a write is in progress, in another thread or interrupted by this
        handler, it does the sending and this function returns 0.
        """
        cdef sigset_t signals
        cdef sigset_t *before = NULL   # check first: blocking signals takes two system calls
        cdef short blocked
        while True:
            if not self.lock_at_once(before):
                if rio_flag_mine(&self.sending) or rio_bool_get(&self.at_send):
                    return 0
                with nogil:
                    sched_yield()
                continue
            if self.is_claimed() or not self.owes(NOTHING) or self.out_error is not None:
                self.unlock(before)
                return 0
            if before != NULL:
                break
            self.unlock(before)
            before = &signals
        try:
            blocked = self.send_held()
        except Exception as error:
            if not isinstance(error, OSError) and (self.transport is None or not self.transport.own_errors):
                raise   # that of a signal handler, in the middle of a TLS record
            self.out_error = error
            self.reset = self.reset or isinstance(error, ConnectionResetError)
            blocked = 0
        finally:
            self.unlock(before)
        if self.transport is not None:
            self.transport.raise_late()
        return blocked

    cdef short send_held(self) except -1:
        """Send buffered output for ``tied_flush()``, under the lock. Raises the errors of sending."""
        cdef size_t n
        cdef ssize_t put
        cdef int err = 0
        cdef short want = POLLOUT
        while self.owes(NOTHING):
            n = buffer_held(&self.out)
            put = self.send_once(NULL, buffer_start(&self.out), n, &err, &want)
            if put == 0 and n > 0:
                return 0   # the transport keeps an exception, which tied_flush() raises
            if put >= 0:
                buffer_consume(&self.out, put)
            elif would_block(err):
                return want
            elif err != EINTR:
                raise os_error(err)
        return 0

    # ---- waiting

    cdef int wait_for(self, rio_call *call, short want, bint tied, int64_t longest=INT64_MAX) except -1:
        """Wait for the events in ``want``; if ``tied``, also send buffered output when the descriptor is writable.

        Returns without any at the time ``longest``; raises at the end of the call's time, and if ``wake_fd`` is
        readable and none of the events is pending.
        """
        cdef int ready, err = 0
        cdef short events
        cdef int64_t deadline
        cdef int wake_fd = -1 if call.timeout == 0 else self.wake_fd
        self.check_owner()
        if call.per_wait and call.deadline == 0 and self.transport is not None:
            self.ask_clock(call)
        self.expired(call)
        if self.idled(call):
            self.give_up(call)
        call.waits += 1
        if call.timeout == 0 and call.waits > YIELDS:
            self.give_up(call)   # the descriptor is ready, but another thread is inside the TLS connection
        deadline = self.wait_end(call)
        while True:
            events = want
            if tied:
                events |= self.tied_flush()
            self.before_wait()
            with nogil:
                ready = fd_wait_or_wake(self.f.fd, events, wake_fd, min(deadline, longest), &err)
            let_others_in(self)
            if ready < 0 and err != EINTR:
                raise os_error(err)
            PyErr_CheckSignals()
            self.check_owner()
            if ready == WOKEN:
                ready = fd_wait(self.f.fd, events, 0, &err)
                if ready <= 0:
                    self.raise_woken()
            if ready == 0:
                if longest < deadline:
                    return 0
                self.give_up(call)
            if ready > 0 and (ready & ~POLLOUT or want & POLLOUT):
                return 0
