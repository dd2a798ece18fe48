"""The stream and datagram sockets of a server together, which have the same ports."""

from __future__ import annotations

import errno

from rioecho._server.listeners import LISTEN_ATTEMPTS, Listeners, address_of
from rioecho._server.udp import udp_sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from rioecho._core.addresses import Path


def listen(
    hosts: Sequence[str],
    port: int | str,
    unix: Path | None,
    unix_mode: int | None,
    passed: list[socket.socket],
    backlog: int,
    *,
    udp: bool,
) -> tuple[Listeners, list[socket.socket]]:
    """Listen on TCP and, if requested, on the same ports over UDP.

    Returns the listeners and the datagram sockets, those among the ``passed`` ones included; the caller owns both.
    Raises ``OSError``, which names the address, and ``ValueError`` if ``udp`` does not fit the other arguments; nothing
    stays open then but the ``passed`` sockets, which are given back.
    """
    attempt = 0
    while True:
        attempt += 1
        paths = () if unix is None else (unix,)
        listeners = Listeners(hosts, port, paths=paths, passed=passed, backlog=backlog, unix_mode=unix_mode)
        try:
            if not udp:
                if listeners.datagrams:
                    raise ValueError("a datagram socket was passed, but UDP was not requested")
                return listeners, []
            pairs = [address for address in listeners.addresses if isinstance(address, tuple)]
            if not pairs and not listeners.datagrams:
                raise ValueError("UDP needs a port to listen on")
            own = {address_of(sock) for sock in listeners.datagrams}  # passed together with a TCP socket
            return listeners, [*listeners.datagrams, *udp_sockets([pair for pair in pairs if pair not in own])]
        except OSError as error:
            # With port 0, a port that is free for TCP may be in use for UDP: try another one.
            listeners.give_back()
            if port != 0 or passed or error.errno != errno.EADDRINUSE or attempt == LISTEN_ATTEMPTS:
                raise
        except BaseException:
            listeners.give_back()
            raise
