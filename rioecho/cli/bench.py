"""rioecho-bench: the load test as a command, and the comparison of several runs.

Stdout gets only the result; progress, warnings and errors go to stderr. Errors that can be foreseen (a FILE that cannot
be written, a plot without Matplotlib) are reported before the run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys

from rioecho import __version__
from rioecho.bench import EchoError, Interrupted, Plan, run
from rioecho.cli import (
    FAILED,
    NO_MEMORY,
    USAGE_ERROR,
    Parser,
    allow_descriptors,
    complain,
    finish,
    leave,
    plots,
    put_out,
    reason,
    results,
)
from rioecho.cli.live import view
from rioecho.cli.tables import BLOCKS, PLAIN_BLOCKS, comparison, differences, report, setting
from rioecho.cli.units import count, interval, rate, seconds, size
from rioecho.client import WrongEchoError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from rioecho.bench import Progress, Result

PROG = "rioecho-bench"
WRONG, SIGNALLED = 3, 128
STDOUT = "-"
#: Maximum number of bars of the histogram.
BARS = 16
#: Maximum of the default warm-up in seconds; the default is a tenth of the duration.
WARMUP = 1.0

HELP = f"""\
usage: {PROG} [options] HOST:PORT
       {PROG} compare A.json B.json ... [--plot FILE]

Load an echo server, check every byte, and measure the latencies of the echoes.

  --unix PATH            connect to a unix socket instead of HOST:PORT
  -c, --connections N    number of connections (50)
  -d, --duration S       measured time in seconds (10)
  --warmup S             warm-up in seconds (a tenth of -d, at most 1)
  -s, --size N           size of a message in bytes (64)
  --pipeline N           messages in flight on each connection (1)
  --rate N               open loop: N messages per second over all connections;
                         latency counts from the scheduled time of a message
  --threads N            threads that share the connections (1)
  --stall-timeout S      fail after S seconds without a received byte (5)
  --json [FILE]          write the result as JSON; without FILE only to stdout
  --hdr FILE             write latencies for HdrHistogram's plotters (.hgrm)
  --plot FILE            draw a .png or .svg: pip install 'rioecho[bench]'
  -h, --version          show this help; show the version

exit status: 1 not reached, lost or stalled, 2 usage, 3 wrong echo, 130 Ctrl-C
examples: {PROG} localhost:8000 -c 100 --pipeline 32 --plot run.png
          {PROG} [::1]:8000 --rate 20000 --json run.json
"""


def parser() -> argparse.ArgumentParser:
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
    option("--json", metavar="FILE", nargs="?", const=STDOUT)
    option("--hdr", metavar="FILE")
    option("--plot", metavar="FILE", type=picture)
    option("--version", action="version", version=f"%(prog)s {__version__}")
    return p


def comparison_parser() -> argparse.ArgumentParser:
    p = Parser(prog=PROG)
    p.help_text = HELP
    p.add_argument("files", metavar="FILE", nargs="*")
    p.add_argument("--plot", metavar="FILE", type=picture)
    return p


def picture(text: str) -> str:
    """Convert an argument to the name of a plot's file."""
    if os.path.splitext(text)[1].lower() not in plots.SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} ends neither in .png nor in .svg")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    The exit status is 0; 1 for a server that was not reached, was lost or stalled, or a result that could not be
    written; 2 for a usage error, including a FILE that cannot be written or read and ``--plot`` without Matplotlib; 3
    for a wrong echo; 130 after Ctrl-C; 143 after SIGTERM.
    """
    finish(PROG, lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if argv is None else list(argv)
    signals = _Signals()
    try:
        return _compare(arguments[1:]) if arguments[:1] == ["compare"] else _measure(arguments, signals)
    except KeyboardInterrupt:
        complain(PROG, signals.name)
        return signals.status


class _Signals:
    """Handles SIGINT and SIGTERM: the first signal raises KeyboardInterrupt, the second ends the process at once."""

    def __init__(self) -> None:
        self._number = 0  # of the first signal received
        self._held = False
        self.abandon: Callable[[], object] = lambda: None  # called before the second signal ends the process
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number:
            self.abandon()
            os._exit(SIGNALLED + number)
        self._number = number
        if not self._held:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Defer the exception of a signal until check() is called, so that no half-drawn view stays on the terminal."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal was deferred."""
        if self._number:
            raise KeyboardInterrupt

    @property
    def status(self) -> int:
        return SIGNALLED + (self._number or signal.SIGINT)

    @property
    def pending(self) -> bool:
        return self._number != 0

    @property
    def name(self) -> str:
        return "terminated" if self._number == signal.SIGTERM else "interrupted"


