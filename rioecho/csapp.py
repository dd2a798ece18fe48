"""The names of csapp.h, for programs that follow the book: CS:APP chapters 10 to 12.

The lower-case functions raise. The capital ones, the book's wrappers, take Python's arguments, and where the system
refuses something they print ``NAME error: reason`` to stderr and end the process, with status 1: the book's 0 would
call a failure a success. A wrong argument (``TypeError``, ``ValueError``) is a mistake in the program and is raised
by both. In the main thread the end is a ``SystemExit``, which waits for the threads that are not daemons; in another
thread, which that would end alone, it is ``os._exit``.
"""

# ruff: noqa: N802, the book's names

from __future__ import annotations

import functools
import operator
import os
import socket
import sys
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AF_UNSPEC,
    AI_ADDRCONFIG,
    AI_ALL,
    AI_CANONNAME,
    AI_NUMERICHOST,
    AI_NUMERICSERV,
    AI_PASSIVE,
    AI_V4MAPPED,
    NI_DGRAM,
    NI_MAXHOST,
    NI_MAXSERV,
    NI_NAMEREQD,
    NI_NOFQDN,
    NI_NUMERICHOST,
    NI_NUMERICSERV,
    SOCK_DGRAM,
    SOCK_STREAM,
)

from rioecho._core.addresses import LISTENQ, check_host, check_port
from rioecho.rio import Rio
from rioecho.sockets import _interrupted, open_clientfd, open_listenfd

TYPE_CHECKING = False  # not typing's, which takes long to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar

    from _typeshed import FileDescriptorLike, ReadableBuffer

    _Params = ParamSpec("_Params")
    _T = TypeVar("_T")
    _Out = TypeVar("_Out", covariant=True)
    _In = TypeVar("_In", contravariant=True)

    class _HasReadline(Protocol[_Out]):
        def readline(self, limit: int, /) -> _Out: ...

    class _HasWrite(Protocol[_In]):
        def write(self, text: _In, /) -> object: ...


__all__ = [
    "AF_INET", "AF_INET6", "AF_UNIX", "AF_UNSPEC", "AI_ADDRCONFIG", "AI_ALL", "AI_CANONNAME", "AI_NUMERICHOST",
    "AI_NUMERICSERV", "AI_PASSIVE", "AI_V4MAPPED", "LISTENQ", "MAXLINE", "NI_DGRAM", "NI_MAXHOST", "NI_MAXSERV",
    "NI_NAMEREQD", "NI_NOFQDN", "NI_NUMERICHOST", "NI_NUMERICSERV", "RIO_BUFSIZE", "SOCK_DGRAM", "SOCK_STREAM",
    "Accept", "Bind", "Close", "Connect", "Fgets", "Fputs", "Freeaddrinfo", "Getaddrinfo", "Getnameinfo", "Listen",
    "Open_clientfd", "Open_listenfd", "Rio_readinitb", "Rio_readlineb", "Rio_readn", "Rio_readnb", "Rio_writen",
    "Socket", "open_clientfd", "open_listenfd", "rio_readinitb", "rio_readlineb", "rio_readn", "rio_readnb",
    "rio_writen",
]  # fmt: skip

#: The longest text line, its newline and the NUL of the C string included.
MAXLINE = 8192
#: The size of the buffer of ``rio_t``.
RIO_BUFSIZE = 8192


# The RIO package (10.5)


def rio_readn(fd: FileDescriptorLike, n: int) -> bytes:
    """Read exactly ``n`` bytes, unbuffered: nothing after them is taken from ``fd``. Fewer come back at EOF only.

    After an error what had come before it is in ``partial`` of the exception, of any exception: it is nowhere else.
    """
    n = _count(n)
    rio = Rio(fd, bufsize=1)
    try:
        return rio.read(n)
    except BaseException as exc:
        exc.partial = rio.read_buffered()  # type: ignore[attr-defined]
        raise


