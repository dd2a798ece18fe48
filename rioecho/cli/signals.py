"""The signals that end a load test: the first ends it with its results, a later one at once."""

from __future__ import annotations

import contextlib
import os
import signal
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SIGNALLED = 128
#: Seconds within which a further signal counts as the same request: a terminal that closes, and timeout(1), send two.
SAME = 1.0

NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class Signals:
    """Handles SIGINT, SIGTERM and SIGHUP: the first raises KeyboardInterrupt, one more than a second later exits.

    A SIGHUP that is ignored, as under nohup(1), stays ignored.
    """

    def __init__(self) -> None:
        self._number = 0  # of the first signal received
        self._at = 0.0
        self._held = False
        self.abandon: Callable[[], object] = lambda: None  # called before a further signal ends the process
        for number in NAMES:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number:
            if monotonic() - self._at < SAME:
                return
            self.abandon()
            os._exit(SIGNALLED + number)
        self._at = monotonic()
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
        return NAMES[signal.Signals(self._number or signal.SIGINT)]
