"""A running load test: a load loop in each of its threads, watched by the caller's thread."""

from __future__ import annotations

import contextlib
import math
import os
import select
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from rioecho._core.version import __version__
from rioecho._load.histogram import Histogram
from rioecho._load.loop import LoadLoop, messages, monotonic_ns
from rioecho._load.result import PERCENTILES, Progress, Result, latencies

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from rioecho._load.connector import Connector
    from rioecho._load.plan import Plan

#: Approximate number of samples of the rate in a result, and the minimum time in seconds between two of them.
SAMPLES, SAMPLE_SECONDS = 200, 0.1
STOP_SECONDS = 0.05  # between two checks of `stop`
BUSY = 0.95  # fraction of a processor's time, or of the requested rate
LATE_US = 10_000.0  # a generator that is late by less may be waiting for its turn on a busy machine: no warning


class Outcome(NamedTuple):
    """The outcome of a load loop, as LoadLoop.run() returns it; the kind may also be "interrupted"."""

    kind: str
    connection: int = 0
    number: int = 0
    err: int = 0


def timestamp() -> str:
    """Return the ``date`` of a result."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def nothing(plan: Plan, date: str) -> Result:
    """Return the result of a test that ended before its connections were established."""
    empty = Histogram()
    return Result(
        target=plan.target,
        connections=plan.connections,
        message_bytes=plan.message_bytes,
        pipeline=plan.pipeline,
        threads=plan.threads,
        duration_s=0.0,
        rate_asked=plan.rate,
        messages=0,
        rate=0.0,
        mb_per_s=0.0,
        errors=0,
        latency_us=latencies(empty),
        latency_uncorrected_us=latencies(empty),
        late_p99_us=0.0,
        reconnects=0,
        lost=0,
        warnings=[],
        version=__version__,
        date=date,
        interrupted=False,
        error=None,
        histogram=empty,
        histogram_uncorrected=empty,
        samples=[],
        total_messages=0,
    )


class Runner:
    """Runs a test: a load loop for each thread, their merged counts, and new sockets for lost connections.

    The sockets are those of ``connector``, which are all connected.
    """

    def __init__(self, plan: Plan, connector: Connector, date: str) -> None:
        self.plan = plan
        self.connector = connector
        self.date = date
        self.reconnects = 0
        self.loops: list[LoadLoop] = []
        self.started: list[LoadLoop] = []
        self._pipe: tuple[int, ...] = ()  # by which the loops wake this thread
        self.samples: list[tuple[float, float, float]] = []
        self.last = (0.0, 0)  # at the previous Progress: seconds elapsed, and messages echoed
        self.sampled = (plan.warmup_s, 0, Histogram())

    def _make_loops(self) -> None:
        plan = self.plan
        fds = [sock.fileno() for sock in self.connector.sockets if sock is not None]
        cycle = messages(plan.message_bytes)
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
                poller=os.environ.get("RIOECHO_POLLER") or None,  # for tests
                reconnect=plan.reconnect,
            )
            self.loops.append(loop)

    def run(
        self, on_progress: Callable[[Progress], object] | None, every: float, stop: threading.Event | None
    ) -> tuple[Result, Outcome | None]:
        """Run the test; return the result, and the outcome if the test failed.

        At the end, by an exception too, all threads have ended and nothing is left open but the sockets.
        """
        try:
            try:
                self._make_loops()
                self._pipe = os.pipe()
                return self._run(on_progress, every, stop)
            finally:
                self._end()
        finally:  # not an ExitStack, which may lack the memory to store what is open
            for fd in self._pipe:
                os.close(fd)

    def _run(
        self, on_progress: Callable[[Progress], object] | None, every: float, stop: threading.Event | None
    ) -> tuple[Result, Outcome | None]:
        self._woken, wake = self._pipe
        os.set_blocking(self._woken, False)
        stopped, interrupted = False, False
        failure: OSError | None = None
        try:
            self._begin(wake)
            stopped = self._watch(on_progress, every, stop)
            self._end()
            self._sample(self.plan.warmup_s + max(loop.measured_seconds for loop in self.loops), last=True)
            if on_progress is not None:
                on_progress(self._progress(self._elapsed()))
        except KeyboardInterrupt:
            interrupted = True
        except OSError as error:  # no thread for a loop, or the wait for the loops has failed
            failure = error
        finally:
            self._end()
        outcomes = [Outcome(*loop.outcome()) for loop in self.loops]
        result = self._result(outcomes, stopped=stopped or interrupted)
        if failure is not None:
            vars(failure)["result"] = result
            raise failure
        if interrupted:
            return result, Outcome("interrupted")
        # Loops that were stopped because another one failed have the outcome "done".
        failed = [outcome for outcome in outcomes if outcome.kind != "done"]
        return result, min(failed, key=lambda outcome: outcome.kind != "wrong echo", default=None)

    def _begin(self, wake: int) -> None:
        self.start = monotonic_ns()
        for loop in self.loops:
            try:
                loop.start(self.start, wake_fd=wake)
            except BlockingIOError as error:  # EAGAIN
                raise OSError(error.errno, f"the system does not allow {len(self.loops)} threads") from None
            self.started.append(loop)

    def _elapsed(self) -> float:
        return (monotonic_ns() - self.start) / 1e9

    def _watch(
        self, on_progress: Callable[[Progress], object] | None, every: float, stop: threading.Event | None
    ) -> bool:
        """Watch the loops until all have ended or one has failed; return whether the test was stopped."""
        plan, stopped = self.plan, False
        wait = self._wait_or_reconnect if plan.reconnect else self._wait
        report_at = every if on_progress is not None else math.inf
        step = max(plan.duration / SAMPLES, SAMPLE_SECONDS)
        sample_at = plan.warmup_s + step
        while not (all(loop.ended for loop in self.loops) or any(loop.failed for loop in self.loops)):
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
                wait = self._wait
            if plan.reconnect and not stopped:
                self._replace_lost()
            until = min(report_at, math.inf if stopped else sample_at, now + 1 if stop is None else now + STOP_SECONDS)
            wait(max(until - self._elapsed(), 0))
        return stopped

    def _wait_or_reconnect(self, seconds: float) -> None:
        """Wait up to ``seconds`` for a loop to end, to lose a connection, or to get one again."""
        for number in self.connector.step(seconds, self._woken):
            sock = self.connector.sockets[number]
            if sock is not None:
                self.loops[number % self.plan.threads].replace(number // self.plan.threads, sock.fileno())
                self.reconnects += 1
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)

    def _wait(self, seconds: float) -> None:
        """Wait up to ``seconds`` for a loop to end or to lose a connection."""
        poller = select.poll()
        poller.register(self._woken, select.POLLIN)
        poller.poll(math.ceil(seconds * 1000))
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)

    def _replace_lost(self) -> None:
        for first, loop in enumerate(self.loops):
            for index in loop.lost():
                self.connector.lose(first + index * self.plan.threads)

    def _end(self) -> None:
        """Stop and join all loops. After a failure, or a Ctrl-C in this call, they wait for nothing in flight."""
        while not all(loop.ended for loop in self.started):
            with contextlib.suppress(KeyboardInterrupt):
                failed = any(loop.failed for loop in self.started)
                for loop in self.started:
                    loop.stop()
                    if failed:
                        loop.stop()
                while not all(loop.ended for loop in self.started):
                    self._wait(1.0)
        for loop in self.loops:
            loop.join()

    def _merged(self, *, corrected: bool = True) -> Histogram:
        merged = Histogram()
        for loop in self.loops:
            loop.add_to(merged, corrected=corrected)
        return merged

    def _lateness(self) -> Histogram:
        merged = Histogram()
        for loop in self.loops:
            loop.add_lateness_to(merged)
        return merged

    def _counted(self) -> list[int]:
        """Return the numbers of messages measured, echoed and in flight."""
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
            connected=self.connector.connected,
            reconnects=self.reconnects,
            lost=self._lost(),
        )

    def _lost(self) -> int:
        return sum(loop.lost_messages for loop in self.loops)

    def _result(self, outcomes: list[Outcome], *, stopped: bool) -> Result:
        plan = self.plan
        duration = max((loop.measured_seconds for loop in self.started), default=0.0)
        measured, echoed, missing = self._counted()
        corrected = self._merged()
        uncorrected = corrected if plan.rate is None else self._merged(corrected=False)
        late_p99 = self._lateness().percentile(99)
        rate = measured / duration if duration else 0.0
        return replace(
            nothing(plan, self.date),
            duration_s=duration,
            messages=measured,
            rate=rate,
            mb_per_s=rate * plan.message_bytes / 1e6,
            errors=sum(outcome.kind != "done" for outcome in outcomes),
            latency_us=latencies(corrected),
            latency_uncorrected_us=latencies(uncorrected),
            late_p99_us=round(late_p99, 3),
            histogram=corrected,
            histogram_uncorrected=uncorrected,
            samples=self.samples,
            reconnects=self.reconnects,
            lost=self._lost(),
            interrupted=stopped and duration < plan.duration,
            warnings=self._warnings(corrected, late_p99, duration, measured, missing, stopped=stopped),
            total_messages=echoed,
        )

    def _warnings(
        self, corrected: Histogram, late_p99: float, duration: float, measured: int, missing: int, *, stopped: bool
    ) -> list[str]:
        plan, warnings, count, p99 = self.plan, [], corrected.count, corrected.percentile(99)
        if stopped and duration < plan.duration:
            warnings.append(f"stopped early: {duration:.1f} s of {plan.duration:g} s were measured")
        if lost := self._lost():
            warnings.append(f"{lost} messages were lost with their connections")
        if missing:
            warnings.append(f"{missing} messages were still in flight at the end; they count with their age")
        thin = [(name, round(100 / (100 - p))) for name, p in PERCENTILES.items() if count < round(100 / (100 - p))]
        if thin:
            needed = ", ".join(f"{name} needs {least}" for name, least in thin)
            warnings.append(f"{count} messages are too few for these percentiles: {needed}")
        if plan.rate is not None and measured + plan.connections < BUSY * plan.rate * duration:
            reached = round(measured / duration, 1)
            warnings.append(f"the rate was not reached: {reached:.12g} of {plan.rate:.12g} messages per second")
        elif plan.rate is None and min(loop.busy for loop in self.loops) > BUSY:
            warnings.append("the load generator used all of a processor: the server may be faster than this result")
        if late_p99 >= max(LATE_US, p99 / 2):
            warnings.append(
                f"the load generator was late itself, by {late_p99 / 1000:.1f} ms at the 99th percentile: "
                "the latencies include that"
            )
        return warnings
