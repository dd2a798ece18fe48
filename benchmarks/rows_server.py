"""The rows about the echo server and its peers: messages per second, CPU time and memory, under the load of load.c."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from measure import Measured, Row, Settings, Skipped
from processes import (
    C_EPOLL,
    GO,
    Server,
    c_epoll,
    cpu_seconds,
    line_server,
    loading,
    memory_bytes,
    next_line,
    on_a_loop,
    rioecho,
    serving,
    with_threads,
)

from rioecho._server.eventloop import pollers

SESSIONS, PAIRS = 3, 8
BULK = {"connections": 8, "size": 256 * 1024}


@dataclass
class Run:
    """The figures of one run."""

    rate: float  # messages per second
    cpu: float  # CPU seconds per message of the server
    busy: float  # CPU seconds per second of the server
    load_cpu: float  # CPU seconds per message of the load generator
    load_busy: float  # CPU seconds per second of the load generator


def run_once(pid: int, load: subprocess.Popen) -> Run:
    before = cpu_seconds(pid)  # the server is idle before and after, so the difference includes the warm-up's messages
    load.stdin.write("\n")
    load.stdin.flush()
    result = json.loads(next_line(load))
    cpu = cpu_seconds(pid) - before
    total, elapsed = max(result["total"], 1), result["elapsed"]
    return Run(result["rate"], cpu / total, cpu / elapsed, result["cpu"] / total, result["cpu"] / elapsed)


@dataclass
class Traffic:
    """A load of lines of ``size`` bytes on ``connections`` connections, with ``in_flight`` lines in flight on each."""

    ours: Server
    peer: Server
    of: str  # "rate" or "cpu", the subject of the row; the other is shown in the last column
    in_flight: int = 32
    connections: int = 50
    size: int = 64
    unix: bool = False
    sessions: int = SESSIONS
    idle: int = 0  # number of further connections, which are idle

    def __call__(self, settings: Settings) -> Measured:
        needs_proc()
        runs = []
        for _ in range(settings.sessions or self.sessions):
            runs += self.session(settings)
        other = "cpu" if self.of == "rate" else "rate"
        beside = statistics.median(sorted(getattr(a, other) / (getattr(b, other) or 1e-12) for a, b in runs))
        busy = [
            f"{statistics.median(getattr(run[side], part) for run in runs):4.0%}"
            for side in (0, 1)
            for part in ("busy", "load_busy")
        ]
        return Measured(
            [(getattr(a, self.of), getattr(b, self.of)) for a, b in runs],
            f"{'' if other == 'cpu' else f'rate {beside:.3f}  '}{busy[0]}/{busy[1]} {busy[2]}/{busy[3]}",
            {f"{other}_ratio": beside, "runs": [[asdict(run) for run in both] for both in runs]},
        )

    def session(self, settings: Settings) -> list[tuple[Run, Run]]:
        """Start both servers and a load generator for each, and run them alternately, so that only one pair is busy."""
        with ExitStack() as stack:
            ends = []
            for server in (self.ours, self.peer):
                pid, where = stack.enter_context(serving(server, settings, unix=self.unix))
                if self.idle:
                    stack.enter_context(loading(where, settings, "-c", self.idle))
                how = ["-c", self.connections, "-p", self.in_flight, "-s", self.size]
                how += ["-d", settings.seconds, "-u", settings.warm_up]
                ends.append((pid, stack.enter_context(loading(where, settings, *how))))
            for end in ends:
                run_once(*end)  # warm
            return [(run_once(*ends[0]), run_once(*ends[1])) for _ in range(settings.pairs or PAIRS)]


@dataclass
class Idle:
    """The memory of a connection that has had one line echoed and is idle since."""

    ours: Server
    peer: Server
    connections: int | None = None

    def __call__(self, settings: Settings) -> Measured:
        needs_proc()
        # One pair is enough, because the figures hardly vary.
        return Measured([(self.memory(self.ours, settings), self.memory(self.peer, settings))])

    def memory(self, server: Server, settings: Settings) -> float:
        connections = self.connections or settings.idle
        with serving(server, settings, unix=False) as (pid, where):
            with loading(where, settings, "-c", 1):
                pass  # allocations that the server makes once
            before = settled(pid)
            with loading(where, settings, "-c", connections):
                return (settled(pid) - before) / connections


def settled(pid: int) -> int:
    """Return the memory of a server in bytes, after waiting until it uses no more processor time."""
    cpu = -1.0
    while cpu != (cpu := cpu_seconds(pid)):
        time.sleep(0.1)
    return memory_bytes(pid)


def needs_proc() -> None:
    if not os.path.exists("/proc/self/schedstat"):
        raise Skipped("only Linux reports processor time per thread")


def over(poller: str) -> Server:
    """rioecho-server over one of the system's pollers."""

    def command(settings: Settings, path: str | None) -> list[str]:
        if poller not in pollers():
            raise Skipped(f"this build has no {poller}")
        return ["env", f"RIOECHO_POLLER={poller}", *rioecho().command(settings, path)]

    return Server(f"rioecho-server, {poller}", command)