def rio_writen(fd: FileDescriptorLike, data: ReadableBuffer) -> int:
    """Write all of ``data`` to ``fd``; returns its length. After an error ``characters_written`` bytes have gone."""
    return Rio(fd).writen(data)


def rio_readinitb(fd: FileDescriptorLike) -> Rio:
    """Give a ``Rio`` with the book's buffer of ``RIO_BUFSIZE`` bytes; ``fd`` stays the caller's to close."""
    return Rio(fd, bufsize=RIO_BUFSIZE)


def rio_readlineb(rp: Rio, maxlen: int = MAXLINE) -> bytes:
    """Read a line with its newline; ``b""`` at EOF, after what is left without a newline.

    ``maxlen`` counts the NUL of the C string, as in the book: at most ``maxlen - 1`` bytes come back. That nothing is
    cut in silence: a piece that was cut has no newline, and the next call goes on behind it. After an error nothing
    is lost, see ``Rio``. Raises ``ValueError`` for ``maxlen < 2``.
    """
    return rp.readline(_without_nul(maxlen, "maxlen"))


def rio_readnb(rp: Rio, n: int) -> bytes:
    """Read exactly ``n`` bytes, fewer at EOF only. After an error nothing is lost, see ``Rio``."""
    return rp.read(_count(n))


# The wrappers (11.4, 10.5, appendix A)


#: What comes from the system, or from outside: a UnicodeError is a name or a text that cannot be one.
_REFUSED = (OSError, UnicodeError, MemoryError)


