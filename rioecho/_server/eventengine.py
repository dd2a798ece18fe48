"""The event engine: one or several event loops, each for many connections and in a thread of its own (CS:APP 12.2)."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading

from rioecho._server.accepted import source_name
from rioecho._server.engine import EngineClosed, closed, log, opened, received, unused
from rioecho._server.eventloop import EventLoop
from rioecho._server.handling import Connection, Handling
from rioecho._server.notify import Latch
from rioecho._server.tasks import Task, WaitGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rioecho._core.counts import Counts
    from rioecho._server.accepted import Accepted
    from rioecho._server.engine import EngineOwner

#: The errors with which a peer ends a connection.
ENDS = (errno.ECONNRESET, errno.EPIPE)


class Peer:
    """The peer of a connection, for the log."""

    __slots__ = ("announced", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.announced = False

    def take_source(self, source: bytes) -> None:
        """Take the name from a PROXY header."""
        self.name = source_name(source)


class EventEngine:
    """Runs ``workers`` event loops without the GIL. A connection is given to the loop that has the fewest."""

    at_once: int | None = None

    def __init__(self, owner: EngineOwner) -> None:
        self._owner = owner
        self._loops: list[EventLoop] = []
        self._given: list[int] = []  # number of connections given to each loop so far
        self._running: list[bool] = []  # whether the thread of each loop has begun
        self._threads = WaitGroup()
        self._is_joined = False  # whether the time to wait for the threads is over
        self._handlings: list[Handling | None] = []  # of each loop; None echoes
        #: The threads that call handlers, by their numbers.
        self.threads: set[int] = set()
        self.counts: tuple[Counts, ...] = ()

    def start(self) -> None:
        owner = self._owner
        self._handlings = [self._handling() for _ in range(owner.workers)]
        self._loops = [
            EventLoop(
                owner.framing,
                idle_timeout=owner.idle_timeout or None,
                max_line=owner.max_line,
                drain_timeout=owner.drain_timeout,
                stop_fd=owner.stop_fd,
                on_closed=self._closed,
                on_opened=_opened,
                proxied=owner.proxy_protocol,
                hosts=owner.hosts,
                on_line=received if log.isEnabledFor(logging.DEBUG) else None,
                memory=owner.memory,
                handling=handling,
                poller=os.environ.get("RIOECHO_POLLER") or None,  # for tests
            )
            for handling in self._handlings
        ]
        self._given = [0] * len(self._loops)
        self.counts = tuple(loop.counts for loop in self._loops)
        self._running = [False] * len(self._loops)
        for i in range(len(self._loops)):
            begun = Latch()
            Task(self._run, i, begun, name=f"rioecho worker {i}", group=self._threads, latches=(begun,)).start()
            begun.wait()
            if not self._running[i]:
                raise MemoryError("no memory to start a thread")

    def _handling(self) -> Handling | None:
        owner = self._owner
        if owner.handler is None:
            return None
        raw = owner.framing == "raw"
        return Handling(owner.handler, raw=raw, max_line=owner.max_line, write_limit=owner.write_limit)

    def serve(self, connection: Accepted, drain: float | None) -> None:
        active = [given - count.now()["closed"] for given, count in zip(self._given, self.counts, strict=True)]
        i = active.index(min(active))
        given = self._given[i] + 1
        # The peer's name takes memory; an idle connection keeps it only if it is logged.
        peer: Peer | Connection | None = Peer(connection.peer) if log.isEnabledFor(logging.INFO) else None
        handling = self._handlings[i]
        if handling is not None and handling.has_objects:
            peer = Connection(connection, handling)
        try:
            self._loops[i].adopt(connection, peer)
        except ValueError:
            raise EngineClosed("the engine has failed") from None
        self._given[i] = given

    def report_closings(self, wanted: bool) -> None:
        for loop in self._loops:
            loop.report_closings(wanted)

    def join(self, seconds: float | None) -> None:
        for loop in self._loops:
            loop.no_more()
        self._threads.close()
        self._threads.wait(seconds)
        self._is_joined = True
        for loop in self._loops:
            self._close(loop)

    def _close(self, loop: EventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # its thread still runs in a handler, and closes it when it ends
            loop.close()

    def kill(self) -> None:
        """Do nothing: threads do not outlive the process."""

    def _run(self, i: int, begun: Latch) -> None:
        self._running[i] = True
        if self._handlings[i] is not None:
            self.threads.add(threading.get_ident())
        begun.open()
        try:
            self._loops[i].run()
        except Exception as error:
            self._owner.fail(error)
        finally:
            self.threads.discard(threading.get_ident())  # another thread may get the number
            if self._is_joined:
                self._close(self._loops[i])

    def _closed(self, peer: Peer | Connection | None, reason: str, err: int, echoed: int) -> None:
        self._owner.closings.wake()
        if peer is None:
            return
        if not peer.announced and (reason == "end of input" or (reason == "error" and err in ENDS)):
            unused(peer.name, os.strerror(err) if err else reason)
            return
        _opened(peer, None)
        closed(peer.name, os.strerror(err) if err else reason, echoed)


def _opened(peer: Peer | Connection, source: bytes | None) -> Peer | Connection:
    if not peer.announced:
        peer.announced = True
        if source is not None:
            peer.take_source(source)
        opened(peer.name)
    return peer
