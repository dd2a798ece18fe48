"""The transport of a Rio over an ``ssl.SSLSocket``: reads and writes that do not block and never lose a byte.

The descriptor carries ciphertext, so every byte goes through the socket object. Four rules make that robust:

* The ssl module blocks for up to the socket's own timeout, once per record. A deadline for the whole call needs calls
  that do not block, so the timeout is set to 0 for each call and then restored.
* Neither OpenSSL's object nor that timeout may be used by two threads at once. The flag ``busy`` is held for each whole
  operation, and all Rios over one socket share it (see ``tls_of``). A caller that finds another thread in an operation
  retries after poll(2), as if there were nothing to read, so its deadline and signal handlers work as usual.
* The ssl module runs Python's signal handlers after it has read bytes from OpenSSL and before it returns them, and
  loses the count if one raises. So the inner object of the socket is called directly, without Python code in between
  that a handler could interrupt; if a handler raises, the count is computed from the number of pending bytes.
* Once OpenSSL has begun to send a record, it must be given the same bytes again, and they cannot be recalled. They
  count as sent and are kept in ``begun`` until they have been sent.

Two races remain, both when a handler raises during a call. In a send, the handler of a signal that the kernel delivered
to another thread: signals of this thread are blocked (``Output.hold_signals``), but for another one's the ssl module
does not report whether the record was sent. So a record is sent only if the socket has room. On Linux, unless
SO_SNDBUF is less than six records, it has room for the whole record; elsewhere the record is assumed to be begun if the
socket is full afterwards. In a read, a record of one byte that happens to equal ``UNTOUCHED``: it is assumed not to
have been received.

While signals are blocked for a send, other threads still receive them, and their handlers run in this thread during the
send, with all signals blocked. A program that such a handler starts inherits that.
"""

import os
import sys
from _thread import RLock

from cpython.buffer cimport PyBUF_WRITE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.ref cimport Py_INCREF
from libc.errno cimport ECONNABORTED, EPIPE
from libc.stdint cimport int64_t

from rioecho._core.convert cimport to_nanoseconds
from rioecho._core.fdio cimport fd_ready
from rioecho._core.flag cimport flags_link, flags_unlink
from rioecho._core.posix cimport (
    POLLIN,
    POLLOUT,
    RIO_FREE,
    RIO_LOST,
    rio_assert,
    rio_bool_set,
    rio_flag_mine,
    rio_flag_put,
    rio_flag_state,
    rio_flag_take,
    rio_room_for,
    rio_sigpipe_block,
    rio_sigpipe_restore,
    rio_this_thread,
    rio_thread_get,
    rio_thread_set,
    rio_time_get,
    rio_time_set,
)

from rioecho.errors import ConcurrentCall


cdef enum:
    UNTOUCHED = 0xA5   # marks a byte of the buffer as not received


cdef object plain_socket = None   # _socket.socket, the base class in C; imported with the first TLS socket
cdef object registering = RLock()
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


def _after_fork_in_child():
    """Reinitialise ``registering`` if another thread held it.

    Leak each OpenSSL object that another thread was using: freeing it is unsafe.
    """
    cdef Tls tls
    if not registering._is_owned():   # else the fork was under a call that is in there, and goes on
        registering._at_fork_reinit()
    for tls in list((live or {}).values()):
        if tls.lost():
            Py_INCREF(tls.sock._sslobj)


os.register_at_fork(after_in_child=_after_fork_in_child)   # runs after that of _core/flag.pyx, imported before


