"""The transport of a Rio over an ``OpenSSL.SSL.Connection`` of pyOpenSSL.

A connection does not wait as a socket does: if its socket has a timeout, it raises WantReadError or WantWriteError at
once. So each attempt is made without waiting, and poll(2) waits in between, as for an ``ssl.SSLSocket``; and as there,
an OpenSSL object takes one operation at a time, and a record that it has begun to send must be completed: what both
have in common is in _rio/tlsturns.pyx.

``recv_into()`` and ``send()`` of a connection are written in Python, and a signal handler that raises in them takes
along what OpenSSL has done. Blocking signals in this thread does not prevent that: the kernel delivers them to another
one, even to a thread of a C library, and Python runs the handler here. So ``SSL_read()`` and ``SSL_write()`` are called
as those methods call them, through cffi, whose functions are written in C: no handler runs between OpenSSL's return and
the storing of its result. What handlers raise before it has moved nothing, and what they raise after it is kept.

OpenSSL looks for the reason of a failure in the thread's queue of errors, which must be empty before each call, and
pyOpenSSL leaves the errors of system calls in it.
"""

import sys

from cpython.buffer cimport PyBUF_WRITE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.ref cimport Py_INCREF
from libc.errno cimport EPIPE
from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t

from rioecho._core.convert cimport os_error
from rioecho._core.posix cimport (
    POLLIN,
    POLLOUT,
    rio_sigpipe,
    rio_sigpipe_block,
    rio_sigpipe_restore,
    rio_this_thread,
    rio_thread_get,
)
from rioecho._rio.handlers cimport raised_by_handler
from rioecho._rio.registry cimport register, registered
from rioecho._rio.socketlike cimport ENDED, reason_of
from rioecho._rio.transport cimport RECORD


cdef str MODULES = "rioecho._rio.pyopenssl"   # for raised_by_handler()


def pyopenssl_of(connection, /):
    """Return the transport of a connection, which all its Rios share."""
    cdef PyOpenSsl made = registered(connection, PyOpenSsl)
    if made is None:
        if connection._socket is None:
            raise TypeError("a byte stream is required: this Connection has no socket (a memory BIO); use rioecho.Feed")
        made = PyOpenSsl.__new__(PyOpenSsl)
        made.source = connection
        made.sock = connection._socket
        made.own_errors = made.holds_signals = True
        made = register(made)
    return made


