"""Measure a program with rioecho.makefile and with socket.makefile, in two processes that run alternately."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import Measured, Row, Settings, Skipped, Spent
from processes import next_line, running

CLIENT = Path(__file__).resolve().parent / "client.py"
SESSIONS, PAIRS = 3, 9
A_RUN = 0.04  # seconds of processor time that the peer uses in a run


class Side:
    """A process of client.py."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        next_line(process)

    def run(self, times: int) -> Spent:
        """Run an operation that many times and return what one has cost."""
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        return Spent(**json.loads(next_line(self.process)))


@dataclass
class Sides:
    """A comparison of ``socket.makefile`` with rioecho's under the same program, a function of the package clients.

    ``ours`` is "stdlib" in a row about the noise, and "bare" in one about the least that is possible. ``service``
    starts the program that it talks to and returns further arguments for the function. ``module`` is what the function
    imports and may not be installed.
    """

    function: str  # "module.name"
    arguments: dict[str, Any] = field(default_factory=dict)
    of: str = "cpu"
    ours: str = "rioecho"
    service: Callable[[Settings], dict[str, Any]] = lambda settings: {}
    module: str = "socket"

    def __call__(self, settings: Settings) -> Measured:
        if importlib.util.find_spec(self.module) is None:
            raise Skipped(f"{self.module} is not installed")
        arguments = self.arguments | self.service(settings)
        runs = []
        for _ in range(settings.sessions or SESSIONS):
            with ExitStack() as stack:
                sides = [self.side(stack, name, arguments, settings) for name in (self.ours, "stdlib")]
                times = self.warm(*sides)
                for n in range(settings.pairs or PAIRS):
                    # A B, B A, A B: a slow drift of the machine favours neither.
                    spent = {side: side.run(times) for side in (sides if n % 2 else sides[::-1])}
                    runs.append((spent[sides[0]], spent[sides[1]]))
        return Measured.of_runs(runs, self.of)

    def side(self, stack: ExitStack, name: str, arguments: dict[str, Any], settings: Settings) -> Side:
        command = [sys.executable, "-P", str(CLIENT), name, *self.function.split("."), json.dumps(arguments)]
        return Side(stack.enter_context(running(command, 0, settings, stdin=subprocess.PIPE)))

    def warm(self, ours: Side, peer: Side) -> int:
        """Run both until a run is long enough, and return its number of operations."""
        times = 1
        while True:
            ours.run(times)
            took = peer.run(times).cpu * times
            if took >= A_RUN / 2:
                return times
            times = math.ceil(times * min(A_RUN / max(took, 1e-9), 16))


def row(name: str, function: str, goal: float | None = None, of: str = "cpu", ours: str = "rioecho", **options) -> Row:
    measure = Sides(function, of=of, ours=ours, **options)
    return Row(name, f"{ours} makefile", "stdlib makefile", "s", measure, goal, of=of)
