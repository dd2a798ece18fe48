"""Connected and listening sockets: connect(), makefile(), and the two helpers of CS:APP section 11.4.

They are built on the standard library's socket module and add three guarantees: every address of a name is tried, no
descriptor stays open after an error, and the error message names the operation, host and port. The exception's class
and errno are unchanged.
"""

from __future__ import annotations

import errno
import functools
import io
import operator
import os
import socket
import struct
from time import monotonic

from rioecho._core.addresses import (
    LISTENQ,
    check_host,
    check_path,
    check_port,
    describe_error,
    in_turn,
    look_up,
    open_socket,
    shown,
    shown_path,
)
from rioecho._core.options import check_options
from rioecho.rio import Rio, _socket_file
from rioecho.text import open_text

TYPE_CHECKING = False  # importing typing is slower than importing this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import EllipsisType
    from typing import Any, Literal, TypeAlias, overload

    from rioecho._core.addresses import Address, Path
    from rioecho.text import TextFile

    _BinaryMode: TypeAlias = Literal["b", "rb", "br", "wb", "bw", "rwb", "rbw", "wrb", "wbr", "brw", "bwr"]
    _TextMode: TypeAlias = Literal["", "r", "w", "rw", "wr"]
    # A host with its port, as sockets give it: with flow information and scope for IPv6.
    _HostPort: TypeAlias = tuple[str, int | str] | tuple[str, int | str, int, int]
    # Sets up a socket for an address, until a time as ``in_turn`` yields it.
    _Setup: TypeAlias = Callable[[float | None, socket.socket, Address], None]


def open_clientfd(hostname: str, port: int | str) -> int:
    """Connect to ``port`` on ``hostname`` and return the file descriptor, blocking and close-on-exec.

    The caller owns the descriptor. ``port`` is a number (an int or digits) or a service name. Every address of the
    host is tried in the order of ``getaddrinfo``, each for as long as the kernel tries.

    If all fail, the last error is raised: an ``OSError`` that names host and port. Raises ``socket.gaierror`` if the
    host has no address, and ``ValueError`` for a port outside 0..65535. (CS:APP 11.4.8.)
    """
    return _dial(hostname, port, None).detach()


def open_listenfd(port: int | str, host: str | None = None, *, backlog: int = LISTENQ) -> int:
    """Listen on ``port`` and return the file descriptor, blocking and close-on-exec.

    The caller owns the descriptor. Without ``host``, the socket accepts connections to any address of this machine over
    IPv6 and IPv4; an IPv4 peer's address is ``::ffff:a.b.c.d``. With ``host``, it listens on the first address of that
    host that is available; for ``"::"`` the system's setting decides whether that includes IPv4.

    ``port`` is as in ``open_clientfd``; 0 selects a free port. ``backlog`` is the length of the listen queue.

    Raises ``OSError`` naming the port (and host). A port in use is an error even if it is free on another address
    of the host. (CS:APP 11.4.8.)
    """
    if not 0 <= operator.index(backlog) <= 0x7FFFFFFF:
        raise ValueError(f"backlog must be 0 to 2147483647, not {backlog}")

    def listen(_limit: float | None, sock: socket.socket, address: Address) -> None:
        # Let a server restart at once, while connections of the previous one are in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host is None and sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(backlog)

    return _first("listen on", host, port, socket.AI_PASSIVE, listen).detach()


if TYPE_CHECKING:

    @overload
    def connect(
        host: str,
        port: int | str,
        *,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        bufsize: int = ...,
        max_line: int | None = ...,
        wake_fd: Any = None,
    ) -> Rio: ...

    @overload
    def connect(
        host: Path | _HostPort,
        *,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        bufsize: int = ...,
        max_line: int | None = ...,
        wake_fd: Any = None,
    ) -> Rio: ...


def connect(
    host: Path | _HostPort, port: int | str | EllipsisType = ..., *, timeout: float | None = None, **rio_options: Any
) -> Rio:
    """Return a ``Rio`` that owns a new connection: ``connect(host, port)`` or, for a unix socket, ``connect(path)``.

    ``connect((host, port))`` takes an address as sockets return it; that of an IPv6 socket has four items.

    ``timeout`` in seconds limits connecting, over all addresses together, and is then the timeout of each call on the
    Rio; ``None`` waits without limit. Each address gets an equal share of the time left, so that one that does not
    answer leaves time for the next. (A name lookup cannot be interrupted, but its time counts.) ``rio_options`` are
    options of ``Rio``: ``bufsize``, ``idle_timeout``, ``max_line``, ``wake_fd``. TCP_NODELAY is set, since the Rio's
    output buffer does the batching.

    Raises the errors of ``open_clientfd``; for a unix socket, an ``OSError`` that names the path. Raises
    ``TimeoutError`` when the timeout expires, and ``BlockingIOError`` if ``timeout`` is 0 and connecting would block.
    No descriptor stays open after an error.
    """
    deadline = _deadline(timeout)
    if isinstance(host, tuple):
        host, port = _host_and_port(host, port)
    if not isinstance(port, type(...)):
        sock = _dial(host, port, deadline, nodelay=True)
    elif isinstance(host, str | bytes | os.PathLike):
        sock = _dial_unix(host, deadline)
    else:
        raise TypeError(f"{_CONNECT}, not connect({type(host).__name__})")
    try:
        check_options("connect", rio_options, ("bufsize", "idle_timeout", "max_line", "wake_fd"))
        return Rio(sock, timeout=timeout, closefd=True, **rio_options)
    except BaseException:
        sock.close()
        raise


