"""The service manager that has started the server: what it has passed in, and what it is told.

systemd passes sockets by LISTEN_FDS (Accept=yes: a connected one), inetd passes a connected one as stdin, and
NOTIFY_SOCKET is where Type=notify expects to hear that the server is ready, and that it stops (sd_notify(3)).
"""

from __future__ import annotations

import logging
import os
import socket

from rioecho._server.passed import FIRST_PASSED, detach_streams, listens, passed_sockets, stdin_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

log = logging.getLogger("rioecho.server")

STDIN = 0


def is_inetd(arguments: Sequence[str]) -> bool:
    """Report whether the arguments contain --inetd, before they are parsed."""
    return any(len(each) > len("--i") and "--inetd".startswith(each) for each in arguments)


def protect_peer(*, inetd: bool) -> None:
    """Let nothing but the echo reach the peer of a passed socket: neither usage errors nor the log.

    Call it before anything is printed. The standard streams that are that socket are opened to /dev/null, except stdin
    where it is what has been passed.
    """
    if inetd:
        detach_streams(STDIN)
    elif os.environ.get("LISTEN_PID") == str(os.getpid()):
        detach_streams(FIRST_PASSED)


def take_sockets(*, inetd: bool) -> list[socket.socket]:
    """Return the sockets that were passed in: those of systemd, or stdin. The caller owns them.

    Raises ``OSError`` or ``ValueError`` if they are not what the server can use.
    """
    passed = passed_sockets()
    if not inetd:
        return passed
    for sock in passed:  # systemd passes the socket of StandardInput=socket in both ways
        sock.close()
    stdin = stdin_socket()
    detach_streams(stdin.fileno())
    return [stdin]


def is_connection(passed: Sequence[socket.socket]) -> bool:
    """Report whether what was passed in is one connection, to be served, rather than sockets to listen on."""
    return len(passed) == 1 and passed[0].type == socket.SOCK_STREAM and not listens(passed[0])


class Notifier:
    """Tells the service manager the state of the server, if NOTIFY_SOCKET is set. Raises nothing.

    The variable is removed from ``environ``. It is the path or the abstract ``@NAME`` of a datagram socket.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._name = environ.pop("NOTIFY_SOCKET", "")
        self._stopping = False

    def ready(self) -> None:
        """Tell that the server accepts connections, unless it stops already."""
        if not self._stopping:
            self._send(b"READY=1")

    def stopping(self) -> None:
        """Tell that the server stops; once. May be called from a signal handler."""
        if not self._stopping:
            self._stopping = True
            self._send(b"STOPPING=1")

    def _send(self, state: bytes) -> None:
        if not self._name:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(1.0)  # a queue that is full for longer is nobody's
                sock.sendto(state, "\0" + self._name[1:] if self._name[0] == "@" else self._name)
        except (OSError, ValueError) as error:
            log.warning("cannot notify the service manager at %s: %s", self._name, error)
