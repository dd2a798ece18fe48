"""The transport of a Rio over an ssl.SSLSocket: reads and writes that never wait and never lose a byte.

The raw descriptor would show ciphertext, so every byte goes through the socket object. Four things make that robust:

* The ssl module waits inside a call for as long as the socket's own timeout says, once per record; a deadline for the
  whole call needs calls that do not wait, so the timeout is 0 for the moment of each call and then restored.
* OpenSSL's object is not for two threads at once, and neither is that timeout: `busy` covers each operation whole, and
  all Rios over one socket share it (tls_of). Who finds another thread in an operation tries again after poll(2), like
  one for whom there is nothing to read: so deadlines and signal handlers count as ever.
* The ssl module runs Python's signal handlers after it has taken bytes from OpenSSL and before it returns them, and
  drops the count if one raises. So the socket's inner object is called directly, with no Python code in between for a
  handler to interrupt, and if a handler does raise, the count is found out from how many bytes are still pending.
* Once OpenSSL has begun to send a record, it must be offered the same bytes again, and they cannot be taken back. They
  count as sent, and are kept here (`begun`) until they are.

What is left are two cases of a handler that raises at the very moment of a call. Of a send, for a signal which the
kernel gave to another thread: signals that come to this one are held back (Output.hold_signals), but of the other's
the ssl module does not say whether the record had gone. So a record is sent only where there is room, and on Linux,
unless SO_SNDBUF was made smaller than six records, that is room for all of it; elsewhere it is taken for begun if the
socket is full afterwards. Of a read, of a record of a single byte that happens to be UNTOUCHED: it is taken for not
received.

While signals are held back for a send, other threads still get them, and their handlers run in this one in the middle
of the send: with all signals held back, which a program that such a handler starts inherits.
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

from rioecho._core.convert cimport is_tls, to_nanoseconds
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
    UNTOUCHED = 0xA5   # what a byte that nobody has received looks like


cdef object plain_socket = None   # the class in C under every socket; imported with the first TLS socket
cdef object registering = RLock()
cdef object live = None   # a WeakValueDictionary: id of the socket -> its Tls, which keeps the socket alive


cdef Tls tls_of(object sock):
    """The one Tls of a TLS socket; None for any other source."""
    global live, plain_socket
    if not is_tls(sock):
        return None
    with registering:   # setdefault() is Python code, between two steps of which another thread may come in
        if live is None:   # weakref takes long to import
            import _socket
            import weakref
            plain_socket = _socket.socket
            live = weakref.WeakValueDictionary()
        return live.setdefault(id(sock), Tls(sock))


def _after_fork_in_child():
    """Free the lock above, if another thread had it.

    Have nobody touch an OpenSSL object that another thread was in, not even to free it.
    """
    cdef Tls tls
    if not registering._is_owned():   # else the fork was under a call that is in there, and goes on
        registering._at_fork_reinit()
    for tls in list((live or {}).values()):
        if tls.lost():
            Py_INCREF(tls.sock._sslobj)


os.register_at_fork(after_in_child=_after_fork_in_child)   # runs after that of _core/flag.pyx, which is imported first


cdef class Tls:
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
        """Begin an operation. False if another thread is in one.

        Raises ConcurrentCall under an operation of this thread, and ConnectionAbortedError where the socket is lost.
        The bytes are safe in `begun` and in the caller's buffer, whatever raises here.
        """
        if not rio_flag_take(&self.busy):
            if rio_flag_mine(&self.busy):
                raise ConcurrentCall("a TLS call of this thread is under way; a signal handler cannot join it")
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
        """Report whether another thread was in an operation when this process was forked off."""
        return rio_flag_state(&self.busy) == RIO_LOST

    cdef object timeout(self):
        """The socket's own timeout, not that of an operation under way."""
        cdef int64_t ns
        if rio_flag_take(&self.busy):
            try:
                return self.sock.gettimeout()
            finally:
                rio_flag_put(&self.busy, RIO_FREE)
        ns = rio_time_get(&self.own_timeout)
        return None if ns < 0 else ns / 1e9

    cdef object own(self):
        """The socket's own timeout, at the beginning of an operation."""
        timeout = self.sock.gettimeout()
        rio_time_set(&self.own_timeout, to_nanoseconds(timeout))
        return timeout

    cdef void set_begun(self, bytes record) noexcept:
        rio_assert(rio_flag_mine(&self.busy))
        self.begun = record
        rio_bool_set(&self.half_sent, record is not None)

    cdef int raise_late(self) except -1:
        """Raise what a signal handler raised in the middle of this thread's last call, whose bytes are booked now."""
        if rio_thread_get(&self.raised_in) == rio_this_thread():
            error = self.raised
            self.raised = None
            rio_thread_set(&self.raised_in, 0)
            raise error
        return 0

    cdef void keep(self, object error) noexcept:
        """Keep what a signal handler raised, or a lack of memory, for raise_late(). The first is kept: of it another
        thread may just be taking hold, and all that a second one would tell is that this call's bytes have gone well.
        """
        if rio_thread_get(&self.raised_in) == 0:
            self.raised = error
            rio_thread_set(&self.raised_in, rio_this_thread())

    cdef void restore(self, object timeout) noexcept:
        """Give the socket its timeout back. What that raises is kept: the bytes of the operation are not booked yet."""
        if timeout != 0:
            try:
                self.sock.settimeout(timeout)
            except OSError:
                pass   # closed meanwhile by another thread; what was read is still to be delivered
            except BaseException as error:
                self.keep(error)

    cdef ssize_t recv(self, char *data, size_t n, short *want) except -2:
        """Read up to n bytes: a count, 0 at the end, or -1 and the events to wait for. Then raise_late() is due.

        With room for RECORD bytes nothing stays behind in OpenSSL, where select() cannot see it.
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
                if self.sock._sslobj is None:   # not encrypted yet, or no more: a plain socket's methods
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
        """Read one record's bytes, or what is left of one: a count."""
        cdef size_t pending = inner.pending()
        if pending:
            return self.recv_pending(inner, view, pending)
        # The first byte alone brings in the record; how many follow can be asked then. If a handler raises, it can be
        # told whether the byte came: it has changed its place, or others are pending.
        data[0] = <char>UNTOUCHED
        try:
            if not inner.read(1, view):
                return 0
        except BaseException as error:
            if data[0] == <char>UNTOUCHED and not inner.pending():
                raise
            self.keep(error)
            return 1
        try:   # the first byte has been taken: nothing may be raised before it is booked
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
        """Read what is left of a record, as far as it fits: a count."""
        cdef size_t taken
        try:
            return inner.read(min(pending, <size_t>len(view)), view)
        except BaseException as error:
            taken = pending - <size_t>inner.pending()
            if taken == 0:
                raise
            self.keep(error)
            return taken

    cdef ssize_t send(self, const char *data, size_t n, short *want) except -2:
        """Send what was begun, then up to n bytes: how many of the n were taken, or -1 and the events to wait for.

        Then raise_late() is due. 0 means that what was begun is through, and n is 0 or a handler raised.
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
                    self.set_begun(None)   # after unwrap(), nobody will finish it
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
                return len(record)   # done or begun, OpenSSL has it
            finally:
                self.restore(timeout)
        finally:
            self.put()

    cdef bint send_record(self, bytes record, short *want) except -1:
        """Offer a record, all of which is taken; if it is not through, it is `begun`, and `want` the event to await.

        False, and nothing done, while the socket has no room: so whether the record is through can mostly be told.
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
        except self.eof as error:   # what the ssl module makes of EPIPE
            self.set_begun(None)
            raise BrokenPipeError(EPIPE, "the TLS connection was closed by the peer") from error
        except BaseException as error:
            if isinstance(error, OSError) and error.errno is not None:
                self.set_begun(None)   # the connection's own error: nobody will finish the record
                raise
            # A signal handler raised, for a signal that came to another thread: in this one they are held back. Had
            # OpenSSL got rid of the record? Yes, if it was sure to fit, for there was room; or if there is room for
            # more. If there is not, perhaps.
            self.set_begun(None if rio_room_for(self.fd, len(record)) or fd_ready(self.fd, POLLOUT) else record)
            self.keep(error)
        return True


cdef ssize_t recv_plain(object sock, object view, short *want) except -2:
    try:
        return plain_socket.recv_into(sock, view)   # in C: no handler can run between its return and ours
    except BlockingIOError:
        want[0] = POLLIN
        return -1


cdef ssize_t send_plain(object sock, bytes data, short *want) except -2:
    try:
        return plain_socket.send(sock, data)
    except BlockingIOError:
        want[0] = POLLOUT
        return -1
