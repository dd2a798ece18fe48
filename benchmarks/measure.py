"""Rows of the table, and the evaluation of their paired runs: medians, quartiles, a ratio and a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


@dataclass
class Measured:
    pairs: Pairs
    beside: str = ""  # further figures of these runs, for the table
    details: dict[str, Any] = field(default_factory=dict)  # the same, for the JSON


@dataclass
class Row:
    """A measurement compared with a peer.

    ``unit`` is the unit of the figures: "s" (seconds per operation), "/s" (messages per second) or "B" (bytes per
    connection). The goal applies to the ratio, ours divided by the peer's, or with ``difference`` to ours minus the
    peer's.
    """

    name: str
    ours: str
    peer: str
    unit: str
    measure: Callable[[Settings], Measured]
    goal: float | None = None  # None for a row that is only informative
    limit: float | None = None  # upper limit for our figure, in addition to the goal
    difference: bool = False

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
    return f"{'>=' if result['unit'] == '/s' else '<='} {result['goal']:.3g}"


def ratio_of(result: dict[str, Any]) -> str:
    if "difference" in result:
        return f"+{figure(result['difference'], result['unit'])}"
    return three_digits(result["ratio"]) if result["ratio"] >= 10 else f"{result['ratio']:.3f}"
