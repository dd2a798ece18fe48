"""The text output of rioecho-bench: the table and histogram of a run, and a comparison of several runs.

The input is the dict of ``Result.to_json()``, so that a run read from a file prints the same as when it ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: A run, as returned by to_json().
Run: TypeAlias = Mapping[str, Any]
#: A bucket of a histogram: lower bound and upper bound in microseconds, and count.
Bucket: TypeAlias = tuple[float, float, int]

#: The names of a run's latencies in to_json().
LATENCIES = ("mean", "p50", "p90", "p99", "p99.9", "max")
#: The columns of the comparison, which has no room for all latencies.
COMPARED = LATENCIES[1:]
#: The settings that comparable runs have in common, and their names in messages.
SETTINGS = {
    "connections": "connections",
    "message_bytes": "bytes per message",
    "pipeline": "messages in flight",
    "rate_asked": "the requested rate",
}

BLOCKS = "▏▎▍▌▋▊▉█"
#: For an encoding that has no block characters.
PLAIN_BLOCKS = ".#"


def micros(value: float | None) -> str:
    """Format a latency in microseconds with three digits and a unit, or "-" for None and 0.0 (no measurement)."""
    if not value or value != value:
        return "-"
    for unit, size in (("us", 1.0), ("ms", 1e3), ("s", 1e6)):
        # Choose the unit by the rounded number: 999.7 us is 1.00 ms.
        if value < 999.5 * size or unit == "s":
            return f"{_three_digits(value / size)} {unit}"
    raise AssertionError


def number(value: float | None) -> str:
    """Format a rate or a count: an integer from 100 up, three digits below that unless it is an integer."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 99.95 or value == int(value) else _three_digits(value)


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def counted(n: int, thing: str) -> str:
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def setting(run: Run) -> str:
    """Return one line that describes the target and the settings of a run."""
    threads = f", {run['threads']} threads" if run["threads"] > 1 else ""
    target = run["target"] if run["target"].isprintable() else repr(run["target"])
    return (
        f"{target}: {counted(run['connections'], 'connection')}{threads}, "
        f"{run['pipeline']} x {counted(run['message_bytes'], 'byte')} in flight on each, {run['duration_s']:.1f} s"
    )


def report(run: Run, buckets: Sequence[Bucket], width: int = 80, blocks: str = BLOCKS) -> list[str]:
    """Return the table and the histogram of a run, as lines of at most ``width`` columns."""
    rate, asked = run["rate"], run["rate_asked"]
    lines = [setting(run), ""]
    against = f"  ({rate / asked:.1%} of the requested {number(asked)})" if asked else ""
    lines.append(f"rate        {number(rate):>12} messages/s{against}")
    lines.append(f"throughput  {number(run['mb_per_s']):>12} MB/s each way")
    lines.append(f"messages    {run['messages']:>12,}")
    lines.append(f"errors      {run['errors']:>12,}")
    lines.append("")
    lines.append(f"latency     {'corrected':>12} {'uncorrected':>12}" if asked else "latency")
    for name in LATENCIES:
        line = f"  {name:<10}{micros(run['latency_us'][name]):>12}"
        if asked:
            line += f" {micros(run['latency_uncorrected_us'][name]):>12}"
        lines.append(line)
    if asked:
        lines.append("  (corrected: since a message was due; uncorrected: since it was sent)")
    drawn = histogram(buckets, width, blocks)
    return [*lines, "", *drawn] if drawn else lines


def histogram(buckets: Sequence[Bucket], width: int = 80, blocks: str = BLOCKS) -> list[str]:
    """Return one line with a bar for each bucket, from the first to the last with a count."""
    held = [i for i, (_, _, count) in enumerate(buckets) if count]
    if not held:
        return []
    shown = buckets[held[0] : held[-1] + 1]
    total = sum(count for _, _, count in shown)
    most = max(count for _, _, count in shown)
    room = max(10, width - 31)
    lines = []
    for low, high, count in shown:
        label = f"{micros(low):>8} - {micros(high):>7}"
        drawn = bar(count / most, room, blocks)
        lines.append(f"{label}  {_percent(count, total):>7}  {drawn}".rstrip())
    return lines


def bar(share: float, room: int, blocks: str = BLOCKS) -> str:
    """Return a bar that fills ``share`` of ``room`` columns, to a fraction of a column. A share above 0 is visible."""
    if share <= 0:
        return ""
    steps = max(1, round(share * room * len(blocks)))
    whole, part = divmod(steps, len(blocks))
    return blocks[-1] * whole + (blocks[part - 1] if part else "")


def _percent(count: int, total: int) -> str:
    if not count:
        return "-"
    share = 100 * count / total
    return f"{share:.2f}%" if share >= 0.005 else "<0.01%"


def comparison(runs: Sequence[tuple[str, Run]]) -> list[str]:
    """Return a table of the runs. Each run but the first is followed by its ratios to the first: 2.00x is twice."""
    rows = [["", "rate/s", "MB/s", *COMPARED]]
    first = _measures(runs[0][1])
    for index, (name, run) in enumerate(runs):
        measures = _measures(run)
        shown = [number(value) for value in measures[:2]] + [micros(value) for value in measures[2:]]
        rows.append([name, *shown])
        if index:
            rows.append(["", *(_ratio(value, base) for value, base in zip(measures, first, strict=True))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _measures(run: Run) -> list[float | None]:
    return [run["rate"], run["mb_per_s"], *(run["latency_us"][name] for name in COMPARED)]


def _ratio(value: float | None, base: float | None) -> str:
    if value is None or not base:
        return "-"
    ratio = value / base
    if ratio < 0.095:
        return f"{ratio:.1g}x"
    return f"{ratio:.2f}x" if ratio < 99.5 else f"{ratio:,.0f}x"


def differences(runs: Iterable[tuple[str, Run]]) -> list[str]:
    """Return one line for each setting in which the runs differ, with the values in the order of the runs."""
    data = [run for _, run in runs]
    found = []
    for key, words in SETTINGS.items():
        values = [run[key] for run in data]
        if any(value != values[0] for value in values):
            listed = ", ".join("none" if value is None else number(value) for value in values)
            found.append(f"the runs differ in {words}: {listed}")
    return found
