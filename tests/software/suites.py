"""One test suite, run with the standard library's files or streams and with rioecho's, and the comparison of both."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STOCK, SWAPPED = "stock", "rioecho"

#: Of the outcomes that are recorded for one test (of its phases and subtests), the last one in this list holds.
RANKS = ["started", "passed", "skipped", "failed"]


@dataclass
class Outcomes:
    """The result of one run of a suite. ``tests`` has the outcome of each test by its id."""

    tests: dict[str, str]
    status: int  # exit status of pytest, negative for a signal
    cpu: float  # seconds of user and system time, child processes included
    seconds: float
    files: int = 0  # calls of what is swapped; counted with STOCK only
    log: Path = Path(os.devnull)

    def count(self, outcome: str) -> int:
        return Counter(self.tests.values())[outcome]

    def __str__(self) -> str:
        counts = Counter(self.tests.values())
        rest = [f"{n} {outcome}" for outcome, n in sorted(counts.items()) if outcome != "passed"]
        return ", ".join([f"{counts['passed']} passed", *rest])


#: How often a test that is known to be unsteady runs again at most.
REPEATS = 5

#: The exit statuses of pytest after it ran all tests.
COMPLETE = (0, 1)


@dataclass
class Comparison:
    """The two runs of a suite, and what a second run of the tests that differed says of them."""

    stock: Outcomes
    swapped: Outcomes
    broken: list[str] = field(default_factory=list)  # pass with the standard library's files, and not with rioecho's
    wanted: list[str] = field(default_factory=list)  # broken, but rioecho promises what these tests refuse
    mended: list[str] = field(default_factory=list)  # the other way round
    unsteady: list[str] = field(default_factory=list)  # differed, and not when they ran again

    @property
    def failing(self) -> list[str]:
        """The tests that fail with both kinds of files, so that they show nothing."""
        return sorted(
            test for test, outcome in self.stock.tests.items() if outcome == self.swapped.tests.get(test) == "failed"
        )

    def accept(self, names: Collection[str]) -> None:
        """Move the broken tests whose names are in ``names`` to the wanted differences."""
        self.wanted += [test for test in self.broken if name_of(test) in names]
        self.broken = [test for test in self.broken if test not in self.wanted]

    @property
    def cpu_ratio(self) -> float:
        return self.swapped.cpu / self.stock.cpu

    @property
    def nothing_shown(self) -> str:
        """Say why the comparison shows nothing, or "" if it does."""
        if self.stock.status not in COMPLETE:
            return f"the run with the standard library's files ends with status {self.stock.status}"
        for test, outcome in self.stock.tests.items():
            if outcome == "died":
                return f"the run with the standard library's files ends in {name_of(test)}"
        if not self.stock.count("passed"):
            return "no test passes with the standard library's files"
        if not self.stock.files:
            return "no test uses what is swapped"
        return ""


def name_of(test: str) -> str:
    """Return the name of a test, without its file and class, from its id."""
    return test.rpartition("::")[2]


def plain_name(test: str) -> str:
    """Return the name of a test without its parameters."""
    return name_of(test.partition("[")[0])


def compare(run: Runner, unsteady: Collection[str] = ()) -> Comparison:
    """Run a suite with both kinds of files. Run the tests whose outcomes differ once more with both.

    Of the broken ones, those whose names are in ``unsteady`` run until they pass, REPEATS times at most.
    """
    result = Comparison(run(STOCK), run(SWAPPED))
    if result.swapped.status not in COMPLETE:
        result.broken.append(f"the run ends with status {result.swapped.status}")
    differing = sorted(differences(result.stock, result.swapped))
    if not differing:
        return result
    again = [run(files, only=differing).tests for files in (STOCK, SWAPPED)]
    for test in differing:
        stock, swapped = (outcomes.get(test) for outcomes in again)
        if "passed" not in (stock, swapped) or stock == swapped:
            result.unsteady.append(test)
        elif stock == "passed":
            result.broken.append(test)
        else:
            result.mended.append(test)
    for _ in range(REPEATS):
        doubtful = [test for test in result.broken if name_of(test) in unsteady]
        if not doubtful:
            break
        outcomes = run(SWAPPED, only=doubtful).tests
        passed = [test for test in doubtful if outcomes.get(test) == "passed"]
        result.unsteady += passed
        result.broken = [test for test in result.broken if test not in passed]
    return result


def differences(stock: Outcomes, swapped: Outcomes) -> set[str]:
    """Return the tests that pass in exactly one of the two runs."""

    def passed(outcomes: Outcomes) -> set[str]:
        return {test for test, outcome in outcomes.tests.items() if outcome == "passed"}

    return passed(stock) ^ passed(swapped)


@dataclass
class Runner:
    """Run a suite by pytest in an environment of environments.py. Its logs are written to ``logs``."""

    python: Path
    folder: Path  # the current directory of the suite
    arguments: Sequence[str]
    logs: Path
    limit: float  # seconds after which a run is ended
    variables: dict[str, str] = field(default_factory=dict)

    def __call__(self, files: str, only: Iterable[str] | None = None) -> Outcomes:
        name = files if only is None else f"{files}-again"
        outcomes, count, log = (self.logs / f"{name}.{end}" for end in ("outcomes", "count", "log"))
        for appended in (outcomes, count):
            appended.unlink(missing_ok=True)  # that of an earlier repetition
        variables = {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNODEBUGRANGES": "1",  # for the carets of a traceback, 3.11 parses it: with threads that may fail
            "RIOECHO_FILES": files,
            "RIOECHO_COUNT": str(count),
            "RIOECHO_OUTCOMES": str(outcomes),
            **{name: os.environ[name] for name in ("PYTHON_GIL",) if name in os.environ},
            **self.variables,
        }
        if only is not None:
            chosen = self.logs / f"{name}.only"
            chosen.write_text(json.dumps(list(only)), encoding="utf-8")
            variables["RIOECHO_ONLY"] = str(chosen)
        command: list[str | Path] = [self.python, "-m", "pytest", "-p", "rioecho_outcomes", *OPTIONS, *self.arguments]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        # HOME: the settings of this machine's user change what a client does. Both are short, for the paths of sockets.
        with tempfile.TemporaryDirectory(prefix="rio-", ignore_cleanup_errors=True) as home, open(log, "wb") as output:
            variables |= {"HOME": home, "TMPDIR": home}
            status = run_group(command, self.limit, cwd=self.folder, env=variables, stdout=output)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Outcomes(
            read_outcomes(outcomes),
            status,
            used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
            time.monotonic() - started,
            count.stat().st_size if count.exists() else 0,
            log,
        )


#: Of the settings of a suite's own configuration, those that choose plugins and options are left out.
OPTIONS = [
    *("-o", "addopts=", "-p", "no:cacheprovider", "-ra", "--tb=native", "--durations=10"),
    "--continue-on-collection-errors",
    # pg8000 has a test that takes a minute on an idle machine.
    *("-o", "faulthandler_timeout=300", "-o", "faulthandler_exit_on_timeout=true"),
]


def run_group(command: Sequence[str | Path], limit: float, **options: Any) -> int:
    """Run a command in a process group of its own and return its exit status. At the end, kill what is left of it."""
    process: subprocess.Popen[bytes] = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True, **options
    )
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode


def read_outcomes(path: Path) -> dict[str, str]:
    """Return the outcome of each test in a file of the plugin, or {} if there is no such file."""
    tests: dict[str, str] = {}
    if not path.exists():
        return tests
    with open(path, encoding="utf-8") as file:
        for test, outcome in map(json.loads, file):
            tests[test] = max(tests.get(test, outcome), outcome, key=RANKS.index)
    return {test: "died" if outcome == "started" else outcome for test, outcome in tests.items()}
