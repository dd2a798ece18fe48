"""How the connections of an echo server are served: four engines behind one interface.

An engine takes over connections that were accepted, sees each through, and counts. The accept loop, the limits and the
life cycle are the server's (server.py); the echo itself is C (blocking.pyx, child.pyx, eventloop.pyx). A further
engine is a further class.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import signal
import socket
import struct
import threading
from time import monotonic
from typing import Literal, Protocol

from rioecho._core.budget import MemoryBudget, Share
from rioecho._core.counts import Counts
from rioecho._server.blocking import Echo
from rioecho._server.child import REPORT, Outcome, fork_echo
from rioecho._server.eventloop import EventLoop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    _Framing: TypeAlias = Literal["line", "raw"]

log = logging.getLogger("rioecho.server")

#: The longest that a thread's join() can wait.
MAX_WAIT = threading.TIMEOUT_MAX


class Host(Protocol):
    """What an engine needs of its server."""

    framing: _Framing
    max_line: int
    idle_timeout: float
    drain_timeout: float
    workers: int
    stop_fd: int  # readable from the stop on
    memory: MemoryBudget  # for what connections hold

    def fail(self, error: BaseException) -> None:
        """Stop the server: the engine cannot go on."""

    def connection_closed(self) -> None:
        """Hear that a connection has gone, its descriptor with it; from any thread."""


class Engine(Protocol):
    """How connections are served. Made before the server listens; start() comes before all else."""

    #: How many connections it serves at once; None: as many as there are.
    at_once: int | None
    #: What it has counted; the sum is what holds.
    counts: Sequence[Counts]

    def __init__(self, host: Host) -> None: ...

    def start(self) -> None:
        """Make ready. Raises OSError or RuntimeError when something cannot be had."""

    def serve(self, sock: socket.socket, peer: str, drain: float) -> None:
        """Take a connection over, or raise OSError, RuntimeError or MemoryError: then it is still the caller's.

        ``drain``: seconds that it may take from the stop on.
        """

    def report_closings(self, wanted: bool) -> None:
        """Call the host's connection_closed() whenever a connection has gone; without this it may, or may not."""

    def join(self, deadline: float) -> None:
        """Wait until all are served, at most to that moment of the monotonic clock. No connection comes after this.

        Also when start() was not called, or did not come to its end; and again, which does nothing.
        """

    def kill(self) -> None:
        """End at once what would outlive this process; also from a signal handler."""


def opened(peer: str) -> None:
    """Log that a connection is served."""
    log.info("Connected to %s", peer, extra={"fields": {"event": "connected", "peer": peer}})


def closed(peer: str, reason: str, echoed: int) -> None:
    """Log that a connection has gone, and why."""
    fields = {"event": "closed", "peer": peer, "reason": reason, "bytes": echoed}
    log.info("Closed %s: %s, %d bytes echoed", peer, reason, echoed, extra={"fields": fields})


def received(n: int) -> None:
    """Log a line; never what is in it."""
    log.debug("server received %d bytes", n, extra={"fields": {"event": "line", "bytes": n}})


def more_received(lines: int, n: int) -> None:
    """Log lines by their number: too many came at once to log each."""
    log.debug(
        "server received %d more lines, %d bytes",
        lines,
        n,
        extra={"fields": {"event": "lines", "lines": lines, "bytes": n}},
    )


