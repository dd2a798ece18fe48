"""The names of csapp.h, for programs that follow the book: CS:APP chapters 10 to 12.

The lower-case functions raise exceptions. The capitalised ones, the book's wrappers, take Python's arguments; when the
system reports an error they print ``NAME error: reason`` to stderr and exit with status 1. (The book's status 0 would
report success.) Both raise ``TypeError`` and ``ValueError`` for a wrong argument, which is a bug in the program.

A wrapper in the main thread exits by raising ``SystemExit``, which waits for all non-daemon threads; in another thread
it calls ``os._exit``, because ``SystemExit`` would end that thread only.
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

TYPE_CHECKING = False  # importing typing is slow
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

#: The maximum length of a text line in bytes, including the newline and the NUL of the C string.
MAXLINE = 8192
#: The size of the buffer in ``rio_t``, in bytes.
RIO_BUFSIZE = 8192


# The RIO package (10.5)


def rio_readn(fd: FileDescriptorLike, n: int) -> bytes:
    """Read exactly ``n`` bytes from ``fd``, without a buffer: no byte after them is read. Returns fewer only at EOF.

    Any exception has the bytes that were read before it in its attribute ``partial``; they are nowhere else.
    """
    n = _count(n)
    rio = Rio(fd, bufsize=1)
    try:
        return rio.read(n)
    except BaseException as exc:
        exc.partial = rio.read_buffered()  # type: ignore[attr-defined]
        raise


def rio_writen(fd: FileDescriptorLike, data: ReadableBuffer) -> int:
    """Write all of ``data`` to ``fd`` and return its length in bytes.

    After an error, the exception's ``characters_written`` is the number of bytes written.
    """
    return Rio(fd).writen(data)


def rio_readinitb(fd: FileDescriptorLike) -> Rio:
    """Return a ``Rio`` with the book's buffer of ``RIO_BUFSIZE`` bytes. The caller keeps ownership of ``fd``."""
    return Rio(fd, bufsize=RIO_BUFSIZE)


def rio_readlineb(rp: Rio, maxlen: int = MAXLINE) -> bytes:
    """Read a line, including its newline. Returns an unterminated last line as it is, then ``b""`` at EOF.

    ``maxlen`` counts the NUL of the C string, as in the book, so at most ``maxlen - 1`` bytes are returned. A longer
    line is returned in pieces by successive calls; all but the last piece have no newline. An error loses no data, as
    with ``Rio``. Raises ``ValueError`` for ``maxlen < 2``.
    """
    return rp.readline(_without_nul(maxlen, "maxlen"))


def rio_readnb(rp: Rio, n: int) -> bytes:
    """Read exactly ``n`` bytes, fewer only at EOF. An error loses no data, as with ``Rio``."""
    return rp.read(_count(n))


# The wrappers (11.4, 10.5, appendix A)


#: Errors of the system and of its input; UnicodeError is a host name or a text that cannot be encoded or decoded.
_REFUSED = (OSError, UnicodeError, MemoryError)


def _or_exit(function: Callable[_Params, _T], refused: tuple[type[Exception], ...] = _REFUSED) -> Callable[_Params, _T]:
    """Return the book's wrapper of ``function``, which exits on the errors in ``refused`` and raises all others."""
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
    """Wrap as ``_or_exit`` does, and exit on ValueError too: an invalid host or port, usually from the command line."""
    return _or_exit(function, (*_REFUSED, ValueError))


def _exit(message: str) -> NoReturn:
    import threading  # here, to keep the import of rioecho fast

    try:
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:  # even if printing fails
        if threading.current_thread() is not threading.main_thread():
            os._exit(1)
        raise SystemExit(1)


class _Borrowed(socket.socket):
    """A Python socket over a descriptor that the caller owns: it is never closed, and its blocking mode is kept.

    There is no try block around a detach(), because a signal handler that raises in the constructor would bypass it.
    """

    __slots__ = ()

    def __init__(self, fd: int) -> None:
        blocking = os.get_blocking(fd)
        super().__init__(fileno=fd)
        self.setblocking(blocking)  # the constructor changes it if socket.setdefaulttimeout() was called

    # Replaces the finalizer that closes and warns. It is a C function: Python code in a finalizer would swallow an
    # exception of a signal handler.
    __del__ = socket.SocketType.detach


@_or_exit
def Socket(domain: int, type: int, protocol: int = 0) -> int:  # noqa: A002, as in socket(2)
    """Create a socket and return its file descriptor, blocking and close-on-exec. The caller owns it."""
    sock = socket.socket(domain, type, protocol)
    sock.setblocking(True)
    return sock.detach()


@_or_exit
def Bind(fd: int, address: Any) -> None:
    """Bind the socket to ``address``, in the form of Python's sockets: ``(host, port)``, or a path for AF_UNIX."""
    _Borrowed(fd).bind(address)


@_or_exit
def Listen(fd: int, backlog: int) -> None:
    """Listen for connections, with a listen queue of length ``backlog``."""
    _Borrowed(fd).listen(backlog)


@_or_exit
def Accept(fd: int) -> tuple[int, Any]:
    """Accept the next connection and return its file descriptor and the peer's address.

    The caller owns the descriptor, which is blocking and close-on-exec. The address of an IPv4 peer is
    ``("a.b.c.d", port)``, even on a socket that listens for both families.
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
    """Close a descriptor, once: after EINTR the number may already belong to another thread's descriptor."""
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
    """Look up a host and a service. Returns Python's list of ``(family, type, proto, canonname, address)``."""
    host = None if host is None else check_host(host)
    service = None if service is None else check_port(service)
    return list(socket.getaddrinfo(host, service, family, type, proto, flags))


def Freeaddrinfo(addresses: list[tuple[Any, ...]]) -> None:
    """Do nothing: Python frees the list."""


@_or_exit
def Getnameinfo(address: Any, flags: int = 0) -> tuple[str, str]:
    """Return the names of a numeric address as text, ``(host, service)``.

    ``address`` is ``(host, port)`` or the 4-tuple of IPv6. A host without a name is returned as its numeric address,
    unless ``flags`` has ``NI_NAMEREQD``: getnameinfo(3). The same applies if the name servers do not answer. The
    C library reports that as an error (``EAI_AGAIN``), but it is no reason for a server to exit.
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
    """Read a line, including its newline, of at most ``n - 1`` characters (bytes from a binary stream).

    Returns None at EOF. ``n`` counts the NUL of the C string; ``n < 2`` is a ``ValueError``.
    """
    return stream.readline(_without_nul(n, "n")) or None


@_or_exit
def Fputs(text: _T, stream: _HasWrite[_T]) -> None:
    """Write ``text`` to a stream, or bytes to a binary stream. The caller flushes the stream."""
    stream.write(text)


Open_clientfd = _or_exit_without_address(open_clientfd)
Open_listenfd = _or_exit_without_address(open_listenfd)
Rio_readn = _or_exit(rio_readn)
Rio_writen = _or_exit(rio_writen)
Rio_readinitb = _or_exit(rio_readinitb)
Rio_readlineb = _or_exit(rio_readlineb)
Rio_readnb = _or_exit(rio_readnb)


def _plain(address: Any) -> Any:
    """Convert an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) to the IPv4 address; return any other unchanged."""
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
