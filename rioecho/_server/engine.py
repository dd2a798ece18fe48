"""The interface of an engine and of its owner, and the log lines common to all engines.

An engine takes accepted connections, serves each until it is closed, and counts. The accept loop, the limits and the
life cycle belong to the server (acceptor.py, lifecycle.py, server.py); the echo itself is C
(blockingloop.pxd, eventloop.pyx).
"""

from __future__ import annotations

import logging
from typing import Literal, Protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import TypeAlias

    from rioecho._core.budget import MemoryBudget
    from rioecho._core.counts import Counts
    from rioecho._server.accepted import Accepted
    from rioecho._server.hosts import HostTable
    from rioecho._server.notify import WakePipe

    _Framing: TypeAlias = Literal["line", "raw"]

log = logging.getLogger("rioecho.server")


class EngineClosed(Exception):
    """The engine has failed and accepts no more connections; the server is about to stop."""


class EngineOwner(Protocol):
    """The owner of an engine: the settings and calls that an engine needs from its server."""

    framing: _Framing
    max_line: int
    idle_timeout: float
    drain_timeout: float
    workers: int
    handler: Callable[..., object] | None  # of a LineServer
    write_limit: int
    proxy_protocol: bool  # whether each connection begins with a PROXY header
    hosts: HostTable | None  # the numbers of connections of each address, or None: no limit
    memory: MemoryBudget  # for the bytes that connections hold
    closings: WakePipe  # to be notified when a connection and its descriptor have been closed

    @property
    def stop_fd(self) -> int:
        """The descriptor that becomes readable when the stop is requested."""

    def fail(self, error: BaseException) -> None:
        """Stop the server because of an error that the engine cannot recover from."""


class Engine(Protocol):
    """Serves accepted connections. Created before the server listens; ``start()`` is called before anything else."""

    #: Maximum number of connections served at once; None: no limit.
    at_once: int | None
    #: The counts, to be summed.
    counts: tuple[Counts, ...]

    def __init__(self, owner: EngineOwner) -> None: ...

    @property
    def threads(self) -> Collection[int]:
        """The threads that call handlers of the user, by their numbers."""

    def start(self) -> None:
        """Start the engine. Raises ``OSError``, ``RuntimeError`` or ``MemoryError`` if a resource is lacking."""

    def serve(self, connection: Accepted, drain: float | None) -> None:
        """Serve a connection, and become its owner.

        ``drain`` is the time in seconds that draining the connection may take after the stop; None means no limit. If
        this raises, the caller still owns the connection unless ``connection.is_taken``. Raises ``EngineClosed`` if
        the engine accepts no more connections.
        """

    def report_closings(self, wanted: bool) -> None:
        """Notify ``closings`` of every closed connection from now on; if not ``wanted``, the engine may omit it."""

    def join(self, seconds: float | None) -> None:
        """Wait up to ``seconds`` until all connections are closed, then release everything. None means no limit.

        No connection may be served after this. May be called even if ``start()`` was not called or failed, and again:
        it then continues where an exception interrupted it, or does nothing.
        """

    def kill(self) -> None:
        """Kill at once whatever would outlive this process. May be called from a signal handler."""


def log_line(level: int, text: str, *arguments: object, error: BaseException | None = None, **fields: object) -> None:
    """Log a line, and the traceback of an error; ``fields`` are for the JSON format.

    Raises nothing: no log line is worth a connection.
    """
    try:
        log.log(level, text, *arguments, exc_info=error, extra={"fields": fields})
    except BaseException:  # a handler failed or exits, or there is no memory for a record
        return


def opened(peer: str) -> None:
    """Log that a connection is being served, at its first byte."""
    log_line(logging.INFO, "Connected to %s", peer, event="connected", peer=peer)


def closed(peer: str, reason: str, echoed: int) -> None:
    """Log that a connection was closed, and the reason."""
    text = "Closed %s: %s, %d bytes echoed"
    log_line(logging.INFO, text, peer, reason, echoed, event="closed", peer=peer, reason=reason, bytes=echoed)


def unused(peer: str, reason: str) -> None:
    """Log a connection that ended before its first byte: a load balancer's check."""
    log_line(logging.DEBUG, "Connected to %s", peer, event="connected", peer=peer)
    text = "Closed %s: %s, 0 bytes echoed"
    log_line(logging.DEBUG, text, peer, reason, event="closed", peer=peer, reason=reason, bytes=0)


def received(n: int) -> None:
    """Log the length of a received line, never its contents."""
    log_line(logging.DEBUG, "server received %d bytes", n, event="line", bytes=n)
