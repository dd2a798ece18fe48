"""What an event loop reports to its owner: the first bytes of a connection, its end, and lines.

The loop only records them (_server/connection.pxd, receiving.pxd), and ``report()`` then calls the callbacks, in the
thread of the loop and with the GIL.

A callback that runs out of memory must stop neither the loop nor the report. So nothing here allocates: an except
clause that only passes does not instantiate the exception.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int64_t
from libc.string cimport memmove

from rioecho._core.posix cimport RIO_SOURCE_UNKNOWN, rio_assert, rio_monotonic_ns, rio_source
from rioecho._server.connection cimport conn_drop_header, conn_free, conn_header
from rioecho._server.echo cimport MEMORY_LOOK, OPENING
from rioecho._server.handling cimport Handling
from rioecho._server.lineconnection cimport Connection
from rioecho._server.loop cimport CROWDED, REASONS_N, REPORTED_MAX, conn_t, loop_t
from rioecho._server.proxy cimport proxy_t
from rioecho._server.engine import log

#: The reasons for which a connection is closed, in the order of ``reason`` in loop.pxd.
REASONS = (
    "open",
    "end of input",
    "idle timeout",
    "server stopped",
    "drain timeout",
    "closed by the handler",
    "aborted by the handler",
    "error",
    "no valid PROXY header",
    "too many connections from its address",
    "line too long",
    "handler failed",
)


cdef enum:
    QUIET = 10   # seconds after an error of a callback in which no other one is logged


@cython.final
@cython.no_gc_clear   # the loop that it belongs to reports until it has released its last connection
cdef class Reports:
    """The callbacks of an event loop, which documents them, and its handlers, or None."""

    def __cinit__(self, on_closed, on_opened, on_line, Handling handling):
        self.on_closed = on_closed
        self.on_opened = on_opened
        self.on_line = on_line
        self.handling = handling

    cdef void report(self, loop_t *l) noexcept:
        """Call the callbacks for the recorded lines and closed connections."""
        cdef size_t i
        cdef conn_t *c
        cdef size_t n = min(l.lengths_n, <size_t>REPORTED_MAX)
        for i in range(l.opened_n):
            self.report_opening(l.opened[i])
        l.opened_n = 0
        for i in range(n):
            self.report_line(l.lengths[i])
        l.lengths_n -= n
        if l.lengths_n:
            memmove(l.lengths, l.lengths + n, l.lengths_n * sizeof(size_t))
        while l.gone != NULL:
            c = l.gone
            l.gone = c.next
            if self.report_closing(c):
                self.release(c)
            else:
                c.next = l.again
                l.again = c
                l.look = min(l.look, l.now + MEMORY_LOOK * 1_000_000)

    cdef void report_opening(self, conn_t *c) noexcept:
        """Report the first bytes of a connection; do without the report if there is no memory for it."""
        cdef proxy_t *header
        try:
            source = None
            header = conn_header(c)
            if header != NULL and header.source.kind != RIO_SOURCE_UNKNOWN:
                source = PyBytes_FromStringAndSize(<const char *>&header.source, sizeof(rio_source))
            if self.on_opened is not None:
                peer = self.on_opened(<object>c.peer, source)
                Py_INCREF(peer)
                Py_DECREF(<object>c.peer)
                c.peer = <PyObject *>peer
            conn_drop_header(c)
        except MemoryError:
            pass
        except BaseException as error:
            self.log_error(error)

    cdef void report_line(self, size_t n) noexcept:
        """Report a line; drop it if there is no memory for that."""
        try:
            self.on_line(n)
        except MemoryError:
            pass
        except BaseException as error:
            self.log_error(error)

    cdef bint report_closing(self, conn_t *c) noexcept:
        """Report a closed connection; return False if there is no memory for that."""
        if self.handling is not None and self.handling.h.has_objects and not self.handling.lost(c):
            return False
        if c.peer != NULL and (c.phase != OPENING or c.why == CROWDED):
            self.report_opening(c)
        try:
            peer = None if c.peer == NULL else <object>c.peer
            rio_assert(c.why < REASONS_N)
            self.on_closed(peer, REASONS[<int>c.why], c.err, c.bytes_out)
            return True
        except MemoryError:
            pass
        except BaseException as error:
            self.log_error(error)
            return True
        return False

    cdef void log_error(self, error) noexcept:
        """Log an exception of a callback, unless one was logged less than QUIET seconds ago."""
        cdef int64_t now = rio_monotonic_ns()
        if now < self.quiet_until:
            return
        self.quiet_until = now + <int64_t>QUIET * 1_000_000_000
        try:
            log.error("a callback of the event loop raised %s: %s", type(error).__name__, error)
        except BaseException:
            pass

    cdef void release(self, conn_t *c) noexcept:
        """Free a closed connection. Its handler is told that it has ended, unless it was told before."""
        if c.peer != NULL:
            if isinstance(<object>c.peer, Connection):
                self.handling.lost(c)
            Py_DECREF(<object>c.peer)
        conn_free(c)
