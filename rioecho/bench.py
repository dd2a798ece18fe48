"""A load test of an echo server as data: a Plan, run(), a Result.

No printing and no arguments here: those are the command's. What is sent, and how it is timed, is in _load.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from rioecho._load.histogram import Histogram
from rioecho._load.plan import MAX_SECONDS, Plan, check_number, parse_target
from rioecho._load.result import Progress, Result
from rioecho._load.runner import Outcome, Runner
from rioecho.client import EchoError, EchoLostError, WrongEchoError, dial

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

__all__ = [
    "BenchError",
    "ConnectionLost",
    "EchoError",
    "EchoLostError",
    "Histogram",
    "Interrupted",
    "Plan",
    "Progress",
    "Result",
    "Stalled",
    "WrongEcho",
    "WrongEchoError",
    "run",
]

#: The client's errors are the load test's too: the test did not come to its end, and ``result`` is what was measured
#: until then. These are their older names.
BenchError, WrongEcho, ConnectionLost = EchoError, WrongEchoError, EchoLostError


class Stalled(EchoError, TimeoutError):
    """Nothing came back for ``stall_timeout`` seconds, though ``missing`` messages should have. An OSError."""

    def __init__(self, seconds: float, missing: int) -> None:
        TimeoutError.__init__(
            self, errno.ETIMEDOUT, f"nothing came back for {seconds:g} s, and {missing} messages are missing"
        )
        self.missing = missing


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while the test ran; ``result`` is what was measured until then."""

    result: Result


def run(
    plan: Plan,
    on_progress: Callable[[Progress], object] | None = None,
    every: float = 0.5,
    *,
    stop: threading.Event | None = None,
) -> Result:
    """Run the test, in threads of its own; this one waits and calls ``on_progress`` every ``every`` seconds.

    The last call comes when all is over; what ``on_progress`` raises ends the test too. ``stop``: set it, from any
    thread, and the test ends early; what has been measured is returned. Raises OSError that names the target, its class
    and errno kept, when a connection cannot be had; WrongEchoError, EchoLostError or Stalled, with the result so far,
    when the test breaks off; Interrupted on Ctrl-C. Nothing is left open, and no thread running.
    """
    check_number("every", every, MAX_SECONDS)
    sockets: list[socket.socket] = []
    try:
        _connect(plan, sockets)
        result, outcome = Runner(plan, [sock.fileno() for sock in sockets]).run(on_progress, every, stop)
    finally:
        for sock in sockets:
            sock.close()
    if outcome is None:
        return result
    error = _error(plan, outcome)
    error.result = result
    raise error


def _connect(plan: Plan, sockets: list[socket.socket]) -> None:
    """Make the connections and append them; the caller closes them."""
    where: Any = parse_target(plan.target)
    for _ in range(plan.connections):
        sock = dial(*where, timeout=plan.connect_timeout)
        if not sockets and len(where) == 2:
            # The others go to the same address, and the name is looked up once.
            with contextlib.suppress(OSError):
                host, port = socket.getnameinfo(sock.getpeername(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
                where = host, int(port)
        sockets.append(sock)


def _error(plan: Plan, outcome: Outcome) -> EchoError | Interrupted:
    """Return the error that an outcome is; raise OSError where the system failed."""
    match outcome.kind:
        case "wrong echo":
            return WrongEchoError(outcome.number, outcome.connection)
        case "lost":
            return EchoLostError(outcome.number, outcome.connection, outcome.err)
        case "stalled":
            return Stalled(plan.stall_timeout, outcome.number)
        case "interrupted":
            return Interrupted()
        case _:
            raise OSError(outcome.err, os.strerror(outcome.err))
