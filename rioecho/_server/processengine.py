"""The process engine: a child process for each connection (CS:APP 12.1)."""

from __future__ import annotations

import logging
from time import sleep

from rioecho._core.budget import Share
from rioecho._core.counts import Counts
from rioecho._server.child import END, NOTHING, OPENED_NOW, Child
from rioecho._server.children import Children
from rioecho._server.engine import closed, log, opened, received, unused
from rioecho._server.notify import Latch
from rioecho._server.tasks import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from rioecho._server.accepted import Accepted
    from rioecho._server.engine import EngineOwner

#: Seconds before the reaper tries again after it ran out of memory.
PAUSE = 0.01


class ProcessEngine:
    """Serves each connection in a child process.

    Each child writes its reports to a pipe; EOF on the pipe means that the child has ended, for whatever reason. One
    thread, the reaper, reads the reports and waits for the children.
    """

    at_once: int | None = None
    threads: Collection[int] = ()

    def __init__(self, owner: EngineOwner) -> None:
        self._owner = owner
        self._count = Counts()
        self.counts: tuple[Counts, ...] = (self._count,)
        self._reaping = self._joined = self._killed = False
        self._began, self._ended = Latch(), Latch()
        self._reaper = Task(self._reap, name="rioecho reap", latches=(self._began, self._ended))
        self._children = Children()

    def start(self) -> None:
        self._reaper.start()
        self._began.wait()
        if not self._reaping:
            raise MemoryError("no memory to start a thread")

    def serve(self, connection: Accepted, drain: float | None) -> None:
        owner = self._owner
        child = Child(connection.peer, asks=owner.proxy_protocol and owner.hosts is not None)
        self._children.fork(
            child,
            connection,
            owner.framing,
            timeout=owner.idle_timeout or None,
            max_line=owner.max_line,
            stop_fd=owner.stop_fd,
            drain_timeout=drain,
            tell_lines=log.isEnabledFor(logging.DEBUG),
            proxied=owner.proxy_protocol,
            counts=self._count,
            memory=Share(owner.memory, owner.max_line),
        )

    def report_closings(self, wanted: bool) -> None:
        """Do nothing: every close is always reported."""

    def join(self, seconds: float | None) -> None:
        self._joined = True
        self._reaper.cancel()
        children = self._children
        children.wake()
        self._ended.wait(seconds)
        # The children keep the drain deadline themselves, unless they are suspended (SIGSTOP).
        self._killed = True
        children.kill()
        children.wake()
        self._ended.wait()
        children.close()

    def kill(self) -> None:
        self._children.kill()

    def _reap(self) -> None:
        """Read the reports and wait for the children until ``join()`` was called and no child is left."""
        self._reaping = True
        self._began.open()
        while not self._joined or self._children.any:
            try:
                self._reap_next()
            except Exception:  # no memory: poll() will report the same descriptors again
                sleep(PAUSE)

    def _reap_next(self) -> None:
        children = self._children
        child = children.some() if self._killed else children.next()
        if child is None:
            return
        n = END if self._killed else child.read_line()
        if n == END:
            children.reap(child, self._count, self._owner.closings)
            if child.is_unused:
                unused(child.peer, child.reason)
                return
            if not child.announced:
                opened(child.peer)
            closed(child.peer, child.reason, child.echoed)
        elif n == OPENED_NOW:
            if child.opened(self._owner.hosts) and not child.announced:
                child.announced = True
                opened(child.peer)
        elif n != NOTHING:
            received(n)
