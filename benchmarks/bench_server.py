"""The echo server beside its peers: messages per second, CPU and memory, as ratios of paired runs. Linux only."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import math
import os
import platform
import re
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rioecho import __version__

PEERS = Path(__file__).resolve().parent / "peers"
CORES = sorted(os.sched_getaffinity(0))
PATIENCE = 90  # seconds until a program has to be ready

#: where the programs are compiled, whether they are pinned, and how long a run lasts: set by main
build = Path()
pin = False
run_seconds, warm_up_seconds = 0.25, 0.05


class Skipped(Exception):
    """The row cannot be measured here."""


@functools.cache
def compiled(name: str) -> str:
    """Compile a program of `peers`: its path."""
    program = build / name
    subprocess.run(
        [os.environ.get("CC", "cc"), "-Wall", "-Wextra", "-O2", "-o", program, PEERS / f"{name}.c"], check=True
    )
    return str(program)


#: -P: the rioecho of this interpreter or PYTHONPATH, not the one that happens to lie in the working directory
RIOECHO_SERVER = [sys.executable, "-P", "-m", "rioecho.cli.server"]


@functools.cache
def accepted(*options: str) -> bool:
    """Does this rioecho-server take these options?"""
    return subprocess.run([*RIOECHO_SERVER, *options, "--version"], check=False, capture_output=True).returncode == 0


@dataclass
class Server:
    """A server program: `command` gives its command line for a Unix socket's path, or None for TCP."""

    name: str
    command: Callable[[str | None], list[str]]


def rioecho(engine: str, *options: str) -> Server:
    def command(path: str | None) -> list[str]:
        if not accepted("--engine", engine):
            raise Skipped(f"this rioecho-server has no engine {engine!r}")
        if path and not accepted("--unix", "/"):
            raise Skipped("this rioecho-server has no --unix")
        where = ["--unix", path] if path else ["0", "--host", "127.0.0.1"]
        # the idle ones are as many as the server takes by default, and it would warn
        more = ["--max-connections", "0"] if accepted("--max-connections", "0") else []
        return [*RIOECHO_SERVER, "-q", "--engine", engine, *more, *options, *where]

    return Server(" ".join(["rioecho", engine, *options]), command)


def on_a_loop(loop: str, program: str) -> Server:
    def command(path: str | None) -> list[str]:
        if loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
            raise Skipped("uvloop is not installed")
        options = ["--asyncio"] if loop == "asyncio" else []
        return [sys.executable, "-P", str(PEERS / f"uvloop_{program}.py"), *options, *([path] if path else [])]

    return Server(f"{loop} {program}", command)


C_EPOLL = Server("C epoll", lambda path: [compiled("epoll_echo"), *([path] if path else [])])


@contextmanager
def running(command: list[str], core: int, **streams) -> Iterator[subprocess.Popen]:
    """Run a program, on one core if the programs are pinned."""
    if pin:
        os.sched_setaffinity(0, {CORES[core % len(CORES)]})  # the child inherits it, and its threads from birth
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **streams)
    finally:
        os.sched_setaffinity(0, CORES)
    try:
        yield process
    finally:
        if process.stdin:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def next_line(process: subprocess.Popen) -> str:
    """The next line that a program prints: none comes while another waits, so the buffer is empty."""
    select.select([process.stdout], [], [], PATIENCE)
    if process.poll() is None and not select.select([process.stdout], [], [], 0)[0]:
        raise RuntimeError(f"{process.args[0]} says nothing")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{' '.join(process.args)} failed with status {process.wait()}")
    return line


