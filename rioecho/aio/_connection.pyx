"""The life of a connection of asyncio: TLS, close(), abort(), and what happens to a Rio that is dropped."""

import asyncio

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from rioecho._core.buffer cimport buffer_held
from rioecho._core.convert cimport to_nanoseconds
from rioecho._core.fdio cimport deadline_after
from rioecho._core.posix cimport rio_monotonic_ns
from rioecho._rio.framing cimport Framing
from rioecho._rio.input cimport in_frame
from rioecho.aio._output cimport Output

from rioecho.errors import ConcurrentCall


cdef extern from "Python.h":
    int PyErr_ResourceWarning(object source, Py_ssize_t stack_level, const char *format, ...) except -1


cdef object interpose = None   # of aio/_tls.py, which is imported for the first TLS connection


cdef class Connection(Output):
    # ---- what it is

    @property
    def closed(self):
        """Whether the Rio has been closed or aborted. A connection that the peer has ended is not closed."""
        return bool(self.has_closed)

    def _is_lost(self):
        """Report whether the connection has ended, by whichever side."""
        return bool(self.lost)

    def get_extra_info(self, name, default=None):
        """Return information about the connection, as ``asyncio.BaseTransport.get_extra_info()`` does.

        ``"peername"``, ``"sockname"``, ``"socket"`` and, over TLS, ``"ssl_object"`` and ``"peercert"`` are some of the
        names. ``default`` is returned for what the transport does not know, after the end of the connection too.
        """
        if self.described is None:
            return default
        try:
            return self.described.get_extra_info(name, default)
        except (OSError, ValueError, AttributeError):   # uvloop asks its socket, which may be closed, or gone
            return default

    cdef int connect(self, object transport) except -1:
        Output.connect(self, transport)
        self.described = transport
        return 0

    # ---- TLS

    async def start_tls(self, context, *, server_side=False, server_hostname=None, timeout=...):
        """Begin TLS on the connection, with an ``ssl.SSLContext``, as after STARTTLS.

        What was written before is sent in the clear first. Bytes that are held came in the clear too, although the peer
        had to wait for TLS: somebody may have injected them, and the call raises ``ValueError``. Read or refuse them.
        The same holds within a ``frame()``. A call that reads, and begins to wait during the handshake, waits for the
        secured bytes.

        ``server_side`` is true for the side that has the certificate; a client passes ``server_hostname``, the name
        that it checks; without one a context that has ``check_hostname`` is a ``ValueError``. ``timeout`` limits the
        whole call.

        If the handshake fails, is cancelled or out of time, the connection was aborted. Raises ``ssl.SSLError``,
        ``TimeoutError``, what ended the connection, and ``ConcurrentCall`` while another task waits in a call.
        """
        cdef int64_t limit = self.timeout_ns if timeout is ... else to_nanoseconds(timeout)
        cdef int64_t end = deadline_after(limit) if limit > 0 else -1
        self.begin_output("start_tls")
        if not self.is_socket:
            raise TypeError("start_tls: TLS needs a socket")
        from ssl import MemoryBIO, SSLContext
        # What asyncio would refuse only when the transport is TLS's, so that the connection would be lost.
        if not isinstance(context, SSLContext):
            raise TypeError(f"start_tls: context must be an ssl.SSLContext, not {type(context).__name__}")
        if not isinstance(server_hostname, (str, bytes, type(None))):
            raise TypeError(f"start_tls: server_hostname must be a str, not {type(server_hostname).__name__}")
        if not server_side and not server_hostname and getattr(context, "check_hostname", False):
            # ssl.SSLObject, unlike SSLSocket, would check no name, and any trusted certificate would do.
            raise ValueError("start_tls: check_hostname requires server_hostname")
        if isinstance(server_hostname, bytes):
            server_hostname = server_hostname.decode("ascii")   # uvloop takes no other
        name = None if server_side else server_hostname or None
        context.wrap_bio(MemoryBIO(), MemoryBIO(), server_side=server_side, server_hostname=name)
        self.check_clear()
        self.writer = True
        try:
            # The peer may begin TLS as soon as it has the output.
            self.turning = True
            self.steer()
            try:
                await self._drain(limit)
            finally:
                self.turning = False
            self.check_clear()
            await self._handshake(end, context, server_side=server_side, server_hostname=server_hostname)
        finally:
            self.writer = False
            self.steer()

    cdef int check_clear(self) except -1:
        """Raise if there is something that came in the clear, or a call that waits for it."""
        if self.reader is not None:
            raise ConcurrentCall(f"start_tls(): another task waits in {self.reader.name}() on this Rio")
        if buffer_held(&self.inp):
            raise ValueError(
                f"{buffer_held(&self.inp)} bytes came in the clear before TLS began: read or refuse them first"
            )
        if in_frame(self):
            raise ValueError("start_tls() within a frame(): what was read in it came in the clear")
        return 0

    async def _secure(self, context, **options):
        """Begin TLS on a connection that has it from its first byte, which may be held already."""
        cdef int64_t end = -1
        self.writer = True
        try:
            await self._handshake(end, context, **options)
        finally:
            self.writer = False

    async def _handshake(self, int64_t end, context, **options):
        """Let asyncio's TLS take the transport over. Nothing is sent meanwhile but by it. On an error, abort."""
        global interpose
        if interpose is None:
            from rioecho.aio._tls import interpose
        self.check_output()
        transport = self.transport
        early = Framing.read_buffered(self)
        seconds = None if end < 0 else max(end - rio_monotonic_ns(), 0) / 1e9
        if self.raw is None:
            # start_tls() gives the transport to TLS before it waits, and what is scheduled here runs before TLS begins.
            self.loop.call_soon(interpose, transport, self.protocol, early)
        self.securing = self.tls = True
        try:
            async with asyncio.timeout(seconds):
                secured = await self.loop.start_tls(transport, self.protocol, context, **options)
            if self.lost:
                self.raise_lost()
            if secured is None or transport.is_closing():
                raise ConnectionResetError("the connection was closed during the TLS handshake")
        except BaseException:
            self.cut()
            raise
        finally:
            self.securing = False
        if self.raw is None:
            self.raw = transport
        self.paused = False
        self.connect(secured)
        self.pump()   # what was written meanwhile

    # ---- the end

    def abort(self):
        """Close the connection at once: what was not sent or not read is lost. A call that waits raises.

        It returns before the descriptor is closed, which the event loop does next. Calling it again has no effect.
        """
        self.cut()

    cdef int cut(self) except -1:
        self.shut()
        if self.lost or self.aborted:
            return 0
        self.aborted = True
        self.drop_output()
        if self.transport is not None:
            self.transport.abort()
            self.bottom().abort()
        return self.wake_drains()

    cdef int part(self) except -1:
        """Close the transport after all output was sent, without waiting for the peer."""
        self.transport.close()      # over TLS it sends close_notify, and would wait for that of the peer
        if self.raw is not None:
            self.raw.close()
        return 0

    async def close(self, *, timeout=...):
        """Send the buffered output and close the connection. Returns when the descriptor has been closed.

        Over TLS ``close_notify`` is sent, and that of the peer is not waited for. Unread input is discarded; a call of
        another task that waits for input raises ``ValueError``, and one that waits for output ends when it was sent.
        Closing a closed Rio has no effect; it waits until the descriptor has been closed, if another task does that.

        ``timeout`` limits the whole call. If it is cancelled or out of time, the connection was aborted. It raises only
        if accepted output is lost, unless a ``writen()`` or ``flush()`` has said so: what ended the connection, or
        ``TimeoutError``.
        """
        cdef int64_t limit = self.timeout_ns if timeout is ... else to_nanoseconds(timeout)
        cdef int64_t end = deadline_after(limit) if limit > 0 else -1
        self.shut()
        try:
            if not self.lost and not self.aborted:
                await self._drain(limit)
                if not self.lost and not self.aborted:
                    self.part()
            if limit != 0:
                await self._wait_lost(end)
        except BaseException:
            self.cut()
            raise
        if not self.lost:
            self.cut()   # out of time, but everything was sent
        if self.output_lost:
            self.output_lost = False
            self.raise_lost()

    async def aclose(self, *, timeout=...):
        """The same as ``close()``, for ``contextlib.aclosing()``."""
        await self.close(timeout=timeout)

    async def _wait_lost(self, int64_t end):
        """Wait until the descriptor is closed, or until a time; -1 for no limit."""
        if self.lost:
            return
        if self.lost_waiter is None:
            self.lost_waiter = self.loop.create_future()
        waiter = asyncio.shield(self.lost_waiter)
        try:
            async with asyncio.timeout(None if end < 0 else max(end - rio_monotonic_ns(), 0) / 1e9):
                await waiter
        except TimeoutError:
            pass

    async def __aenter__(self):
        if self.has_closed:
            raise ValueError("I/O operation on a closed Rio")
        return self

    async def __aexit__(self, kind, error, traceback):
        """Close the connection; abort it if the block ends by an exception."""
        if kind is None:
            await self.close()
        else:
            self.cut()
            await self._wait_lost(-1)

    def __del__(self):
        """Issue a ``ResourceWarning`` for a Rio that was not closed, and close it without flushing."""
        if self.has_closed or self.transport is None:
            return
        self.drop_output()   # at once: a warning that is recorded keeps the Rio, and the turn would end with a send
        try:
            PyErr_ResourceWarning(self, 1, "unclosed %R: closed, its output not flushed", <PyObject *>self)
        finally:
            try:
                self.loop.call_soon_threadsafe(self.transport.abort)
            except RuntimeError:
                pass   # the loop is closed: the transport closes its descriptor when it is dropped
