"""The sockets that a service manager passes to a server: systemd by LISTEN_FDS, inetd as stdin.

An error names the descriptor, which is left alone.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

#: The first descriptor that systemd passes (sd_listen_fds(3)).
FIRST_PASSED = 3
#: The environment variables that describe the descriptors.
PASSED_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
#: The standard streams.
STREAMS = (0, 1, 2)


def passed_sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Return the sockets that systemd has passed to this process (sd_listen_fds(3)), or ``[]``. The caller owns them.

    They are non-blocking and close-on-exec, in the order of their descriptors: listening stream sockets, TCP or unix,
    and datagram sockets (see ``type``); or one connected stream socket (``Accept=yes``). The file of a unix socket
    belongs to systemd and is not removed. The variables are removed from ``environ`` in any case, so that no child
    process uses them.

    Raises ``ValueError`` if a variable is not a number, and ``OSError``, which names the descriptor, if one is not such
    a socket; the sockets before it are closed then, and the descriptor is left alone.
    """
    pid, count, *_ = [environ.pop(name, None) for name in PASSED_VARIABLES]
    if pid is None or count is None or _number("LISTEN_PID", pid) != os.getpid():
        return []
    sockets: list[socket.socket] = []
    n = _number("LISTEN_FDS", count)
    try:
        for fd in range(FIRST_PASSED, FIRST_PASSED + n):
            sockets.append(_take_over(fd, f"LISTEN_FDS: descriptor {fd} is not", alone=n == 1))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def stdin_socket() -> socket.socket:
    """Return a duplicate of the socket that inetd has passed as stdin. The caller owns it; see ``detach_streams()``.

    It is such a socket as ``passed_sockets()`` returns, usually a connected one. Raises ``OSError`` if stdin is not.
    """
    fd = os.dup(STREAMS[0])
    try:
        return _take_over(fd, "stdin is not", alone=True)
    except BaseException:
        os.close(fd)
        raise


def detach_streams(fd: int) -> None:
    """Open /dev/null in place of each standard stream that is the socket ``fd``.

    Nothing that is printed or logged reaches the peer then, and the connection ends when ``fd`` is closed.
    """
    try:
        sock = os.fstat(fd)
    except OSError:
        return
    for stream in STREAMS:
        try:
            found = os.fstat(stream)
        except OSError:
            continue
        if stream != fd and stat.S_ISSOCK(found.st_mode) and os.path.samestat(found, sock):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, stream)
            os.close(null)


def listens(sock: socket.socket) -> bool:
    """Report whether a stream socket listens; True if the system cannot tell."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except (AttributeError, OSError):
        return True


def _take_over(fd: int, what: str, *, alone: bool) -> socket.socket:
    """Take over a passed descriptor. Raises ``OSError`` with the errno that accept(2) would report.

    A socket passed ``alone`` may be a connected one.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        raise OSError(exc.errno, f"{what} {'open' if exc.errno == errno.EBADF else 'a socket'}") from None
    try:
        if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            raise OSError(errno.EAFNOSUPPORT, f"{what} a TCP, UDP or unix socket")
        if sock.type != socket.SOCK_DGRAM:
            kind = "a listening or connected stream socket" if alone else "a listening stream socket"
            if sock.type != socket.SOCK_STREAM:
                raise OSError(errno.EOPNOTSUPP, f"{what} {kind}")
            if not listens(sock) and not (alone and was_connected(sock)):
                raise OSError(errno.EINVAL, f"{what} {kind}")
        sock.set_inheritable(False)
        sock.setblocking(False)
    except BaseException:
        sock.detach()
        raise
    return sock


def was_connected(sock: socket.socket) -> bool:
    """Report whether a stream socket is connected, or was until its peer disconnected. Its error stays pending."""
    try:
        sock.getpeername()
    except OSError:
        ended = select.poll()
        ended.register(sock, select.POLLIN)  # one that has never been connected is not readable
        return any(events & select.POLLIN for _, events in ended.poll(0))
    return True


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{name}: not a number of at most 9 digits: {text!r}")
    return int(text)