@contextmanager
def serving(server: Server, *, unix: bool) -> Iterator[tuple[int, str]]:
    """Run a server: its process id, and its port or path."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket" if unix else None
        with running(server.command(path), 0) as process:
            line = next_line(process)
            yield process.pid, path or re.search(r"127\.0\.0\.1:(\d+)", line)[1]


@contextmanager
def loading(where: str, *options: object) -> Iterator[subprocess.Popen]:
    """Run the load generator: it is connected, and starts with `go`."""
    with running([compiled("load"), "-w", *map(str, options), where], 1, stdin=subprocess.PIPE) as process:
        assert next_line(process) == "ready\n"
        yield process


def go(load: subprocess.Popen) -> dict[str, float]:
    load.stdin.write("\n")
    load.stdin.flush()
    return json.loads(next_line(load))


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def cpu_seconds(pid: int) -> float:
    """What all threads of a server have computed, in user space and in the kernel."""
    return sum(
        int((thread / "schedstat").read_text().split()[0]) / 1e9
        for one in family(pid)
        for thread in Path(f"/proc/{one}/task").iterdir()
    )


def memory_bytes(pid: int) -> int:
    """The memory that a server has taken in user space; what its processes share counts once.

    Not what it has mapped from files: of that, a process has the less, the more others there are.
    """
    return sum(
        int(re.search(r"^Pss_Anon:\s+(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)[1]) * 1024
        for one in family(pid)
    )


@dataclass
class Run:
    """What a run found out about a server."""

    rate: float = 0.0  # messages per second
    cpu: float = 0.0  # its CPU seconds per message
    busy: float = 0.0  # the part of the time in which it computed
    load_busy: float = 0.0  # the same of the load generator
    memory: float = 0.0  # bytes per connection


Pairs = list[tuple[Run, Run]]


@dataclass
class Traffic:
    """Messages of 64 bytes on 50 connections, so many in flight on each."""

    in_flight: int
    of: str  # "rate" or "cpu"
    unix: bool = False

    def session(self, ours: Server, peer: Server, pairs: int) -> Pairs:
        """Start both servers and a load for each, and have them run in turn: what is not running waits."""
        with ExitStack() as stack:
            ends = []
            for server in (ours, peer):
                pid, where = stack.enter_context(serving(server, unix=self.unix))
                options = ["-c", 50, "-p", self.in_flight, "-d", run_seconds, "-u", warm_up_seconds]
                ends.append((pid, stack.enter_context(loading(where, *options))))
            for end in ends:
                run_once(*end)  # warm
            return [tuple(run_once(*end) for end in ends) for _ in range(pairs)]


def run_once(pid: int, load: subprocess.Popen) -> Run:
    before = cpu_seconds(pid)  # all is quiet before and after: it belongs to all messages, those of the warm-up, too
    load.stdin.write("\n")
    load.stdin.flush()
    result = json.loads(next_line(load))
    cpu = cpu_seconds(pid) - before
    return Run(result["rate"], cpu / result["total"], cpu / result["elapsed"], result["cpu"] / result["elapsed"])


@dataclass
class Idle:
    """The memory that a connection takes which has had one message echoed and is idle since."""

    connections: int
    of: str = "memory"
    unix: bool = False

    def session(self, ours: Server, peer: Server, pairs: int) -> Pairs:
        """Measure one pair: the numbers hardly vary."""
        return [(self.measure(ours), self.measure(peer))]

    def measure(self, server: Server) -> Run:
        with serving(server, unix=self.unix) as (pid, where):
            with loading(where, "-c", 1):
                pass  # what every server does once
            time.sleep(0.2)
            before = memory_bytes(pid)
            with loading(where, "-c", self.connections):
                time.sleep(0.2)
                return Run(memory=(memory_bytes(pid) - before) / self.connections)


@dataclass
class Row:
    name: str
    ours: Server
    peer: Server
    measure: Traffic | Idle
    goal: float | None = None  # the ratio: at least this for a rate, at most this for CPU and memory
    limit: float | None = None  # our own value is at most this
    sessions: int = 3


def rows(engine: str, connections: int) -> list[Row]:
    ours = rioecho(engine)
    protocol = on_a_loop("uvloop", "protocol")
    many, few = Traffic(32, "rate"), Traffic(1, "cpu")
    return [
        # the goals
        Row("50 x 32 in flight / uvloop streams", ours, on_a_loop("uvloop", "streams"), many, 20),
        Row("50 x 32 in flight / C epoll", ours, C_EPOLL, many, 0.95),
        Row("50 ping-pong, CPU / C epoll", ours, C_EPOLL, few, 1.05),
        Row(f"{connections} idle / uvloop Protocol", ours, protocol, Idle(connections), 0.1, 1024),
        # the noise: a server beside itself
        Row("noise, 50 x 32 in flight", C_EPOLL, C_EPOLL, many),
        Row("noise, 50 ping-pong, CPU", C_EPOLL, C_EPOLL, few),
        # for information
        Row("raw, 50 x 32 in flight / C epoll", rioecho(engine, "--raw"), C_EPOLL, many, sessions=1),
        Row("unix, 50 x 32 in flight / C epoll", ours, C_EPOLL, Traffic(32, "rate", unix=True), sessions=1),
        Row("50 x 32 in flight / asyncio streams", ours, on_a_loop("asyncio", "streams"), many, sessions=1),
        Row("50 x 32 in flight / uvloop Protocol", ours, protocol, many, sessions=1),
        *(
            row
            for other, n in (("thread", 1000), ("process", 200))
            if other != engine
            for row in (
                Row(f"{other}: 50 x 32 in flight / C epoll", rioecho(other), C_EPOLL, many, sessions=1),
                Row(f"{other}: 50 ping-pong, CPU / C epoll", rioecho(other), C_EPOLL, few, sessions=1),
                Row(f"{other}: {n} idle / uvloop Protocol", rioecho(other), protocol, Idle(n), sessions=1),
            )
        ),
    ]


def median(runs: list[Run], of: str) -> float:
    return statistics.median(getattr(run, of) for run in runs)


def ratios(pairs: Pairs, of: str) -> list[float]:
    """The ratios in order. One in which nothing came back counts as what it is: on a busy machine there are such."""
    both = [(getattr(ours, of), getattr(peer, of)) for ours, peer in pairs]
    return sorted(ours / peer if peer else math.inf for ours, peer in both)


def shown(value: float, of: str) -> str:
    if of == "rate":
        return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.0f} k/s"
    if of == "cpu":
        return f"{value * 1e6:.2f} us"
    return f"{value:.0f} B" if value < 10_000 else f"{value / 1024:.0f} KiB"


def measured(row: Row, sessions: int, pairs_each: int) -> dict[str, object]:
    """Run a row and print it: what goes into the JSON."""
    of = row.measure.of
    pairs: Pairs = []
    try:
        for server in (row.ours, row.peer):
            server.command("/" if row.measure.unix else None)  # so that neither runs in vain
        for _ in range(sessions):
            pairs += row.measure.session(row.ours, row.peer, pairs_each)
    except Skipped as reason:
        print(f"{row.name:40} skipped: {reason}", flush=True)
        return {"skipped": str(reason)}
    ours, peer = ([pair[side] for pair in pairs] for side in (0, 1))
    result = {
        "ours": row.ours.name,
        "peer": row.peer.name,
        "of": of,
        "unit": {"rate": "messages/s", "cpu": "s/message", "memory": "bytes/connection"}[of],
        "ours_median": median(ours, of),
        "peer_median": median(peer, of),
        "ratio": statistics.median(ratios(pairs, of)),
    }
    spread = ratios(pairs, of)
    low, high = spread[len(spread) // 4], spread[-1 - len(spread) // 4]
    goal = verdict = beside = ""
    if row.goal is not None:
        goal = f"{'>=' if of == 'rate' else '<='} {row.goal:g}"
        ok = result["ratio"] >= row.goal if of == "rate" else result["ratio"] <= row.goal
        verdict = "ok" if ok and (row.limit is None or result["ours_median"] <= row.limit) else "missed"
    if of != "memory":
        other = "cpu" if of == "rate" else "rate"
        result[f"{other}_ratio"] = statistics.median(ratios(pairs, other))
        beside = f"{other} {result[f'{other}_ratio']:.3f}"
        for runs in (ours, peer):
            beside += f"  {median(runs, 'busy'):4.0%}/{median(runs, 'load_busy'):4.0%}"
    print(
        f"{row.name:40} {shown(result['ours_median'], of):>9} {shown(result['peer_median'], of):>9} "
        f"{result['ratio']:7.3f}  {low:6.3f} .. {high:6.3f} {goal:>8}  {verdict:7} {beside}".rstrip(),
        flush=True,
    )
    return {
        **result,
        "quartiles": [low, high],
        "goal": row.goal,
        "limit": row.limit,
        "verdict": verdict,
        "pairs": [[vars(run) for run in pair] for pair in pairs],
    }


def main() -> None:
    global build, pin, run_seconds, warm_up_seconds
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("word", nargs="?", default="", help="run only the rows whose name contains this")
    p.add_argument("--engine", default="event", help="the engine that is measured (default: %(default)s)")
    p.add_argument("--goals", action="store_true", help="run only the rows that have a goal")
    p.add_argument("--sessions", type=int, help="starts of a row's servers (default: 3, or 1 for information)")
    p.add_argument("--pairs", type=int, default=8, help="paired runs per session (default: %(default)s)")
    p.add_argument("--seconds", type=float, default=run_seconds, help="the length of a run (default: %(default)g)")
    p.add_argument(
        "--warm-up", type=float, default=warm_up_seconds, help="before it, not counted (default: %(default)g)"
    )
    p.add_argument("--connections", type=int, default=10_000, help="that are idle (default: %(default)s)")
    p.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="a server on the first core, its load on the second (default: where the scheduler wants)",
    )
    p.add_argument("--list", action="store_true", help="print the names of the rows")
    p.add_argument("--json", metavar="FILE", help="write the results there, too")
    options = p.parse_args()
    pin, run_seconds, warm_up_seconds = options.pin, options.seconds, options.warm_up
    selected = [
        row
        for row in rows(options.engine, options.connections)
        if options.word in row.name and not (options.goals and row.goal is None)
    ]
    if not selected:
        p.error(f"no row contains {options.word!r}")
    if options.list:
        print(*(row.name for row in selected), sep="\n")
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(
        f"rioecho {__version__}, engine {options.engine}, Python {platform.python_version()}, {len(CORES)} cores, "
        f"{platform.machine()}, {'pinned' if pin else 'not pinned'}"
    )
    print(
        f"{'':40} {'ours':>9} {'peer':>9} {'ratio':>7}  {'quartiles':>16} {'goal':>8}  {'verdict':7} "
        f"{'beside':11}  busy/load  busy/load of peer"
    )
    results = {}
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        build = Path(directory)
        for row in selected:
            try:
                results[row.name] = measured(row, options.sessions or row.sessions, options.pairs)
            except (RuntimeError, OSError) as error:
                failed = True
                print(f"{row.name:40} failed: {error}", flush=True)
                results[row.name] = {"failed": str(error)}
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"python": sys.version, "engine": options.engine, "pinned": pin, "rows": results}, file, indent=2)
    sys.exit(failed)


if __name__ == "__main__":
    main()
