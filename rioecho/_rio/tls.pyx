"""The transport of a Rio over an ``ssl.SSLSocket``: reads and writes that never lose a byte.

The descriptor carries ciphertext, so every byte goes through the inner object of the socket, without Python code in
between that a signal handler could interrupt. Whose turn it is there, see _rio/tlsturns.pyx. Three
rules make the rest fast and robust:

* The ssl module waits for up to the socket's own timeout, once per record. A read that may wait that long does so
  inside OpenSSL, as the socket's own methods do. Any other one is made when poll(2) has reported data, with the timeout
  set to 0 and then restored, since a part of a record would make it wait. A send is made when poll(2) has reported
  room, with a record that surely fits (``rio_sure_room``); only where that is unknown the timeout is set to 0.
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

import _signal
from _socket import socket as _raw_socket
from _ssl import SSLEOFError as _eof, SSLWantReadError as _want_read, SSLWantWriteError as _want_write

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EINTR, EPIPE
from libc.stdint cimport int64_t

from rioecho._core.convert cimport os_error, to_nanoseconds
from rioecho._core.fdio cimport FD_SOCKET, fd_peek, fd_ready, fd_wait, rio_fd, would_block
from rioecho._core.posix cimport (
    POLLERR,
    POLLIN,
    POLLOUT,
    RIO_ROOM_KNOWN,
    rio_sigpipe,
    rio_sigpipe_block,
    rio_sigpipe_restore,
    rio_socket_error,
    rio_sure_room,
    rio_this_thread,
    rio_thread_get,
)
from rioecho._rio.handlers cimport raised_outside, runs_handlers
from rioecho._rio.registry cimport register, registered
from rioecho._rio.transport cimport OWN_TIMEOUT, RECORD


cdef str MODULES = "rioecho._rio.tls"   # this one and tlsturns, of raised_outside()

cdef enum:
    UNTOUCHED = 0xC1   # marks a byte of the buffer as not received; occurs in no text in UTF-8


# A read sends only answers to messages of the protocol, which are rare. So it asks Python whether SIGPIPE is ignored,
# which takes no system call; a send asks the kernel, since C code may have changed it.
cdef object get_signal = _signal.getsignal
cdef object PIPE = _signal.SIGPIPE
cdef object IGNORED = _signal.SIG_IGN

cdef object raw_socket = _raw_socket   # the base class in C of all sockets
cdef object SSLEOFError = _eof
cdef object SSLWantReadError = _want_read
cdef object SSLWantWriteError = _want_write


def tls_of(sock, /):
    """Return the transport of an ``ssl.SSLSocket``, which all its Rios share."""
    cdef Tls tls = registered(sock, Tls)
    if tls is None:
        tls = Tls.__new__(Tls)
        tls.source = tls.sock = sock
        tls.fd = sock.fileno()
        tls.is_stream = True   # the ssl module accepts no other socket
        tls.holds_signals = not RIO_ROOM_KNOWN
        tls = register(tls)
    return tls


cdef class Tls(TlsTurns):
    def __getbuffer__(self, Py_buffer *view, int flags):
        """Give the ssl module the memory of one read, which ``into()`` has set: cheaper than a memoryview for each."""
        PyBuffer_FillInfo(view, self, self.data, self.n, False, flags)

    cdef str timed_out(self, bint writing):
        return f"The {'write' if writing else 'read'} operation timed out"   # the ssl module's

    cdef bint is_settled(self, object inner) except -1:
        """Report whether the handshake is complete. Until then, reading also writes and writing also reads."""
        if not self.settled:
            self.settled = inner.version() is not None
        return self.settled

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
            inner = self.source._sslobj
            if inner is None:   # not encrypted yet, or no longer: use a plain socket's methods
                got = self.recv_plain(data, n, patience)
            else:
                got = self.recv_some(inner, data, n, patience)
        except SSLWantReadError:
            pass
        except SSLWantWriteError:
            want[0] = POLLOUT
        except SSLEOFError:
            # After an error OpenSSL reads no more. One of a read has set `ended`; one of the handshake leaves the
            # connection unsettled, and on such a one no read waits beside a send.
            if self.ended or not self.settled or self.is_at_end():
                self.ended = True
                if not self.source.suppress_ragged_eofs:
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

    cdef Tls into(self, char *data, size_t n):
        """Return the buffer object for a read of up to n bytes into ``data``."""
        self.data = data
        self.n = n
        return self

    cdef ssize_t fail_read(self, object error) except -2:
        """End a read that has received nothing: raise the exception, but keep a handler's for ``recv()`` to raise."""
        if not raised_outside(error, MODULES):
            raise error
        self.keep(error)
        return -1

    cdef ssize_t recv_plain(self, char *data, size_t n, int64_t patience) except -2:
        if patience == OWN_TIMEOUT or fd_ready(self.fd, POLLIN):
            try:
                # Written in C, so that no handler can run before the return.
                return raw_socket.recv_into(self.source, self.into(data, n))
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
        cdef int64_t own = to_nanoseconds(self.source.gettimeout())
        return 0 <= own <= patience

    cdef ssize_t recv_record(self, object inner, char *data, size_t n) except -2:
        """Read a record, in a thread in which a handler can raise so that its size is known nevertheless."""
        cdef size_t pending
        if not runs_handlers(&self.other_thread):
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

    # ---- sending

    cdef ssize_t send(self, const char *data, size_t n, int64_t patience, short *want) except -2:
        """Send the record that was begun, then up to n bytes. Returns how many of the n bytes were accepted.

        Never waits. Returns -1 with the events to wait for in ``want`` if nothing was accepted; 0 if the record that
        was begun has been sent and either n is 0 or a handler raised. The caller counts the bytes and then calls
        ``raise_late()``.
        """
        cdef rio_sigpipe guard
        cdef int ready, err = 0
        if not self.begin(True):
            want[0] = POLLIN | POLLOUT
            return -1
        rio_sigpipe_block(&guard)
        try:
            inner = self.source._sslobj
            if inner is None:
                self.set_begun(None)   # after unwrap() it cannot be completed
            elif self.begun is not None:
                self.send_record(inner, self.begun, False, want)
                if self.begun is not None:
                    return -1
            if n == 0 or rio_thread_get(&self.raised_in) == rio_this_thread():
                return 0
            ready = fd_wait(self.fd, POLLOUT, 0, &err)
            if ready <= 0:
                want[0] = POLLOUT
                return -1
            if ready & POLLERR:   # ask for it here: the ssl module reports a reset as the end of the connection
                err = rio_socket_error(self.fd)
                if err:
                    raise os_error(err)
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
            if raised_outside(error, MODULES) or not isinstance(error, OSError):
                # OpenSSL's result is lost. If the record was not sure to fit, signals of this thread are blocked, and
                # this was another one's: assume that it was begun unless there is room for more.
                self.set_begun(None if fits or fd_ready(self.fd, POLLOUT) else record)
                self.keep(error)
            elif isinstance(error, SSLWantReadError):
                self.set_begun(record)
                want[0] = POLLIN
            elif isinstance(error, (SSLWantWriteError, TimeoutError)):
                self.set_begun(record)
                want[0] = POLLOUT
            else:   # an error of the connection: the record cannot be completed
                self.set_begun(None)
                if isinstance(error, SSLEOFError):   # the ssl module's translation of EPIPE
                    raise BrokenPipeError(EPIPE, "the TLS connection was closed by the peer") from error
                raise
        finally:
            self.restore(muted)
        return 0

    cdef ssize_t send_plain(self, bytes data, short *want) except -2:
        muted = self.mute()
        try:
            return raw_socket.send(self.source, data)
        except BlockingIOError:
            want[0] = POLLOUT
            return -1
        finally:
            self.restore(muted)
