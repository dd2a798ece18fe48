"""What a load test gives: a Progress now and then while it runs, a Result at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from rioecho._load.histogram import Histogram


@dataclass(frozen=True)
class Progress:
    """How far a running test is. Seconds, and microseconds for latencies; those are 0.0 while nothing is counted."""

    elapsed: float  #: since the first message was due, warm-up included
    messages: int  #: echoed so far, warm-up left out
    rate: float  #: messages per second since the last Progress, in the warm-up too
    total_rate: float  #: messages per second so far, warm-up left out; in the warm-up, of the warm-up
    p50: float
    p99: float
    max: float
    in_flight: int
    fraction: float  #: 0..1, of the warm-up and the duration
    warming_up: bool


@dataclass(frozen=True)
class Result:
    """What came out. The fields down to ``latency_uncorrected_us`` are what ``--json`` shows, under the same names.

    ``messages`` came back in ``duration_s`` seconds; ``mb_per_s`` is one way, of 10**6 bytes. The latencies
    (``mean p50 p90 p99 p99.9 max``, in microseconds) count from when a message was due; uncorrected, from when it
    was sent, which is the same without a rate. Beside ``messages`` they are of those in flight at the end too:
    of the time until they came back, or their age when they were given up.
    """

    target: str
    connections: int
    message_bytes: int
    pipeline: int
    threads: int
    duration_s: float
    rate_asked: float | None
    messages: int
    rate: float
    mb_per_s: float
    errors: int  #: connections or threads that failed: 0, unless this belongs to an error
    latency_us: dict[str, float]
    latency_uncorrected_us: dict[str, float]
    histogram: Histogram
    histogram_uncorrected: Histogram  #: the same object where there was no rate
    samples: list[tuple[float, float, float]]  #: (seconds measured, rate and p99 in us since the one before), some 200
    warnings: list[str]  #: why to take the figures with care, a sentence each
    total_messages: int  #: all that were echoed, in the warm-up and after the end too

    def to_json(self) -> dict[str, Any]:
        """Give what ``--json`` shows, as json.dumps takes it."""
        names = list(Result.__dataclass_fields__)
        return {name: getattr(self, name) for name in names[: names.index("histogram")]}

    def write_hgrm(self, path: str | os.PathLike[str]) -> None:
        """Write the latencies by percentile in microseconds, as HdrHistogram prints them and its plotter reads them."""
        h = self.histogram
        lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}", ""]
        for value, percentile, count in h.percentiles():
            line = f"{value:12.3f} {percentile / 100:.12f} {count:10d}"
            lines.append(line if percentile == 100 else f"{line} {1 / (1 - percentile / 100):14.2f}")
        lines += [
            f"#[Mean    = {h.mean:12.3f}, StdDeviation   = {h.stddev:12.3f}]",
            f"#[Max     = {h.max:12.3f}, Total count    = {h.count:12d}]",
            f"#[Buckets = {h.BUCKETS:12d}, SubBuckets     = {h.SUB_BUCKETS:12d}]",
        ]
        with open(path, "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")
