"""A load test of an echo server as data: a Plan, run(), a Result.

No printing and no arguments here: those are the command's. What is sent, and how it is timed, is in _load.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rioecho._load.histogram import Histogram
from rioecho._load.loop import LoadLoop, messages, monotonic_ns
from rioecho._load.plan import MAX_SECONDS, Plan, check_number, parse_target
from rioecho.client import EchoLostError, WrongEchoError
from rioecho.sockets import connect

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BenchError",
    "ConnectionLost",
    "Histogram",
    "Interrupted",
    "Plan",
    "Progress",
    "Result",
    "Stalled",
    "WrongEcho",
    "run",
]

#: How many samples of the rate a result holds, about, whatever the duration; and the least time between two.
SAMPLES, SAMPLE_SECONDS = 200, 0.1
STOP_SECONDS = 0.05  # between two looks at `stop`
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}
BUSY = 0.95  # of a processor's time, or of the rate asked for


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


class BenchError(Exception):
    """The test did not come to its end; ``result`` is what was measured until then."""

    result: Result


class WrongEcho(BenchError, WrongEchoError):
    """On ``connection`` (counted from 0) the byte at ``offset`` of its stream is not what was sent."""

    def __init__(self, connection: int, offset: int) -> None:
        WrongEchoError.__init__(self, offset)
        self.connection = connection
        self.args = (f"wrong echo: on connection {connection} the byte at offset {offset} is not what was sent",)


class ConnectionLost(BenchError, EchoLostError):
    """The server closed or reset ``connection``, and ``missing`` bytes did not come back. An OSError."""

    def __init__(self, connection: int, missing: int, number: int) -> None:
        EchoLostError.__init__(self, missing)
        self.connection = connection
        self.errno = number or errno.ECONNRESET
        how = f"was lost ({os.strerror(number)})" if number else "was closed by the server"
        self.strerror = f"connection {connection} {how}; {missing} bytes did not come back"


class Stalled(BenchError, TimeoutError):
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
    and errno kept, when a connection cannot be had; WrongEcho, ConnectionLost or Stalled, with the result so far, when
    the test breaks off; Interrupted on Ctrl-C. Nothing is left open, and no thread running.
    """
    check_number("every", every, MAX_SECONDS)
    with contextlib.ExitStack() as opened:
        fds = [sock.fileno() for sock in _connected(plan, opened)]
        return _Load(plan, fds).run(on_progress, every, stop)


