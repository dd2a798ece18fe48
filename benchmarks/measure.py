"""Rows of the table, and the evaluation of their paired runs: medians, quartiles, a ratio and a verdict."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.services import Services

Pairs = list[tuple[float, float]]  # our figure and the peer's, measured one after the other


class Skipped(Exception):
    """The row cannot be measured on this machine; the message says what is missing."""


@dataclass
class Settings:
    """The settings of a run, from the command line."""

    pairs: int | None = None  # pairs per session; None for the row's own number
    sessions: int | None = None  # sessions per row; None for the row's own number
    seconds: float = 0.25  # length of a run under load
    warm_up: float = 0.05  # seconds before the run, not counted
    idle: int = 10_000  # number of idle connections
    pin: bool = False  # pin servers to the first core and load generators to the second
    build: Path = Path()  # directory for compiled programs
    services: Services | None = None  # the servers of other projects, started when a row needs them


@dataclass
class Spent:
    """What this process has used: time and processor time in seconds, and page faults that needed no disk."""

    time: float = 0.0
    cpu: float = 0.0
    faults: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.time + other.time, self.cpu + other.cpu, self.faults + other.faults)

    def __truediv__(self, n: float) -> Spent:
        return Spent(self.time / n, self.cpu / n, self.faults / n)


class Meter:
    """Sums up what this process uses between ``start`` and ``stop``, which may be called any number of times."""

    def __init__(self) -> None:
        self.spent = Spent()

    def start(self) -> None:
        # The processor time is read last here and first in stop, so that it does not include the other two.
        self._faults = faults()
        self._time = time.perf_counter()
        self._cpu = time.process_time()

    def stop(self) -> None:
        cpu = time.process_time()
        now = time.perf_counter()
        self.spent += Spent(now - self._time, cpu - self._cpu, faults() - self._faults)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@dataclass
class Measured:
    pairs: Pairs
    beside: str = ""  # further figures of these runs, for the table
    details: dict[str, Any] = field(default_factory=dict)  # the same, for the JSON

    @classmethod
    def of_runs(cls, runs: Sequence[tuple[Spent, Spent]], of: str) -> Measured:
        """Return the result of pairs of runs, of which ``of`` ("time" or "cpu") is the subject of the row."""
        details: dict[str, Any] = {
            f"{name}_ratio": statistics.median(getattr(a, name) / (getattr(b, name) or 1e-12) for a, b in runs)
            for name in ("time", "cpu")
        }
        details["faults"] = [statistics.median(run[side].faults for run in runs) for side in (0, 1)]
        return cls([(getattr(a, of), getattr(b, of)) for a, b in runs], details=details)


@dataclass
class Row:
    """A measurement compared with a peer.

    ``unit`` is the unit of the figures: "s" (seconds per operation), "/s" (messages per second) or "B" (bytes per
    connection). Seconds are elapsed time or, with ``of="cpu"``, processor time. The goal applies to the ratio, ours
    divided by the peer's, or with ``difference`` to ours minus the peer's.
    """

    name: str
    ours: str
    peer: str
    unit: str
    measure: Callable[[Settings], Measured]
    goal: float | None = None  # None for a row that is only informative
    limit: float | None = None  # upper limit for our figure, in addition to the goal
    difference: bool = False
    of: str = "time"

    @property
    def more_is_better(self) -> bool:
        return self.unit == "/s"


def compared(row: Row, pairs: Pairs) -> list[float]:
    """Return the ratios, or differences, in ascending order. A peer's figure of 0 gives an infinite ratio."""
    if row.difference:
        return sorted(ours - peer for ours, peer in pairs)
    return sorted(ours / peer if peer else math.inf for ours, peer in pairs)


def quartiles(values: list[float]) -> tuple[float, float]:
    """Return the limits of the middle half of ``values``, which are in ascending order."""
    return values[len(values) // 4], values[-1 - len(values) // 4]


def evaluated(row: Row, measured: Measured) -> dict[str, Any]:
    """Return the result of a row as a dict for the JSON."""
    values = compared(row, measured.pairs)
    ratio = statistics.median(values)
    ours, peer = (statistics.median(pair[side] for pair in measured.pairs) for side in (0, 1))
    verdict = ""
    if row.goal is not None:
        reached = ratio >= row.goal if row.more_is_better else ratio <= row.goal
        verdict = "ok" if reached and (row.limit is None or ours <= row.limit) else "missed"
    return {
        "ours": row.ours,
        "peer": row.peer,
        "unit": row.unit,
        "of": row.of,
        "ours_median": ours,
        "peer_median": peer,
        "difference" if row.difference else "ratio": ratio,
        "quartiles": quartiles(values),
        "goal": row.goal,
        "limit": row.limit,
        "verdict": verdict,
        "beside": measured.beside,
        "pairs": measured.pairs,
        **measured.details,
    }


def figure(value: float, unit: str) -> str:
    """Format a figure with three digits and its unit."""
    if unit == "B":
        return f"{value:.0f} B" if value < 10_000 else f"{value / 1024:.0f} KiB"
    if unit == "/s":
        return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.0f} k/s"
    for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= size:
            return f"{three_digits(value / size)} {name}"
    return f"{three_digits(value * 1e9)} ns"


def three_digits(value: float) -> str:
    if math.isinf(value):
        return "inf"
    return f"{value:.{max(0, 2 - int(math.log10(max(abs(value), 1))))}f}"


def goal_of(result: dict[str, Any]) -> str:
    """Format the goal, or "" if there is none."""
    if result["goal"] is None:
        return ""
    if "difference" in result:
        return f"<= +{figure(result['goal'], result['unit'])}"
    subject = "cpu " if result["of"] == "cpu" else ""
    return f"{subject}{'>=' if result['unit'] == '/s' else '<='} {result['goal']:.3g}"


def ratio_of(result: dict[str, Any]) -> str:
    if "difference" in result:
        return f"+{figure(result['difference'], result['unit'])}"
    return ratio(result["ratio"])


def ratio(value: float | None) -> str:
    """Format a ratio, or "" for None."""
    if value is None:
        return ""
    return three_digits(value) if value >= 10 else f"{value:.3f}"


def faults_of(result: dict[str, Any]) -> str:
    """Format the page faults per operation, ours and the peer's, or "" if they were not counted."""
    if "faults" not in result:
        return ""
    return "/".join(three_digits(value) if value >= 0.01 else "0" for value in result["faults"])
