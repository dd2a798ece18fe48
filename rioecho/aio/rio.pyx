"""The asyncio twin of the blocking Rio: class Rio, its methods that read, and its closing.

What has been received, and the call that waits, is in aio/_input.pyx; what is to be sent in aio/_output.pyx.
"""

import asyncio
import io

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport SIZE_MAX, int64_t

from rioecho._core.buffer cimport buffer_held, buffer_init
from rioecho._core.convert cimport check_timeout, to_limit, to_nanoseconds, to_size
from rioecho._core.fdio cimport deadline_after
from rioecho._core.posix cimport rio_monotonic_ns
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
from rioecho.aio._output cimport Output

from rioecho.errors import ConcurrentCall


cdef extern from "Python.h":
    int PyErr_ResourceWarning(object source, Py_ssize_t stack_level, const char *format, ...) except -1

cdef object current_task = asyncio.current_task
cdef object KEY = object()   # what open_rio() passes to the constructor


class _SocketProtocol(Protocol, asyncio.BufferedProtocol):
    """The protocol of a transport that stores what it receives in the buffer."""

    __slots__ = ()


class _PipeProtocol(Protocol, asyncio.Protocol):
    """The protocol of a pipe: asyncio's transports for pipes know no ``BufferedProtocol``."""

    __slots__ = ()


@cython.final
cdef class Rio(Output):
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

    # ---- the end

    @property
    def closed(self):
        """Whether the Rio has been closed."""
        return bool(self.has_closed)

    def get_extra_info(self, name, default=None):
        """Return information about the transport, as ``asyncio.BaseTransport.get_extra_info()`` does."""
        return default if self.transport is None else self.transport.get_extra_info(name, default)

    def abort(self):
        """Close the connection at once; what was not sent or read is lost."""
        self.shut()
        self.chunks = []
        self.queued = self.offset = 0
        if self.transport is not None:
            self.transport.abort()

    async def close(self, *, timeout=...):
        """Flush, and close the connection. Returns when the descriptor is closed."""
        cdef int64_t limit = self.timeout_ns if timeout is ... else to_nanoseconds(timeout)
        cdef int64_t end = deadline_after(limit) if limit > 0 else -1
        if self.has_closed:
            await self.wait_lost(end)
            return
        self.shut()
        try:
            if not self.lost:
                await self.drain(timeout)
                self.transport.close()
        except BaseException:
            self.abort()
            raise
        try:
            await self.wait_lost(end)
        except TimeoutError:
            self.abort()
        except BaseException:
            self.abort()
            raise
        if self.output_lost:
            self.output_lost = False
            self.raise_lost()

    async def aclose(self, *, timeout=...):
        await self.close(timeout=timeout)

    async def wait_lost(self, int64_t end):
        """Wait until the descriptor is closed, for at most the time that is left."""
        if self.lost:
            return
        if self.lost_waiter is None:
            self.lost_waiter = self.loop.create_future()
        waiter = asyncio.shield(self.lost_waiter)
        if end < 0:
            await waiter
        else:
            await asyncio.wait_for(waiter, max(end - rio_monotonic_ns(), 0) / 1e9)

    async def start_tls(self, context, *, server_side=False, server_hostname=None, timeout=...):
        """Begin TLS on the connection."""
        if self.reader is not None:
            raise ConcurrentCall("start_tls(): another task waits in a call that reads on this Rio")
        self.begin_output("start_tls")
        self.writer = True
        try:
            await self.drain(timeout)
            if buffer_held(&self.inp):
                raise ValueError(
                    f"{buffer_held(&self.inp)} bytes came in the clear before TLS began: read or refuse them first"
                )
            try:
                transport = await self.loop.start_tls(
                    self.transport,
                    self.protocol,
                    context,
                    server_side=server_side,
                    server_hostname=server_hostname,
                )
            except BaseException:
                self.abort()
                raise
            self.stalled = self.paused = False
            self.connect(transport)
        finally:
            self.writer = False

    async def __aenter__(self):
        if self.has_closed:
            raise ValueError("I/O operation on a closed Rio")
        return self

    async def __aexit__(self, kind, error, traceback):
        if kind is None:
            await self.close()
        else:
            self.abort()
            await self.wait_lost(-1)

    def __del__(self):
        """Close the connection without flushing, and issue a ``ResourceWarning``, if that was not done."""
        if self.has_closed or self.transport is None:
            return
        try:
            PyErr_ResourceWarning(self, 1, "unclosed %R: closed, its output not flushed", <PyObject *>self)
        finally:
            if not self.loop.is_closed():
                self.loop.call_soon_threadsafe(self.transport.abort)


def open_rio(loop, *, bufsize=65536, timeout=None, idle_timeout=None, max_line=1 << 20, pipe=False, made=None):
    """Return ``(rio, protocol)``: a Rio without a connection, and the protocol that gives it one."""
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
    rio.protocol = (_PipeProtocol if pipe else _SocketProtocol)(rio, made)
    return rio, rio.protocol