class ThreadEngine:
    """A thread for each connection; its echo holds no GIL (CS:APP 12.3.8)."""

    at_once: int | None = None

    def __init__(self, host: Host) -> None:
        self._host = host
        self._threads: set[threading.Thread] = set()
        self._count = Counts()
        self.counts: Sequence[Counts] = (self._count,)
        self.counts = (self._count,)

    def start(self) -> None:
        """Threads come with the connections."""

    def serve(self, sock: socket.socket, peer: str, drain: float) -> None:
        echo = Echo(
            sock,
            self._host.framing,
            timeout=self._host.idle_timeout or None,
            max_line=self._host.max_line,
            stop_fd=self._host.stop_fd,
            drain_timeout=drain,
            on_line=received if log.isEnabledFor(logging.DEBUG) else None,
            counts=self._count,
            memory=self._host.memory,
        )
        thread = threading.Thread(target=self._run, args=(sock, peer, echo), name=f"echo {peer}", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            self._threads.discard(thread)
            raise

    def report_closings(self, wanted: bool) -> None:
        """It always does."""

    def join(self, deadline: float) -> None:
        """Wait for the threads; each ends by itself when the server's time to drain is over."""
        for thread in tuple(self._threads):
            thread.join(min(max(0.0, deadline - monotonic()), MAX_WAIT))

    def kill(self) -> None:
        """Threads do not."""

    def _run(self, sock: socket.socket, peer: str, echo: Echo) -> None:
        try:
            self._echo(sock, peer, echo)
        finally:
            self._threads.discard(threading.current_thread())  # the last: join() waits for what is logged, too

    def _echo(self, sock: socket.socket, peer: str, echo: Echo) -> None:
        """Echo to the end of the input, or until the server stops; then close. No error leaves here."""
        failed = False
        try:
            opened(peer)
            echo.run()
            reason = "server stopped" if echo.draining else "end of input"
        except TimeoutError:
            reason = "drain timeout" if echo.draining else "idle timeout"
        except OSError as error:
            failed = True
            reason = error.strerror or str(error)
        except MemoryError:
            failed = True
            reason = "out of memory"
        finally:
            # Before it is counted: who sees it counted may rely on the descriptor being free.
            sock.close()
            self._count.one_closed(failed=failed)
            self._host.connection_closed()
        closed(peer, reason, echo.bytes_out)


class IterativeEngine(ThreadEngine):
    """The book's first server: one client at a time; the others wait in the kernel's queue (CS:APP 11.4.9).

    The one is served in a thread of its own, so that at the stop those who are waiting, whose bytes the kernel has
    acknowledged, need not wait for it.
    """

    at_once: int | None = 1


class ProcessEngine:
    """A child process for each connection (CS:APP 12.1).

    Each child holds one end of a pipe, on which it reports; the pipe's end tells of the child's, however that came. One
    thread reads the reports and waits for the children.
    """

    at_once: int | None = None

    def __init__(self, host: Host) -> None:
        self._host = host
        self._count = Counts()
        self.counts: Sequence[Counts] = (self._count,)
        self.counts = (self._count,)
        self._children: dict[int, _Child] = {}  # by the descriptor of its reports
        self._lock = threading.Lock()
        self._joined = False
        self._killed = False
        self._selector = selectors.DefaultSelector()
        self._reaper = threading.Thread(target=self._reap, name="rioecho reap", daemon=True)
        self._woken = self._wake = -1

    def start(self) -> None:
        self._woken, self._wake = os.pipe()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._reaper.start()

    def serve(self, sock: socket.socket, peer: str, drain: float) -> None:
        memory = Share(self._host.memory, self._host.max_line)
        reports, report_fd = os.pipe()
        try:
            os.set_blocking(report_fd, False)
            os.set_blocking(reports, False)
            with self._lock:  # until it is among the children: it may end at once
                self._selector.register(reports, selectors.EVENT_READ)
                try:
                    pid = fork_echo(
                        sock.fileno(),
                        self._host.framing,
                        timeout=self._host.idle_timeout or None,
                        max_line=self._host.max_line,
                        stop_fd=self._host.stop_fd,
                        drain_timeout=drain,
                        tell_lines=log.isEnabledFor(logging.DEBUG),
                        report_fd=report_fd,
                        counts=self._count,
                        memory=memory,
                    )
                except BaseException:
                    self._selector.unregister(reports)
                    raise
                self._children[reports] = _Child(pid, peer, memory)
                opened(peer)  # before the reaper can say that it has gone
        except BaseException:
            if reports not in self._children:
                os.close(reports)
            raise
        finally:
            os.close(report_fd)
        sock.close()

    def report_closings(self, wanted: bool) -> None:
        """It always does."""

    def join(self, deadline: float) -> None:
        if self._joined:
            return
        self._joined = True
        if self._reaper.ident is not None:
            os.write(self._wake, b"j")
            self._reaper.join(min(max(0.0, deadline - monotonic()), MAX_WAIT))
            self.kill()  # they keep the deadline themselves, unless somebody has suspended them
            self._killed = True
            os.write(self._wake, b"k")
            self._reaper.join()
        self._selector.close()
        for fd in (self._woken, self._wake):
            if fd >= 0:
                os.close(fd)

    def kill(self) -> None:
        if self._lock.acquire(timeout=1.0):  # who is among the children has not been waited for: the pid is its own
            try:
                for child in self._children.values():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGKILL)
            finally:
                self._lock.release()

    def _reap(self) -> None:
        """Read the reports and wait for the children, until join() was called and there is none."""
        while not (self._joined and not self._children):
            for key, _ in self._selector.select():
                if key.fd == self._woken:
                    os.read(self._woken, 1)
                    continue
                with self._lock:
                    child = self._children[key.fd]
                try:
                    ended = child.read_reports(key.fd)
                except BlockingIOError:
                    continue
                if ended:
                    self._reap_child(key.fd, child)
            if self._killed:
                for fd, child in tuple(self._children.items()):
                    self._reap_child(fd, child)

    def _reap_child(self, fd: int, child: _Child) -> None:
        """Wait for a child that has ended, or is about to, and count its connection."""
        with self._lock:
            self._selector.unregister(fd)
            del self._children[fd]
        os.close(fd)
        reason, failed = child.wait()
        child.memory = None
        self._count.one_closed(failed=failed)
        self._host.connection_closed()
        closed(child.peer, reason, child.echoed)


