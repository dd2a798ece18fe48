"""A peer's conversation with one client: what its steps do. A step waits, sends and receives by these methods only."""

from __future__ import annotations

import contextlib
import select
import socket
import time

from rioecho.testing._service import CHUNK
from rioecho.testing._service import reset as reset_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    import threading

    from rioecho.testing._ending import Ending
    from rioecho.testing._tls import TlsEnd

#: Seconds that a TLS handshake may take.
HANDSHAKE = 5.0
#: The most that close() takes of what has arrived, in bytes.
LEFTOVERS = 1 << 22


class LostError(Exception):
    """The client has ended the conversation: the text says how."""


class StoppedError(Exception):
    """The peer is being closed."""


class UnmetError(Exception):
    """An expectation was not met: the text says what was expected and what came."""


class Conversation:
    """A connection with a client. Its thread calls the methods; ``settled()`` is for others."""

    def __init__(self, sock: socket.socket, ending: Ending, lock: threading.RLock) -> None:
        self._sock: socket.socket | TlsEnd = sock
        self._ending = ending
        self._lock = lock
        self._accepted = time.monotonic()
        #: All that was received, and that part of it which no step has taken.
        self.received, self.held = bytearray(), bytearray()
        self.closed = self._half_closed = False
        self.ended = False  # the thread is about to end; nothing more is received
        self._waiting: int | None = None  # the events that the thread waits for, 0 for a time; None: it is busy

    def settled(self) -> bool:
        """Report whether the thread waits, and for something that has not come. Called with the lock held."""
        if self.ended:
            return True
        events, fd = self._waiting, self._sock.fileno()
        if events is None:
            return False
        if not events or fd < 0:
            return True
        poller = select.poll()
        poller.register(fd, events)
        return not poller.poll(0)

    def begin(self, tls: ssl.SSLContext | None) -> None:
        """Make the TLS handshake, if there is to be TLS. Raises LostError."""
        assert isinstance(self._sock, socket.socket)  # noqa: S101 - for type checkers
        with contextlib.suppress(OSError):  # a unix socket
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            return
        from rioecho.testing._tls import TlsEnd  # it imports ssl

        deadline = time.monotonic() + HANDSHAKE
        try:
            with self._lock:
                end = self._sock = TlsEnd(self._sock, tls)
            while events := end.handshake():
                if not self._wait(events, deadline):
                    raise StoppedError if self._ending.requested else TimeoutError(f"no answer in {HANDSHAKE:g} s")
        except OSError as error:
            raise LostError(f"the TLS handshake failed: {error}") from None

    def receive(self, deadline: float | None = None) -> bytes:
        """Receive what has come, and wait until something has; b"" at the end of the input.

        Raises TimeoutError at the deadline, StoppedError if the peer is being closed and nothing has come, LostError.
        """
        while True:
            try:
                with self._lock:
                    data = self._sock.recv(CHUNK)
                    self.received += data
                return data
            except BlockingIOError:
                pass
            except OSError as error:
                raise LostError(_how_lost(error)) from None
            if not self._wait(select.POLLIN, deadline):
                raise StoppedError if self._ending.requested else TimeoutError

    def send(self, data: bytes) -> None:
        """Send all of the data. Raises LostError, and StoppedError if the peer is being closed and there is no room."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._sock.send(view[:CHUNK]) :]
                continue
            except BlockingIOError:
                pass
            except OSError as error:
                raise LostError(_how_lost(error)) from None
            if not self._wait(select.POLLOUT, None):
                raise StoppedError

    def sleep(self, seconds: float) -> None:
        """Wait some seconds. Raises StoppedError if the peer is being closed."""
        self._waiting = 0
        passed = self._ending.sleep(seconds)
        self._waiting = None
        if not passed:
            raise StoppedError

    def half_close(self) -> None:
        """Close the sending side: the client reads the end of the input. Over TLS, send a close_notify."""
        if self._half_closed:
            return
        self._half_closed = True
        with contextlib.suppress(OSError):  # the client has gone
            while True:
                try:
                    with self._lock:
                        self._sock.shutdown(socket.SHUT_WR)
                    return
                except BlockingIOError:
                    if not self._wait(select.POLLOUT, None):
                        return

    def finish(self) -> None:
        """End a conversation whose steps are over: half-close, and receive until the client closes."""
        if self.closed:
            return
        self.half_close()
        with contextlib.suppress(LostError, StoppedError):
            while self.receive():
                pass

    def close(self) -> None:
        """Close the connection. Takes what has arrived first: unread, it would turn the close into a reset."""
        if self.closed:
            return
        self.half_close()
        taken = 0
        with contextlib.suppress(OSError), self._lock:
            while taken < LEFTOVERS and (data := self._sock.recv(CHUNK)):
                self.received += data
                taken += len(data)
        self._close()

    def reset(self) -> None:
        """Close the connection with a reset."""
        self.closed = True
        with self._lock:
            sock = socket.socket(fileno=self._sock.detach())
        reset_socket(sock, self._ending, self._accepted)

    def _close(self) -> None:
        self.closed = True
        with self._lock:
            self._sock.close()

    def _wait(self, events: int, deadline: float | None) -> bool:
        left = None if deadline is None else deadline - time.monotonic()
        self._waiting = events
        found = self._ending.poll({self._sock.fileno(): events}, left)
        self._waiting = None
        return bool(found)


def _how_lost(error: OSError) -> str:
    if isinstance(error, ConnectionResetError):
        return "the client reset the connection"
    if isinstance(error, BrokenPipeError):
        return "the client closed the connection"
    return f"the connection was lost: {error}"
