"""The terminal of a command: which job it belongs to, what to do before Ctrl-Z, and how to end the wait for a key."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading

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


class Readable(Exception):
    """The descriptor of an Interruption is readable."""


class Interruption:
    """Raises Readable in the block, which waits for a key, as soon as a descriptor is readable, at EOF or reset.

    input() watches only its terminal. A thread watches the descriptor, and interrupts the wait by a signal: SIGURG,
    which has no effect outside the block. For the main thread. Raises OSError if the system allows no thread.
    """

    #: Seconds between two signals: one that arrives just before the wait begins does not end it.
    AGAIN = 0.05

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = False
        self._stop = -1
        self._main = threading.get_ident()

    def __enter__(self) -> None:
        stopped, self._stop = os.pipe()
        self._before = signal.signal(signal.SIGURG, self._handle)
        self._waiting = True
        self._thread = threading.Thread(target=self._watch, args=(stopped,), daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            signal.signal(signal.SIGURG, self._before)
            os.close(self._stop)
            os.close(stopped)
            raise OSError(errno.EAGAIN, str(error)) from None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._waiting = False
        os.close(self._stop)
        self._thread.join()
        signal.signal(signal.SIGURG, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._waiting:
            self._waiting = False
            raise Readable

    def _watch(self, stopped: int) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(stopped, select.POLLIN)
        try:
            while stopped not in dict(poller.poll()):
                signal.pthread_kill(self._main, signal.SIGURG)
                select.select([stopped], [], [], self.AGAIN)
        finally:
            os.close(stopped)
