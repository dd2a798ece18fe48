"""How the connections of an echo server are served: one after the other, or each in a thread of its own.

An engine takes a connection that was accepted and sees it through. The accept loop, the limits, the counts and the
life cycle are the server's (server.py); the echo itself is C (_echoloop.pyx). A further engine is a further class.
"""

from __future__ import annotations

import logging
import socket
import threading
from time import monotonic
from typing import Any, Literal, Protocol

from rioecho._echoloop import Echo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    _Framing: TypeAlias = Literal["line", "raw"]


class Host(Protocol):
    """What a connection needs of its server."""

    framing: _Framing
    max_line: int
    idle_timeout: float
    stop_fd: int

    def time_to_drain(self) -> float:
        """Seconds that a connection may take from the stop on."""

    def closed(self, connection: Connection, *, failed: bool) -> None:
        """Count a connection that has been served."""


class Engine(Protocol):
    """How connections are served."""

    def serve(self, connection: Connection) -> None:
        """See a connection through; called from the accept loop, which goes on when this returns."""

    def join(self, deadline: float) -> None:
        """Wait until all are served, at most to that moment of the monotonic clock."""


log = logging.getLogger("rioecho.server")


class Connection:
    """One accepted connection: its socket, its peer's name, its echo. run() serves it and closes it."""

    def __init__(self, sock: socket.socket, address: Any, server: Host) -> None:
        self.sock = sock
        self.peer = f"({address[0]}, {address[1]})" if isinstance(address, tuple) else "(unix socket)"
        self.server = server
        self.echo = Echo(
            sock,
            server.framing,
            timeout=server.idle_timeout or None,
            max_line=server.max_line,
            stop_fd=server.stop_fd,
            drain_timeout=server.time_to_drain(),
            on_line=self._log_line if log.isEnabledFor(logging.DEBUG) else None,
        )

    def run(self) -> None:
        """Echo to the end of the input, or until the server stops; then close. No error leaves here."""
        failed = False
        try:
            log.info("Connected to %s", self.peer)
            self.echo.run()
            reason = "server stopped" if self.echo.draining else "end of input"
        except TimeoutError:
            reason = "drain timeout" if self.echo.draining else "idle timeout"
        except OSError as error:
            failed = True
            reason = error.strerror or str(error)
        except MemoryError:
            failed = True
            reason = "out of memory"
        finally:
            # Before the counts say so: who sees `closed` may rely on the descriptor being free.
            self.sock.close()
            self.server.closed(self, failed=failed)
        log.info("Closed %s: %s, %d bytes echoed", self.peer, reason, self.echo.bytes_out)

    def _log_line(self, n: int) -> None:
        log.debug("server received %d bytes", n)


class IterativeEngine:
    """The book's first server: one client at a time; the others wait in the kernel's queue (CS:APP 11.4.9)."""

    def serve(self, connection: Connection) -> None:
        connection.run()

    def join(self, deadline: float) -> None:
        """Nothing runs when nothing is served."""


class ThreadEngine:
    """A thread for each connection; its echo holds no GIL (CS:APP 12.3.8)."""

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()

    def serve(self, connection: Connection) -> None:
        thread = threading.Thread(target=self._run, args=(connection,), name=f"echo {connection.peer}", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            self._threads.discard(thread)
            raise

    def _run(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            self._threads.discard(threading.current_thread())

    def join(self, deadline: float) -> None:
        """Wait for the threads; each ends by itself when the server's time to drain is over."""
        for thread in tuple(self._threads):
            thread.join(min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX))


ENGINES: dict[str, Callable[[], Engine]] = {"iterative": IterativeEngine, "thread": ThreadEngine}
