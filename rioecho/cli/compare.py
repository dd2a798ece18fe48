"""rioecho-bench compare and merge: several results of --json beside each other, and as one."""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
from datetime import datetime, timedelta

from rioecho._load.result import latencies
from rioecho.bench import Histogram
from rioecho.cli import Parser, complain, in_one_line, plots, put_out, reason, results
from rioecho.cli.tables import comparison, differences, micros, number, report
from rioecho.cli.units import percent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from rioecho.cli.tables import Run

MISSED = 4
#: The settings that merged runs must have in common.
SAME = {"message_bytes": "bytes per message", "pipeline": "messages in flight"}


def read_all(p: Parser, paths: Sequence[str], least: int, what: str) -> list[tuple[str, Run]]:
    """Read results of --json; return each with a printable name. Exits with a usage error if that is not possible."""
    if len(paths) < least:
        p.error(f"give two or more results of --json to {what}")
    runs = []
    for path, name in zip(paths, results.names(paths), strict=True):
        try:
            runs.append((name, results.read(path)))
        except OSError as error:
            p.refuse(f"{path}: {reason(error)}")
        except ValueError as error:
            p.refuse(f"{path} is not a result of --json: {error}")
    return runs


def flaws(runs: Sequence[tuple[str, Run]]) -> list[str]:
    """Return one line for each run that failed, was cut short, or measured nothing."""
    found = []
    for name, run in runs:
        if run.get("error") or run.get("errors"):
            why = run.get("error")
            found.append(f"{name} failed" + (f": {in_one_line(str(why))}" if why else ""))
        elif run.get("interrupted"):
            lasted = run.get("duration_s")
            found.append(f"{name} was interrupted" + (f" after {lasted:.1f} s" if isinstance(lasted, float) else ""))
        if not run["messages"]:
            found.append(f"{name} measured nothing: no message was echoed")
    return found


# ---- compare


def comparison_parser(prog: str, help_text: str) -> Parser:
    p = Parser(prog=prog)
    p.help_text = help_text
    p.add_argument("files", metavar="FILE", nargs="*")
    p.add_argument("--plot", metavar="FILE", type=plots.picture)
    p.add_argument("--fail-above", metavar="P", type=percent)
    return p


def compare(p: Parser, arguments: Sequence[str]) -> int:
    """Print the comparison of several runs; return the exit status."""
    options = p.parse_args(arguments)
    runs = read_all(p, options.files, 2, "compare")
    try:
        results.check_all_writable({"--plot": options.plot})
    except ValueError as error:
        p.refuse(str(error))
    plots.refuse_undrawable(p.prog, options.plot)
    flawed = flaws(runs)
    for warning in (*flawed, *differences(runs)):
        complain(p.prog, f"warning: {warning}")
    status = put_out(p.prog, "\n".join(comparison(runs)) + "\n")
    if options.plot is not None:
        status |= results.write(p.prog, options.plot, lambda path: plots.save(plots.draw_comparison(runs), path))
    if status or options.fail_above is None:
        return status
    missed = worse(runs, options.fail_above)
    for line in missed:
        complain(p.prog, line)
    return MISSED if missed or flawed else 0


def worse(runs: Sequence[tuple[str, Run]], fraction: float) -> list[str]:
    """Return one line for each p99 that is higher, or rate that is lower, than the first run's by more than this."""
    found = []
    (base, first), *others = runs
    percentage = f"{100 * fraction:.6g}%"
    for name, run in others:
        p99, least = run["latency_us"]["p99"], first["latency_us"]["p99"]
        if p99 > least * (1 + fraction):
            found.append(f"{name}: p99 is {micros(p99)}, more than {percentage} above the {micros(least)} of {base}")
        if run["rate"] < first["rate"] * (1 - fraction):
            found.append(
                f"{name}: the rate is {number(run['rate'])}/s, more than {percentage} "
                f"below the {number(first['rate'])}/s of {base}"
            )
    return found


# ---- merge


def merge_parser(prog: str, help_text: str) -> Parser:
    p = Parser(prog=prog)
    p.help_text = help_text
    p.add_argument("files", metavar="FILE", nargs="*")
    p.add_argument("--json", metavar="FILE", nargs="?", const=results.STDOUT)
    return p


