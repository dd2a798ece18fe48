"""The life cycle of a server.

::

    new ── start() ──► starting ── ready() ──► serving ── stop ──► draining ──► ended
     │                     └───── refusal, no thread ───────────────────────────► │
     └──────────────── close() ─────────────────────────────────────────────────► │

Every step is one atomic operation in C (notify.pyx, tasks.pyx): a signal handler may run between any two of them,
raise, or call ``stop()`` itself.
"""

from __future__ import annotations

import logging
from time import sleep

from rioecho._server.engine import log_line
from rioecho._server.notify import Latch, Stop
from rioecho._server.tasks import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Seconds before a step that ran out of memory is tried again.
PAUSE = 0.01


class Lifecycle:
    """Runs ``begin()``, ``serve()`` and each function of ``end``, in this order and in a thread of its own.

    If ``begin()`` raises, ``start()`` raises the same error and ``serve()`` is not called. If another function raises,
    the server fails. Every function of ``end`` is called in any case, and again if it raised ``MemoryError``: it must
    continue where it was interrupted.

    ``drain`` is the maximum time in seconds that stopping takes; None means no limit.
    """

    def __init__(
        self,
        begin: Callable[[], object],
        serve: Callable[[], object],
        end: Sequence[Callable[[], object]],
        *,
        drain: float | None,
    ) -> None:
        self._begin = begin
        self._serve = serve
        self._end = tuple(end)
        self._refusal: BaseException | None = None  # the error that begin() raised
        self._failure: BaseException | None = None  # the error that serving failed with
        #: Whether ``begin()`` has returned.
        self.has_begun = False
        self._ready, self._ended = Latch(), Latch()
        self._task = Task(self._run, name="rioecho accept", latches=(self._ready, self._ended))
        #: The stop, which the accept loop and every echo wait for.
        self.stop = Stop(drain)

    def start(self) -> bool:
        """Start the thread and wait until ``begin()`` has returned; raise what it raised.

        Returns False if the server was started or closed before.
        """
        if not self._task.start():
            return False
        self._ready.wait()
        if self._refusal is not None:
            raise self._refusal
        if not self.has_begun:
            raise MemoryError("no memory to start a thread")
        return True

    def wait(self) -> None:
        """Wait for the end. Raises the error that the server failed with."""
        self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> bool:
        """Stop and wait for the end; return False if the server was never started. Closing again does nothing.

        In a forked child this does not wait: the server is the parent's.
        """
        self.stop.request()
        never = self._task.cancel()
        if not never and self.stop.is_ours:
            self._ended.wait()
        return not never

    def fail(self, error: BaseException) -> None:
        """Stop because of an error, which ``wait()`` raises."""
        self._failure = self._failure or error
        self.stop.request()
        reason = getattr(error, "strerror", None) or error
        log_line(logging.ERROR, "serving has failed, and the server stops: %s", reason)

    def _run(self) -> None:
        try:
            self._begin()
            self.has_begun = True
        except BaseException as error:
            self._refusal = error
        if self._refusal is None:
            self._ready.open()
            try:
                self._serve()
            except BaseException as error:
                self.fail(error)
        self.stop.request()
        step = 0
        while step < len(self._end):
            try:
                self._end[step]()
            except MemoryError:
                sleep(PAUSE)
                continue
            except BaseException as error:
                self.fail(error)
            step += 1
