"""The load test of an echo server as a function: run() takes a Plan and returns a Result.

This module prints nothing; the command is in cli/bench.py. The load itself is in _load.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from typing import TYPE_CHECKING

from rioecho._load.connector import Connector
from rioecho._load.histogram import Histogram
from rioecho._load.plan import MAX_SECONDS, Plan, check_number
from rioecho._load.result import Progress, Result
from rioecho._load.runner import Outcome, Runner, nothing, timestamp
from rioecho.client import EchoError, EchoLostError, WrongEchoError

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
    """No byte was received for ``stall_timeout`` seconds while ``missing`` messages were in flight. An OSError.

    With ``reconnect`` it is also raised if no connection could be established again for that time; ``missing`` is 0
    then, and ``why`` the last error.
    """

    def __init__(self, seconds: float, missing: int, why: OSError | None = None) -> None:
        while_ = f"{missing} messages in flight"
        if not missing:
            while_ = "no connection established again" + (f": {why.strerror}" if why is not None else "")
        TimeoutError.__init__(self, errno.ETIMEDOUT, f"stalled: no byte received for {seconds:g} s, {while_}")
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

    The connections are established first, side by side. Then the load runs in ``plan.threads`` threads of its own.
    Meanwhile this thread waits and calls ``on_progress`` every ``every`` seconds, and a last time at the end. An
    exception of ``on_progress`` ends the test and is raised. ``stop`` may be set in any thread: the test then ends
    early, and the result of the time measured so far is returned.

    Raises ``OSError`` that names the target, with the class and errno of the system's error, if a connection cannot be
    established; ``WrongEchoError``, ``EchoLostError`` or ``Stalled`` if the test fails; ``Interrupted`` on Ctrl-C. Each
    has the result so far as its attribute ``result``. Raises ``ValueError`` or ``TypeError`` for an invalid ``every``.
    In every case the connections are closed and the threads have ended.
    """
    check_number("every", every, MAX_SECONDS)
    date = timestamp()
    try:
        return _run(plan, date, on_progress, every, stop)
    except OSError as error:
        result = getattr(error, "result", None) or nothing(plan, date)
        vars(error)["result"] = dataclasses.replace(result, error=_message(error))
        raise
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted):
            raise
        interrupted = Interrupted()
        interrupted.result = dataclasses.replace(nothing(plan, date), interrupted=True)
        raise interrupted from None


def _run(
    plan: Plan,
    date: str,
    on_progress: Callable[[Progress], object] | None,
    every: float,
    stop: threading.Event | None,
) -> Result:
    def report(connected: int) -> None:
        if on_progress is not None:
            on_progress(Progress(0.0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, True, connected=connected, connecting=True))

    connector = Connector(plan)
    try:
        if not connector.connect_all(
            None if on_progress is None else report, every, None if stop is None else stop.is_set
        ):
            warnings = [f"stopped early: {connector.connected} of {plan.connections} connections were made"]
            return dataclasses.replace(nothing(plan, date), interrupted=True, warnings=warnings)
        result, outcome = Runner(plan, connector, date).run(on_progress, every, stop)
    finally:
        connector.close()
    if outcome is None:
        return result
    error = _error(plan, outcome, connector)
    vars(error)["result"] = dataclasses.replace(  # an OSError has no such attribute in its class
        result,
        error=None if isinstance(error, Interrupted) else _message(error),
        interrupted=isinstance(error, Interrupted),
    )
    raise error


def _message(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _error(plan: Plan, outcome: Outcome, connector: Connector) -> EchoError | Interrupted | OSError:
    """Return the error of an outcome."""
    match outcome.kind:
        case "wrong echo":
            return WrongEchoError(outcome.number, outcome.connection)
        case "lost":
            return EchoLostError(outcome.number, outcome.connection, outcome.err)
        case "stalled":
            return Stalled(plan.stall_timeout, outcome.number, connector.last_error)
        case "interrupted":
            return Interrupted()
        case _:
            return OSError(outcome.err, os.strerror(outcome.err))
