"""The thread engine (CS:APP 12.3.8) and the iterative engine (CS:APP 11.4.9)."""

from __future__ import annotations

import logging
from functools import partial

from rioecho._core.counts import Counts
from rioecho._server.blocking import Echo
from rioecho._server.engine import closed, log, opened, received, unused
from rioecho._server.tasks import Task, WaitGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from rioecho._server.accepted import Accepted
    from rioecho._server.engine import EngineOwner


class Crowded(Exception):
    """The address in the PROXY header has as many connections as are allowed."""


class ThreadEngine:
    """Serves each connection in a thread, whose echo does not hold the GIL."""

    at_once: int | None = None
    threads: Collection[int] = ()

    def __init__(self, owner: EngineOwner) -> None:
        self._owner = owner
        self._threads = WaitGroup()
        self._count = Counts()
        self.counts: tuple[Counts, ...] = (self._count,)

    def start(self) -> None:
        """Do nothing: each connection starts its own thread."""

    def serve(self, connection: Accepted, drain: float | None) -> None:
        owner = self._owner
        echo = Echo(
            connection,
            owner.framing,
            timeout=owner.idle_timeout or None,
            max_line=owner.max_line,
            stop_fd=owner.stop_fd,
            drain_timeout=drain,
            on_line=received if log.isEnabledFor(logging.DEBUG) else None,
            on_opened=partial(self._opened, connection),
            proxied=owner.proxy_protocol,
            counts=self._count,
            memory=owner.memory,
        )
        task = Task(self._run, connection, echo, name=f"echo {connection.peer}", group=self._threads)
        connection.lend(task.start, self._count, owner.closings)

    def report_closings(self, wanted: bool) -> None:
        """Do nothing: every close is always reported."""

    def join(self, seconds: float | None) -> None:
        """Wait for the threads; each returns on its own at the drain deadline."""
        self._threads.close()
        self._threads.wait(seconds)

    def kill(self) -> None:
        """Do nothing: threads do not outlive the process."""

    def _opened(self, connection: Accepted, source: bytes | None, first: bool) -> None:
        """Take the address of the PROXY header, and log the connection when its first bytes arrive."""
        connection.name_source(source)
        hosts = self._owner.hosts
        if hosts is not None and not connection.admit(hosts):
            raise Crowded("too many connections from its address")
        if first and not connection.announced:
            connection.announced = True
            opened(connection.peer)

    def _run(self, connection: Accepted, echo: Echo) -> None:
        """Echo until EOF or the stop, then close the connection."""
        reason = "out of memory"
        failed = True
        try:
            echo.run()
            reason = "server stopped" if echo.draining else "end of input"
            failed = False
        except TimeoutError:
            reason = "drain timeout" if echo.draining else "idle timeout"
            failed = False
        except MemoryError:
            pass
        except Crowded as error:
            self._count.one_refused()
            reason = str(error)
            failed = False
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error)
        finally:
            is_unused = echo.is_unused
            peer = connection.peer
            connection.close(failed=failed and not is_unused)
        if is_unused:
            unused(peer, reason)
            return
        if not connection.announced:
            opened(peer)
        closed(peer, reason, echo.bytes_out)


class IterativeEngine(ThreadEngine):
    """Serves one connection at a time, as the book's first server does; other clients wait in the listen queue.

    The connection is served in a thread of its own, so that at the stop the clients in the listen queue, whose bytes
    the kernel has acknowledged, do not have to wait for it.
    """

    at_once: int | None = 1
    threads: Collection[int] = ()
