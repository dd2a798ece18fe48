"""The transport of a Rio over an ``OpenSSL.SSL.Connection`` of pyOpenSSL.

A connection does not wait as a socket does: if its socket has a timeout, it raises WantReadError or WantWriteError at
once. So each attempt is made without waiting, and poll(2) waits in between, as for an ``ssl.SSLSocket``; and as there,
an OpenSSL object takes one operation at a time, and a record that it has begun to send must be completed. The flag
``busy`` and the bytes ``begun`` are those of _rio/tls.pyx.

``recv_into()`` and ``send()`` of a connection are written in Python, and a signal handler that raises in them takes
along what OpenSSL has done. Therefore signals are blocked in this thread during an attempt; the caller does it for a
send. A handler of a signal that the kernel delivers to another thread is not kept out by that.
"""

import sys

from cpython.buffer cimport PyBUF_WRITE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.ref cimport Py_INCREF
from libc.errno cimport ECONNABORTED, EPIPE
from libc.stdint cimport int64_t

from rioecho._core.convert cimport os_error, to_nanoseconds
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
    rio_signals_hold,
    rio_signals_release,
    rio_sigpipe_block,
    rio_sigpipe_restore,
    rio_time_get,
    rio_time_set,
    sigset_t,
)
from rioecho._rio.registry cimport register, registered
from rioecho._rio.socketlike cimport ENDED, reason_of

from rioecho.errors import ConcurrentCall


cdef enum:
    RECORD = 16384   # maximum payload of a TLS record (RFC 8446, 5.1)


def pyopenssl_of(connection, /):
    """Return the transport of a connection, which all its Rios share."""
    cdef PyOpenSsl made = registered(connection, PyOpenSsl)
    if made is None:
        made = PyOpenSsl.__new__(PyOpenSsl)
        made.source = connection
        made.own_errors = made.holds_signals = True
        rio_time_set(&made.own_timeout, to_nanoseconds(connection.gettimeout()))
        made = register(made)
    return made


cdef class PyOpenSsl(Transport):
    def __cinit__(self):
        self.flags.flags[0] = &self.busy
        self.flags.orphaned = RIO_LOST
        flags_link(&self.flags)

    def __dealloc__(self):
        flags_unlink(&self.flags)

    cdef void forked(self) noexcept:
        """Leak the connection if another thread was using it: freeing its OpenSSL object is unsafe."""
        if self.lost():
            Py_INCREF(self.source)

    cdef bint take(self) except -1:
        """Begin an operation. Returns False if another thread is in one, and raises as ``Tls.take()`` does."""
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
        return rio_flag_state(&self.busy) == RIO_LOST

    cdef bint stands_in_way(self) noexcept:
        return rio_flag_mine(&self.busy)

    cdef size_t least_room(self) noexcept:
        return RECORD   # what does not fit stays in OpenSSL, where select() does not report it

    cdef object timeout(self):
        cdef int64_t ns
        if rio_flag_take(&self.busy):
            try:
                return self.source.gettimeout()
            finally:
                rio_flag_put(&self.busy, RIO_FREE)
        ns = rio_time_get(&self.own_timeout)
        return None if ns < 0 else ns / 1e9

    cdef object begin(self):
        """Make the socket non-blocking. Returns its own timeout, for ``restore()``."""
        timeout = self.source.gettimeout()
        rio_time_set(&self.own_timeout, to_nanoseconds(timeout))
        if timeout is None:
            self.source.settimeout(0)
        return timeout

    cdef void restore(self, object timeout) noexcept:
        if timeout is None:
            try:
                self.source.settimeout(None)
            except OSError:
                pass   # another thread has closed the socket; the bytes that were read are still delivered
            except BaseException as error:
                self.keep(error)

    cdef void set_begun(self, bytes record) noexcept:
        rio_assert(rio_flag_mine(&self.busy))
        self.begun = record
        rio_bool_set(&self.half_sent, record is not None)

    cdef ssize_t recv(self, char *data, size_t n, int64_t patience, short *want) except -2:
        """Read up to n bytes. Returns their number, 0 at EOF, or -1 with the events to wait for in ``want``."""
        cdef ssize_t got = -1
        cdef sigset_t before
        if not self.take():
            want[0] = POLLIN | POLLOUT
            return -1
        rio_signals_hold(&before)
        try:
            PyErr_CheckSignals()
            openssl = sys.modules["OpenSSL.SSL"]
            view = PyMemoryView_FromMemory(data, n, PyBUF_WRITE)
            timeout = self.begin()
            try:
                got = self.source.recv_into(view)
            except openssl.WantReadError:
                want[0] = POLLIN
            except openssl.WantWriteError:
                want[0] = POLLOUT
            except openssl.Error as error:
                if reason_of(error) == ENDED:
                    self.broken = self.broken or EPIPE
                elif not self.is_over(error):
                    raise self.plain_error(error)
                if self.broken != EPIPE:
                    raise os_error(self.broken) from error
                got = 0
            finally:
                view.release()
                self.restore(timeout)
        finally:
            rio_signals_release(&before)
            self.put()
        if got <= 0:
            self.raise_late()
        return got

    cdef ssize_t send(self, const char *data, size_t n, int64_t patience, short *want) except -2:
        """Send the record that was begun, then up to n bytes. Returns how many of the n bytes were accepted.

        Returns -1 with the events to wait for in ``want`` if nothing was; 0 if the record that was begun has been sent
        and n is 0. The caller has blocked this thread's signals.
        """
        cdef bytes record
        if not self.take():
            want[0] = POLLIN | POLLOUT
            return -1
        try:
            timeout = self.begin()
            try:
                while self.begun is not None:
                    record = self.begun
                    self.set_begun(None)   # if this fails, the connection has: the record cannot be completed
                    self.send_record(record, want)
                    if self.begun is not None:
                        return -1
                if n == 0:
                    return 0
                record = PyBytes_FromStringAndSize(data, min(n, <size_t>RECORD))
                self.send_record(record, want)
                return len(record)   # sent or begun: OpenSSL has accepted it
            finally:
                self.restore(timeout)
        finally:
            self.put()

    cdef ssize_t send_record(self, bytes record, short *want) except -2:
        """Pass a record to OpenSSL, which accepts all of it. What it has not sent completely becomes ``begun``."""
        cdef Py_ssize_t put
        openssl = sys.modules["OpenSSL.SSL"]
        try:
            put = self.source.send(record)
        except openssl.WantReadError:
            self.set_begun(record)
            want[0] = POLLIN
        except openssl.WantWriteError:
            self.set_begun(record)
            want[0] = POLLOUT
        except openssl.Error as error:
            raise self.plain_error(error)
        else:
            if put < len(record):
                want[0] = POLLOUT
                self.set_begun(record[put:])
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
