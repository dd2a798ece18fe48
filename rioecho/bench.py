"""The load test of an echo server as a function: run() takes a Plan and returns a Result.

This module prints nothing; the command is in cli/bench.py. The load itself is in _load.
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

#: Older names of the errors. The load test raises those of the client: the test failed, and ``result`` is what was
#: measured before.
BenchError, WrongEcho, ConnectionLost = EchoError, WrongEchoError, EchoLostError


class Stalled(EchoError, TimeoutError):
    """No byte was received for ``stall_timeout`` seconds while ``missing`` messages were in flight. An OSError."""

    def __init__(self, seconds: float, missing: int) -> None:
        TimeoutError.__init__(
            self, errno.ETIMEDOUT, f"stalled: no byte received for {seconds:g} s, {missing} messages in flight"
        )
        #: The number of messages in flight.
        self.missing = missing


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during the test. ``result`` is what was measured before."""

    result: Result


def run(
    plan: Plan,
    on_progress: Callable[[Progress], object] | None = None,
    every: float = 0.5,
    *,
    stop: threading.Event | None = None,
) -> Result:
    """Run a load test and return its result.

    The load runs in ``plan.threads`` threads of its own, while this thread waits and calls ``on_progress`` every
    ``every`` seconds, and a last time at the end. An exception of ``on_progress`` ends the test and is raised. ``stop``
    may be set in any thread: the test then ends early, and the result of the time measured so far is returned.

    Raises ``OSError`` that names the target, with the class and errno of the system's error, if a connection cannot be
    established; ``WrongEchoError``, ``EchoLostError`` or ``Stalled``, with the result so far in ``result``, if the test
    fails; ``Interrupted`` on Ctrl-C; ``ValueError`` or ``TypeError`` for an invalid ``every``. In every case the
    connections are closed and the threads have ended.
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
    """Establish the connections and append them to ``sockets``. The caller closes them."""
    where: Any = parse_target(plan.target)
    for _ in range(plan.connections):
        sock = dial(*where, timeout=plan.connect_timeout)
        if not sockets and len(where) == 2:
            # Use the same address for all others, so that the name is looked up once.
            with contextlib.suppress(OSError):
                host, port = socket.getnameinfo(sock.getpeername(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
                where = host, int(port)
        sockets.append(sock)


def _error(plan: Plan, outcome: Outcome) -> EchoError | Interrupted:
    """Return the error of an outcome. Raises OSError for a system error."""
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
