"""rioecho-bench: the load test as a command, and the comparison of several runs.

Stdout gets only the result; progress, warnings and errors go to stderr. Errors that can be foreseen (a FILE that cannot
be written, a plot without Matplotlib) are reported before the run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import sys

from rioecho import __version__
from rioecho._load.runner import nothing, timestamp
from rioecho.bench import Interrupted, Plan, run
from rioecho.cli import (
    FAILED,
    NO_MEMORY,
    Parser,
    allow_descriptors,
    complain,
    finish,
    plots,
    put_out,
    reason,
    results,
)
from rioecho.cli.compare import MISSED, compare, comparison_parser, merge, merge_parser
from rioecho.cli.live import view
from rioecho.cli.results import STDOUT
from rioecho.cli.signals import Signals
from rioecho.cli.tables import BLOCKS, PLAIN_BLOCKS, micros, number, report, setting
from rioecho.cli.units import count, interval, rate, seconds, size
from rioecho.client import WrongEchoError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rioecho.bench import Progress, Result

PROG = "rioecho-bench"
WRONG = 3
#: Maximum number of bars of the histogram.
BARS = 16
#: Maximum of the default warm-up in seconds; the default is a tenth of the duration.
WARMUP = 1.0

HELP = f"""\
usage: {PROG} [options] HOST:PORT
       {PROG} compare A.json B.json ... [--fail-above 10%] [--plot FILE]
       {PROG} merge A.json B.json ... [--json [FILE]]
Load an echo server, check every byte, and measure the latencies of the echoes.
  --unix PATH              connect to a unix socket (@NAME: an abstract one)
  -c, --connections N      connections (50) over all addresses of HOST
  --ramp S, --reconnect    spread the connects; go on after a lost connection
  -d, --duration S         measured time (10)
  --warmup S               warm-up (a tenth of -d, at most 1)
  -s, --size N             size of a message (64)
  --pipeline N             messages in flight on each connection (1)
  --rate N                 open loop: N messages per second in all; latency
                           counts from the scheduled time of a message
  --threads N              threads that share the connections (1)
  --connect-timeout S      maximum time to connect, over all addresses (10)
  --stall-timeout S        fail after this time without a received byte (5)
  --max-p99 T, --min-rate N  limits: exit with 4 if the result misses one
  --json [FILE]            write the result as JSON; without FILE to stdout
  --hdr FILE, --plot FILE  write .hgrm; draw .png or .svg (rioecho[bench])
  -q, -h, --version        no progress and warnings; this help; the version
