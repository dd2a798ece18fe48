"""Sockets made ready for a Rio: the two helpers of CS:APP section 11.4, and connect().

All of it is the standard library's socket and getaddrinfo. What is added: every address of a name is tried,
nothing stays open after an error, and the error says what was being done; its class and errno stay.
"""

from __future__ import annotations

import errno
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
    look_up,
    open_socket,
    shown,
)
from rioecho.rio import Rio, _socket_file

TYPE_CHECKING = False  # not typing's, which takes longer to import than all of this
if TYPE_CHECKING:
    from types import EllipsisType
    from typing import Any, Literal, TypeAlias, overload

    from rioecho._core.addresses import Address, Path, Setup

    _BinaryMode: TypeAlias = Literal["b", "rb", "br", "wb", "bw", "rwb", "rbw", "wrb", "wbr", "brw", "bwr"]
    _TextMode: TypeAlias = Literal["", "r", "w", "rw", "wr"]


def open_clientfd(hostname: str, port: int | str) -> int:
    """Connect to ``port`` of ``hostname``; the descriptor is blocking, close-on-exec, and the caller's to close.

    ``port`` is a number (an int or digits) or the name of a service. Every address of the name is tried in the
    order of ``getaddrinfo``; when none answers, the error of the last one is raised: an ``OSError`` that names host
    and port, ``socket.gaierror`` where the name has no address. A port outside 0..65535 is a ``ValueError``.
    It waits as long as the kernel does. (CS:APP 11.4.8.)
    """
    return _dial(hostname, port, None).detach()


def open_listenfd(port: int | str, host: str | None = None, *, backlog: int = LISTENQ) -> int:
    """Listen on ``port``; the descriptor is blocking, close-on-exec, and the caller's to close.

    Without ``host`` it takes connections to any address of this machine, over IPv6 and IPv4; a peer of the latter
    shows as ``::ffff:a.b.c.d``. With ``host`` it listens on the first address of that name which can be had
    (whether ``"::"`` takes IPv4 too is then the system's setting). Port 0 is any free one. ``port`` is as in
    ``open_clientfd``; ``backlog`` connections may wait. Raises ``OSError`` naming the port (and host): a port that
    is in use is refused, also where another family or address of the name still has it free. (CS:APP 11.4.8.)
    """
    if not 0 <= operator.index(backlog) <= 0x7FFFFFFF:
        raise ValueError(f"backlog must be 0 to 2147483647, not {backlog}")

    def listen(sock: socket.socket, address: Address) -> None:
        # So that a server can start again at once: the connections of the last one linger in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host is None and sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(backlog)

    return _first("listen on", host, port, socket.AI_PASSIVE, listen).detach()


if TYPE_CHECKING:

    @overload
    def connect(
        host: str, port: int | str, *, timeout: float | None = None, bufsize: int = ..., max_line: int | None = ...
    ) -> Rio: ...

    @overload
    def connect(host: Path, *, timeout: float | None = None, bufsize: int = ..., max_line: int | None = ...) -> Rio: ...


def connect(
    host: Path, port: int | str | EllipsisType = ..., *, timeout: float | None = None, **rio_options: Any
) -> Rio:
    """Give a ``Rio`` that owns a new connection: ``connect(host, port)`` over TCP, ``connect(path)`` to a unix socket.

    ``timeout`` seconds are for the whole of connecting, all addresses together, and then for each call of the Rio;
    ``None`` waits for ever. (Looking up a name cannot be cut short; the time it took counts.) ``rio_options`` are
    those of ``Rio``: ``bufsize``, ``max_line``. TCP_NODELAY is set, for the Rio's output buffer does the batching.

    Raises as ``open_clientfd`` does, an ``OSError`` that names the path for a unix socket, ``TimeoutError`` when
    the time is over, ``BlockingIOError`` for ``timeout=0`` where it would have to wait; nothing is left open.
    """
    deadline = _deadline(timeout)
    sock = _dial_unix(host, deadline) if isinstance(port, type(...)) else _dial(host, port, deadline, nodelay=True)
    try:
        return Rio(sock, timeout=timeout, closefd=True, **rio_options)
    except BaseException:
        sock.close()
        raise


def _dial(host: Path, port: int | str, deadline: float | None, *, nodelay: bool = False) -> socket.socket:
    """Connect to the first address of ``host`` that answers."""

    def call(sock: socket.socket, address: Address) -> None:
        if nodelay:  # before connecting: macOS refuses it on a connection that its peer has reset already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(_left(deadline))
        sock.connect(address)
        # TCP connects a socket to itself where the port it happened to get is the very one it asks for. What comes
        # back then looks like an echo, but nobody is listening.
        if _is_own_peer(sock):
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    # No AI_ADDRCONFIG, which the book has: it hides ::1 on a host whose only IPv6 address is that one.
    return _first("connect to", check_host(host), port, 0, call)


