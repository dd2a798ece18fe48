"""Addresses given by a user: checking them, looking them up, and opening a socket for one.

Built on the standard library's socket module. No descriptor stays open after an error, and the error message names the
operation; the exception's class and errno are unchanged.
"""

from __future__ import annotations

import errno
import operator
import os
import socket
import sys
from time import monotonic

TYPE_CHECKING = False  # importing typing is slower than importing this module
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    Address: TypeAlias = Any  # an argument for bind() and connect(); its type depends on the address family
    Setup: TypeAlias = Callable[[socket.socket, Address], None]
    Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

#: The default length of the listen queue (csapp.h).
LISTENQ = 1024


def look_up(host: str | None, port: int | str, flags: int, what: str) -> list[Any]:
    """Look up a host and port for stream sockets. Returns the list of ``getaddrinfo``; ``what`` begins the error."""
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))
    except UnicodeError:  # IDNA: an empty label, one over 63 characters, a character that no name has
        raise socket.gaierror(socket.EAI_NONAME, f"{what}: not a host name") from None
    except OSError as exc:
        raise describe_error(exc, what) from None


def in_turn(found: list[Any], deadline: float | None) -> Iterator[tuple[Any, float | None]]:
    """Yield the addresses of ``look_up``, each with the time until which it may be tried.

    Each gets an equal share of the time that is left when its turn comes, so that an address that does not answer
    leaves time for the next. A deadline of None (no limit) or 0 (never wait) holds for every address.
    """
    for tried, info in enumerate(found):
        if deadline:
            now = monotonic()
            yield info, now + (deadline - now) / (len(found) - tried)
        else:
            yield info, deadline


def open_socket(family: int, kind: int, protocol: int, address: Address, set_up: Setup) -> socket.socket:
    """Return a new blocking socket after calling ``set_up`` with it; close it if that raises any exception."""
    sock = socket.socket(family, kind, protocol)
    try:
        set_up(sock, address)
        sock.setblocking(True)  # socket.setdefaulttimeout() may have made it non-blocking
    except BaseException:
        sock.close()
        raise
    return sock


def describe_error(exc: OSError, what: str) -> OSError:
    """Return an error of the same class and errno whose message begins with ``what``."""
    if exc.errno is not None:
        return type(exc)(exc.errno, f"{what}: {exc.strerror}")
    # Python raises two errors without an errno: the timeout and "AF_UNIX path too long".
    number = errno.ETIMEDOUT if isinstance(exc, TimeoutError) else errno.ENAMETOOLONG
    return OSError(number, f"{what}: {exc}")


def check_host(host: Path) -> str:
    if not isinstance(host, str):
        raise TypeError(f"a host name must be a str, not {type(host).__name__}")
    if "\0" in host:  # getaddrinfo would look up only the part before it
        raise ValueError(f"the host name contains a NUL: {host!r}")
    return host


def check_path(path: Path) -> str | bytes:
    path = os.fspath(path)
    if 0 in os.fsencode(path)[1:]:  # a leading NUL means an abstract name (Linux); any other would truncate the path
        raise ValueError(f"the path of a unix socket contains a NUL: {path!r}")
    return path


def parse_path(text: str) -> str:
    """Return the path of a unix socket given on a command line, where ``@NAME`` stands for an abstract name (unix(7)).

    An abstract name is a NUL and the name. A file whose name begins with ``@`` is given as ``./@NAME``. Raises
    ``ValueError`` if the text is empty or if the system has no abstract names.
    """
    if not text or text == "@":
        raise ValueError(f"{text!r} is not the path or the @NAME of a unix socket")
    if text[0] != "@":
        return text
    if not sys.platform.startswith("linux"):
        raise ValueError(f"{text}: only Linux has abstract names; for a file use ./{text}")
    return "\0" + text[1:]


def shown_path(path: str) -> str:
    """Return the path of a unix socket for use in a message, an abstract name as ``@NAME``."""
    return shown("@" + path[1:] if path[:1] == "\0" and len(path) > 1 else path)


def check_port(port: int | str) -> int | str:
    """Return ``port``, digits as an int, or raise for a port that getaddrinfo would misread.

    getaddrinfo reads 70000 as 4464 and "" as 0, and it stops at a NUL.
    """
    if isinstance(port, str):
        # A service name has a letter (RFC 6335, 5.1). strtoul() would read " 80" and "-1" as numbers.
        if any(map(str.isalpha, port)) and "\0" not in port:
            return port
        number = int(port) if port.isascii() and port.isdigit() else -1
    elif isinstance(port, bool) or not hasattr(port, "__index__"):
        raise TypeError(f"a port must be an int or a str, not {type(port).__name__}")
    else:
        number = operator.index(port)
    if not 0 <= number <= 65535:
        raise ValueError(f"a port must be a number from 0 to 65535 or a service name, not {port!r}")
    return number


def shown(text: str) -> str:
    """Return ``text`` for use in a message, quoted if it is empty or not printable."""
    return text if text and text.isprintable() else repr(text)


def parse_place(place: int | str | tuple[str, int]) -> tuple[str, int | str]:
    """Return the host and the port of ``PORT``, ``HOST:PORT``, ``[HOST]:PORT`` or a ``(host, port)``.

    Raises ``ValueError`` or ``TypeError`` if it is something else.
    """
    host: str
    port: int | str
    if isinstance(place, str):
        host, colon, digits = place.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"put an IPv6 address in brackets: [{host}]:{digits}")
        if (colon and not host) or not (digits.isascii() and digits.isdigit()):
            raise ValueError(f"{place!r} is not [HOST:]PORT")
        port = int(digits)
    elif isinstance(place, tuple):
        if len(place) != 2:
            raise ValueError(f"{place!r} is not (host, port)")
        host, port = place
    else:
        host, port = "", place
    return check_host(host or "127.0.0.1"), check_port(port)
