# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False, binding=False
# cython: boundscheck=False, wraparound=False
"""The transport of a Rio over an ssl.SSLSocket: reads and writes that never wait and never lose a byte.

The raw descriptor would show ciphertext, so every byte goes through the socket object. Three things make that robust:

* The ssl module waits inside a call for as long as the socket's own timeout says, once per record; a deadline for the
  whole call needs calls that do not wait, so the timeout is 0 for the moment of each call and then restored.
* The ssl module runs Python's signal handlers after it has taken bytes from OpenSSL and before it returns them; a
  handler that raises there would lose them. So signals are held back in this thread for that moment, and the socket's
  inner object is called directly, with no Python code in between that a handler could interrupt.
* Once OpenSSL has begun to send a record, it must be offered the same bytes again, and they cannot be taken back. They
  count as sent, and are kept here until they are.
"""

import sys

from cpython.buffer cimport PyBUF_WRITE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.pythread cimport PyThread_get_thread_ident

from rioecho._posix cimport (
    POLLIN,
    POLLOUT,
    RIO_FREE,
    rio_flag_put,
    rio_flag_take,
    rio_signals_hold,
    rio_signals_release,
    sched_yield,
    sigset_t,
)

from rioecho.errors import ConcurrentCall


cdef enum:
    RECORD = 16384   # the longest TLS record (RFC 8446, 5.1): what one send begins, it can also finish


def is_tls(source):
    """Is this an ssl.SSLSocket? The ssl module is not imported to find out: without it there is none."""
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(source, ssl.SSLSocket)


cdef class Tls:
    def __cinit__(self, sock):
        ssl = sys.modules["ssl"]
        self.sock = sock
        self.want_read = ssl.SSLWantReadError
        self.want_write = ssl.SSLWantWriteError
        self.eof = ssl.SSLEOFError
        self.begun = None

    cdef int take(self) except -1:
        """OpenSSL's object is not for two threads at once, and neither is the socket's timeout."""
        cdef unsigned long me = PyThread_get_thread_ident()
        while not rio_flag_take(&self.busy):
            if self.owner == me:   # a signal handler inside this thread's own call: waiting would be for ever
                raise ConcurrentCall("a TLS call of this thread is under way; a signal handler cannot join it")
            with nogil:
                sched_yield()
        self.owner = me
        return 0

    cdef ssize_t attempt(self, object call, tuple arguments, short blocked, short *want) except -2:
        """Call the ssl module once without waiting: a count, or -1 and the poll event to wait for."""
        cdef sigset_t before
        cdef ssize_t count
        self.take()
        try:
            timeout = self.sock.gettimeout()
            try:
                if timeout != 0:
                    self.sock.settimeout(0)
                rio_signals_hold(&before)
                try:
                    PyErr_CheckSignals()   # those that came before: nothing has been taken yet
                    count = call(*arguments)
                finally:
                    rio_signals_release(&before)
            except self.want_read:
                want[0] = POLLIN
                count = -1
            except self.want_write:
                want[0] = POLLOUT
                count = -1
            except BlockingIOError:   # from a socket that is not, or no longer, encrypted
                want[0] = blocked
                count = -1
            finally:
                if timeout != 0:
                    try:
                        self.sock.settimeout(timeout)
                    except OSError:
                        pass   # closed meanwhile by another thread; what was read is still to be delivered
        finally:
            rio_flag_put(&self.busy, RIO_FREE)
        return count

    cdef ssize_t recv(self, char *data, size_t n, short *want) except -2:
        """Read up to n bytes: a count, 0 at the end, or -1 and the event to wait for."""
        view = PyMemoryView_FromMemory(data, n, PyBUF_WRITE)
        inner = self.sock._sslobj
        try:
            if inner is not None:
                return self.attempt(inner.read, (n, view), POLLIN, want)
            # Not encrypted yet, or no more: the socket's own method says so in its own words.
            return self.attempt(self.sock.recv_into, (view,), POLLIN, want)
        except self.eof:
            if self.sock.suppress_ragged_eofs:
                return 0
            raise
        finally:
            view.release()

    cdef ssize_t send(self, const char *data, size_t n, short *want) except -2:
        """Send what was begun, then up to n bytes: how many of the n were taken, or -1 and the event to wait for."""
        cdef ssize_t count
        cdef bytes record
        inner = self.sock._sslobj
        call = self.sock.send if inner is None else inner.write
        while self.begun is not None:
            count = self.attempt(call, (self.begun,), POLLOUT, want)
            if count < 0:
                return -1
            self.begun = self.begun[count:] if count < len(self.begun) else None
        if n == 0:
            return 0
        record = PyBytes_FromStringAndSize(data, min(n, <size_t>RECORD))
        count = self.attempt(call, (record,), POLLOUT, want)
        if count < 0:
            if inner is None:
                return -1
            self.begun = record
            count = len(record)
        return count