cdef class Tls(Transport):
    def __cinit__(self, sock):
        ssl = sys.modules["ssl"]
        self.sock = sock
        self.fd = sock.fileno()
        self.want_read = ssl.SSLWantReadError
        self.want_write = ssl.SSLWantWriteError
        self.eof = ssl.SSLEOFError
        rio_time_set(&self.own_timeout, to_nanoseconds(sock.gettimeout()))
        self.flags.flags[:] = [&self.busy, NULL, NULL]
        self.flags.orphaned = RIO_LOST
        flags_link(&self.flags)

    def __dealloc__(self):
        flags_unlink(&self.flags)

    cdef bint take(self) except -1:
        """Begin an operation. Returns False if another thread is in one.

        Raises ``ConcurrentCall`` if this call interrupted an operation of this thread, and ``ConnectionAbortedError``
        if the socket is lost. No byte is lost: they are in ``begun`` and in the caller's buffer.
        """
        if not rio_flag_take(&self.busy):
            if rio_flag_mine(&self.busy):
                raise ConcurrentCall("a TLS call of this thread is in progress; a signal handler cannot join it")
            if self.lost():
                raise ConnectionAbortedError(
                    ECONNABORTED,
                    "another thread was inside this TLS connection when the process was forked: "
                    "it cannot be used in the child",
                )
            return False
        rio_sigpipe_block(&self.sigpipe)
        return True

    cdef void put(self) noexcept:
        rio_sigpipe_restore(&self.sigpipe)
        rio_flag_put(&self.busy, RIO_FREE)

    cdef bint lost(self) noexcept:
        """Report whether another thread was in an operation when this process was forked."""
        return rio_flag_state(&self.busy) == RIO_LOST

    cdef size_t least_room(self) noexcept:
        return RECORD   # what does not fit stays in OpenSSL, where select() does not report it

    cdef object timeout(self):
        """Return the socket's own timeout, even while an operation has set it to 0."""
        cdef int64_t ns
        if rio_flag_take(&self.busy):
            try:
                return self.sock.gettimeout()
            finally:
                rio_flag_put(&self.busy, RIO_FREE)
        ns = rio_time_get(&self.own_timeout)
        return None if ns < 0 else ns / 1e9

    cdef str timed_out(self, bint writing):
        return f"The {'write' if writing else 'read'} operation timed out"   # the ssl module's

    cdef object own(self):
        """Return the socket's own timeout and record it, at the beginning of an operation."""
        timeout = self.sock.gettimeout()
        rio_time_set(&self.own_timeout, to_nanoseconds(timeout))
        return timeout

    cdef void set_begun(self, bytes record) noexcept:
        rio_assert(rio_flag_mine(&self.busy))
        self.begun = record
        rio_bool_set(&self.half_sent, record is not None)

    cdef int raise_late(self) except -1:
        """Raise the exception of a signal handler that interrupted this thread's last call, after storing its bytes."""
        if rio_thread_get(&self.raised_in) == rio_this_thread():
            error = self.raised
            self.raised = None
            rio_thread_set(&self.raised_in, 0)
            raise error
        return 0

    cdef void keep(self, object error) noexcept:
        """Store an exception raised in the middle of a call for ``raise_late()``.

        The first one is kept: another thread may be raising it just now, and the bytes of this call are safe.
        """
        if rio_thread_get(&self.raised_in) == 0:
            self.raised = error
            rio_thread_set(&self.raised_in, rio_this_thread())

    cdef void restore(self, object timeout) noexcept:
        """Restore the socket's timeout. An exception of that is stored: the bytes of the call are not counted yet."""
        if timeout != 0:
            try:
                self.sock.settimeout(timeout)
            except OSError:
                pass   # another thread has closed the socket; the bytes that were read are still delivered
            except BaseException as error:
                self.keep(error)

    cdef ssize_t recv(self, char *data, size_t n, int64_t patience, short *want) except -2:
        """Read up to n bytes. Returns their number, 0 at EOF, or -1 with the events to wait for in ``want``.

        The caller then stores the bytes and calls ``raise_late()``. If n is at least ``RECORD``, no byte stays in
        OpenSSL, where select() would not report it.
        """
        cdef ssize_t got = -1
        if not self.take():
            want[0] = POLLIN | POLLOUT
            return -1
        try:
            timeout = self.own()
            view = PyMemoryView_FromMemory(data, n, PyBUF_WRITE)
            try:
                if timeout != 0:
                    self.sock.settimeout(0)
                if self.sock._sslobj is None:   # not encrypted yet, or no longer: use a plain socket's methods
                    got = recv_plain(self.sock, view, want)
                else:
                    got = self.recv_record(self.sock._sslobj, view, data)
            except self.want_read:
                want[0] = POLLIN
            except self.want_write:
                want[0] = POLLOUT
            except self.eof:
                if not self.sock.suppress_ragged_eofs:
                    raise
                got = 0
            finally:
                view.release()
                self.restore(timeout)
        finally:
            self.put()
        if got <= 0:
            self.raise_late()
        return got

    cdef ssize_t recv_record(self, object inner, object view, char *data) except -2:
        """Read the bytes of one record, or the remaining ones of a record. Returns their number."""
        cdef size_t pending = inner.pending()
        if pending:
            return self.recv_pending(inner, view, pending)
        # Reading one byte makes OpenSSL decrypt the record and know how many bytes follow. If a handler raises, the
        # byte was received if its place has changed or others are pending.
        data[0] = <char>UNTOUCHED
        try:
            if not inner.read(1, view):
                return 0
        except BaseException as error:
            if data[0] == <char>UNTOUCHED and not inner.pending():
                raise
            self.keep(error)
            return 1
        try:   # the first byte was received: raise nothing before it is counted
            pending = inner.pending()
            if pending and len(view) > 1:
                tail = view[1:]
                try:
                    return 1 + self.recv_pending(inner, tail, pending)
                finally:
                    tail.release()
        except BaseException as error:
            self.keep(error)
        return 1

    cdef ssize_t recv_pending(self, object inner, object view, size_t pending) except -2:
        """Read the remaining bytes of a record, as far as they fit. Returns their number."""
        cdef size_t taken
        try:
            return inner.read(min(pending, <size_t>len(view)), view)
        except BaseException as error:
            taken = pending - <size_t>inner.pending()
            if taken == 0:
                raise
            self.keep(error)
            return taken

    cdef ssize_t send(self, const char *data, size_t n, int64_t patience, short *want) except -2:
        """Send the record that was begun, then up to n bytes. Returns how many of the n bytes were accepted.

        Returns -1 with the events to wait for in ``want`` if nothing was; 0 if the record that was begun has been sent
        and either n is 0 or a handler raised. The caller counts the bytes and then calls ``raise_late()``.
        """
        cdef bytes record
        if not self.take():
            want[0] = POLLIN | POLLOUT
            return -1
        try:
            timeout = self.own()
            try:
                if timeout != 0:
                    self.sock.settimeout(0)
                if self.sock._sslobj is None:
                    self.set_begun(None)   # after unwrap() it cannot be completed
                if self.begun is not None:
                    self.send_record(self.begun, want)
                    if self.begun is not None:
                        return -1
                if n == 0 or rio_thread_get(&self.raised_in) == rio_this_thread():
                    return 0
                record = PyBytes_FromStringAndSize(data, min(n, <size_t>RECORD))
                if self.sock._sslobj is None:
                    return send_plain(self.sock, record, want)
                if not self.send_record(record, want):
                    return -1
                return len(record)   # sent or begun: OpenSSL has accepted it
            finally:
                self.restore(timeout)
        finally:
            self.put()

    cdef bint send_record(self, bytes record, short *want) except -1:
        """Pass a record to OpenSSL, which accepts all of it.

        If it has not been sent completely, store it in ``begun``, and the event to wait for in ``want``. Return False,
        with nothing done, if the socket has no room: so it is mostly known whether a record was sent completely.
        """
        if not fd_ready(self.fd, POLLOUT):
            want[0] = POLLOUT
            return False
        try:
            self.sock._sslobj.write(record)
            self.set_begun(None)
        except self.want_read:
            self.set_begun(record)
            want[0] = POLLIN
        except self.want_write:
            self.set_begun(record)
            want[0] = POLLOUT
        except self.eof as error:   # the ssl module's translation of EPIPE
            self.set_begun(None)
            raise BrokenPipeError(EPIPE, "the TLS connection was closed by the peer") from error
        except BaseException as error:
            if isinstance(error, OSError) and error.errno is not None:
                self.set_begun(None)   # an error of the connection: the record cannot be completed
                raise
            # A handler raised, for a signal of another thread (callers block this one's), so OpenSSL's result is lost.
            # The record was sent if it was sure to fit, or if there is room for more. If not, assume that it was begun.
            self.set_begun(None if rio_room_for(self.fd, len(record)) or fd_ready(self.fd, POLLOUT) else record)
            self.keep(error)
        return True


cdef ssize_t recv_plain(object sock, object view, short *want) except -2:
    try:
        return plain_socket.recv_into(sock, view)   # written in C, so that no handler can run before the return
    except BlockingIOError:
        want[0] = POLLIN
        return -1


cdef ssize_t send_plain(object sock, bytes data, short *want) except -2:
    try:
        return plain_socket.send(sock, data)
    except BlockingIOError:
        want[0] = POLLOUT
        return -1
