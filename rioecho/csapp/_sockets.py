"""The sockets interface (CS:APP 11.4): the wrappers, with Python's arguments and addresses."""

# ruff: noqa: N802, the book's names

from __future__ import annotations

import os
import socket
from socket import NI_NAMEREQD, NI_NUMERICHOST

from rioecho._core.addresses import check_host, check_port
from rioecho.csapp._calls import capitalized, exits
from rioecho.sockets import _interrupted, open_clientfd, open_listenfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from _typeshed import ReadableBuffer


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


@exits("fd = Socket(domain, type, protocol)")
def Socket(domain: int, type: int, protocol: int = 0) -> int:  # noqa: A002, as in socket(2)
    """Create a socket and return its file descriptor, blocking and close-on-exec. The caller owns it."""
    sock = socket.socket(domain, type, protocol)
    sock.setblocking(True)
    return sock.detach()


@exits("Bind(fd, address)")
def Bind(fd: int, address: Any) -> None:
    """Bind the socket to ``address``, in the form of Python's sockets: ``(host, port)``, or a path for AF_UNIX."""
    _Borrowed(fd).bind(address)


@exits("Listen(fd, backlog)")
def Listen(fd: int, backlog: int) -> None:
    """Listen for connections, with a listen queue of length ``backlog``."""
    _Borrowed(fd).listen(backlog)


@exits("connfd, address = Accept(listenfd)")
def Accept(fd: int) -> tuple[int, Any]:
    """Accept the next connection and return its file descriptor and the peer's address.

    The caller owns the descriptor, which is blocking and close-on-exec. The address of an IPv4 peer is
    ``("a.b.c.d", port)``, even on a socket that listens for both families.
    """
    sock, address = _Borrowed(fd).accept()
    sock.setblocking(True)
    return sock.detach(), _plain(address)


@exits("Connect(fd, address)")
def Connect(fd: int, address: Any) -> None:
    """Connect the socket to ``address``, in the form of Python's sockets."""
    sock = _Borrowed(fd)
    sock.connect(address)
    while _interrupted(sock):
        sock.connect(address)


@exits("Setsockopt(fd, level, option, value)")
def Setsockopt(fd: int, level: int, option: int, value: int | ReadableBuffer) -> None:
    """Set an option of the socket. ``value`` is an int, or the bytes of the C structure that the option takes."""
    _Borrowed(fd).setsockopt(level, option, value)


@exits("Close(fd)")
def Close(fd: int) -> None:
    """Close a descriptor, once: after EINTR the number may already belong to another thread's descriptor."""
    os.close(fd)


@exits("addresses = Getaddrinfo(host, service, family, type, proto, flags)", refused=(ValueError,))
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


@exits("Freeaddrinfo(addresses)")
def Freeaddrinfo(addresses: list[tuple[Any, ...]]) -> None:
    """Do nothing: Python frees the list."""


@exits("host, service = Getnameinfo(address, flags)")
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


# A ValueError is an invalid host or port, usually from the command line.
Open_clientfd = capitalized(open_clientfd, "fd = Open_clientfd(hostname, port)", refused=(ValueError,))
Open_listenfd = capitalized(open_listenfd, "fd = Open_listenfd(port)", refused=(ValueError,))


def _plain(address: Any) -> Any:
    """Convert an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) to the IPv4 address; return any other unchanged."""
    match address:
        case (str(host), port, _, _) if host.startswith("::ffff:") and "." in host:
            return host.removeprefix("::ffff:"), port
    return address
