"""Run the benchmarks, print a table, and write the results as JSON, Markdown and a picture.

A row is measured in pairs, A B A B ..., and its ratio is the median of the ratios of the pairs: see README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import rows_aio
import rows_files
import rows_load
import rows_reader
import rows_server
import rows_software
import rows_startup
from measure import Row, Settings, Skipped, evaluated, faults_of, figure, goal_of, ratio, ratio_of

from rioecho import __version__
from rioecho.cli.results import check_all_writable
from rioecho.cli.units import interval, seconds
from rioecho.client import WrongEchoError
from support.services import NotInstalledError, ServiceError, Services

COLUMNS = (
    f"{'':52} {'ours':>9} {'peer':>9} {'ratio':>7}  {'quartiles':>15}  {'goal':>10}  {'':6} "
    f"{'time':>7} {'cpu':>7} {'faults':>11}"
)


def all_rows() -> list[Row]:
    modules = rows_reader, rows_aio, rows_files, rows_software, rows_server, rows_load, rows_startup
    return [row for module in modules for row in module.rows()]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = p.add_argument
    option("words", metavar="WORD", nargs="*", help="run the rows whose name contains one of these (all)")
    option("--list", action="store_true", help="print the names of the rows")
    option("--goals", action="store_true", help="run only the rows that have a goal")
    option("--json", metavar="FILE", help="write all results, with every pair, as JSON")
    option("--results", metavar="FILE", help="write the table as Markdown")
    option("--picture", metavar="FILE", help="draw the rows that have a goal: .png or .svg (pip install matplotlib)")
    option("--check", action="store_true", help="exit with status 1 if a goal is missed")
    option("--pairs", type=_count, help="number of pairs per session (default: depends on the row)")
    option("--sessions", type=_count, help="number of sessions per row (default: 3, or 1 for a row without a goal)")
    option("--seconds", type=interval, default=0.25, help="length of a run under load (default: %(default)g)")
    option("--warm-up", type=seconds, default=0.05, help="seconds before a run, not counted (default: %(default)g)")
    option("--idle", type=_count, default=10_000, help="number of idle connections (default: %(default)s)")
    option(
        "--pin",
        action="store_true",
        help="pin servers to the first core and load generators to the second (default: no pinning)",
    )
    return p


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main() -> None:
    p = parser()
    options = p.parse_args()
    rows = [
        row
        for row in all_rows()
        if (not options.words or any(word in row.name for word in options.words))
        and (row.goal is not None or not options.goals)
    ]
    if not rows:
        p.error(f"no row contains {' or '.join(map(repr, options.words))}: --list names them")
    if options.list:
        print(*(row.name for row in rows), sep="\n")
        return
    try:
        check_all_writable({"--json": options.json, "--results": options.results, "--picture": options.picture})
    except ValueError as error:
        p.error(str(error))
    draw = None
    if options.picture:
        if not options.picture.endswith((".png", ".svg")):
            p.error(f"{options.picture} ends neither in .png nor in .svg")
        try:
            from picture import draw
        except ImportError:
            p.error("--picture needs Matplotlib: pip install 'rioecho[bench]'")
    _allow_descriptors()
    machine = about()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(COLUMNS)
    signal.signal(signal.SIGTERM, _exit)
    with tempfile.TemporaryDirectory() as build, Services() as services:
        settings = Settings(
            pairs=options.pairs,
            sessions=options.sessions,
            seconds=options.seconds,
            warm_up=options.warm_up,
            idle=options.idle,
            pin=options.pin,
            build=Path(build),
            services=services,
        )
        results = {row.name: measured(row, settings) for row in rows}
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": machine, "rows": results}, indent=1) + "\n")
    if options.results:
        Path(options.results).write_text(markdown(machine, results))
    if draw:
        draw(results, options.picture)
    missed = options.check and any(result.get("verdict") == "missed" for result in results.values())
    sys.exit(1 if missed or any("failed" in result for result in results.values()) else 0)


def _exit(*_: object) -> None:
    """Exit by an exception, so that the programs that were started are stopped."""
    sys.exit(128 + signal.SIGTERM)


def _allow_descriptors() -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def about() -> dict[str, str]:
    """Return a description of the machine, and the versions of the programs."""
    names = {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "rioecho": __version__}
    names["Python"] = platform.python_version()
    for distribution in ("uvloop", "PyMySQL", "pg8000"):
        try:
            names[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    for name, command in (("C compiler", [os.environ.get("CC", "cc"), "-dumpfullversion"]), ("Go", ["go", "version"])):
        try:
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        names[name] = output.removeprefix("go version ").strip()
    names["system"] = f"{platform.system()} {platform.release()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names["cores"] = f"{cores} of {_processor()}"
    return names


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def measured(row: Row, settings: Settings) -> dict[str, Any]:
    """Run a row, print it, and return its result for the JSON."""
    try:
        result = evaluated(row, row.measure(settings))
    except (Skipped, NotInstalledError) as reason:
        print(f"{row.name:52} skipped: {reason}", flush=True)
        return {"skipped": str(reason)}
    except (RuntimeError, OSError, ServiceError, WrongEchoError, subprocess.SubprocessError) as error:
        print(f"{row.name:52} failed: {error}", flush=True)
        return {"failed": str(error)}
    unit = result["unit"]
    low, high = result["quartiles"]
    spread = f"{figure(low, unit)} .. {figure(high, unit)}" if row.difference else f"{low:.3f} .. {high:.3f}"
    time, cpu = (ratio(result.get(name)) for name in ("time_ratio", "cpu_ratio"))
    end = f"{goal_of(result):>10}  {result['verdict']:6} {time:>7} {cpu:>7} {faults_of(result):>11}  {result['beside']}"
    print(
        f"{row.name:52} {figure(result['ours_median'], unit):>9} {figure(result['peer_median'], unit):>9} "
        f"{ratio_of(result):>7}  {spread:>15}  {end.rstrip()}",
        flush=True,
    )
    return result


def markdown(machine: dict[str, str], results: dict[str, dict[str, Any]]) -> str:
    """Return the results as a Markdown page."""
    lines = ["# Results", "", "The results of one run of `python benchmarks/run.py`.", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += [
        "",
        "| | ours | peer | ours | peer | ratio | middle half | goal | | time | cpu | page faults |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        if "unit" not in result:
            lines.append(f"| {name} | | | | | {next(iter(result))}: {next(iter(result.values()))} | | | | | | |")
            continue
        unit = result["unit"]
        low, high = (figure(value, unit) if "difference" in result else f"{value:.3f}" for value in result["quartiles"])
        cells = [
            name,
            f"{result['ours']}",
            f"{result['peer']}",
            figure(result["ours_median"], unit),
            figure(result["peer_median"], unit),
            ratio_of(result),
            f"{low} .. {high}",
            goal_of(result),
            result["verdict"],
            ratio(result.get("time_ratio")),
            ratio(result.get("cpu_ratio")),
            faults_of(result),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