def _or_exit(function: Callable[_Params, _T], refused: tuple[type[Exception], ...] = _REFUSED) -> Callable[_Params, _T]:
    """Give the book's wrapper of ``function``, which ends the process where something is refused.

    A mistake in the program is raised.
    """
    name = function.__name__.capitalize()

    @functools.wraps(function)
    def wrapper(*args: _Params.args, **kwargs: _Params.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except refused as exc:
            _exit(f"{name} error: {getattr(exc, 'strerror', None) or exc or type(exc).__name__}")

    wrapper.__name__ = wrapper.__qualname__ = name
    return wrapper


def _or_exit_without_address(function: Callable[_Params, _T]) -> Callable[_Params, _T]:
    """The same; a ValueError is a host or a port that cannot be one, from the command line as a rule."""
    return _or_exit(function, (*_REFUSED, ValueError))


def _exit(message: str) -> NoReturn:
    import threading  # here, for the import of rioecho is to stay light

    try:
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:  # also where nothing can be printed
        if threading.current_thread() is not threading.main_thread():
            os._exit(1)
        raise SystemExit(1)


class _Borrowed(socket.socket):
    """A Python socket over a descriptor of the caller's, which it leaves open, and blocking or not as it was.

    Open also where a signal handler raises in the middle of the constructor, hence no try and detach().
    """

    __slots__ = ()

    def __init__(self, fd: int) -> None:
        blocking = os.get_blocking(fd)
        super().__init__(fileno=fd)
        self.setblocking(blocking)  # socket.setdefaulttimeout() may have changed it just now

    # In place of the one that closes and warns. In C: one in Python would swallow what a signal handler raises in it.
    __del__ = socket.SocketType.detach


@_or_exit
def Socket(domain: int, type: int, protocol: int = 0) -> int:  # noqa: A002, as in socket(2)
    """Make a socket; returns its descriptor, blocking and close-on-exec, the caller's to close."""
    sock = socket.socket(domain, type, protocol)
    sock.setblocking(True)
    return sock.detach()


@_or_exit
def Bind(fd: int, address: Any) -> None:
    """Give the socket its address, in the form of Python's sockets: ``(host, port)``, or a path for AF_UNIX."""
    _Borrowed(fd).bind(address)


@_or_exit
def Listen(fd: int, backlog: int) -> None:
    """Listen for connections, of which ``backlog`` may wait."""
    _Borrowed(fd).listen(backlog)


@_or_exit
def Accept(fd: int) -> tuple[int, Any]:
    """Take the next connection: its descriptor (blocking, close-on-exec, the caller's to close) and its address.

    A peer that came over IPv4 to a socket that listens for both families has the plain ``("a.b.c.d", port)``.
    """
    sock, address = _Borrowed(fd).accept()
    sock.setblocking(True)
    return sock.detach(), _plain(address)


@_or_exit
def Connect(fd: int, address: Any) -> None:
    """Connect the socket to ``address``, in the form of Python's sockets."""
    sock = _Borrowed(fd)
    sock.connect(address)
    while _interrupted(sock):
        sock.connect(address)


@_or_exit
def Close(fd: int) -> None:
    """Close a descriptor. Never tried again after EINTR: by then the number may be another thread's."""
    os.close(fd)


@_or_exit_without_address
def Getaddrinfo(
    host: str | None,
    service: int | str | None,
    family: int = 0,
    type: int = 0,  # noqa: A002, as in struct addrinfo
    proto: int = 0,
    flags: int = 0,
) -> list[tuple[Any, ...]]:
    """Look up a host and a service: a list of ``(family, type, proto, canonname, address)``, as Python gives it."""
    host = None if host is None else check_host(host)
    service = None if service is None else check_port(service)
    return list(socket.getaddrinfo(host, service, family, type, proto, flags))


def Freeaddrinfo(addresses: list[tuple[Any, ...]]) -> None:
    """Do nothing: the list goes when nobody holds it any more."""


@_or_exit
def Getnameinfo(address: Any, flags: int = 0) -> tuple[str, str]:
    """Look up the names ``(host, port)`` of a numeric address, ``(host, port)`` or IPv6's four; as text, both.

    A host without a name gets its number, unless ``flags`` has ``NI_NAMEREQD``: getnameinfo(3). So does one whose name
    servers do not answer, which the C library calls an error (``EAI_AGAIN``): no reason for a server to end.
    """
    address = _plain(address)
    try:
        return socket.getnameinfo(address, flags)
    except socket.gaierror as error:
        if error.errno not in (socket.EAI_AGAIN, socket.EAI_FAIL) or flags & NI_NAMEREQD:
            raise
        return socket.getnameinfo(address, flags | NI_NUMERICHOST)


@_or_exit
def Fgets(n: int, stream: _HasReadline[_T]) -> _T | None:
    """Read a line with its newline, at most ``n - 1`` characters (bytes, of a binary stream), or None at EOF.

    ``n`` counts C's NUL; ``n < 2`` is a ``ValueError``.
    """
    return stream.readline(_without_nul(n, "n")) or None


@_or_exit
def Fputs(text: _T, stream: _HasWrite[_T]) -> None:
    """Write ``text`` to a stream, bytes to a binary one. It is seen when the stream is flushed."""
    stream.write(text)


Open_clientfd = _or_exit_without_address(open_clientfd)
Open_listenfd = _or_exit_without_address(open_listenfd)
Rio_readn = _or_exit(rio_readn)
Rio_writen = _or_exit(rio_writen)
Rio_readinitb = _or_exit(rio_readinitb)
Rio_readlineb = _or_exit(rio_readlineb)
Rio_readnb = _or_exit(rio_readnb)


def _plain(address: Any) -> Any:
    """Give the IPv4 address that an IPv6 one stands for (RFC 4291, 2.5.5.2), any other as it is."""
    match address:
        case (str(host), port, _, _) if host.startswith("::ffff:") and "." in host:
            return host.removeprefix("::ffff:"), port
    return address


def _count(n: int) -> int:
    n = operator.index(n)
    if n < 0:
        raise ValueError(f"n must be 0 or more, not {n}")
    return n


def _without_nul(size: int, name: str) -> int:
    size = operator.index(size)
    if size < 2:
        raise ValueError(f"{name} must be 2 or more, not {size}: it counts the NUL that ends the string in C")
    return size - 1
