"""The thread engine, a thread for each connection (CS:APP 12.3.8), and the iterative one (CS:APP 11.4.9)."""

from __future__ import annotations

import logging

from rioecho._core.counts import Counts
from rioecho._server.blocking import Echo
from rioecho._server.engine import closed, log, opened, received
from rioecho._server.tasks import Task, WaitGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rioecho._server.accepted import Accepted
    from rioecho._server.engine import EngineOwner


class ThreadEngine:
    """A thread for each connection; its echo holds no GIL."""

    at_once: int | None = None

    def __init__(self, owner: EngineOwner) -> None:
        self._owner = owner
        self._threads = WaitGroup()
        self._count = Counts()
        self.counts: tuple[Counts, ...] = (self._count,)

    def start(self) -> None:
        """Threads come with the connections."""

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
            counts=self._count,
            memory=owner.memory,
        )
        peer = connection.peer
        task = Task(self._run, connection, echo, peer, name=f"echo {peer}", group=self._threads)
        connection.lend(task.start, self._count, owner.closings)

    def report_closings(self, wanted: bool) -> None:
        """It always does."""

    def join(self, seconds: float | None) -> None:
        """Wait for the threads; each ends by itself when the server's time to drain is over."""
        self._threads.close()
        self._threads.wait(seconds)

    def kill(self) -> None:
        """Threads do not outlive the process."""

    def _run(self, connection: Accepted, echo: Echo, peer: str) -> None:
        """Echo to the end of the input, or until the server stops; then close."""
        reason = "out of memory"
        failed = True
        try:
            opened(peer)
            echo.run()
            reason = "server stopped" if echo.draining else "end of input"
            failed = False
        except TimeoutError:
            reason = "drain timeout" if echo.draining else "idle timeout"
            failed = False
        except MemoryError:
            pass
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error)
        finally:
            connection.close(failed=failed)
        closed(peer, reason, echo.bytes_out)


class IterativeEngine(ThreadEngine):
    """The book's first server: one client at a time; the others wait in the kernel's queue.

    The one is served in a thread of its own, so that at the stop those who are waiting, whose bytes the kernel has
    acknowledged, need not wait for it.
    """

    at_once: int | None = 1
