"""The echo client: it sends data, compares the echo byte for byte, and bounds the number of bytes in flight.

This module prints nothing; the command is in cli/client.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket

from rioecho.rio import Rio
from rioecho.sockets import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rioecho._load.result import Result

#: Maximum number of bytes in flight (sent and not yet echoed) while they include a whole line.
WINDOW = 1 << 20
#: Maximum number of bytes in flight in any case. A server that echoes whole lines sends nothing before the newline, so
#: a line longer than the window must still be sent.
LIMIT = 1 << 23
CHUNK = 1 << 16
#: Seconds without progress before ``on_wait`` is called.
PATIENCE = 5.0


class EchoError(Exception):
    """An error of an echo server. Raised by a load test, it has a ``result``: what was measured before."""

    result: Result


class WrongEchoError(EchoError):
    """The byte at ``offset`` of the received stream differs from what was sent."""

    def __init__(self, offset: int, connection: int | None = None) -> None:
        where = "" if connection is None else f"on connection {connection} "
        super().__init__(f"wrong echo: {where}the byte at offset {offset} is not what was sent")
        #: The offset in bytes, from 0.
        self.offset = offset
        #: The number of the load test's connection, from 0; None for a client.
        self.connection = connection


class EchoLostError(EchoError, ConnectionError):
    """The server closed or reset the connection, and ``missing`` bytes were not echoed. An OSError."""

    def __init__(self, missing: int, connection: int | None = None, number: int = 0) -> None:
        if connection is None:
            how = "the server closed the connection"
        elif number:
            how = f"connection {connection} was lost ({os.strerror(number)})"
        else:
            how = f"connection {connection} was closed by the server"
        ConnectionError.__init__(self, number or errno.ECONNRESET, f"{how}; {missing} bytes were not echoed")
        #: The number of bytes sent and not echoed.
        self.missing = missing
        #: The number of the load test's connection, from 0; None for a client.
        self.connection = connection


class EchoChecker:
    """The bytes in flight, in order: those sent and not yet echoed. Its memory is proportional to their number."""

    def __init__(self) -> None:
        # One bytearray for all bytes: deleting at its beginning moves nothing, and a piece of one byte costs one byte.
        self._expected = bytearray()
        self._newlines = 0
        #: The number of bytes echoed.
        self.echoed = 0

    @property
    def in_flight(self) -> int:
        """The number of bytes in flight."""
        return len(self._expected)

    @property
    def room(self) -> int:
        """The number of bytes that may be sent now; 0 if the server must echo something first."""
        if not self._newlines:
            return LIMIT - len(self._expected)
        room = WINDOW - len(self._expected)
        return room if room >= CHUNK else 0  # send large pieces even if the server's are small

    def sent(self, data: bytes) -> None:
        """Add bytes that were sent, or are about to be."""
        self._expected += data
        self._newlines += data.count(b"\n")

    def received(self, data: bytes) -> int:
        """Compare received bytes with those sent; return the number of bytes before the first wrong one.

        The correct bytes are no longer in flight. If all are correct, the result is ``len(data)``.
        """
        n = len(data)
        if not self._expected.startswith(data):
            pairs = enumerate(zip(data, self._expected, strict=False))
            n = next((i for i, (got, expected) in pairs if got != expected), min(n, len(self._expected)))
        self._newlines -= data.count(b"\n", 0, n)
        self.echoed += n
        del self._expected[:n]
        return n


def dial(host: str, port: int | None = None, *, timeout: float | None = None) -> socket.socket:
    """Connect to an echo server by TCP, or to the unix socket ``host`` if there is no port; return the socket.

    The caller owns the socket. ``timeout`` and the errors are those of ``rioecho.connect()``.
    """
    # A path in bytes is never taken for a host whose port was forgotten.
    rio = connect(os.fsencode(host), timeout=timeout) if port is None else connect(host, port, timeout=timeout)
    sock: socket.socket = rio.detach()[0]
    return sock


def pump(sock: socket.socket, source: int, sink: int, *, on_wait: Callable[[int], object] | None = None) -> int:
    """Send all data of ``source`` to an echo server, write the echo to ``sink``, and return its number of bytes.

    ``source`` and ``sink`` are file descriptors; the caller owns them and the socket. Sending and receiving happen at
    the same time, so they cannot deadlock, and the number of bytes in flight is bounded: by WINDOW while they include a
    whole line, by LIMIT in any case. At the bound nothing is read from ``source`` until the server has echoed
    something. A server that waits for the end of a longer line, or never answers, therefore blocks the call
    indefinitely; ``on_wait`` is called once, with the number of bytes in flight, after PATIENCE seconds without
    progress at the bound.

    At EOF of ``source`` the connection is half-closed and the remaining echo is received. Raises ``WrongEchoError``,
    ``EchoLostError``, or ``OSError`` if reading or writing fails. The correct bytes received before an error have been
    written to ``sink``, unless writing failed.
    """
    rio = Rio(sock)
    out = Rio(sink, timeout=None)
    checker = EchoChecker()
    unsent = memoryview(b"")
    at_end = False
    while True:
        wanted = {sock.fileno(): select.POLLIN | (select.POLLOUT if unsent else 0)}
        if not at_end and not unsent and checker.room:
            wanted[source] = select.POLLIN
        held_up = on_wait is not None and not at_end and not checker.room
        ready = _wait(wanted, PATIENCE if held_up else None)
        if not ready and on_wait is not None:
            on_wait(checker.in_flight)
            on_wait = None
        # Receive first: sending may fail because the connection was reset.
        if ready.get(sock.fileno(), 0) & ~select.POLLOUT:
            data = rio.read1(CHUNK)
            if not data:
                if at_end and not checker.in_flight:
                    return checker.echoed
                raise EchoLostError(checker.in_flight)
            right = checker.received(data)
            out.writen(memoryview(data)[:right])
            if right < len(data):
                raise WrongEchoError(checker.echoed)
        if source in ready:
            data = os.read(source, min(CHUNK, checker.room))
            checker.sent(data)
            unsent = memoryview(data)
            at_end = not data
            if at_end:
                with contextlib.suppress(OSError):  # the connection was reset: the next read reports it
                    sock.shutdown(socket.SHUT_WR)
        if unsent:
            try:
                rio.writen(unsent, timeout=0)
                unsent = memoryview(b"")
            except BlockingIOError as error:
                unsent = unsent[error.characters_written :]
            except (BrokenPipeError, ConnectionResetError):
                unsent = memoryview(b"")  # continue to read the echoes received before the reset
                at_end = True


def _wait(wanted: dict[int, int], timeout: float | None) -> dict[int, int]:
    """Wait up to ``timeout`` seconds for one of the descriptors; return the events of those that are ready."""
    poller = select.poll()
    for fd, events in wanted.items():
        poller.register(fd, events)
    return dict(poller.poll(None if timeout is None else timeout * 1000))