compare warns of failed runs; merge adds runs that several hosts made together.
units: 500ms 10s 2m, 4k 1M (bytes), 5k (messages per second)
exit status: 1 failed, 2 usage, 3 wrong echo, 4 a limit missed, 130 Ctrl-C
example: {PROG} localhost:8000 -c 100 --rate 20k --max-p99 1ms --json a
"""


def parser() -> Parser:
    p = Parser(prog=PROG)
    p.help_text = HELP
    option = p.add_argument
    option("target", metavar="HOST:PORT", nargs="?")
    option("--unix", metavar="PATH")
    option("-c", "--connections", metavar="N", type=count, default=50)
    option("-d", "--duration", metavar="S", type=interval, default=10.0)
    option("--warmup", metavar="S", type=seconds)
    option("-s", "--size", metavar="N", type=size, default=64)
    option("--pipeline", metavar="N", type=count, default=1)
    option("--rate", metavar="N", type=rate)
    option("--threads", metavar="N", type=count, default=1)
    option("--stall-timeout", metavar="S", type=interval, default=5.0)
    option("--connect-timeout", metavar="S", type=interval, default=10.0)
    option("--ramp", metavar="S", type=seconds, default=0.0)
    option("--reconnect", action="store_true")
    option("--max-p99", metavar="T", type=interval)
    option("--min-rate", metavar="N", type=rate)
    option("-q", "--quiet", action="store_true")
    option("--json", metavar="FILE", nargs="?", const=STDOUT)
    option("--hdr", metavar="FILE")
    option("--plot", metavar="FILE", type=plots.picture)
    option("--version", action="version", version=f"%(prog)s {__version__}")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    The exit status is 0; 1 for a server that was not reached, was lost or stalled, or a result that could not be
    written; 2 for a usage error, including a FILE that cannot be written or read and ``--plot`` without Matplotlib; 3
    for a wrong echo; 4 if a limit was missed; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    finish(PROG, lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if argv is None else list(argv)
    signals = Signals()
    try:
        match arguments[:1]:
            case ["compare"]:
                return compare(comparison_parser(PROG, HELP), arguments[1:])
            case ["merge"]:
                return merge(merge_parser(PROG, HELP), arguments[1:], _width(), _blocks(), BARS)
        return _measure(arguments, signals)
    except KeyboardInterrupt:
        complain(PROG, signals.name)
        return signals.status


def _measure(arguments: Sequence[str], signals: Signals) -> int:
    """Run the test; return the exit status."""
    p = parser()
    options = p.parse_args(arguments)
    if options.warmup is not None and options.warmup > options.duration:
        p.error(f"--warmup {options.warmup:g} is longer than --duration {options.duration:g}")
    try:
        plan = Plan(
            target=_target(p, options),
            connections=options.connections,
            duration=options.duration,
            message_bytes=options.size,
            pipeline=options.pipeline,
            rate=options.rate,
            threads=options.threads,
            warmup=min(WARMUP, options.duration / 10) if options.warmup is None else options.warmup,
            connect_timeout=options.connect_timeout,
            stall_timeout=options.stall_timeout,
            ramp=options.ramp,
            reconnect=options.reconnect,
        )
    except ValueError as error:
        p.error(str(error))
    json_file = None if options.json == STDOUT else options.json
    try:
        results.check_all_writable({"--json": json_file, "--hdr": options.hdr, "--plot": options.plot})
    except ValueError as error:
        p.refuse(str(error))
    plots.refuse_undrawable(PROG, options.plot)
    allow_descriptors(plan.connections + 2 * plan.threads)
    result, status, failure = _run(plan, signals, quiet=options.quiet)
    if result is not None:
        before = signals.pending
        with signals.held():  # a signal that arrives now does not lose the results
            # A test that failed before the first echo has nothing to show.
            undelivered = _deliver(result, options, whole=not failure or result.histogram.count > 0)
        status = status or undelivered
        if signals.pending and not before and not failure:
            status, failure = signals.status, signals.name
        if not failure and not options.quiet:  # after the result, which a stderr that nobody reads must not withhold
            for warning in result.warnings:
                complain(PROG, f"warning: {warning}")
    if failure:
        complain(PROG, failure)
    if status == 0 and result is not None:
        missed = _missed(result, options.max_p99, options.min_rate)
        for line in missed:
            complain(PROG, line)
        status = MISSED if missed else 0
    return status


def _missed(result: Result, max_p99: float | None, min_rate: float | None) -> list[str]:
    """Return one line for each limit that the result misses."""
    missed = []
    if max_p99 is not None:
        p99 = result.latency_us["p99"]
        if not result.histogram.count:
            missed.append("--max-p99: no message was measured")
        elif p99 > max_p99 * 1e6:
            missed.append(f"the p99 is {micros(p99)}, above --max-p99 {micros(max_p99 * 1e6)}")
    if min_rate is not None and result.rate < min_rate:
        missed.append(f"the rate is {number(result.rate)}/s, below --min-rate {number(min_rate)}/s")
    return missed


def _target(p: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """Return the target for Plan."""
    if options.target is not None and options.unix is not None:
        p.error("give HOST:PORT, or --unix PATH, not both")
    if options.unix is not None:
        # "unix:8000" would be port 8000 of a host called unix.
        return f"unix:./{options.unix}" if options.unix.isdigit() else f"unix:{options.unix}"
    if options.target is None:
        if options.json not in (None, STDOUT):
            p.error(f"give HOST:PORT, or --unix PATH: {options.json!r} was parsed as the FILE of --json")
        p.error("give HOST:PORT, or --unix PATH")
    return str(options.target)


def _run(plan: Plan, signals: Signals, *, quiet: bool) -> tuple[Result | None, int, str]:
    """Run the test with a view of its progress; return the result, the exit status and the error message."""
    title = setting(
        {
            "target": plan.target,
            "connections": plan.connections,
            "threads": plan.threads,
            "pipeline": plan.pipeline,
            "message_bytes": plan.message_bytes,
            "duration_s": plan.duration,
        }
    )
    try:
        with signals.held():  # an exception that is raised during an import may be lost
            shown = view(title, plan.warmup_s + plan.duration, plan.connections, quiet=quiet)
        signals.check()
        with shown:
            signals.abandon = shown.abandon

            def show(progress: Progress) -> None:
                with signals.held():
                    shown.show(progress)
                signals.check()

            result = run(plan, on_progress=show, every=shown.every)
            if signals.pending:
                return dataclasses.replace(result, interrupted=True), signals.status, signals.name
            return result, 0, ""
    except Interrupted as error:
        return error.result, signals.status, signals.name
    except KeyboardInterrupt:  # before or after the test itself
        return dataclasses.replace(nothing(plan, timestamp()), interrupted=True), signals.status, signals.name
    except WrongEchoError as error:
        return _partial(error), WRONG, str(error)
    except (OSError, ValueError, *NO_MEMORY) as error:
        return _partial(error), FAILED, reason(error)


def _partial(error: BaseException) -> Result | None:
    result: Result | None = getattr(error, "result", None)
    return result


def _deliver(result: Result, options: argparse.Namespace, *, whole: bool) -> int:
    """Print the result and write the requested files; only the JSON unless ``whole``. Returns the exit status."""
    data = result.to_json()
    status = 0
    if options.json is not None:
        status |= results.put_json(PROG, options.json, data)
    if not whole:
        return status
    if options.json != STDOUT:
        lines = report(data, result.histogram.buckets(BARS), _width(), _blocks())
        # If the JSON has the result, nobody need read the table.
        status |= put_out(PROG, "\n".join(lines) + "\n", optional=options.json is not None)
    if options.hdr is not None:
        status |= results.write(PROG, options.hdr, result.write_hgrm)
    if options.plot is not None:
        status |= results.write(PROG, options.plot, lambda path: plots.save(plots.draw_run(result), path))
    return status


def _width() -> int:
    """Return the number of columns for the histogram: the width of the terminal, within 50 to 100."""
    with contextlib.suppress(OSError, ValueError):
        return max(50, min(100, os.get_terminal_size(1).columns - 1))
    return 80


def _blocks() -> str:
    """Return the characters for bars that stdout can encode."""
    with contextlib.suppress(UnicodeEncodeError, LookupError):
        BLOCKS.encode(sys.stdout.encoding if sys.stdout is not None else "ascii")
        return BLOCKS
    return PLAIN_BLOCKS


if __name__ == "__main__":
    main()