def _connected(plan: Plan, opened: contextlib.ExitStack) -> list[socket.socket]:
    where: Any = parse_target(plan.target)
    sockets: list[socket.socket] = []
    for _ in range(plan.connections):
        sock: socket.socket = connect(*where, timeout=plan.connect_timeout).detach()[0]
        opened.enter_context(sock)
        if not sockets and len(where) == 2:
            # The others go to the same address, and the name is looked up once.
            with contextlib.suppress(OSError):
                host, port = socket.getnameinfo(sock.getpeername(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
                where = host, int(port)
        sockets.append(sock)
    return sockets


def _latencies(h: Histogram) -> dict[str, float]:
    """Give the figures of a histogram; nanoseconds are the last digits that it has."""
    percentiles = {name: round(h.percentile(p), 3) for name, p in PERCENTILES.items()}
    return {"mean": round(h.mean, 3), **percentiles, "max": round(h.max, 3)}


class _Load:
    """A test that is running: a load loop for each thread, and what is seen of them together."""

    def __init__(self, plan: Plan, fds: list[int]) -> None:
        self.plan = plan
        cycle = messages(plan.message_bytes)
        self.loops = []
        for first in range(plan.threads):
            own = fds[first :: plan.threads]
            loop = LoadLoop(
                own,
                cycle,
                message_bytes=plan.message_bytes,
                pipeline=plan.pipeline,
                rate=None if plan.rate is None else plan.rate * len(own) / len(fds),
                phase=0.0 if plan.rate is None else first / plan.rate,
                warmup=plan.warmup_s,
                duration=plan.duration,
                stall_timeout=plan.stall_timeout,
                first=first,
                step=plan.threads,
                without_epoll=os.environ.get("RIOECHO_POLLER") == "poll",  # for tests
            )
            self.loops.append(loop)
        self.threads = [threading.Thread(target=self._one, args=(loop,), daemon=True) for loop in self.loops]
        self.outcomes: list[tuple[str, int, int, int]] = []  # in the order in which the loops ended
        self.busy: list[float] = []  # the part of its time that each thread had a processor
        self.changed = threading.Event()
        self.samples: list[tuple[float, float, float]] = []
        self.last = (0.0, 0)  # of the Progress: elapsed, and messages echoed
        self.sampled = (plan.warmup_s, 0, Histogram())

    def _one(self, loop: LoadLoop) -> None:
        begun, used = time.monotonic(), time.thread_time()
        outcome = loop.run(self.start)
        self.busy.append((time.thread_time() - used) / max(time.monotonic() - begun, 1e-9))
        self.outcomes.append(outcome)
        self.changed.set()

    def run(
        self, on_progress: Callable[[Progress], object] | None, every: float, stop: threading.Event | None
    ) -> Result:
        self.start = monotonic_ns()
        stopped = False
        try:
            self._begin()
            stopped = self._watch(on_progress, every, stop)
            self._end()
            self._sample(self.plan.warmup_s + max(loop.measured_seconds for loop in self.loops), last=True)
            if on_progress is not None:
                on_progress(self._progress(self._elapsed()))
        except KeyboardInterrupt:
            self._end()
            interrupted = Interrupted()
            interrupted.result = self._result(stopped=True)
            raise interrupted from None
        except BaseException:
            self._end()
            raise
        return self._outcome(stopped)

    def _begin(self) -> None:
        try:
            for thread in self.threads:
                thread.start()
        except RuntimeError:  # what threading makes of the system's error
            raise OSError(errno.EAGAIN, f"the system does not allow {len(self.threads)} threads") from None

    def _elapsed(self) -> float:
        return (monotonic_ns() - self.start) / 1e9

    def _watch(
        self, on_progress: Callable[[Progress], object] | None, every: float, stop: threading.Event | None
    ) -> bool:
        """Look on until all loops are done, or one has failed; was the test stopped?"""
        plan, stopped = self.plan, False
        report_at = every if on_progress is not None else math.inf
        step = max(plan.duration / SAMPLES, SAMPLE_SECONDS)
        sample_at = plan.warmup_s + step
        while any(thread.is_alive() for thread in self.threads) and all(each[0] == "done" for each in self.outcomes):
            now = self._elapsed()
            if now >= sample_at and not stopped:
                self._sample(now)
                sample_at += step * math.ceil((now - sample_at) / step or 1)
            if on_progress is not None and now >= report_at:
                on_progress(self._progress(now))
                report_at += every * math.ceil((now - report_at) / every or 1)
            if stop is not None and stop.is_set() and not stopped:
                stopped = True
                for loop in self.loops:
                    loop.stop()
            until = min(report_at, math.inf if stopped else sample_at, now + 1 if stop is None else now + STOP_SECONDS)
            self.changed.wait(max(until - self._elapsed(), 0))
            self.changed.clear()
        return stopped

    def _end(self) -> None:
        """Stop the loops that still run. After a failure they do not wait for what is in flight; nor after a Ctrl-C."""
        failed = any(outcome[0] != "done" for outcome in self.outcomes)
        while any(thread.is_alive() for thread in self.threads):
            with contextlib.suppress(KeyboardInterrupt):
                for loop in self.loops:
                    loop.stop()
                    if failed:
                        loop.stop()
                for thread in self.threads:
                    if thread.is_alive():
                        thread.join()

    def _merged(self, *, corrected: bool = True) -> Histogram:
        merged = Histogram()
        for loop in self.loops:
            loop.add_to(merged, corrected=corrected)
        return merged

    def _counted(self) -> list[int]:
        """Messages measured, echoed, in flight."""
        return [sum(column) for column in zip(*(loop.counts() for loop in self.loops), strict=True)]

    def _sample(self, elapsed: float, *, last: bool = False) -> None:
        at, before, seen = self.sampled
        passed = min(elapsed, self.plan.warmup_s + self.plan.duration) - at
        if passed < (SAMPLE_SECONDS / 2 if last and self.samples else 1e-6):
            return
        measured, histogram = self._counted()[0], self._merged()
        p99 = histogram.since(seen).percentile(99)
        self.samples.append((at + passed - self.plan.warmup_s, (measured - before) / passed, p99))
        self.sampled = (at + passed, measured, histogram)

    def _progress(self, elapsed: float) -> Progress:
        warmup, whole = self.plan.warmup_s, self.plan.warmup_s + self.plan.duration
        measured, echoed, in_flight = self._counted()
        histogram = self._merged()
        warming_up = elapsed < warmup
        rate = (echoed - self.last[1]) / max(elapsed - self.last[0], 1e-9)
        self.last = (elapsed, echoed)
        seen = min(elapsed, whole) - (0 if warming_up else warmup)
        return Progress(
            elapsed=elapsed,
            messages=measured,
            rate=rate,
            total_rate=(echoed if warming_up else measured) / max(seen, 1e-9),
            p50=histogram.percentile(50),
            p99=histogram.percentile(99),
            max=histogram.max,
            in_flight=in_flight,
            fraction=min(elapsed / whole, 1.0),
            warming_up=warming_up,
        )

    def _outcome(self, stopped: bool) -> Result:
        result = self._result(stopped=stopped)
        for kind, connection, number, err in self.outcomes:
            error: BenchError
            if kind == "wrong echo":
                error = WrongEcho(connection, number)
            elif kind == "lost":
                error = ConnectionLost(connection, number, err)
            elif kind == "stalled":
                error = Stalled(self.plan.stall_timeout, number)
            elif kind == "failed":
                raise OSError(err, os.strerror(err))
            else:
                continue
            error.result = result
            raise error
        return result

    def _result(self, *, stopped: bool) -> Result:
        plan = self.plan
        duration = max(loop.measured_seconds for loop in self.loops)
        measured, echoed, missing = self._counted()
        corrected = self._merged()
        uncorrected = corrected if plan.rate is None else self._merged(corrected=False)
        rate = measured / duration if duration else 0.0
        return Result(
            target=plan.target,
            connections=plan.connections,
            message_bytes=plan.message_bytes,
            pipeline=plan.pipeline,
            threads=plan.threads,
            duration_s=duration,
            rate_asked=plan.rate,
            messages=measured,
            rate=rate,
            mb_per_s=rate * plan.message_bytes / 1e6,
            errors=sum(outcome[0] != "done" for outcome in self.outcomes),
            latency_us=_latencies(corrected),
            latency_uncorrected_us=_latencies(uncorrected),
            histogram=corrected,
            histogram_uncorrected=uncorrected,
            samples=self.samples,
            warnings=self._warnings(corrected.count, duration, measured, missing, stopped=stopped),
            total_messages=echoed,
        )

    def _warnings(self, count: int, duration: float, measured: int, missing: int, *, stopped: bool) -> list[str]:
        plan, warnings = self.plan, []
        if stopped and duration < plan.duration:
            warnings.append(f"stopped early: {duration:.1f} s of {plan.duration:g} s were measured")
        if missing:
            warnings.append(f"{missing} messages had not come back at the end; they count with their age")
        thin = [(name, round(100 / (100 - p))) for name, p in PERCENTILES.items() if count < round(100 / (100 - p))]
        if thin:
            needed = ", ".join(f"{name} needs {least}" for name, least in thin)
            warnings.append(f"too few messages, {count}, to carry these percentiles: {needed}")
        if plan.rate is not None and measured + plan.connections < BUSY * plan.rate * duration:
            reached = round(measured / duration, 1)
            warnings.append(f"the rate was not reached: {reached:.12g} of {plan.rate:.12g} messages per second")
        elif plan.rate is None and min(self.busy, default=0) > BUSY:
            warnings.append("the load generator was busy all the time: the server may be faster than this shows")
        return warnings
