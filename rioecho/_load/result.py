"""The output of a load test: a Progress at intervals while it runs, a Result at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from rioecho._load.histogram import Histogram


PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


def latencies(h: Histogram) -> dict[str, float]:
    """Return the figures of a histogram in microseconds, rounded to its resolution of a nanosecond."""
    percentiles = {name: round(h.percentile(p), 3) for name, p in PERCENTILES.items()}
    return {"mean": round(h.mean, 3), **percentiles, "max": round(h.max, 3)}


@dataclass(frozen=True)
class Progress:
    """The state of a running test. Latencies are in microseconds, and 0.0 during the warm-up."""

    elapsed: float  #: seconds since the first message was due, including the warm-up
    messages: int  #: number echoed so far, without the warm-up
    rate: float  #: messages per second since the previous Progress, also in the warm-up
    total_rate: float  #: messages per second so far, without the warm-up; during the warm-up, those of the warm-up
    p50: float  #: median latency
    p99: float  #: 99th percentile of the latencies
    max: float  #: maximum latency
    in_flight: int  #: number of messages sent and not yet echoed
    fraction: float  #: 0 to 1, of the warm-up and the duration together
    warming_up: bool  #: whether the warm-up is in progress
    connected: int = 0  #: number of connections established
    connecting: bool = False  #: whether the connections are being established; all else is 0 then
    reconnects: int = 0  #: number of lost connections established again
    lost: int = 0  #: number of messages lost with their connections


@dataclass(frozen=True)
class Result:
    """The result of a load test. ``--json`` writes the fields down to ``error`` under their names, and the histograms.

    ``messages`` were echoed in ``duration_s`` seconds; ``mb_per_s`` is one way, in units of 10**6 bytes. The latencies
    (``mean p50 p90 p99 p99.9 max``, in microseconds) count from the scheduled time of a message; the uncorrected ones
    count from when it was sent. Without a rate both are the same. The latencies include the messages still in flight at
    the end: the time until their echo or, if there was none, their age when the test ended; they do not include the
    messages that are ``lost``. The part of a latency that is the load generator's own, which was busy or did not run,
    is shown by ``late_p99_us`` (in microseconds; 0.0 without a rate).
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
    errors: int  #: number of threads whose load failed; 0 unless this is the ``result`` of an error
    latency_us: dict[str, float]
    latency_uncorrected_us: dict[str, float]
    late_p99_us: float  #: 99th percentile of the time after which the generator released messages that were due
    reconnects: int  #: number of lost connections that were established again
    lost: int  #: number of messages that were sent, at least in part, on a lost connection, and never echoed
    version: str  #: of rioecho
    date: str  #: when the test began: ISO 8601, UTC
    interrupted: bool  #: whether the test was ended early, by ``stop`` or a signal
    error: str | None  #: the error with which the test failed
    histogram: Histogram
    histogram_uncorrected: Histogram  #: the same object as ``histogram`` if there was no rate
    samples: list[tuple[float, float, float]]  #: (seconds measured, rate and p99 in us since the last), about 200
    warnings: list[str]  #: reasons to treat the figures with care, one sentence each
    total_messages: int  #: number of all messages echoed, including the warm-up and those after the end

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``--json`` as a dict for ``json.dumps()``."""
        names = list(Result.__dataclass_fields__)
        corrected, uncorrected = self.histogram, self.histogram_uncorrected
        data = {name: getattr(self, name) for name in names[: names.index("histogram")]}
        data["histogram"] = corrected.to_json()
        if uncorrected is not corrected:
            data["histogram_uncorrected"] = uncorrected.to_json()
        return data

    def write_hgrm(self, path: str | os.PathLike[str]) -> None:
        """Write the latencies by percentile, in microseconds, to a ``.hgrm`` file for HdrHistogram's plotters.

        Raises ``OSError`` if the file cannot be written.
        """
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
