"""What stands between the transport of a socket and asyncio's TLS: class Below.

TLS hides from its user whether the socket has taken what was encrypted, and how the connection ended during the
handshake. This protocol hears both.
"""

from __future__ import annotations

import asyncio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Below(asyncio.BufferedProtocol):
    """The protocol of the socket's transport: it passes everything to that of TLS, and tells ``rio`` of the output.

    ``rio`` is the protocol of the Rio.
    """

    def __init__(self, tls: Any, rio: Any) -> None:
        self._tls = tls
        self._rio = rio
        self._paused = False
        # As attributes of the object, so that the loop calls those of TLS directly.
        self.get_buffer = tls.get_buffer  # type: ignore[method-assign]
        self.buffer_updated = tls.buffer_updated  # type: ignore[method-assign]
        self.eof_received = tls.eof_received  # type: ignore[method-assign]

    def connection_lost(self, exc: Exception | None) -> None:
        self._tls.connection_lost(exc)
        self._rio.connection_lost(exc)  # during a handshake TLS would not say it

    def pause_writing(self) -> None:
        self._paused = True
        self._tls.pause_writing()
        self._rio.stall(True)

    def resume_writing(self) -> None:
        self._paused = False
        self._tls.resume_writing()  # it may give the socket more, and then pause_writing() was called
        if not self._paused:
            self._rio.stall(False)


def interpose(transport: Any, rio: Any, early: bytes) -> None:
    """Put a ``Below`` between a socket's transport and the TLS protocol that it has just got.

    ``early`` is the beginning of the handshake, if ``rio`` has received it before.
    """
    tls = transport.get_protocol()
    if tls is None:  # the connection was lost
        return
    transport.set_protocol(Below(tls, rio))
    while early:
        room = tls.get_buffer(len(early))
        n = min(len(room), len(early))
        room[:n] = early[:n]
        tls.buffer_updated(n)
        early = early[n:]
