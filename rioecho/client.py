"""The echo client: what is sent must come back, byte for byte, and is counted until it has.

No printing and no arguments here: those are the command's (cli/client.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import deque

from rioecho.rio import Rio

#: How much may be sent and not yet back, as long as a whole line is among it. (A server that sends whole lines back
#: says nothing before the newline, so a longer line must be let out.)
WINDOW = 1 << 20
CHUNK = 1 << 16


class WrongEchoError(Exception):
    """What came back is not what was sent."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"wrong echo: the byte at offset {offset} is not what was sent")
        #: Of the stream, the first byte that differs.
        self.offset = offset


class EchoLostError(ConnectionError):
    """The server closed the connection before everything had come back."""

    def __init__(self, missing: int) -> None:
        super().__init__(errno.ECONNRESET, f"the server closed the connection; {missing} bytes did not come back")
        #: How many bytes are missing.
        self.missing = missing


class EchoChecker:
    """The bytes on their way: what has been sent and has not come back, in order."""

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        self._newlines = 0
        #: How many bytes are on their way.
        self.in_flight = 0
        #: How many bytes have come back.
        self.echoed = 0

    def sent(self, data: bytes) -> None:
        """Expect these bytes next."""
        self._chunks.append(memoryview(data))
        self.in_flight += len(data)
        self._newlines += data.count(b"\n")

    def received(self, data: bytes) -> int:
        """Compare with what was sent: how many bytes are right; fewer than all, if a wrong one follows."""
        view = memoryview(data)
        done = 0
        while done < len(view) and self._chunks:
            expected = self._chunks[0]
            n = min(len(view) - done, len(expected))
            if view[done : done + n] != expected[:n]:
                n = next(i for i in range(n) if view[done + i] != expected[i])
                self.echoed += n
                return done + n
            self._newlines -= data.count(b"\n", done, done + n)
            self.in_flight -= n
            self.echoed += n
            done += n
            if n == len(expected):
                self._chunks.popleft()
            else:
                self._chunks[0] = expected[n:]
        return done

    @property
    def full(self) -> bool:
        """Is it time to wait for the server before sending more?"""
        return self.in_flight >= WINDOW and self._newlines > 0


def pump(sock: socket.socket, source: int, sink: int) -> int:
    """Send all of ``source`` to an echo server and write what comes back to ``sink``; returns the number of bytes.

    Reading, sending and receiving go on side by side, with about WINDOW bytes on their way at most, so that neither
    side waits for the other and the memory is the same for any length. At the end of the source the connection is
    half closed and the rest awaited. Raises WrongEchoError, EchoLostError and the OSError of what failed; all that
    had come back right by then has been written.
    """
    rio = Rio(sock)
    out = Rio(sink, timeout=None)
    checker = EchoChecker()
    unsent = memoryview(b"")
    at_end = False
    while True:
        wanted = {sock.fileno(): select.POLLIN | (select.POLLOUT if unsent else 0)}
        if not at_end and not unsent and not checker.full:
            wanted[source] = select.POLLIN
        ready = _wait(wanted)
        # What has come back is taken first: sending may find that the connection has gone.
        if ready.get(sock.fileno(), 0) & ~select.POLLOUT:
            data = rio.read1(CHUNK)
            if not data:
                if at_end and not checker.in_flight:
                    return checker.echoed
                raise EchoLostError(checker.in_flight)
            right = checker.received(data)
            out.writen(data[:right])
            if right < len(data):
                raise WrongEchoError(checker.echoed)
        if source in ready:
            data = os.read(source, CHUNK)
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


def _wait(wanted: dict[int, int]) -> dict[int, int]:
    poller = select.poll()
    for fd, events in wanted.items():
        poller.register(fd, events)
    return dict(poller.poll())
