"""The asyncio twin of the blocking Rio: class Rio, and its methods that read.

What has been received, and the call that waits, is in aio/_input.pyx; what is to be sent in aio/_output.pyx; TLS and
the end of a connection in aio/_connection.pyx.
"""

import asyncio

cimport cython
from libc.stdint cimport SIZE_MAX

from rioecho._core.buffer cimport buffer_init
from rioecho._core.convert cimport to_limit, to_nanoseconds, to_size
from rioecho._rio.fed cimport (
    ALL_LINES,
    HOLD,
    LINE,
    LINES,
    NUMBER,
    PEEK,
    SKIP,
    SKIPLINE,
    SOME,
    ask,
    ask_line,
    ask_payload,
    ask_until,
)
from rioecho._rio.framing cimport in_frame, to_line_limit
from rioecho.aio._call cimport Call, new_call
from rioecho.aio._input cimport Protocol
from rioecho.aio._connection cimport Connection


cdef object current_task = asyncio.current_task
cdef object KEY = object()   # what open_rio() passes to the constructor


class _SocketProtocol(Protocol, asyncio.BufferedProtocol):
    """The protocol of a transport that stores what it receives in the buffer."""

    __slots__ = ()


@cython.final
cdef class Rio(Connection):
    """A buffered reader and writer on asyncio that never loses a byte, whatever interrupts it.

    ``connect()``, ``start_server()`` and ``wrap()`` make one.
    """

    def __cinit__(self, *args, **options):
        if len(args) != 1 or args[0] is not KEY:
            raise TypeError(
                "rioecho.aio.Rio is made by rioecho.aio.connect(), rioecho.aio.start_server() or rioecho.aio.wrap()"
            )

    def __repr__(self):
        if self.has_closed:
            return "<rioecho.aio.Rio closed>"
        if self.transport is None:
            return f"<rioecho.aio.Rio holding {self.buffered} bytes, {'lost' if self.lost else 'not connected'}>"
        return f"<rioecho.aio.Rio over {self.transport!r}>"

    cdef Call call(self, str name, object timeout):
        """Return a call of a method that reads."""
        cdef Call call
        if timeout is not ...:
            to_nanoseconds(timeout)
        call = new_call(self, name, timeout)
        if in_frame(self):
            call.task = current_task(self.loop)
        return call

    # ---- lines

    def readline(self, limit=-1, *, timeout=...):
        cdef Call call = self.call("readline", timeout)
        ask_line(&call.asked, self, limit)
        return call

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef Call call = self.call("readline", ...)
        ask(&call.asked, LINE, self.line_limit)
        call.iterates = True
        return call

    def readlines1(self, *, timeout=...):
        cdef Call call = self.call("readlines1", timeout)
        ask(&call.asked, LINES, self.line_limit)
        return call

    def readlines(self, hint=-1, *, timeout=...):
        cdef Call call = self.call("readlines", timeout)
        cdef Py_ssize_t enough = to_limit(hint, "hint")
        ask(&call.asked, ALL_LINES, SIZE_MAX if enough <= 0 else <size_t>enough)
        return call

    def readuntil(self, sep=b"\n", limit=-1, *, timeout=...):
        cdef Call call = self.call("readuntil", timeout)
        call.separator = sep
        ask_until(&call.asked, self, sep, limit)
        return call

    def skipline(self, *, timeout=...):
        cdef Call call = self.call("skipline", timeout)
        ask(&call.asked, SKIPLINE, 0)
        return call

    # ---- a number of bytes

    def read(self, n=-1, *, timeout=...):
        cdef Call call = self.call("read", timeout)
        cdef Py_ssize_t size = to_limit(n, "n")
        ask(&call.asked, NUMBER, SIZE_MAX if size < 0 else <size_t>size)
        return call

    def readexactly(self, n, *, timeout=...):
        cdef Call call = self.call("readexactly", timeout)
        ask(&call.asked, NUMBER, to_size(n, "n"))
        call.asked.strict = True
        return call

    def read1(self, n=-1, *, timeout=...):
        cdef Call call = self.call("read1", timeout)
        cdef Py_ssize_t size = to_limit(n, "n")
        ask(&call.asked, SOME, SIZE_MAX if size < 0 else <size_t>size)
        return call

    def readframe(self, width=4, byteorder="big", *, limit=..., timeout=...):
        cdef Call call = self.call("readframe", timeout)
        ask_payload(&call.asked, self, width, byteorder, limit)
        return call

    def skip(self, n, *, timeout=...):
        cdef Call call = self.call("skip", timeout)
        ask(&call.asked, SKIP, to_size(n, "n"))
        return call

    def peek(self, n=0, *, timeout=...):
        cdef Call call = self.call("peek", timeout)
        to_limit(n, "n")
        ask(&call.asked, PEEK, 0)
        return call

    def fill(self, n=1, *, timeout=...):
        cdef Call call = self.call("fill", timeout)
        ask(&call.asked, HOLD, to_size(n, "n"))
        return call

    def readinto(self, buffer, *, timeout=...):
        cdef Call call = self.call("readinto", timeout)
        call.aim(buffer)
        call.asked.strict = True
        return call

    def readinto1(self, buffer, *, timeout=...):
        cdef Call call = self.call("readinto1", timeout)
        call.aim(buffer)
        return call


def open_rio(
    loop,
    *,
    bufsize=65536,
    timeout=None,
    idle_timeout=None,
    max_line=1 << 20,
    reads=True,
    writes=True,
    is_socket=True,
    made=None,
):
    """Return ``(rio, protocol)``: a Rio without a connection, and the protocol that gives it one.

    ``made`` is called with the Rio when the connection is made; the others are what the descriptor is.
    """
    cdef Rio rio
    cdef size_t size = to_size(bufsize, "bufsize")
    if size == 0:
        raise ValueError("bufsize must be at least 1")
    rio = Rio.__new__(Rio, KEY)
    rio.loop = loop
    rio.line_limit = to_line_limit(max_line)
    rio.timeout = timeout
    rio.idle_timeout = idle_timeout
    buffer_init(&rio.inp, size)
    rio.is_readable = reads
    rio.is_writable = writes
    rio.ended_output = not writes
    rio.is_socket = is_socket
    rio.protocol = _SocketProtocol(rio, made)
    return rio, rio.protocol
