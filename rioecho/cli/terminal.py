"""Job control: whether the terminal belongs to this command, and what to do before Ctrl-Z stops it."""

from __future__ import annotations

import contextlib
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType
    from typing import Self


def in_background(fd: int) -> bool:
    """Report whether a descriptor is the controlling terminal of this process and another job is in its foreground."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:  # no terminal, or not the controlling one
        return False


class Suspension:
    """Calls ``leave`` before Ctrl-Z (SIGTSTP) stops the process; in a ``held()`` block the stop is deferred to its end.

    A SIGTSTP that is ignored stays ignored.
    """

    def __init__(self, leave: Callable[[], object]) -> None:
        self._leave = leave
        self._held = False
        self._requested = False
        self._installed = False

    def __enter__(self) -> Self:
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, self._handle)
            self._installed = True
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._installed:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            self._installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._requested = True
        else:
            self._stop()

    def _stop(self) -> None:
        self._leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # returns after SIGCONT
        signal.signal(signal.SIGTSTP, self._handle)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Defer the stop to the end of the block, so that it does not interrupt a write to the terminal."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._requested:
                self._requested = False
                self._stop()
