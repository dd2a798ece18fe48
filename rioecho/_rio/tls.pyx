"""The transport of a Rio over an ``ssl.SSLSocket``: reads and writes that never lose a byte.

The descriptor carries ciphertext, so every byte goes through the inner object of the socket, without Python code in
between that a signal handler could interrupt. Four rules make that fast and robust:

* The ssl module waits for up to the socket's own timeout, once per record. A read that may wait that long does so
  inside OpenSSL, as the socket's own methods do. Any other one is made when poll(2) has reported data, with the timeout
  set to 0 and then restored, since a part of a record would make it wait. A send is made when poll(2) has reported
  room, with a record that surely fits (``rio_sure_room``); only where that is unknown the timeout is set to 0.
* OpenSSL's object may not be used by two threads at once. The flags ``receiving`` and ``sending`` are each held for a
  whole operation and exclude each other, and all Rios over one socket share them (see ``tls_of``). A caller that finds
  another thread in an operation retries after poll(2), so its deadline and signal handlers work as usual. The exception
  is a read that waits inside OpenSSL, for any time: a record is sent beside it while the socket has nothing to read.
  The reading thread then sleeps in the kernel; the ssl module itself allows more.
* The ssl module runs Python's signal handlers after OpenSSL has returned bytes, and loses their number if one raises.
  This happens only in the thread that runs handlers. There the first byte of a record is read alone, and the number of
  the others is known before they are read.
* Once OpenSSL has begun to send a record, it must be given the same bytes again, and they cannot be recalled. They
  count as sent and are kept in ``begun`` until they have been sent.

Two races remain, both when a handler raises during a call; the ssl module offers nothing that would tell what happened.
In a read, a record of one byte that happens to equal ``UNTOUCHED`` is assumed not to have been received. In a send,
only where it is unknown what fits (not on Linux): signals of this thread are blocked (``holds_signals``), but if a
handler raises for a signal that the kernel delivered to another thread, the record is assumed to be begun if the socket
is full afterwards, and is sent twice if it had been sent. While signals are blocked there, a program that such a
handler starts inherits that.
"""

import os
import _signal
import sys
from _thread import RLock

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_INCREF
from libc.errno cimport ECONNABORTED, EINTR, EPIPE
from libc.stdint cimport int64_t, uintptr_t

from rioecho._core.convert cimport to_nanoseconds
from rioecho._core.fdio cimport FD_SOCKET, fd_peek, fd_ready, rio_fd, would_block
from rioecho._core.flag cimport flags_link, flags_unlink
from rioecho._core.posix cimport (
    POLLIN,
    POLLOUT,
    RIO_FREE,
    RIO_LOST,
    RIO_ROOM_KNOWN,
    rio_assert,
    rio_bool_set,
    rio_flag,
    rio_flag_mine,
    rio_flag_put,
    rio_flag_state,
    rio_flag_take,
    rio_mutex_lock,
    rio_mutex_unlock,
    rio_sigpipe,
    rio_sigpipe_block,
    rio_sigpipe_restore,
    rio_size_get,
    rio_size_set,
    rio_sure_room,
    rio_this_thread,
    rio_thread_get,
    rio_thread_set,
    rio_time_get,
    rio_time_set,
    sched_yield,
)

from rioecho._rio.transport cimport OWN_TIMEOUT

from rioecho.errors import ConcurrentCall


cdef enum:
    UNTOUCHED = 0xC1   # marks a byte of the buffer as not received; occurs in no text in UTF-8


# A read sends only answers to messages of the protocol, which are rare. So it asks Python whether SIGPIPE is ignored,
# which takes no system call; a send asks the kernel, since C code may have changed it.
cdef object get_signal = _signal.getsignal
cdef object PIPE = _signal.SIGPIPE
cdef object IGNORED = _signal.SIG_IGN

cdef object plain_socket = None   # _socket.socket, the base class in C; imported with the first TLS socket
cdef object registering = RLock()
cdef uintptr_t main_thread = 0   # the thread that runs Python's signal handlers; 0 while unknown; atomic
cdef object live = None   # WeakValueDictionary: the id of a socket -> its Tls, which keeps the socket alive


