"""Addresses as a user gives them: checked, looked up, and a socket open_socket at one of them.

All of it is the standard library's socket and getaddrinfo. What is added: nothing stays open after an error, and the
error says what was being done; its class and errno stay.
"""

from __future__ import annotations

import errno
import operator
import os
import socket

TYPE_CHECKING = False  # not typing's, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    Address: TypeAlias = Any  # as bind() and connect() of its family take it
    Setup: TypeAlias = Callable[[socket.socket, Address], None]
    Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

#: How many connections may wait in the kernel to be accepted (csapp.h).
LISTENQ = 1024


def look_up(host: str | None, port: int | str, flags: int, what: str) -> list[Any]:
    """Look the name up: getaddrinfo's list for stream sockets."""
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))
    except UnicodeError:  # IDNA: an empty label, one over 63 characters, a character that no name has
        raise socket.gaierror(socket.EAI_NONAME, f"{what}: not a host name") from None
    except OSError as exc:
        raise describe_error(exc, what) from None


def open_socket(family: int, kind: int, protocol: int, address: Address, set_up: Setup) -> socket.socket:
    """Open a blocking socket and set it up; close it again if that fails, in whatever way."""
    sock = socket.socket(family, kind, protocol)
    try:
        set_up(sock, address)
        sock.setblocking(True)  # by itself it need not be: there is socket.setdefaulttimeout()
    except BaseException:
        sock.close()
        raise
    return sock


def describe_error(exc: OSError, what: str) -> OSError:
    """Make the same error, class and errno, that says what was being done."""
    if exc.errno is not None:
        return type(exc)(exc.errno, f"{what}: {exc.strerror}")
    # Two errors of Python's own have no number: the timeout, and "AF_UNIX path too long".
    number = errno.ETIMEDOUT if isinstance(exc, TimeoutError) else errno.ENAMETOOLONG
    return OSError(number, f"{what}: {exc}")


def check_host(host: Path) -> str:
    if not isinstance(host, str):
        raise TypeError(f"a host name is text, not {type(host).__name__}")
    if "\0" in host:  # getaddrinfo would look up what comes before it
        raise ValueError(f"a NUL in the host name {host!r}")
    return host


def check_path(path: Path) -> str | bytes:
    path = os.fspath(path)
    if 0 in os.fsencode(path)[1:]:  # a first one makes the name abstract (Linux), any other would cut the path
        raise ValueError(f"a NUL inside the path of a unix socket: {path!r}")
    return path


def check_port(port: int | str) -> int | str:
    """Refuse what getaddrinfo gets wrong by itself: it makes 4464 of 70000, 0 of "", and stops at a NUL."""
    if isinstance(port, str):
        # The name of a service has a letter (RFC 6335, 5.1); of " 80" or "-1" strtoul() would make a number.
        if any(map(str.isalpha, port)) and "\0" not in port:
            return port
        number = int(port) if port.isascii() and port.isdigit() else -1
    elif isinstance(port, bool) or not hasattr(port, "__index__"):
        raise TypeError(f"a port is an int or text, not {type(port).__name__}")
    else:
        number = operator.index(port)
    if not 0 <= number <= 65535:
        raise ValueError(f"a port is a number from 0 to 65535 or the name of a service, not {port!r}")
    return number


def shown(text: str) -> str:
    """As it is where that fits in a line of text, else quoted."""
    return text if text and text.isprintable() else repr(text)