_CONNECT = "the call is connect(host, port), connect((host, port)) or connect(path)"


def _host_and_port(address: Any, port: Any) -> tuple[str, int | str]:
    """Return the host and the port of a socket's address, which has four items for IPv6."""
    if not isinstance(port, type(...)):
        raise TypeError(f"{_CONNECT}, not connect((host, port), port)")
    match address:
        case (host, port):
            return host, port
        case (str(host), port, _, int(scope)):
            return f"{host}%{scope}" if scope and "%" not in host else host, port
    raise TypeError(f"{_CONNECT}; this tuple has {len(address)} items")


def _dial(host: Path, port: int | str, deadline: float | None, *, nodelay: bool = False) -> socket.socket:
    """Connect to the first address of ``host`` that answers."""

    def call(limit: float | None, sock: socket.socket, address: Address) -> None:
        if nodelay:  # before connecting: macOS refuses it on a connection that the peer has already reset
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(_left(limit))
        sock.connect(address)
        # TCP connects a socket to itself if its ephemeral port happens to be the port it connects to. The data that
        # comes back then looks like an echo, but nobody is listening.
        if _is_own_peer(sock):
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    # Unlike the book's, without AI_ADDRCONFIG, which hides ::1 on a host that has no other IPv6 address.
    return _first("connect to", check_host(host), port, 0, call, deadline)


def _dial_unix(path: Path, deadline: float | None) -> socket.socket:
    """Connect to the unix socket ``path``."""
    maybe_host = isinstance(path, str) and "/" not in path
    path = check_path(path)

    def call(sock: socket.socket, address: Address) -> None:
        # If the listen queue is full, connect() on a non-blocking socket fails with EAGAIN, and no event reports when
        # to try again; on a blocking socket it waits. Therefore the socket blocks, and SO_SNDTIMEO limits the wait:
        # connect() fails with EAGAIN when it expires.
        sock.setblocking(deadline != 0)
        try:
            while True:
                if deadline:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_left(deadline)))
                sock.connect(address)
                if not _interrupted(sock):
                    break
        except BlockingIOError:
            if deadline:
                raise _timed_out() from None
            raise
        if deadline:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(0))

    try:
        return open_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, path, call)
    except OSError as exc:
        error = describe_error(exc, f"cannot connect to {shown_path(os.fsdecode(path))}")
        if exc.errno == errno.ENOENT and maybe_host:
            hint = "without a port this is a path; to connect to a host, use connect(host, port)"
            error = FileNotFoundError(errno.ENOENT, f"{error.strerror} ({hint})")
        raise error from None


def _first(
    doing: str, host: str | None, port: int | str, flags: int, set_up: _Setup, deadline: float | None = None
) -> socket.socket:
    """Return a socket for the first address of ``host`` and ``port`` for which ``set_up`` succeeds."""
    port = check_port(port)
    what = f"cannot {doing} {'' if host is None else shown(check_host(host)) + ' '}port {shown(str(port))}"
    found = look_up(host, port, flags, what)
    if host is None:
        # One IPv6 socket serves both families; the IPv4 address is for hosts without IPv6. (The book's version uses
        # getaddrinfo's first address, 0.0.0.0 with glibc, and cannot be reached over IPv6.)
        found.sort(key=lambda info: info[0] != socket.AF_INET6)
    for info, limit in in_turn(found, deadline):
        family, kind, protocol, _, address = info
        try:
            return open_socket(family, kind, protocol, address, functools.partial(set_up, limit))
        except OSError as exc:
            # Listening on the next address instead would share the port with an unrelated server.
            in_use = flags & socket.AI_PASSIVE and exc.errno == errno.EADDRINUSE
            if in_use or info is found[-1]:
                raise describe_error(exc, what) from None
    raise socket.gaierror(socket.EAI_NONAME, f"{what}: the name has no address")


def _timed_out() -> OSError:
    return TimeoutError(errno.ETIMEDOUT, "timed out")


def _deadline(timeout: float | None) -> float | None:
    """Convert seconds to a time on the monotonic clock; None (no limit) and 0 (never wait) are returned unchanged."""
    try:
        wrong = timeout is not None and not timeout >= 0  # NaN too
    except TypeError:
        raise TypeError(f"timeout must be None or a number of seconds, not {type(timeout).__name__}") from None
    if wrong:
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
    return timeout and monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    """Return the seconds left until ``deadline``, or None and 0 unchanged. Raises ``TimeoutError`` after it."""
    if not deadline:
        return deadline
    left = deadline - monotonic()
    if left <= 0:
        raise _timed_out()
    return min(left, 86400.0)  # settimeout() accepts at most 24 days; no kernel tries to connect for a day


