"""The life of a server: who may begin it, how it ends, and who waits for what.

::

    new ── start() ──► starting ── ready() ──► serving ── stop ──► draining ──► ended
     │                     └───── refusal, no thread ───────────────────────────► │
     └──────────────── close() ─────────────────────────────────────────────────► │

Every step is made by an operation that cannot be halfway done, in C (notify.pyx, tasks.pyx): a signal handler may come
between any two of them, raise, or call stop() itself.
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

#: Seconds between two attempts at what has to be done and finds no memory.
PAUSE = 0.01


class Lifecycle:
    """Runs ``begin()``, ``serve()`` and each function of ``end``, in this order and in a thread of its own.

    What begin() raises start() raises, and serve() is left out. What the others raise fails the server. Every function
    of ``end`` is called in any case, and again where it raised MemoryError: each goes on where it was left.

    ``drain``: seconds that stopping may take, None: no limit.
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
        self._refusal: BaseException | None = None  # why serving could not begin
        self._failure: BaseException | None = None  # why it could not go on
        #: Whether begin() has returned.
        self.has_begun = False
        self._ready, self._ended = Latch(), Latch()
        self._task = Task(self._run, name="rioecho accept", latches=(self._ready, self._ended))
        #: The stop that everything waits for.
        self.stop = Stop(drain)

    def start(self) -> bool:
        """Begin, and wait until it has; False where it has begun before, or was closed. Raises what begin() raised."""
        if not self._task.start():
            return False
        self._ready.wait()
        if self._refusal is not None:
            raise self._refusal
        if not self.has_begun:
            raise MemoryError("no memory for a thread to begin with")
        return True

    def wait(self) -> None:
        """Wait for the end. Raises what the server has failed with."""
        self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> bool:
        """Stop, and wait for the end; False where it never began, and never will. Again: does nothing.

        In a forked child this waits for nothing: the parent's server is none of its business.
        """
        self.stop.request()
        never = self._task.cancel()
        if not never and self.stop.is_ours:
            self._ended.wait()
        return not never

    def fail(self, error: BaseException) -> None:
        """Stop, for serving cannot go on; wait() raises the error."""
        self._failure = self._failure or error
        self.stop.request()
        why = getattr(error, "strerror", None) or error
        log_line(logging.ERROR, "serving has failed, and the server stops: %s", why)

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
            except Exception as error:
                self.fail(error)
            step += 1
