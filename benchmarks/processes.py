"""Programs to be measured, as child processes: how they are compiled, started, found, asked and ended. Linux only."""

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
PATIENCE = 90  # seconds until a program has to be ready

#: -P: the rioecho of this interpreter or PYTHONPATH, not the one that happens to lie in the working directory
RIOECHO_SERVER = [sys.executable, "-P", "-m", "rioecho.cli.server"]


@dataclass
class Server:
    """A server program: `command` gives its command line for a unix socket's path, or None for TCP."""

    name: str
    command: Callable[[Settings, str | None], list[str]]


@functools.cache
def compiled(name: str, build: Path) -> str:
    """Compile a program of `peers`: its path."""
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
        return [sys.executable, "-P", str(PEERS / f"uvloop_{program}.py"), *options, *([path] if path else [])]

    return Server(f"{loop} {program}", command)


def with_threads(file: str) -> Server:
    name = {"rio": "for line in Rio: write", "makefile": "makefile.readline, sendall"}[file]
    return Server(
        name, lambda settings, path: [sys.executable, "-P", str(PEERS / "threads.py"), file, *([path] if path else [])]
    )


C_EPOLL = Server("C epoll", lambda settings, path: [compiled("epoll_echo", settings.build), *([path] if path else [])])
GO = Server("Go", lambda settings, path: [compiled_go("echo", settings.build), *([path] if path else [])])


@contextmanager
def running(command: list[str], core: int, settings: Settings, **streams) -> Iterator[subprocess.Popen]:
    """Run a program, on one core if the programs are pinned."""
    if settings.pin:
        os.sched_setaffinity(0, {CORES[core % len(CORES)]})  # the child inherits it, and its threads from birth
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
    """The next line that a program prints: none comes while another waits, so the buffer is empty."""
    select.select([process.stdout], [], [], PATIENCE)
    if process.poll() is None and not select.select([process.stdout], [], [], 0)[0]:
        raise RuntimeError(f"{process.args[0]} says nothing")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{' '.join(map(str, process.args))} failed with status {process.wait()}")
    return line


@contextmanager
def serving(server: Server, settings: Settings, *, unix: bool) -> Iterator[tuple[int, str]]:
    """Run a server: its process id, and its port or path."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket" if unix else None
        with running(server.command(settings, path), 0, settings) as process:
            line = next_line(process)
            yield process.pid, path or re.search(r"127\.0\.0\.1:(\d+)", line)[1]


@contextmanager
def loading(where: str, settings: Settings, *options: object) -> Iterator[subprocess.Popen]:
    """Run the load generator: it is connected, and does a run for each line it is given."""
    command = [compiled("load", settings.build), "-w", *map(str, options), where]
    with running(command, 1, settings, stdin=subprocess.PIPE) as process:
        assert next_line(process) == "ready\n"
        yield process


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