def _timeval(seconds: float | None) -> bytes:
    microseconds = max(1, int(seconds * 1e6)) if seconds else 0  # 0 means no limit
    return struct.pack("@ll", *divmod(microseconds, 1_000_000))


def _is_own_peer(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # the peer has closed already; the first read reports it
        return False


def _interrupted(sock: socket.socket) -> bool:
    """Report whether a signal interrupted the connect() that has just returned, so that it must be called again.

    After EINTR Python waits until the socket is writable and without an error. A TCP connection attempt goes on in the
    meantime; a unix socket's does not, yet the socket is writable, and Python's connect() returns without a connection.
    """
    if sock.family != socket.AF_UNIX:
        return False
    try:
        sock.getpeername()
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


# The standard library's function, saved because a program may replace it (`socket.socket.makefile = makefile`).
_makefile: Any = socket.socket.makefile

# For each usual mode of makefile(): that of the socket.SocketIO under the file; whether the file reads, and writes.
_RAW_MODES: dict[str, Any] = {
    mode + kind: (mode, "r" in mode, "w" in mode) for mode in ("r", "w", "rw") for kind in ("", "b")
}


if TYPE_CHECKING:

    @overload
    def makefile(  # type: ignore[overload-overlap]
        sock: socket.socket,
        mode: _BinaryMode,
        buffering: Literal[0],
        *,
        encoding: None = ...,
        errors: None = ...,
        newline: None = ...,
    ) -> socket.SocketIO: ...

    @overload
    def makefile(
        sock: socket.socket,
        mode: _BinaryMode,
        buffering: int | None = ...,
        *,
        encoding: None = ...,
        errors: None = ...,
        newline: None = ...,
    ) -> Rio: ...

    @overload
    def makefile(
        sock: socket.socket,
        mode: _TextMode = ...,
        buffering: int | None = ...,
        *,
        encoding: str | None = ...,
        errors: str | None = ...,
        newline: str | None = ...,
    ) -> TextFile | io.TextIOWrapper[Rio]: ...


def makefile(
    sock: socket.socket,
    mode: str = "r",
    buffering: int | None = None,
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> Any:
    """Return a file object for a socket: a drop-in for ``socket.socket.makefile`` that loses no data on a timeout.

    Modes, life time, errors and timeout are those of ``socket.makefile``. The socket may be closed first, and its
    descriptor stays open until the file is closed. The timeout is the socket's, for each wait and not for the whole
    call, and ``settimeout()`` counts from the next wait on. Several threads may use one file: their calls take turns,
    and ``close()`` waits for the calls of others.

    A binary mode returns a ``Rio`` without a limit on the length of a line, and ``buffering=0`` the standard library's
    ``SocketIO``. A text mode returns a text file over a ``Rio``, which is its ``buffer``. Both stay usable after a
    ``TimeoutError``. A non-blocking socket that has no data raises ``BlockingIOError``.

    A text file in UTF-8, Latin-1 or ASCII loses nothing either: after an error the same call continues, writing does
    not disturb reading, an error of ``write()`` has the number of characters that were accepted as
    ``characters_written``, and a line that cannot be decoded raises ``UnicodeDecodeError`` until it is read through
    ``buffer``. In any other encoding it is an ``io.TextIOWrapper``, which drops what it has decoded of a line when a
    read fails, and what it has encoded when a write fails; before Python 3.13 a write also makes it drop what it has
    read ahead.
    """
    usual = _RAW_MODES.get(mode)
    if usual is None and not set(mode) <= {"r", "w", "b"}:
        raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
    if not hasattr(sock, "_io_refs"):
        raise TypeError(f"makefile() makes a file of a socket.socket, not of a {type(sock).__name__}")
    binary = "b" in mode
    if buffering == 0:
        return _makefile(sock, mode, 0, encoding=encoding, errors=errors, newline=newline)
    if usual is None:
        raw = _makefile(sock, mode if binary else mode + "b", 0)
        reading, writing = "r" in raw.mode, "w" in raw.mode
    else:  # as the standard library's function does it, without the half a microsecond of its other steps
        raw_mode, reading, writing = usual
        raw = socket.SocketIO(sock, raw_mode)
        sock._io_refs += 1
    try:
        size = 65536 if buffering is None or buffering < 0 else buffering
        if not binary:
            # A text layer reads and writes ahead, whatever the buffering is.
            size = max(operator.index(size), io.DEFAULT_BUFFER_SIZE)
        rio = _socket_file(sock, raw, size, reading, writing)
    except BaseException:
        raw.close()
        raise
    if binary:
        return rio
    text: Any
    try:
        text = open_text(rio, io.text_encoding(encoding), errors, newline)
    except BaseException:
        rio.close()
        raise
    text.mode = mode
    return text