def traffic(name: str, ours: Server, peer: Server, of: str, in_flight: int, goal: float | None = None, **more) -> Row:
    measure = Traffic(ours, peer, of, in_flight, sessions=1 if goal is None else SESSIONS, **more)
    return Row(
        name, ours.name, peer.name, "/s" if of == "rate" else "s", measure, goal, of="cpu" if of == "cpu" else "time"
    )


def rows() -> list[Row]:
    event, raw, function = rioecho(), rioecho("--raw"), line_server()
    busy = line_server("--busy")
    streams, protocol = on_a_loop("uvloop", "streams"), on_a_loop("uvloop", "protocol")
    return [
        traffic(
            "a thread for each of 8 clients, 32 lines in flight",
            with_threads("rio"),
            with_threads("makefile"),
            "rate",
            32,
            6.0,
            connections=8,
        ),
        traffic("50 clients x 32 lines, beside uvloop streams", event, streams, "rate", 32, 30.0),
        traffic("50 clients x 32 lines, beside C", event, C_EPOLL, "rate", 32, 0.97),
        traffic("50 clients ping-pong, CPU, beside C", event, C_EPOLL, "cpu", 1, 1.02),
        traffic("LineServer, 50 clients x 32 lines, beside uvloop streams", function, streams, "rate", 32, 25.0),
        traffic("LineServer, 50 clients x 32 lines, beside C", function, C_EPOLL, "rate", 32, 0.8),
        traffic("LineServer, 50 clients x 32 lines, CPU, beside C", function, C_EPOLL, "cpu", 32, 1.2),
        traffic("LineServer, 50 clients ping-pong, CPU, beside C", function, C_EPOLL, "cpu", 1, 1.15),
        *(
            traffic(f"raw, 8 clients x 256 KiB, CPU, beside C, {size} KiB", raw, peer, "cpu", 1, 1.0, **BULK)
            for size, peer in ((64, C_EPOLL), (256, c_epoll("-b", "262144")))
        ),
        Row(
            "idle clients, memory, beside uvloop Protocol",
            event.name,
            protocol.name,
            "B",
            Idle(event, protocol),
            0.07,
            1024,
        ),
        traffic(
            "10 busy clients of 10,010, CPU, kqueue beside epoll",
            over("kqueue"),
            over("epoll"),
            "cpu",
            1,
            1.2,
            connections=10,
            idle=10_000,
        ),
        *(
            traffic(f"10 busy clients of {idle + 10:,}, CPU, {name}", ours, peer, "cpu", 1, connections=10, idle=idle)
            for name, ours, peer, idle in (
                # Fewer, because connecting n clients to a server over poll(2) takes time in proportion to n squared.
                ("poll beside epoll", over("poll"), over("epoll"), 2_000),
                ("epoll beside C", over("epoll"), C_EPOLL, 10_000),
                ("noise: epoll beside itself", over("epoll"), over("epoll"), 10_000),
            )
        ),
        traffic("noise: C beside itself", C_EPOLL, C_EPOLL, "rate", 32),
        traffic("noise: C beside itself, ping-pong, CPU", C_EPOLL, C_EPOLL, "cpu", 1),
        traffic("50 clients x 32 lines, beside Go", event, GO, "rate", 32),
        traffic("50 clients x 32 lines, beside asyncio streams", event, on_a_loop("asyncio", "streams"), "rate", 32),
        *(
            traffic(f"LineServer, 50 clients x {n} lines, beside a busy thread", busy, function, "rate", n)
            for n in (1, 32)
        ),
        traffic("50 clients x 32 lines, beside uvloop Protocol", event, protocol, "rate", 32),
        traffic("raw, 50 clients x 32 lines, beside C", raw, C_EPOLL, "rate", 32),
        traffic("unix socket, 50 clients x 32 lines, beside C", event, C_EPOLL, "rate", 32, unix=True),
        *(
            row
            for engine, idle in (("thread", 1000), ("process", 200))
            for row in (
                traffic(f"{engine}: 50 clients x 32 lines, beside C", rioecho("--engine", engine), C_EPOLL, "rate", 32),
                Row(
                    f"{engine}: {idle} idle clients, memory",
                    f"rioecho-server --engine {engine}",
                    protocol.name,
                    "B",
                    Idle(rioecho("--engine", engine), protocol, idle),
                ),
            )
        ),
    ]