def _dial_unix(path: Path, deadline: float | None) -> socket.socket:
    """Connect to the unix socket ``path``."""
    path = check_path(path)

    def call(sock: socket.socket, address: Address) -> None:
        # When the listener's queue is full a non-blocking socket gets EAGAIN at once, and has nothing to wait for; a
        # blocking one waits for its turn. So it is the kernel that keeps the time: EAGAIN when it is over.
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
        raise describe_error(exc, f"cannot connect to {shown(os.fsdecode(path))}") from None


def _first(doing: str, host: str | None, port: int | str, flags: int, set_up: Setup) -> socket.socket:
    """Open a socket on the first address of ``host`` and ``port`` where ``set_up`` succeeds."""
    port = check_port(port)
    what = f"cannot {doing} {'' if host is None else shown(check_host(host)) + ' '}port {shown(str(port))}"
    found = look_up(host, port, flags, what)
    if host is None:
        # One IPv6 socket serves both families; the IPv4 one is for hosts that have no IPv6. (The book takes
        # what getaddrinfo puts first, 0.0.0.0 with glibc, and then cannot be reached over IPv6.)
        found.sort(key=lambda info: info[0] != socket.AF_INET6)
    for info in found:
        family, kind, protocol, _, address = info
        try:
            return open_socket(family, kind, protocol, address, set_up)
        except OSError as exc:
            # To listen on the next address when the port is taken would be to share it with a stranger.
            taken = flags & socket.AI_PASSIVE and exc.errno == errno.EADDRINUSE
            if taken or info is found[-1]:
                raise describe_error(exc, what) from None
    raise socket.gaierror(socket.EAI_NONAME, f"{what}: the name has no address")


def _timed_out() -> OSError:
    return TimeoutError(errno.ETIMEDOUT, "timed out")


def _deadline(timeout: float | None) -> float | None:
    """Turn seconds into a moment on the monotonic clock; None, for ever, and 0, never wait, stay as they are."""
    try:
        wrong = timeout is not None and not timeout >= 0  # NaN too
    except TypeError:
        raise TypeError(f"timeout must be None or a number of seconds, not {type(timeout).__name__}") from None
    if wrong:
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
    return timeout and monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    """Seconds to wait until ``deadline``; None and 0 as they are; TimeoutError after it."""
    if not deadline:
        return deadline
    left = deadline - monotonic()
    if left <= 0:
        raise _timed_out()
    return min(left, 86400.0)  # settimeout() takes no more than 24 days, and no kernel tries for even one


def _timeval(seconds: float | None) -> bytes:
    microseconds = max(1, int(seconds * 1e6)) if seconds else 0  # 0 is for ever
    return struct.pack("@ll", *divmod(microseconds, 1_000_000))


def _is_own_peer(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # the peer has gone already: that is for the reader to find
        return False


def _interrupted(sock: socket.socket) -> bool:
    """Tell whether a signal came into the connect() that has just returned, and it must be called again.

    In TCP the connecting then goes on by itself and Python waits for it; on a unix socket nothing goes on, and the
    same way of waiting (until it can be written to, without an error) calls that a success.
    """
    if sock.family != socket.AF_UNIX:
        return False
    try:
        sock.getpeername()
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


# The standard library's own, kept: a program may put ours in its place (`socket.socket.makefile = makefile`).
_makefile: Any = socket.socket.makefile


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
    ) -> io.TextIOWrapper: ...


def makefile(
    sock: socket.socket,
    mode: str = "r",
    buffering: int | None = None,
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> Any:
    """Give a file over a socket, as ``socket.socket.makefile`` does, that keeps what it received after a timeout.

    The modes, the life time (the socket may be closed first; its descriptor stays open until the file is closed) and
    the timeout (the socket's own, looked up at every call) are those of ``socket.makefile``. A binary mode gives a
    ``Rio``, whose lines have no limit here; a text mode a ``TextIOWrapper`` over one; ``buffering=0`` what the standard
    library gives. After a ``TimeoutError`` a ``Rio`` goes on; the ``TextIOWrapper``, which is not ours, drops the part
    of a line that it had read. A socket that would have to wait and must not raises ``BlockingIOError``.
    """
    if not set(mode) <= {"r", "w", "b"}:
        raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
    binary = "b" in mode
    if buffering == 0:
        return _makefile(sock, mode, 0, encoding=encoding, errors=errors, newline=newline)
    raw = _makefile(sock, mode if binary else mode + "b", 0)
    try:
        rio = _socket_file(sock, raw, 65536 if buffering is None or buffering < 0 else buffering)
    except BaseException:
        raw.close()
        raise
    if binary:
        return rio
    text: Any
    try:
        text = io.TextIOWrapper(rio, io.text_encoding(encoding), errors, newline)
    except BaseException:
        rio.close()
        raise
    text.mode = mode
    return text
