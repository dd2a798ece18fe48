"""The output side of a Rio, and the tie between the two directions.

A Rio waits only here and in ``recv_some()`` of _rio/reader.pyx, always in the same order. First it tries without
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
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, errno
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
    fd_has_position,
    fd_never_waits,
    fd_try_write,
    fd_wait,
    fd_write,
    would_block,
)
from rioecho._core.posix cimport (
    POLLOUT,
    RIO_FREE,
    SEEK_CUR,
    lseek,
    rio_assert,
    rio_bool_get,
    rio_bool_set,
    rio_flag_mine,
    rio_flag_put,
    rio_flag_take,
    rio_signals_hold,
    rio_signals_release,
    sched_yield,
)
from rioecho._rio.channel cimport Channel, begin_wait, leave_reading, let_others_in

from rioecho.errors import ConcurrentCall


cdef enum:
    YIELDS = 1000   # how many times a call with timeout 0 yields to another one that is in its way before it raises


cdef class Output(Channel):
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

        Blocks only if the call has no time limit, and never if ``call`` is NULL. Over TLS, ``want`` receives the events
        to wait for.
        """
        cdef ssize_t put
        rio_assert(rio_flag_mine(&self.sending))
        if self.transport is not None:
            err[0] = EAGAIN
            return self.transport.send(data, n, 0, want)
        if call == NULL or fd_never_waits(&self.f):
            put = fd_try_write(&self.f, data, n, err) if call == NULL else fd_write(&self.f, data, n, err)
        else:
            with nogil:
                put = fd_write(&self.f, data, n, err) if call.timeout < 0 else fd_try_write(&self.f, data, n, err)
        if put < 0 and err[0] == ECONNRESET:
            self.reset = True
        return put

    cdef int send(self, rio_call *call, const char *data, size_t n, ssize_t keep, size_t *sent) except -1:
        """Make one write, and wait if it would block.

        Writes n bytes of the caller's data and adds the number of bytes sent to ``sent``. If ``data`` is NULL, writes
        buffered output instead, provided that there are more than ``keep`` bytes of it.
        """
        cdef sigset_t before
        cdef int err = 0
        cdef short want = POLLOUT
        cdef ssize_t put = 0
        cdef size_t yields = 0
        self.turn(call)
        if self.transport is not None and self.transport.waits:
            return self.send_waiting(call, data, n, keep, sent)
        while not self.lock_at_once(&before):
            self.let_holder_go_on(call, &yields)
            self.turn(call)   # the source may have been closed in the meantime
        try:
            if data != NULL:
                put = self.send_once(call, data, n, &err, &want)
                if put > 0:
                    sent[0] += put
            elif self.owes(keep):
                put = self.send_once(call, buffer_start(&self.out), buffer_held(&self.out), &err, &want)
                if put > 0:
                    buffer_consume(&self.out, put)
        finally:
            self.unlock(&before)
            let_others_in(self)
        if self.transport is not None:
            self.transport.raise_late()
        if put >= 0:
            begin_wait(call)
        elif would_block(err):
            self.wait_for(call, want, tied=False)
        elif err != EINTR:
            raise os_error(err)
        return 0

    cdef int send_waiting(self, rio_call *call, const char *data, size_t n, ssize_t keep, size_t *sent) except -1:
        """Make one write, as ``send()`` does, to a source that waits itself.

        ``sending`` is not held meanwhile: the reader may be another greenlet of this thread. The caller's data is
        nobody else's, and buffered output is claimed: a read then leaves it alone, and only a writer, which is this
        call, adds to it.
        """
        cdef bint buffered = data == NULL
        cdef bint reset = False
        cdef ssize_t put = -1
        cdef short want = 0
        if buffered:
            self.lock(call, NULL)
            buffered = self.claimed = self.owes(keep)   # still set where a fork left the thread behind that sent
            data = buffer_start(&self.out)
            n = buffer_held(&self.out)
            self.unlock(NULL)
            if not buffered:
                return 0
        try:
            put = self.transport.send(data, n, self.patience(call), &want)
        except ConnectionResetError:
            reset = True
            raise
        finally:
            if buffered or reset:
                self.unclaim(put if buffered else 0, reset)
        if put >= 0:
            if not buffered:
                sent[0] += put
            self.transport.raise_late()
            begin_wait(call)
        else:
            self.poll_source(call, want, False)
        return 0

    cdef void unclaim(self, ssize_t put, bint reset) noexcept:
        """End a write of claimed output, of which ``put`` bytes were sent."""
        while not rio_flag_take(&self.sending):   # no Python code runs under it while the output is claimed
            with nogil:
                sched_yield()
        if put > 0:
            buffer_consume(&self.out, put)
        self.claimed = False
        self.reset = self.reset or reset
        self.unlock(NULL)

    cdef int send_all(self, rio_call *call, const char *data, size_t n, size_t *sent) except -1:
        """Send all n bytes of the caller's data, while ``out`` is empty. Updates ``sent`` after each write."""
        cdef bint borrows = n > 0 and fd_has_position(&self.f)
        if borrows:
            self.borrow_reading(call)
        try:
            while sent[0] < n:
                self.send(call, data + sent[0], n - sent[0], NOTHING, sent)
        finally:
            if borrows:
                self.return_reading()
        return 0

    cdef int borrow_reading(self, rio_call *call) except -1:
        """Enter the reading side, and move the file's position back to the first byte that has not been read.

        For a file that is open for both: the write goes where the caller has read to, and a later read sees what was
        written. The bytes read ahead are still in the file.
        """
        cdef size_t yields = 0, held
        rio_assert(rio_flag_mine(&self.writing))
        rio_bool_set(&self.lent, True)
        try:
            while not rio_flag_take(&self.reading):
                if rio_flag_mine(&self.reading):
                    raise ConcurrentCall("a call under this one is reading this file, which has one position for both")
                self.let_holder_go_on(call, &yields)
        except BaseException:
            rio_bool_set(&self.lent, False)
            raise
        try:
            held = buffer_held(&self.inp)
            if held:
                self.check_owner()
                if lseek(self.f.fd, -<int64_t>held, SEEK_CUR) < 0:
                    raise os_error(errno)
                buffer_consume(&self.inp, held)
        except BaseException:
            self.return_reading()
            raise
        return 0

    cdef void return_reading(self) noexcept:
        leave_reading(self)
        rio_bool_set(&self.lent, False)

    cdef int push(self, rio_call *call, ssize_t keep) except -1:
        """Send buffered output until at most ``keep`` bytes are left; for NOTHING, until all is sent."""
        while self.has_unsent(call, keep):
            self.send(call, NULL, 0, keep, NULL)
        return 0

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
            if self.claimed or not self.owes(NOTHING) or self.out_error is not None:
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
        cdef ssize_t put
        cdef int err = 0
        cdef short want = POLLOUT
        while self.owes(NOTHING):
            put = self.send_once(NULL, buffer_start(&self.out), buffer_held(&self.out), &err, &want)
            if put >= 0:
                buffer_consume(&self.out, put)
            elif would_block(err):
                return want
            elif err != EINTR:
                raise os_error(err)
        return 0

    # ---- waiting

    cdef int wait_for(self, rio_call *call, short want, bint tied) except -1:
        """Wait for the events in ``want``; if ``tied``, also send buffered output when the descriptor is writable."""
        cdef int ready, err = 0
        cdef short events
        cdef int64_t deadline
        self.check_owner()
        if call.per_wait and call.deadline == 0 and self.transport is not None:
            self.ask_clock(call)
        self.expired(call)
        call.waits += 1
        if call.timeout == 0 and call.waits > YIELDS:
            self.give_up(call)   # the descriptor is ready, but another thread is inside the TLS connection
        deadline = 0 if call.timeout == 0 else INT64_MAX if call.timeout < 0 else call.deadline
        while True:
            events = want
            if tied:
                events |= self.tied_flush()
            self.before_wait()
            with nogil:
                ready = fd_wait(self.f.fd, events, deadline, &err)
            let_others_in(self)
            if ready < 0 and err != EINTR:
                raise os_error(err)
            PyErr_CheckSignals()
            self.check_owner()
            if ready == 0:
                self.give_up(call)
            if ready > 0 and (ready & ~POLLOUT or want & POLLOUT):
                return 0