cdef Tls tls_of(object sock):
    """Return the Tls of an ``ssl.SSLSocket``, which all its Rios share."""
    global live, plain_socket
    with registering:   # setdefault() is written in Python, so it is not atomic
        if live is None:   # imported late, because weakref is slow to import
            import _socket
            import weakref
            plain_socket = _socket.socket
            live = weakref.WeakValueDictionary()
        return live.setdefault(id(sock), Tls(sock))


cdef int find_main_thread() except -1:
    """Record this thread as the one that runs Python's signal handlers, if it is."""
    try:
        _signal.set_wakeup_fd(-2)   # refused, before anything is changed, with an error that tells
    except ValueError:
        pass   # "only works in main thread of the main interpreter"
    except OSError:
        rio_thread_set(&main_thread, rio_this_thread())
    return 0


def _after_fork_in_child():
    """Reinitialise ``registering`` if another thread held it.

    Leak each OpenSSL object that another thread was using: freeing it is unsafe.
    """
    cdef Tls tls
    rio_thread_set(&main_thread, 0)   # it is now the thread that forked
    if not registering._is_owned():   # else the fork was under a call that is in there, and goes on
        registering._at_fork_reinit()
    for tls in list((live or {}).values()):
        rio_thread_set(&tls.other_thread, 0)
        if tls.lost():
            Py_INCREF(tls.sock._sslobj)


os.register_at_fork(after_in_child=_after_fork_in_child)   # runs after that of _core/flag.pyx, imported before


