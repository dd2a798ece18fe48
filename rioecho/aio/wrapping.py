"""Making a Rio of asyncio of a descriptor that is open: wrap()."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import io
import os
import socket
import stat

from rioecho._core.options import check_options
from rioecho._core.sources import stream_of
from rioecho.aio.connecting import RIO_OPTIONS
from rioecho.aio.opening import Opening
from rioecho.aio.rio import Rio, open_rio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def wrap(fd: Any, **rio_options: Any) -> Opening[Rio]:
    """Return a ``Rio`` for a connected socket, a pipe's end or a terminal.

    ``rio = await wrap(sock)`` or ``async with wrap(sock) as rio:``.

    ``fd`` is a ``socket.socket``, a file descriptor (an int), or a file object without a buffer. The Rio owns it: it is
    closed with the Rio, and by an error or a cancellation after it was accepted. A pipe's end can only be read from or
    only be written to; a terminal that is open for both can do both. The end of a terminal is its hang-up, or ^D.

    Output and input that another reader has buffered are not seen: pass what it holds to ``unread()``. To go on with
    what a blocking ``Rio`` was made for, ``fd, rest = rio.detach()``, ``await wrap(fd)`` and ``unread(rest)``.

    ``timeout``, ``bufsize``, ``idle_timeout`` and ``max_line`` are those of ``rioecho.Rio``.

    What is refused is still the caller's. Raises ``TypeError`` for datagrams and packets, which a read would cut, and
    for a socket that moves its bytes itself (TLS: pass the plain socket, and call ``start_tls()``);
    ``ValueError`` for a closed socket or file, for a negative descriptor, and for a file object that may hold bytes;
    ``io.UnsupportedOperation``, a ``ValueError`` too, for a regular file or a device, which no event loop can wait for;
    and ``OSError`` for a descriptor that is not open (``EBADF``) and for a socket that is not connected, as one that
    listens (``ENOTCONN``).
    """
    return Opening(_wrap(fd, rio_options))


async def _wrap(thing: Any, rio_options: dict[str, Any]) -> Rio:
    loop = asyncio.get_running_loop()
    check_options("wrap", rio_options, (*RIO_OPTIONS, "timeout"))
    open_rio(loop, **rio_options)  # checks them
    if isinstance(thing, bool):
        raise TypeError("a descriptor is an int, not a bool")
    if isinstance(thing, Rio):
        raise TypeError("this is a Rio of asyncio already")
    if isinstance(thing, socket.socket):
        return await _wrap_socket(loop, thing, rio_options)
    if not isinstance(thing, int):
        thing = stream_of(thing)
        if not hasattr(thing, "fileno"):
            raise TypeError(f"a socket, a descriptor or a raw file is required, not {type(thing).__name__}")
        if hasattr(thing, "recv") or hasattr(thing, "recv_into") or hasattr(thing, "read_buffered"):
            raise TypeError(f"a {type(thing).__name__} moves its bytes itself: pass its plain socket or descriptor")
    fd = thing if isinstance(thing, int) else thing.fileno()
    if fd < 0:
        raise ValueError(f"file descriptor cannot be a negative integer ({fd})")
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        if not isinstance(thing, int):
            raise TypeError(f"pass the socket itself, not a {type(thing).__name__} of it")
        sock = socket.socket(fileno=fd)
        try:
            _check_socket(sock)
        except BaseException:
            sock.detach()
            raise
        return await _wrap_socket(loop, sock, rio_options)
    return await _wrap_descriptor(loop, _Owned(fd) if isinstance(thing, int) else thing, fd, rio_options)


def _check_socket(sock: socket.socket) -> None:
    """Raise unless a socket is a connected byte stream whose bytes are moved by its descriptor."""
    if sock.fileno() < 0:
        raise ValueError("I/O operation on a closed socket")
    if sock.type != socket.SOCK_STREAM:
        raise TypeError(
            "a byte stream is required: this socket carries packets (SOCK_DGRAM, SOCK_SEQPACKET), "
            "which a read would cut"
        )
    for name in ("recv", "recv_into", "send"):
        if getattr(type(sock), name) is not getattr(socket.socket, name):
            raise TypeError(
                f"this {type(sock).__name__} moves its bytes itself, by its own {name}(): pass a plain socket; for TLS "
                "call start_tls() on the Rio"
            )
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.EINVAL):
            raise
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        raise OSError(
            errno.ENOTCONN, "this socket listens: pass one that accept() has returned" if listens else "not connected"
        ) from None


async def _wrap_socket(loop: asyncio.AbstractEventLoop, sock: socket.socket, rio_options: dict[str, Any]) -> Rio:
    _check_socket(sock)
    rio, protocol = open_rio(loop, **rio_options)
    sock.setblocking(False)
    try:
        await loop.create_connection(lambda: protocol, sock=sock)
    except BaseException:
        rio.abort()
        sock.close()
        raise
    return rio


async def _wrap_descriptor(loop: asyncio.AbstractEventLoop, file: Any, fd: int, rio_options: dict[str, Any]) -> Rio:
    from rioecho.aio._descriptor import Descriptor

    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        raise io.UnsupportedOperation("a socket, a pipe or a terminal is required: a file is never waited for")
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    reads, writes = access in (os.O_RDONLY, os.O_RDWR), access in (os.O_WRONLY, os.O_RDWR)
    rio, protocol = open_rio(loop, reads=reads, writes=writes, is_socket=False, **rio_options)
    transport = Descriptor(loop, file, protocol, reads=reads, writes=writes, is_terminal=os.isatty(fd))
    try:
        transport.start()
    except PermissionError:  # of epoll
        raise io.UnsupportedOperation(
            "a socket, a pipe or a terminal is required: this device is never waited for"
        ) from None
    return rio


class _Owned:
    """A descriptor of which only the number is known."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)
