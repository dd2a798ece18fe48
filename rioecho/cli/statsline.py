"""The line of statistics: a server's counts and rates, logged at an interval."""

from __future__ import annotations

import logging
import threading
from time import monotonic

from rioecho._server.notify import Latch
from rioecho._server.tasks import Task
from rioecho.cli.logs import STATS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

#: Minimum number of seconds between two lines of statistics.
MIN_INTERVAL = 0.01


class StatsLine:
    """Logs a server's counts every ``every`` seconds, at INFO to "rioecho.stats", whatever the level of the log.

    ``stats()`` returns the counts by name, as ``EchoServer.stats`` does; it is called in a thread of its own. Rates are
    computed since the previous line. The record's fields are the counts, ``event`` ("stats"), ``interval`` in seconds,
    and ``lines_per_s``, ``bytes_in_per_s``, ``bytes_out_per_s``. ``stop()`` logs a last line if a count has changed
    since the previous one. As a context manager it runs for the length of the block.
    """

    def __init__(self, stats: Callable[[], Mapping[str, int]], every: float) -> None:
        if not every > 0:
            raise ValueError(f"the interval must be above 0 seconds, not {every!r}")
        self._stats = stats
        self._every = max(every, MIN_INTERVAL)
        self._stopped, self._ended = Latch(), Latch()
        self._task = Task(self._run, name="rioecho stats", latches=(self._ended,))
        self._log = logging.getLogger(STATS)

    def start(self) -> None:
        self._log.setLevel(logging.INFO)
        # Begin at zero: the first line also covers what the server counted before this call.
        self._then, self._counts = monotonic(), dict.fromkeys(self._stats(), 0)
        self._task.begin()

    def stop(self) -> None:
        """Log a last line if there is anything new, and stop. Waits only for ``stats()``."""
        self._stopped.open()
        self._ended.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        start, tick = self._then, 0
        while True:
            # Lines are due at multiples of the interval, even after a late one. Lines that are missed are left out.
            elapsed = monotonic() - start
            tick = max(tick, int(elapsed / self._every)) + 1
            stopped = self._stopped.wait(min(max(0.0, tick * self._every - elapsed), threading.TIMEOUT_MAX))
            try:
                self._log_counts(only_if_changed=stopped)
            except Exception:
                self._log.exception("cannot log the statistics")
            if stopped:
                return

    def _log_counts(self, *, only_if_changed: bool) -> None:
        now, counts = monotonic(), dict(self._stats())
        if only_if_changed and counts == self._counts:
            return
        interval = max(now - self._then, 1e-6)
        rates = {
            f"{name}_per_s": round((counts[name] - self._counts[name]) / interval, 1)
            for name in ("lines", "bytes_in", "bytes_out")
        }
        self._then, self._counts = now, counts
        fields = {"event": "stats", **counts, "interval": round(interval, 6), **rates}
        parts = [f"{counts[name]} {name}" for name in ("active", "accepted", "refused", "errors")]
        if counts["lines"]:  # raw framing counts no lines
            parts.append(f"{rates['lines_per_s']:,.0f} lines/s")
        parts += [f"{_amount(rates['bytes_in_per_s'])}/s in", f"{_amount(rates['bytes_out_per_s'])}/s out"]
        self._log.info("stats: %s", ", ".join(parts), extra={"fields": fields})


def _amount(n: float) -> str:
    """Format a number of bytes: 999 B, 1.0 kB, 51.2 kB, 3.3 MB; GB is the largest unit."""
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if n < 999.5:
            break
        n, unit = n / 1000, larger
    return f"{n:.0f} B" if unit == "B" else f"{n:,.1f} {unit}"
