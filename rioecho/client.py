"""The echo client: what is sent must come back, byte for byte, and is counted until it has.

No printing and no arguments here: those are the command's (cli/client.py).
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

#: Bytes that may be in flight (sent and not yet back) while a whole line is among them.
WINDOW = 1 << 20
#: Bytes that may be in flight at all. A server that returns whole lines says nothing before the newline, so a line
#: that is longer than the window must be let out.
LIMIT = 1 << 23
CHUNK = 1 << 16
#: Seconds without any progress before ``on_wait`` is called.
PATIENCE = 5.0


class EchoError(Exception):
    """What an echo server did wrong. ``result`` is what a load test had measured by then; a client's has none."""

    result: Result


class WrongEchoError(EchoError):
    """The byte at ``offset`` of the stream is not what was sent, on ``connection`` of a load test (None: a client)."""

    def __init__(self, offset: int, connection: int | None = None) -> None:
        where = "" if connection is None else f"on connection {connection} "
        super().__init__(f"wrong echo: {where}the byte at offset {offset} is not what was sent")
        #: Counted from the stream's first byte, 0.
        self.offset = offset
        #: Counted from 0.
        self.connection = connection


class EchoLostError(EchoError, ConnectionError):
    """The server closed or reset the connection, and ``missing`` bytes did not come back."""

    def __init__(self, missing: int, connection: int | None = None, number: int = 0) -> None:
        if connection is None:
            how = "the server closed the connection"
        elif number:
            how = f"connection {connection} was lost ({os.strerror(number)})"
        else:
            how = f"connection {connection} was closed by the server"
        ConnectionError.__init__(self, number or errno.ECONNRESET, f"{how}; {missing} bytes did not come back")
        self.missing = missing
        #: Counted from 0; None for a client.
        self.connection = connection


class EchoChecker:
    """The bytes in flight: what has been sent and has not come back, in order. Its memory is a multiple of theirs."""

    def __init__(self) -> None:
        # One object for all: a deletion at its beginning moves nothing, and pieces of one byte cost one byte.
        self._expected = bytearray()
        self._newlines = 0
        #: How many bytes have come back.
        self.echoed = 0

    @property
    def in_flight(self) -> int:
        """The number of bytes in flight."""
        return len(self._expected)

    @property
    def room(self) -> int:
        """The number of bytes that may be sent now; 0 if the server has to answer first."""
        if not self._newlines:
            return LIMIT - len(self._expected)
        room = WINDOW - len(self._expected)
        return room if room >= CHUNK else 0  # no small pieces because the server's are small

    def sent(self, data: bytes) -> None:
        """Expect these bytes next."""
        self._expected += data
        self._newlines += data.count(b"\n")

    def received(self, data: bytes) -> int:
        """Compare with what was sent; return the number of bytes before the first wrong one, ``len(data)`` if none."""
        n = len(data)
        if not self._expected.startswith(data):
            pairs = enumerate(zip(data, self._expected, strict=False))
            n = next((i for i, (got, expected) in pairs if got != expected), min(n, len(self._expected)))
        self._newlines -= data.count(b"\n", 0, n)
        self.echoed += n
        del self._expected[:n]
        return n


def dial(host: str, port: int | None = None, *, timeout: float | None = None) -> socket.socket:
    """Connect to an echo server, by TCP or, without a port, to the unix socket of this path; return the socket.

    As ``rioecho.connect()`` does it, errors included.
    """
    rio = connect(host, timeout=timeout) if port is None else connect(host, port, timeout=timeout)
    sock: socket.socket = rio.detach()[0]
    return sock


def pump(sock: socket.socket, source: int, sink: int, *, on_wait: Callable[[int], object] | None = None) -> int:
    """Send all of ``source`` to an echo server and write what comes back to ``sink``; return the number of bytes.

    Reading, sending and receiving go on side by side, so that neither side waits for the other, and what is in flight
    is bounded: by WINDOW bytes while a whole line is, by LIMIT bytes in any case. Beyond that nothing is read from
    ``source`` until something has come back; a server that waits for the end of a longer line, or never answers, is
    waited for without end. ``on_wait`` is then called, once, with the number of bytes in flight.

    At the end of the source the connection is half closed and the rest awaited. Raises WrongEchoError, EchoLostError
    and the OSError of what failed; all that had come back right by then has been written.
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
        # What has come back is taken first: sending may find that the connection has gone.
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
                with contextlib.suppress(OSError):  # the connection has gone: reading will say how
                    sock.shutdown(socket.SHUT_WR)
        if unsent:
            try:
                rio.writen(unsent, timeout=0)
                unsent = memoryview(b"")
            except BlockingIOError as error:
                unsent = unsent[error.characters_written :]
            except (BrokenPipeError, ConnectionResetError):
                unsent = memoryview(b"")  # nobody takes it; go on reading to what came before the break
                at_end = True


def _wait(wanted: dict[int, int], timeout: float | None) -> dict[int, int]:
    """Wait until one of the descriptors is ready; return the events of each that is, none when the time is over."""
    poller = select.poll()
    for fd, events in wanted.items():
        poller.register(fd, events)
    return dict(poller.poll(None if timeout is None else timeout * 1000))