def _measure(arguments: Sequence[str], signals: _Signals) -> int:
    """Run the test; return the exit status."""
    p = parser()
    options = p.parse_args(arguments)
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
            stall_timeout=options.stall_timeout,
        )
        json_file = None if options.json == STDOUT else options.json
        results.check_all_writable({"--json": json_file, "--hdr": options.hdr, "--plot": options.plot})
    except ValueError as error:
        p.error(str(error))
    _refuse_undrawable(p, options.plot)
    allow_descriptors(plan.connections + 2 * plan.threads)
    result, status, failure = _run(plan, signals)
    if result is not None:
        # A test that failed before the first echo has nothing to show.
        undelivered = _deliver(result, options, whole=not failure or result.histogram.count > 0)
        status = status or undelivered
        if not failure:  # after the result, which a stderr that nobody reads must not withhold
            for warning in result.warnings:
                complain(PROG, f"warning: {warning}")
    if failure:
        complain(PROG, failure)
    return status


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


def _refuse_undrawable(p: argparse.ArgumentParser, plot: str | None) -> None:
    """Exit with a usage error if a plot is requested and Matplotlib is not installed."""
    if plot is None:
        return
    try:
        plots.prepare()
    except ImportError:
        complain(PROG, "--plot needs Matplotlib: pip install 'rioecho[bench]'")
        leave(USAGE_ERROR)


def _run(plan: Plan, signals: _Signals) -> tuple[Result | None, int, str]:
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
        with view(title, plan.warmup_s + plan.duration) as shown:
            signals.abandon = shown.abandon

            def show(progress: Progress) -> None:
                with signals.held():
                    shown.show(progress)
                signals.check()

            result = run(plan, on_progress=show, every=shown.every)
            return (result, signals.status, signals.name) if signals.pending else (result, 0, "")
    except Interrupted as error:
        return error.result, signals.status, signals.name
    except WrongEchoError as error:
        return _partial(error), WRONG, str(error)
    except (OSError, ValueError, *NO_MEMORY) as error:
        return _partial(error), FAILED, reason(error)


def _partial(error: BaseException) -> Result | None:
    return error.result if isinstance(error, EchoError) else None


def _deliver(result: Result, options: argparse.Namespace, *, whole: bool) -> int:
    """Print the result and write the requested files; only the JSON unless ``whole``. Returns the exit status."""
    data = result.to_json()
    text = json.dumps(data, indent=2) + "\n"
    status = 0
    if options.json == STDOUT:
        status |= put_out(PROG, text)
    elif options.json is not None:
        status |= results.write(PROG, options.json, lambda path: results.write_text(path, text))
    if not whole:
        return status
    if options.json != STDOUT:
        lines = report(data, result.histogram.buckets(BARS), _width(), _blocks())
        status |= put_out(PROG, "\n".join(lines) + "\n")
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


def _compare(arguments: Sequence[str]) -> int:
    """Print the comparison of several runs; return the exit status."""
    p = comparison_parser()
    options = p.parse_args(arguments)
    if len(options.files) < 2:
        p.error("give two or more results of --json to compare")
    runs = []
    for path, name in zip(options.files, results.names(options.files), strict=True):
        try:
            runs.append((name, results.read(path)))
        except OSError as error:
            p.error(f"{path}: {reason(error)}")
        except ValueError as error:
            p.error(f"{path} is not a result of --json: {error}")
    try:
        results.check_all_writable({"--plot": options.plot})
    except ValueError as error:
        p.error(str(error))
    _refuse_undrawable(p, options.plot)
    for difference in differences(runs):
        complain(PROG, f"warning: {difference}")
    status = put_out(PROG, "\n".join(comparison(runs)) + "\n")
    if options.plot is not None:
        status |= results.write(PROG, options.plot, lambda path: plots.save(plots.draw_comparison(runs), path))
    return status


if __name__ == "__main__":
    main()
