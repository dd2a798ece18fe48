"""What an engine is, and what it needs of its server; and what every engine logs.

An engine takes connections that were accepted, sees each through, and counts. The accept loop, the limits and the life
cycle are the server's (acceptor.py, lifecycle.py, server.py); the echo itself is C (blocking.pyx, child.pyx,
eventloop.pyx). A further engine is a further class.
"""

from __future__ import annotations

import logging
from typing import Literal, Protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from rioecho._core.budget import MemoryBudget
    from rioecho._core.counts import Counts
    from rioecho._server.accepted import Accepted
    from rioecho._server.notify import WakePipe

    _Framing: TypeAlias = Literal["line", "raw"]

log = logging.getLogger("rioecho.server")


class EngineClosed(Exception):
    """The engine has failed and takes no more connections; the server is about to stop."""


class EngineOwner(Protocol):
    """What an engine needs of its server."""

    framing: _Framing
    max_line: int
    idle_timeout: float
    drain_timeout: float
    workers: int
    memory: MemoryBudget  # of what connections hold
    closings: WakePipe  # to be notified when a connection has gone, its descriptor with it

    @property
    def stop_fd(self) -> int:
        """A descriptor that is readable from the stop on."""

    def fail(self, error: BaseException) -> None:
        """Stop the server: the engine cannot go on."""


class Engine(Protocol):
    """How connections are served. Made before the server listens; start() comes before all else."""

    #: How many connections it serves at once; None: as many as there are.
    at_once: int | None
    #: Its counts; the sum is what holds.
    counts: tuple[Counts, ...]

    def __init__(self, owner: EngineOwner) -> None: ...

    def start(self) -> None:
        """Make ready. Raises OSError, RuntimeError or MemoryError when something cannot be had."""

    def serve(self, connection: Accepted, drain: float | None) -> None:
        """Take a connection, or raise: then, unless ``connection.is_taken``, it is still the caller's.

        ``drain``: seconds that it may take from the stop on; None: no limit. ``EngineClosed`` says that no connection
        will be taken any more.
        """

    def report_closings(self, wanted: bool) -> None:
        """Notify ``closings`` whenever a connection has gone; without this the engine may, or may not."""

    def join(self, seconds: float | None) -> None:
        """Wait until all are served, at most so many seconds; then give everything back.

        No connection comes after this. Also when start() was not called, or did not come to its end; and again, which
        goes on where an exception ended it, or does nothing.
        """

    def kill(self) -> None:
        """End at once what would outlive this process; also from a signal handler."""


def log_line(level: int, text: str, *arguments: object, **fields: object) -> None:
    """Log a line; ``fields`` are for machines. No error leaves here: no line of a log is worth a connection."""
    try:
        log.log(level, text, *arguments, extra={"fields": fields})
    except Exception:  # of a handler; or there is no memory for a record
        return


def opened(peer: str) -> None:
    """Log that a connection is served."""
    log_line(logging.INFO, "Connected to %s", peer, event="connected", peer=peer)


def closed(peer: str, reason: str, echoed: int) -> None:
    """Log that a connection has gone, and why."""
    text = "Closed %s: %s, %d bytes echoed"
    log_line(logging.INFO, text, peer, reason, echoed, event="closed", peer=peer, reason=reason, bytes=echoed)


def received(n: int) -> None:
    """Log a line; never what is in it."""
    log_line(logging.DEBUG, "server received %d bytes", n, event="line", bytes=n)


def announced(connection: Accepted) -> str:
    """Log that a connection is about to be served, once however often that is tried; return the peer's name."""
    peer = connection.peer
    if not connection.announced:
        connection.announced = True
        opened(peer)
    return peer