cdef class PyOpenSsl(TlsTurns):
    cdef void forked(self) noexcept:
        """Leak the connection if another thread was using it: freeing its OpenSSL object is unsafe."""
        if self.lost():
            Py_INCREF(self.source)

    cdef object mute(self):
        """Set the socket's timeout to 0 if it has none: OpenSSL would wait only then."""
        return TlsTurns.mute(self) if self.sock.gettimeout() is None else None

    cdef ssize_t recv(self, char *data, size_t n, int64_t patience, short *want) except -2:
        """Read up to n bytes. Returns their number, 0 at EOF, or -1 with the events to wait for in ``want``."""
        cdef ssize_t got = -1
        cdef rio_sigpipe guard
        if not self.begin(False):
            want[0] = POLLIN | POLLOUT
            return -1
        rio_sigpipe_block(&guard)   # a read sends too
        try:
            PyErr_CheckSignals()
            openssl = sys.modules["OpenSSL.SSL"]
            ssl = self.source._ssl
            memory = openssl._ffi.from_buffer(PyMemoryView_FromMemory(data, n, PyBUF_WRITE))
            size = min(n, <size_t>INT_MAX)
            read = openssl._lib.SSL_read
            muted = self.mute()
            try:
                openssl._lib.ERR_clear_error()
                got = read(ssl, memory, size)
                if got <= 0:
                    got = self.read_nothing(self.reason(ssl, got), want)
            finally:
                self.restore(muted)
        finally:
            rio_sigpipe_restore(&guard)
            self.end(False)
        if got <= 0:
            self.raise_late()
        return got

    cdef ssize_t read_nothing(self, object error, short *want) except -2:
        """Return what a read that failed returns, 0 at EOF or -1, or raise its error."""
        openssl = sys.modules["OpenSSL.SSL"]
        if isinstance(error, openssl.WantReadError):
            want[0] = POLLIN
            return -1
        if isinstance(error, openssl.WantWriteError):
            want[0] = POLLOUT
            return -1
        if reason_of(error) == ENDED:
            self.broken = self.broken or EPIPE
        elif not self.is_over(error):
            raise self.plain_error(error)
        if self.broken != EPIPE:
            raise os_error(self.broken) from error
        return 0

    cdef object reason(self, object ssl, object result):
        """Return pyOpenSSL's exception for the result of a call that failed. What a handler raises is kept."""
        openssl = sys.modules["OpenSSL.SSL"]
        for _ in range(3):   # a handler that raises may come first
            try:
                self.source._raise_ssl_error(ssl, result)
            except openssl.Error as error:
                return error
            except BaseException as error:
                if not raised_by_handler(error, MODULES):   # that of the program's own callback, for example
                    raise
                self.keep(error)
        return openssl.WantReadError()   # the next attempt meets the reason again

    cdef ssize_t send(self, const char *data, size_t n, int64_t patience, short *want) except -2:
        """Send the record that was begun, then up to n bytes. Returns how many of the n bytes were accepted.

        Returns -1 with the events to wait for in ``want`` if nothing was; 0 if the record that was begun has been sent
        and n is 0. The caller has blocked this thread's signals.
        """
        cdef bytes record
        cdef rio_sigpipe guard
        if not self.begin(True):
            want[0] = POLLIN | POLLOUT
            return -1
        rio_sigpipe_block(&guard)
        try:
            muted = self.mute()
            try:
                if self.begun is not None:
                    self.send_record(self.begun, want)
                    if self.begun is not None:
                        return -1
                if n == 0 or rio_thread_get(&self.raised_in) == rio_this_thread():
                    return 0
                record = PyBytes_FromStringAndSize(data, min(n, <size_t>RECORD))
                self.send_record(record, want)
                return len(record)   # sent or begun: OpenSSL has accepted it
            finally:
                self.restore(muted)
        finally:
            rio_sigpipe_restore(&guard)
            self.end(True)

    cdef int send_record(self, bytes record, short *want) except -1:
        """Pass a record to OpenSSL, which accepts all of it. What it has not sent completely becomes ``begun``."""
        cdef Py_ssize_t put
        openssl = sys.modules["OpenSSL.SSL"]
        ssl = self.source._ssl
        openssl._lib.ERR_clear_error()
        put = openssl._lib.SSL_write(ssl, record, len(record))
        if put <= 0:
            self.set_begun(record)
            error = self.reason(ssl, put)
            if isinstance(error, openssl.WantReadError):
                want[0] = POLLIN
            elif isinstance(error, openssl.WantWriteError):
                want[0] = POLLOUT
            else:
                self.set_begun(None)   # the connection has failed: the record cannot be completed
                raise self.plain_error(error)
        elif put < len(record):
            want[0] = POLLOUT
            self.set_begun(record[put:])
        else:
            self.set_begun(None)
        return 0

    cdef bint is_over(self, object error) except -1:
        """Report whether an error only says that the connection had ended: OpenSSL gives the reason once."""
        return self.broken != 0 and error.args == ([],)

    cdef object plain_error(self, object error):
        """Return the OSError that a system call's error stands for, or the error itself."""
        openssl = sys.modules["OpenSSL.SSL"]
        if isinstance(error, openssl.SysCallError) and error.args and isinstance(error.args[0], int):
            self.broken = error.args[0] if error.args[0] > 0 else EPIPE
        elif isinstance(error, openssl.ZeroReturnError):
            self.broken = EPIPE
        elif not self.is_over(error):
            return error
        plain = os_error(self.broken)
        plain.__cause__ = error
        return plain
