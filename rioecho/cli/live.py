"""The progress of a running load test on stderr: a live view on a terminal, otherwise a line per second.

Stdout gets only the result. If a write to stderr would block, the output is dropped: neither a stopped terminal
(Ctrl-S) nor a pipe that nobody reads may delay a run that measures time.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections import deque

from rioecho.cli.tables import micros, number
from rioecho.cli.terminal import Suspension, in_background

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Literal, Self

    from rich.console import RenderableType as _Renderable

    from rioecho.bench import Progress

SPARKS = "▁▂▃▄▅▆▇█"
#: For a stderr that cannot encode the SPARKS.
PLAIN_SPARKS = "_.-=+*%#"
SHOW_CURSOR = b"\x1b[?25h"


class Nothing:
    """Shows nothing: for --quiet."""

    every = 1.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def abandon(self) -> None:
        """Do nothing."""

    def show(self, progress: Progress) -> None:
        """Do nothing."""


class Lines:
    """Prints a line for each Progress: for a log, a pipe or a dumb terminal."""

    #: Seconds between two lines.
    every = 1.0

    def __init__(self, duration: float, connections: int) -> None:
        self.duration = duration
        self.connections = connections

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def abandon(self) -> None:
        """Restore the terminal before the process exits at once; nothing to do here."""

    def show(self, progress: Progress) -> None:
        """Print the line, unless the write would block or the terminal belongs to another job."""
        if not _is_writable() or in_background(2):
            return
        if progress.connecting:
            line = _connecting(progress, self.connections)
        else:
            line = (
                f"{progress.elapsed:6.1f} s {number(progress.rate):>11}/s  p50 {micros(progress.p50):>8}"
                f"  p99 {micros(progress.p99):>8}  max {micros(progress.max):>8}{_note(progress)}"
            )
        with contextlib.suppress(OSError, ValueError):  # a broken pipe does not end the run
            # One write, so that an error leaves no partial line.
            print(f"{line}\n", end="", file=sys.stderr, flush=True)


class View:
    """Shows the progress in Rich's live display, which disappears at the end.

    It is shown only while the command is in the foreground of its terminal, and removed while it is suspended (Ctrl-Z).
    """

    #: Seconds between two updates.
    every = 0.25

    def __init__(self, title: str, duration: float, connections: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title = title
        self._duration = duration
        self._connections = connections
        self._rates: deque[float] = deque(maxlen=200)
        # Rich needs no thread of its own: run() calls often enough.
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        # On an ASCII terminal Rich draws its own lines in ASCII, but would escape other characters.
        plain = self._live.console.options.ascii_only
        self._sparks = PLAIN_SPARKS if plain else SPARKS
        self._overflow: Literal["crop", "ellipsis"] = "crop" if plain else "ellipsis"

        self._suspension = Suspension(self._hide)

    def __enter__(self) -> Self:
        self._suspension.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._suspension.held():
            self._hide()
        self._suspension.__exit__(kind, error, trace)

    def _hide(self) -> None:
        """Remove the display and show the cursor."""
        if not in_background(2):
            with contextlib.suppress(OSError):
                self._live.stop()

    def abandon(self) -> None:
        """Show the cursor again. For signal handlers, which may have interrupted Rich."""
        if _is_writable() and not in_background(2):
            with contextlib.suppress(OSError):
                os.write(2, SHOW_CURSOR)

    def show(self, progress: Progress) -> None:
        """Update the display, unless the write would block or the command is in the background."""
        if not progress.connecting:
            self._rates.append(progress.rate)
        with self._suspension.held():
            if _is_writable() and not in_background(2):
                with contextlib.suppress(OSError):
                    self._live.start()  # if it is not shown
                    self._live.update(self._render(progress), refresh=True)

    def _render(self, progress: Progress) -> _Renderable:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        width = self._live.console.width
        title = Text(self._title, style="bold", no_wrap=True, overflow=self._overflow)
        if progress.connecting:
            text = _connecting(progress, self._connections)
            return Group(title, Text(text, style="green", no_wrap=True, overflow=self._overflow))
        bar = Table.grid(padding=(0, 2), expand=False)
        bar.add_row(
            ProgressBar(
                total=1.0, completed=progress.fraction, width=max(10, min(60, width - 30)), complete_style="green"
            ),
            Text(f"{min(progress.elapsed, self._duration):.1f} of {self._duration:.1f} s{_note(progress)}"),
        )
        values = Text(no_wrap=True, overflow=self._overflow)
        for name, value, style in (
            ("rate", f"{number(progress.rate):>9}/s", "bold green"),
            ("p50", f"{micros(progress.p50):>7}", "bold"),
            ("p99", f"{micros(progress.p99):>7}", "bold"),
            ("max", f"{micros(progress.max):>7}", "bold yellow"),
        ):
            values.append(f"{name} ", "dim").append(value, style).append("   ")
        return Group(
            title,
            bar,
            values,
            Text(sparkline(list(self._rates)[-max(1, width - 1) :], self._sparks), style="green", no_wrap=True),
        )


def _note(progress: Progress) -> str:
    again = f"  {progress.reconnects} reconnects" if progress.reconnects else ""
    return ("  warm-up" if progress.warming_up else "") + again


def _connecting(progress: Progress, connections: int) -> str:
    return f"connecting: {progress.connected:,} of {connections:,}"


def sparkline(values: list[float], sparks: str = SPARKS) -> str:
    """Return a bar for each value, scaled from 0 to the maximum."""
    most = max(values, default=0.0) or 1.0
    return "".join(sparks[min(len(sparks) - 1, int(value / most * len(sparks)))] for value in values)


def view(title: str, duration: float, connections: int, *, quiet: bool = False) -> Nothing | Lines | View:
    """Return the live view if stderr is a terminal that can move its cursor and Rich is installed, else Lines."""
    if quiet:
        return Nothing()
    if sys.stderr is not None and os.isatty(2) and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        with contextlib.suppress(ImportError):
            return View(title, duration, connections)
    return Lines(duration, connections)


def _is_writable() -> bool:
    """Report whether a write to stderr would not block."""
    try:
        return sys.stderr is not None and bool(select.select([], [2], [], 0)[1])
    except (OSError, ValueError):
        return False