cdef class Window:
    """The memory of one read, passed to the ssl module: cheaper than a memoryview for each read."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.n, False, flags)


cdef class Tls(Transport):
    def __cinit__(self, sock):
        self.window = Window()
        ssl = sys.modules["ssl"]
        self.sock = sock
        self.fd = sock.fileno()
        self.want_read = ssl.SSLWantReadError
        self.want_write = ssl.SSLWantWriteError
        self.eof = ssl.SSLEOFError
        self.holds_signals = not RIO_ROOM_KNOWN
        self.flags.flags[:] = [&self.receiving, &self.sending, NULL]
        self.flags.orphaned = RIO_LOST
        flags_link(&self.flags)

    def __dealloc__(self):
        flags_unlink(&self.flags)

    cdef bint begin(self, bint sending) except -1:
        """Begin an operation of one direction. Returns False if another thread's operation is in the way.

        Raises ``ConcurrentCall`` if this call interrupted an operation of this thread, and ``ConnectionAbortedError``
        if the socket is lost. No byte is lost: they are in ``begun`` and in the caller's buffer.
        """
        cdef rio_flag *flag = &self.sending if sending else &self.receiving
        cdef bint begun
        rio_mutex_lock(&self.gate)
        begun = rio_flag_take(flag)
        if begun and self.blocked_by_other(sending):
            rio_flag_put(flag, RIO_FREE)
            begun = False
        rio_mutex_unlock(&self.gate)
        if begun:
            return True
        if rio_flag_mine(flag) or (rio_flag_mine(&self.sending if not sending else &self.receiving)):
            raise ConcurrentCall("a TLS call of this thread is in progress; a signal handler cannot join it")
        if self.lost():
            raise ConnectionAbortedError(
                ECONNABORTED,
                "another thread was inside this TLS connection when the process was forked: "
                "it cannot be used in the child",
            )
        return False

    cdef bint blocked_by_other(self, bint sending) noexcept:
        """Report whether an operation of the other direction excludes this one.

        A read that waits for the peer inside OpenSSL does not: a record may be sent beside it, by the signal handler
        that interrupted it or, while the socket has nothing to read, by another thread.
        """
        if not sending:
            return rio_flag_state(&self.sending) != RIO_FREE
        if rio_flag_state(&self.receiving) == RIO_FREE:
            return False
        if not self.waiting:
            return True
        return not rio_flag_mine(&self.receiving) and fd_ready(self.fd, POLLIN)

    cdef void end(self, bint sending) noexcept:
        rio_flag_put(&self.sending if sending else &self.receiving, RIO_FREE)

    cdef void wait_begins(self) noexcept:
        """Let senders in: this read is about to wait inside OpenSSL."""
        rio_mutex_lock(&self.gate)
        self.waiting = True
        rio_mutex_unlock(&self.gate)

    cdef void wait_ends(self) noexcept:
        """Keep further senders out, and wait for one that is in: it does not block."""
        if not self.waiting:
            return
        rio_mutex_lock(&self.gate)
        self.waiting = False
        rio_mutex_unlock(&self.gate)
        while rio_flag_state(&self.sending) > RIO_LOST:
            with nogil:
                sched_yield()

    cdef bint lost(self) noexcept:
        """Report whether another thread was in an operation when this process was forked."""
        return rio_flag_state(&self.receiving) == RIO_LOST or rio_flag_state(&self.sending) == RIO_LOST

    cdef bint stands_in_way(self) noexcept:
        return rio_flag_mine(&self.receiving) or rio_flag_mine(&self.sending)

    cdef size_t least_room(self) noexcept:
        return RECORD   # what does not fit stays in OpenSSL, where select() does not report it

    # ---- the socket's own timeout

    cdef object timeout(self):
        """Return the socket's own timeout, even while an operation has set it to 0."""
        cdef size_t before = rio_size_get(&self.mutes)
        cdef int64_t ns
        if before % 2 == 0:
            timeout = self.sock.gettimeout()
            if rio_size_get(&self.mutes) == before:
                return timeout
        ns = rio_time_get(&self.own_timeout)
        return None if ns < 0 else ns / 1e9

    cdef str timed_out(self, bint writing):
        return f"The {'write' if writing else 'read'} operation timed out"   # the ssl module's

    cdef object mute(self):
        """Set the socket's timeout to 0, so that its calls do not wait. Returns what ``restore()`` needs."""
        timeout = self.sock.gettimeout()
        if timeout == 0:
            return None
        rio_time_set(&self.own_timeout, to_nanoseconds(timeout))
        rio_size_set(&self.mutes, self.mutes + 1)
        try:
            self.sock.settimeout(0)
        except BaseException:
            rio_size_set(&self.mutes, self.mutes + 1)
            raise
        return (timeout,)

    cdef void restore(self, object muted) noexcept:
        """Restore the socket's timeout. An exception of that is stored: the bytes of the call are not counted yet."""
        if muted is None:
            return
        try:
            self.sock.settimeout(muted[0])
        except OSError:
            pass   # another thread has closed the socket; the bytes that were read are still delivered
        except BaseException as error:
            self.keep(error)
        rio_size_set(&self.mutes, self.mutes + 1)

    cdef bint is_settled(self, object inner) except -1:
        """Report whether the handshake is complete. Until then, reading also writes and writing also reads."""
        if not self.settled:
            self.settled = inner.version() is not None
        return self.settled

    # ---- exceptions of signal handlers

    cdef void set_begun(self, bytes record) noexcept:
        rio_assert(rio_flag_mine(&self.sending))
        self.begun = record
        rio_bool_set(&self.half_sent, record is not None)

    cdef bint from_handler(self, object error) except -1:
        """Report whether an exception caught in this module is that of a signal handler and not the ssl module's.

        A handler may raise what the ssl module reports a state with: that of an alarm often raises ``TimeoutError``.
        The ssl module's exceptions come from C, so their innermost frame is one of this module; a handler has its own.
        """
        place = error.__traceback__
        if place is None:   # there was no memory for the frame of this module, which cannot happen to a handler's
            return False
        while place.tb_next is not None:
            place = place.tb_next
        return place.tb_frame.f_globals is not globals()

    # ---- receiving

    cdef ssize_t recv(self, char *data, size_t n, int64_t patience, short *want) except -2:
        """Read up to n bytes. Returns their number, 0 at EOF, or -1 with the events to wait for in ``want``.

        The caller then stores the bytes and calls ``raise_late()``. If n is at least ``RECORD``, no byte stays in
        OpenSSL, where select() would not report it.
        """
        cdef ssize_t got = -1
        cdef rio_sigpipe guard
        if not self.begin(False):
            want[0] = POLLIN | POLLOUT
            return -1
        guard.blocked = 0
        if get_signal(PIPE) is not IGNORED:
            rio_sigpipe_block(&guard)
        try:
            want[0] = POLLIN
            inner = self.sock._sslobj
            if inner is None:   # not encrypted yet, or no longer: use a plain socket's methods
                got = self.recv_plain(data, n, patience)
            else:
                got = self.recv_some(inner, data, n, patience)
        except self.want_read:
            pass
        except self.want_write:
            want[0] = POLLOUT
        except self.eof:
            if self.is_at_end():
                self.ended = True
                if not self.sock.suppress_ragged_eofs:
                    raise
                got = 0
            # else a send beside the read has changed how OpenSSL reports the end of the wait
        except TimeoutError:
            if patience == OWN_TIMEOUT:
                raise
        except (BlockingIOError, InterruptedError):
            pass   # for the same reason
        except OSError:
            self.ended = True
            raise
        finally:
            self.wait_ends()
            rio_sigpipe_restore(&guard)
            self.end(False)
        if got <= 0:
            self.ended = self.ended or got == 0
            self.raise_late()
        return got

    cdef bint is_at_end(self) noexcept:
        """Report whether the socket's input has ended, so that OpenSSL can have met its end."""
        cdef rio_fd f
        cdef char ignored
        cdef int err = 0
        cdef ssize_t n
        f.fd = self.fd
        f.kind = FD_SOCKET
        n = fd_peek(&f, &ignored, 1, &err)
        return n == 0 or (n < 0 and not would_block(err) and err != EINTR)

    cdef Window into(self, char *data, size_t n):
        """Return the buffer object for a read of up to n bytes into ``data``."""
        self.window.data = data
        self.window.n = n
        return self.window

    cdef ssize_t fail_read(self, object error) except -2:
        """End a read that has received nothing: raise the exception, but keep a handler's for ``recv()`` to raise."""
        if not self.from_handler(error):
            raise error
        self.keep(error)
        return -1

    cdef ssize_t recv_plain(self, char *data, size_t n, int64_t patience) except -2:
        if patience == OWN_TIMEOUT or fd_ready(self.fd, POLLIN):
            try:
                # Written in C, so that no handler can run before the return.
                return plain_socket.recv_into(self.sock, self.into(data, n))
            except BaseException as error:
                return self.fail_read(error)
        return -1

    cdef ssize_t recv_some(self, object inner, char *data, size_t n, int64_t patience) except -2:
        """Read the bytes of one record, or the remaining ones of a record. Raises if there are none."""
        cdef size_t pending
        cdef bint waits = self.is_settled(inner) and (patience < 0 or (patience > 0 and self.waits_at_most(patience)))
        if waits:
            self.wait_begins()
            return self.recv_record(inner, data, n)
        pending = inner.pending()
        if pending:
            return self.recv_pending(inner, data, n, pending)
        if patience == 0 and self.settled and not self.ended and not fd_ready(self.fd, POLLIN):
            return -1
        muted = self.mute()   # a part of a record, or one without data, would make the call wait
        try:
            return self.recv_record(inner, data, n)
        finally:
            self.restore(muted)

    cdef bint waits_at_most(self, int64_t patience) except -1:
        """Report whether the socket's own timeout is at most ``patience`` nanoseconds."""
        cdef int64_t own = to_nanoseconds(self.sock.gettimeout())
        return 0 <= own <= patience

    cdef ssize_t recv_record(self, object inner, char *data, size_t n) except -2:
        """Read a record, in a thread in which a handler can raise so that its size is known nevertheless."""
        cdef size_t pending
        if not self.runs_handlers():
            return inner.read(n, self.into(data, n))
        # Reading one byte makes OpenSSL decrypt the record and know how many bytes follow. If a handler raises, the
        # byte was received if its place has changed or others are pending.
        data[0] = <char>UNTOUCHED
        try:
            if not inner.read(1, self.into(data, n)):
                return 0
        except BaseException as error:
            self.wait_ends()
            if data[0] != <char>UNTOUCHED or inner.pending():
                self.keep(error)
                return 1
            return self.fail_read(error)
        self.wait_ends()
        try:   # the first byte was received: raise nothing before it is counted
            pending = inner.pending()
            if pending and n > 1:
                return 1 + self.recv_pending(inner, data + 1, n - 1, pending)
        except BaseException as error:
            self.keep(error)
        return 1

    cdef ssize_t recv_pending(self, object inner, char *data, size_t n, size_t pending) except -2:
        """Read the remaining bytes of a record, as far as they fit. Returns their number."""
        cdef size_t taken
        try:
            return inner.read(min(pending, n), self.into(data, n))
        except BaseException as error:
            taken = pending - <size_t>inner.pending()
            if taken == 0:
                return self.fail_read(error)
            self.keep(error)
            return taken

    cdef bint runs_handlers(self) except -1:
        """Report whether this thread runs Python's signal handlers: the main thread of the main interpreter."""
        cdef uintptr_t me = rio_this_thread()
        if rio_thread_get(&main_thread) == 0 and rio_thread_get(&self.other_thread) != me:
            find_main_thread()
            if rio_thread_get(&main_thread) == 0:
                rio_thread_set(&self.other_thread, me)
        return rio_thread_get(&main_thread) == me

    # ---- sending

    cdef ssize_t send(self, const char *data, size_t n, int64_t patience, short *want) except -2:
        """Send the record that was begun, then up to n bytes. Returns how many of the n bytes were accepted.

        Never waits. Returns -1 with the events to wait for in ``want`` if nothing was accepted; 0 if the record that
        was begun has been sent and either n is 0 or a handler raised. The caller counts the bytes and then calls
        ``raise_late()``.
        """
        cdef rio_sigpipe guard
        if not self.begin(True):
            want[0] = POLLIN | POLLOUT
            return -1
        rio_sigpipe_block(&guard)
        try:
            inner = self.sock._sslobj
            if inner is None:
                self.set_begun(None)   # after unwrap() it cannot be completed
            elif self.begun is not None:
                self.send_record(inner, self.begun, False, want)
                if self.begun is not None:
                    return -1
            if n == 0 or rio_thread_get(&self.raised_in) == rio_this_thread():
                return 0
            if not fd_ready(self.fd, POLLOUT):
                want[0] = POLLOUT
                return -1
            if inner is None:
                return self.send_plain(PyBytes_FromStringAndSize(data, min(n, <size_t>RECORD)), want)
            return self.send_some(inner, data, n, want)
        finally:
            rio_sigpipe_restore(&guard)
            self.end(True)

    cdef ssize_t send_some(self, object inner, const char *data, size_t n, short *want) except -2:
        """Send one record, which is accepted as a whole, to a socket that is writable."""
        cdef size_t size = min(n, <size_t>RECORD)
        cdef size_t room = rio_sure_room(self.fd, size)
        if room:
            size = room
        self.send_record(inner, PyBytes_FromStringAndSize(data, size), room > 0, want)
        return size   # sent or begun: OpenSSL has accepted it

    cdef int send_record(self, object inner, bytes record, bint fits, short *want) except -1:
        """Pass a record to OpenSSL. If it has not been sent completely, store it in ``begun``.

        If it ``fits`` into the send buffer, the call does not wait, and the record has been sent even if a handler
        raises. Stores the event to wait for in ``want``.
        """
        muted = None
        try:
            if not fits or not self.is_settled(inner):
                muted = self.mute()
            inner.write(record)
            self.set_begun(None)
        except BaseException as error:
            if self.from_handler(error) or not isinstance(error, OSError):
                # OpenSSL's result is lost. If the record was not sure to fit, signals of this thread are blocked, and
                # this was another one's: assume that it was begun unless there is room for more.
                self.set_begun(None if fits or fd_ready(self.fd, POLLOUT) else record)
                self.keep(error)
            elif isinstance(error, self.want_read):
                self.set_begun(record)
                want[0] = POLLIN
            elif isinstance(error, (self.want_write, TimeoutError)):
                self.set_begun(record)
                want[0] = POLLOUT
            else:   # an error of the connection: the record cannot be completed
                self.set_begun(None)
                if isinstance(error, self.eof):   # the ssl module's translation of EPIPE
                    raise BrokenPipeError(EPIPE, "the TLS connection was closed by the peer") from error
                raise
        finally:
            self.restore(muted)
        return 0

    cdef ssize_t send_plain(self, bytes data, short *want) except -2:
        muted = self.mute()
        try:
            return plain_socket.send(self.sock, data)
        except BlockingIOError:
            want[0] = POLLOUT
            return -1
        finally:
            self.restore(muted)