def merge(p: Parser, arguments: Sequence[str], width: int, blocks: str, bars: int) -> int:
    """Print the sum of runs that were made at the same time; return the exit status."""
    options = p.parse_args(arguments)
    runs = read_all(p, options.files, 2, "merge")
    for first, second in itertools.combinations(options.files, 2):
        if os.path.realpath(first) == os.path.realpath(second):
            p.error(f"{second} is given twice: its messages would count twice")
    json_file = None if options.json == results.STDOUT else options.json
    try:
        results.check_all_writable({"--json": json_file})
        merged, corrected = add(runs)
    except ValueError as error:
        p.refuse(str(error))
    for warning in (*flaws(runs), *_apart(runs)):
        complain(p.prog, f"warning: {warning}")
    status = 0
    if options.json is not None:
        status |= results.put_json(p.prog, options.json, merged)
    if options.json != results.STDOUT:
        text = "\n".join(report(merged, corrected.buckets(bars), width, blocks)) + "\n"
        status |= put_out(p.prog, text, optional=options.json is not None)
    return status


def add(runs: Sequence[tuple[str, Run]]) -> tuple[dict[str, Any], Histogram]:
    """Return the sum of runs as a dict in the form of --json, and its histogram.

    Counts and rates are added, and the latencies are those of the added histograms. Raises ValueError if the runs
    cannot be added.
    """
    data = [run for _, run in runs]
    for name, run in runs:
        try:
            for key in ("threads", "duration_s", "errors", "reconnects", "lost"):
                results.check_number(key, run.get(key))
            results.check_number("late_p99_us", run.get("late_p99_us", 0.0))  # older results have none
            if not isinstance(run.get("target"), str):
                raise ValueError("target is not a text")
        except ValueError as error:
            raise ValueError(f"{name} was not written by this version of --json: {error}") from None
    for key, words in SAME.items():
        if len({run[key] for run in data}) > 1:
            raise ValueError(f"the runs differ in {words}: {', '.join(str(run[key]) for run in data)}")
    if len({run["rate_asked"] is None for run in data}) > 1:
        raise ValueError("runs with and without --rate cannot be merged")
    corrected, uncorrected = Histogram(), Histogram()
    for name, run in runs:
        try:
            one = Histogram.from_json(run.get("histogram"))
            other = run.get("histogram_uncorrected")
            corrected.add(one)
            uncorrected.add(one if other is None else Histogram.from_json(other))
        except ValueError:
            raise ValueError(f"{name} was not written by this version of --json: it has no histogram") from None
    first = data[0]
    targets = list(dict.fromkeys(run["target"] for run in data))
    failed = [f"{name}: {run['error']}" for name, run in runs if run.get("error")]
    open_loop = first["rate_asked"] is not None
    merged = {
        "target": ", ".join(targets),
        "connections": _sum(data, "connections"),
        "message_bytes": first["message_bytes"],
        "pipeline": first["pipeline"],
        "threads": _sum(data, "threads"),
        "duration_s": max(run["duration_s"] for run in data),
        "rate_asked": _sum(data, "rate_asked") if open_loop else None,
        "messages": _sum(data, "messages"),
        "rate": _sum(data, "rate"),
        "mb_per_s": _sum(data, "mb_per_s"),
        "errors": _sum(data, "errors"),
        "latency_us": latencies(corrected),
        "latency_uncorrected_us": latencies(uncorrected),
        "late_p99_us": max(run.get("late_p99_us", 0.0) for run in data),
        "reconnects": _sum(data, "reconnects"),
        "lost": _sum(data, "lost"),
        "version": first.get("version"),
        "date": min((run["date"] for run in data if isinstance(run.get("date"), str)), default=None),
        "interrupted": any(run.get("interrupted") for run in data),
        "error": "; ".join(failed) or None,
        "histogram": corrected.to_json(),
    }
    if open_loop:
        merged["histogram_uncorrected"] = uncorrected.to_json()
    return merged, corrected


def _sum(data: Sequence[Run], key: str) -> Any:
    return sum(run[key] for run in data)


def _apart(runs: Sequence[tuple[str, Run]]) -> list[str]:
    """Return a warning if there was no moment at which all runs were in progress: their rates cannot be added then."""
    spans = []
    for name, run in runs:
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            begun = datetime.fromisoformat(run["date"])
            if begun.tzinfo is not None:  # else it cannot be compared with the others
                spans.append((begun, begun + timedelta(seconds=run["duration_s"]), name))
    if spans:
        _, end, ended = min(spans, key=operator.itemgetter(1))
        begun, _, later = max(spans, key=operator.itemgetter(0))
        if begun > end:
            return [f"{ended} had ended when {later} began: the rates of runs made one after the other do not add up"]
    return []
