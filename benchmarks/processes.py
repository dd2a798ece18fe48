"""Compile, start, measure and stop the measured programs, as child processes. Linux only."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measure import Settings, Skipped

PEERS = Path(__file__).resolve().parent / "peers"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
STARTUP_TIMEOUT = 90  # seconds

#: -P imports the rioecho of this interpreter or PYTHONPATH, not one in the working directory.
RIOECHO_SERVER = [sys.executable, "-P", "-m", "rioecho.cli.server"]


@dataclass
class Server:
    """A server program. ``command`` returns its command line for a unix socket's path, or for TCP if that is None."""

    name: str
    command: Callable[[Settings, str | None], list[str]]


@functools.cache
def compiled(name: str, build: Path) -> str:
    """Compile a C program of ``peers`` and return the path of the executable."""
    program = build / name
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        raise Skipped(f"there is no C compiler {compiler!r}")
    subprocess.run([compiler, "-Wall", "-Wextra", "-O2", "-o", program, PEERS / f"{name}.c"], check=True)
    return str(program)


@functools.cache
def compiled_go(name: str, build: Path) -> str:
    program = build / f"{name}_go"
    if shutil.which("go") is None:
        raise Skipped("go is not found")
    home = {"GOCACHE": str(build / "go-cache"), "GOPATH": str(build / "go-path"), "GOFLAGS": "-mod=mod"}
    subprocess.run(
        ["go", "build", "-o", program, PEERS / f"{name}.go"], check=True, env=os.environ | home | {"GO111MODULE": "off"}
    )
    return str(program)


def rioecho(*options: str) -> Server:
    def command(settings: Settings, path: str | None) -> list[str]:
        where = ["--unix", path] if path else ["0", "--host", "127.0.0.1"]
        return [*RIOECHO_SERVER, "-q", "--max-connections", "0", *options, *where]

    return Server(" ".join(["rioecho-server", *options]), command)


def on_a_loop(loop: str, program: str) -> Server:
    def command(settings: Settings, path: str | None) -> list[str]:
        if loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
            raise Skipped("uvloop is not installed")
        options = ["--asyncio"] if loop == "asyncio" else []
        return [sys.executable, "-P", str(PEERS / "asyncio_echo.py"), program, *options, *([path] if path else [])]

    return Server(f"{loop} {program}", command)


def with_threads(file: str) -> Server:
    name = {"rio": "for line in Rio: write", "makefile": "makefile.readline, sendall"}[file]
    return Server(
        name, lambda settings, path: [sys.executable, "-P", str(PEERS / "threads.py"), file, *([path] if path else [])]
    )


def line_server(*options: str) -> Server:
    return Server(
        " ".join(["LineServer, lambda lines: lines", *options]),
        lambda settings, path: [
            sys.executable,
            "-P",
            str(PEERS / "line_server.py"),
            *options,
            *([path] if path else []),
        ],
    )


def c_epoll(*options: str) -> Server:
    return Server(
        " ".join(["C epoll", *options]),
        lambda settings, path: [compiled("epoll_echo", settings.build), *options, *([path] if path else [])],
    )


C_EPOLL = c_epoll()
GO = Server("Go", lambda settings, path: [compiled_go("echo", settings.build), *([path] if path else [])])


@contextmanager
def running(command: list[str], core: int, settings: Settings, **streams) -> Iterator[subprocess.Popen]:
    """Run a program for the length of the block; with ``settings.pin``, on one core."""
    if settings.pin:
        os.sched_setaffinity(0, {CORES[core % len(CORES)]})  # inherited by the child and all its threads
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **streams)
    finally:
        if settings.pin:
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
    """Read the next line that a program prints.

    Programs print one line at a time, so no line is left in the buffer, where select could not see it.
    """
    select.select([process.stdout], [], [], STARTUP_TIMEOUT)
    if process.poll() is None and not select.select([process.stdout], [], [], 0)[0]:
        raise RuntimeError(f"{process.args[0]} printed nothing for {STARTUP_TIMEOUT} seconds")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{' '.join(map(str, process.args))} failed with status {process.wait()}")
    return line


@contextmanager
def serving(server: Server, settings: Settings, *, unix: bool) -> Iterator[tuple[int, str]]:
    """Run a server; yield its process ID, and its port or path."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket" if unix else None
        with running(server.command(settings, path), 0, settings) as process:
            line = next_line(process)
            yield process.pid, path or re.search(r"127\.0\.0\.1:(\d+)", line)[1]


@contextmanager
def loading(where: str, settings: Settings, *options: object) -> Iterator[subprocess.Popen]:
    """Start the load generator and wait until it is connected. It does one run for each line on its stdin."""
    command = [compiled("load", settings.build), "-w", *map(str, options), where]
    with running(command, 1, settings, stdin=subprocess.PIPE) as process:
        assert next_line(process) == "ready\n"
        yield process


def family(pid: int) -> list[int]:
    """Return the IDs of a process and all its descendants."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # the process has ended
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def cpu_seconds(pid: int) -> float:
    """Return the processor time of all threads and children of a server, user and kernel, in seconds."""
    return sum(
        int((thread / "schedstat").read_text().split()[0]) / 1e9
        for member in family(pid)
        for thread in Path(f"/proc/{member}/task").iterdir()
    )


def memory_bytes(pid: int) -> int:
    """Return the anonymous memory of a server and its children in bytes; shared pages count once.

    Mapped files are excluded: the proportional share of a process shrinks with the number of other processes.
    """
    return sum(
        int(re.search(r"^Pss_Anon:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1]) * 1024
        for pid in family(pid)
    )