class _Child:
    """A child process and what it has reported."""

    def __init__(self, pid: int, peer: str, memory: Share) -> None:
        self.pid = pid
        self.peer = peer
        self.memory: Share | None = memory  # dropped, it gives back what the child had taken
        self.echoed = 0
        self._end: tuple[str, bool] | None = None

    def read_reports(self, fd: int) -> bool:
        """Take what has been reported; True when nothing more will be."""
        size = struct.calcsize(REPORT)
        data = os.read(fd, size * 128)  # whole ones: each was written at once
        for outcome, draining, err, n in struct.iter_unpack(REPORT, data):
            if outcome == Outcome.LINE:
                received(n)
                continue
            self.echoed = n
            if outcome == Outcome.FAILED:
                self._end = os.strerror(err), True
            elif outcome == Outcome.TIMED_OUT:
                self._end = "drain timeout" if draining else "idle timeout", False
            else:
                self._end = "server stopped" if draining else "end of input", False
        # The last report is the child's last act. The pipe may not end with it: a process that was forked elsewhere in
        # the program, just then, holds it too.
        return not data or self._end is not None

    def wait(self) -> tuple[str, bool]:
        """Wait for the process: why the connection ended, and whether that is an error."""
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:  # somebody else waits for every child of this process
            status = 0
        if self._end is None:
            killed = os.WIFSIGNALED(status)
            return f"its process was ended by signal {os.WTERMSIG(status)}" if killed else "its process ended", True
        return self._end


class EventEngine:
    """One loop for many connections (CS:APP 12.2), and ``workers`` of them, each in a thread of its own, without the
    GIL. A connection goes to the loop that has the fewest.
    """

    at_once: int | None = None

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loops: list[EventLoop] = []
        self._threads: list[threading.Thread] = []
        self.counts: Sequence[Counts] = ()

    def start(self) -> None:
        self._loops = [
            EventLoop(
                self._host.framing,
                idle_timeout=self._host.idle_timeout or None,
                max_line=self._host.max_line,
                drain_timeout=self._host.drain_timeout,
                stop_fd=self._host.stop_fd,
                on_closed=self._closed,
                on_line=received if log.isEnabledFor(logging.DEBUG) else None,
                on_more_lines=more_received,
                memory=self._host.memory,
                without_epoll=os.environ.get("RIOECHO_POLLER") == "poll",  # for tests
            )
            for _ in range(self._host.workers)
        ]
        self._given = [0] * len(self._loops)
        self.counts = tuple(loop.counts for loop in self._loops)
        self._threads = [
            threading.Thread(target=self._run, args=(loop,), name=f"rioecho worker {i}", daemon=True)
            for i, loop in enumerate(self._loops)
        ]
        for thread in self._threads:
            thread.start()

    def serve(self, sock: socket.socket, peer: str, drain: float) -> None:
        active = [given - count.now()["closed"] for given, count in zip(self._given, self.counts, strict=True)]
        i = active.index(min(active))
        # A peer's name is memory, which an idle connection is to be sparing of.
        logged = log.isEnabledFor(logging.INFO)
        if logged:
            opened(peer)
        self._loops[i].adopt(sock.fileno(), peer if logged else None)
        self._given[i] += 1
        sock.detach()

    def report_closings(self, wanted: bool) -> None:
        for loop in self._loops:
            loop.report_closings(wanted)

    def join(self, deadline: float) -> None:
        for loop in self._loops:
            loop.no_more()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(min(max(0.0, deadline - monotonic()), MAX_WAIT))
        for loop in self._loops:
            with contextlib.suppress(RuntimeError):  # it still runs, against all expectation
                loop.close()

    def kill(self) -> None:
        """Threads do not."""

    def _run(self, loop: EventLoop) -> None:
        try:
            loop.run()
        except OSError as error:
            self._host.fail(error)

    def _closed(self, peer: str | None, reason: str, err: int, echoed: int) -> None:
        self._host.connection_closed()
        if peer is not None:
            closed(peer, os.strerror(err) if err else reason, echoed)


ENGINES: dict[str, Callable[[Host], Engine]] = {
    "iterative": IterativeEngine,
    "process": ProcessEngine,
    "thread": ThreadEngine,
    "event": EventEngine,
}

#: What accepting waits for to pass: nothing is broken, but there is not enough of something (accept(2), fork(2)).
SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC}
