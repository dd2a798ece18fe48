"""What a row of the table is, and how its figures become a ratio: paired runs, medians, quartiles, a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Pairs = list[tuple[float, float]]  # ours and the peer's figure, run one after the other


class Skipped(Exception):
    """The row cannot be measured here: what is missing."""


@dataclass
class Settings:
    """How long and how often: what the command line says."""

    pairs: int | None = None  # runs of a pair in a session; None: as many as the row likes
    sessions: int | None = None  # starts of a row's programs
    seconds: float = 0.25  # of a run under load
    warm_up: float = 0.05  # before it, not counted
    idle: int = 10_000  # connections that are idle
    pin: bool = False  # a server on the first core, its load on the second
    build: Path = Path()  # where programs are compiled


@dataclass
class Measured:
    pairs: Pairs
    beside: str = ""  # what else these runs tell, in a few words
    details: dict[str, Any] = field(default_factory=dict)  # the same for the JSON


@dataclass
class Row:
    """Something that is measured beside a peer.

    `unit` is that of the figures: "s" (seconds an operation takes), "/s" (messages per second) or "B" (bytes for each).
    The goal is for the ratio of the two, ours divided by the peer's; with `difference`, for ours less the peer's.
    """

    name: str
    ours: str
    peer: str
    unit: str
    measure: Callable[[Settings], Measured]
    goal: float | None = None  # None: for information
    limit: float | None = None  # our own figure is at most this, too
    difference: bool = False

    @property
    def more_is_better(self) -> bool:
        return self.unit == "/s"


def compared(row: Row, pairs: Pairs) -> list[float]:
    """The ratios, or differences, in order. A run in which nothing came back counts as what it is."""
    if row.difference:
        return sorted(ours - peer for ours, peer in pairs)
    return sorted(ours / peer if peer else math.inf for ours, peer in pairs)


def quartiles(values: list[float]) -> tuple[float, float]:
    """Between these two lies the middle half of values that are in order."""
    return values[len(values) // 4], values[-1 - len(values) // 4]


def evaluated(row: Row, measured: Measured) -> dict[str, Any]:
    """What is known of a row once it has been run, as the JSON has it."""
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
    """A figure with three digits and its unit."""
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
    """The goal in words; "" for none."""
    if result["goal"] is None:
        return ""
    if "difference" in result:
        return f"<= +{figure(result['goal'], result['unit'])}"
    return f"{'>=' if result['unit'] == '/s' else '<='} {result['goal']:.3g}"


def ratio_of(result: dict[str, Any]) -> str:
    if "difference" in result:
        return f"+{figure(result['difference'], result['unit'])}"
    return three_digits(result["ratio"]) if result["ratio"] >= 10 else f"{result['ratio']:.3f}"
