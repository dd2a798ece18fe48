"""What EchoServer and LineServer have in common, which is all but what they answer: arguments, counts and life cycle.

The other files of this folder have the parts: the accept loop (acceptor.py), the engines (engines.py), the listening
sockets (listeners.py) and the order of starting and stopping (lifecycle.py).
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading

from rioecho._core.addresses import LISTENQ
from rioecho._core.budget import MemoryBudget
from rioecho._core.limits import shortages
from rioecho._server.acceptor import Acceptor
from rioecho._server.arguments import check_sockets, host_names, integer, limit
from rioecho._server.endpoints import listen
from rioecho._server.engine import log, log_line
from rioecho._server.engines import ENGINES
from rioecho._server.hosts import HostTable
from rioecho._server.lifecycle import Lifecycle
from rioecho._server.notify import WakePipe
from rioecho._server.tasks import Task, WaitGroup
from rioecho._server.udp import UdpEcho

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Any, Literal, Self

    from rioecho._core.addresses import Path
    from rioecho._server.engine import _Framing

MAX_WORKERS = 1024
#: The limit of connections unless another one is asked for.
MAX_CONNECTIONS = 10_000

#: The counts that the last line of the log leaves out if they are 0.
TROUBLES = {"active", "refused", "errors", "dropped"}


class Service:
    """A server of connections: its arguments, which EchoServer and LineServer document, and its methods."""

    #: The handler of a LineServer: a class, or a function; None echoes.
    handler: Callable[..., object] | None = None
    #: The number of bytes from which on a connection with a handler takes no more while some wait to be sent.
    write_limit = 0

    def __init__(
        self,
        port: int | str | None = 0,
        host: str | Sequence[str] = "localhost",
        *,
        unix: Path | None = None,
        sockets: Iterable[socket.socket] = (),
        udp: bool = False,
        engine: Literal["iterative", "process", "thread", "event"] = "event",
        framing: _Framing = "line",
        workers: int = 1,
        backlog: int = LISTENQ,
        max_connections: int = MAX_CONNECTIONS,
        idle_timeout: float = 300.0,
        max_line: int = 1 << 20,
        drain_timeout: float = 5.0,
        max_memory: int = 256 << 20,
        max_per_host: int = 0,
        proxy_protocol: bool = False,
        metrics: int | str | tuple[str, int] | None = None,
        unix_mode: int | None = None,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(sorted(ENGINES))}, not {engine!r}")
        if framing not in ("line", "raw"):
            raise ValueError(f"framing must be 'line' or 'raw', not {framing!r}")
        self.framing: _Framing = framing
        self.workers = limit("workers", integer("workers", workers), MAX_WORKERS, minimum=1)
        if self.workers > 1 and engine != "event":
            raise ValueError(f"workers are for the event engine; the {engine} engine has none")
        self.max_line = limit("max_line", integer("max_line", max_line), sys.maxsize)
        self.idle_timeout = limit("idle_timeout", idle_timeout, math.inf)
        self.drain_timeout = limit("drain_timeout", drain_timeout, math.inf) or math.inf
        self.memory = MemoryBudget(limit("max_memory", integer("max_memory", max_memory), sys.maxsize))
        max_connections = limit("max_connections", integer("max_connections", max_connections), sys.maxsize)
        max_per_host = limit("max_per_host", integer("max_per_host", max_per_host), sys.maxsize)
        self.proxy_protocol = bool(proxy_protocol)
        self.hosts = HostTable(max_per_host) if max_per_host else None
        backlog = limit("backlog", integer("backlog", backlog), 0x7FFFFFFF)
        if unix_mode is not None:
            unix_mode = limit("unix_mode", integer("unix_mode", unix_mode), 0o777)
            if unix is None:
                raise ValueError("unix_mode is for a unix socket; pass its path")
        self._backlog = backlog
        hosts = () if port is None else host_names(host)
        passed = check_sockets(sockets)
        if port is not None and not hosts:
            raise ValueError("no host to listen on")
        if not hosts and unix is None and not passed:
            raise ValueError("nothing to listen on: pass a port, or the path of a unix socket")
        self._closed = False
        self._active_at_stop: int | None = None  # the number of connections when the stop was requested
        self._closing = threading.RLock()  # a signal handler may call close() during close()
        with contextlib.ExitStack() as opened:
            self._metrics = None
            if metrics is not None:  # before anything is listened on: this imports a package, which takes time
                from rioecho._server.metrics import Metrics

                self._metrics = Metrics(metrics, self.stats, lambda: not self._life.stop.requested)
                opened.callback(self._metrics.close)
            self._listeners, datagrams = listen(
                hosts, 0 if port is None else port, unix, unix_mode, passed, backlog, udp=udp
            )
            for sock in datagrams:
                if sock not in self._listeners.datagrams:
                    opened.callback(sock.close)
            opened.callback(self._listeners.give_back)
            #: Notified when a connection and its descriptor have been closed.
            self.closings = WakePipe(armed=False)
            opened.callback(self.closings.close)
            self._engine = ENGINES[engine](self)
            self._threads = WaitGroup()  # the thread of the UDP echo
            self._life = Lifecycle(
                self._begin,
                self._serve,
                (
                    self._report_stopping,
                    self._listeners.hide,
                    self._take_the_queue,
                    self._serve_the_queue,
                    self._listeners.stop_listening,
                    self._join_engine,
                    self._join_datagrams,
                    self._listeners.close,
                    self._stop_metrics,
                    self._report_stopped,
                ),
                drain=self.drain_timeout,
            )
            opened.callback(self._life.stop.close)
            self._udp = UdpEcho(datagrams, stop_fd=self.stop_fd) if datagrams else None
            self._acceptor = Acceptor(
                self._listeners.sockets,
                self._engine,
                limit=max_connections,
                backlog=backlog,
                stop=self._life.stop,
                closings=self.closings,
                hosts=None if self.proxy_protocol else self.hosts,
                connected=self._listeners.connected,
                until_closed=bool(self._listeners.connected) and not self._listeners.sockets and not datagrams,
                shared=self._listeners.shared,
            )
            opened.callback(self._acceptor.close)
            opened.pop_all()
        # Each does nothing when called again: close() may be interrupted and called a second time.
        self._closers = (
            self._acceptor.close,
            self._life.stop.close,
            self.closings.close,
            *(sock.close for sock in datagrams),
            self._listeners.close,
            *(() if self._metrics is None else (self._metrics.stop, self._metrics.close)),
        )
        #: The ``(host, port)`` of the metrics, or None.
        self.metrics_address = None if self._metrics is None else self._metrics.address
        places = self._listeners.addresses
        self._addresses = [place for place in places if not isinstance(place, str)]
        self._paths = [place for place in places if isinstance(place, str)]

    # ---- life cycle

    def start(self) -> None:
        """Start serving in a thread of its own, and return when it has begun.

        A server serves once. Raises ``RuntimeError`` if it has been started or closed before, or if the system has no
        thread left; ``OSError`` or ``MemoryError`` if serving cannot begin.
        """
        if not self._life.start():
            raise RuntimeError("this server has been started or closed before; create another one")

    def serve_forever(self) -> None:
        """Accept and serve until ``stop()``; return when the connections are drained or ``drain_timeout`` expires.

        Serving happens in a thread of its own while the caller waits, so a signal handler that raises (Ctrl-C) does
        not interrupt it halfway. If ``start()`` has been called, this only waits. Raises ``OSError`` if serving fails,
        ``RuntimeError`` if the server has been closed.
        """
        try:
            if not self._life.start() and self._closed:
                raise RuntimeError("this server has been closed; create another one")
            self.wait()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Wait until serving, begun by ``start()``, has ended. Raises ``OSError`` if serving has failed."""
        self._refuse_own_thread("wait")
        self._life.wait()

    def stop(self) -> None:
        """Request the stop: stop accepting, echo the bytes that have arrived, close. Does not block.

        The clients in the listen queue at that moment are still served. A client that has sent nothing yet is given a
        quarter of a second, but at most half of ``drain_timeout``, to send its first bytes.

        May be called from any thread and from a signal handler.
        """
        if not self._life.stop.requested:
            with contextlib.suppress(Exception):  # no memory for a number
                self._active_at_stop = self._acceptor.active()
        self._life.stop.request()

    def kill(self) -> None:
        """Kill all child processes. For callers that exit without ``stop()``. Does not block."""
        self._engine.kill()

    def close(self) -> None:
        """Stop, wait until serving has ended, and release all descriptors. Closing again does nothing.

        Do not call it from a signal handler that interrupts ``serve_forever()``; call ``stop()`` there.
        """
        self._refuse_own_thread("close")
        self._closed = True
        self.stop()
        served = self._life.close()
        with self._closing:
            if not served:
                self._join_engine()
            for closer in self._closers:
                closer()

    def _refuse_own_thread(self, name: str) -> None:
        if threading.get_ident() in self._engine.threads:
            raise RuntimeError(f"{name}() waits for the handlers, and is called by one of them; call stop() there")

    def fail(self, error: BaseException) -> None:
        """Stop the server because of an error, which ``serve_forever()`` and ``wait()`` raise."""
        self._life.fail(error)

    @property
    def stop_fd(self) -> int:
        """The descriptor that becomes readable when the stop is requested; -1 after ``close()``."""
        return self._life.stop.fd

    def drain_time_left(self) -> float | None:
        """Return the seconds until the drain deadline, before the stop all of ``drain_timeout``; None without one."""
        return self._life.stop.time_left()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The ``(host, port)`` pairs that the server listens on."""
        return list(self._addresses)

    @property
    def paths(self) -> list[str]:
        """The paths of the unix sockets that the server listens on."""
        return list(self._paths)

    @property
    def address(self) -> Any:
        """The first ``(host, port)`` that the server listens on; without TCP, the first path.

        Raises ``AttributeError`` if the server does not listen, as one of a connected socket alone.
        """
        for place in (*self._addresses, *self._paths):
            return place
        raise AttributeError("this server does not listen: it has no address")

    @property
    def host(self) -> str:
        """The host of the first address. Raises ``AttributeError`` if the server does not listen on TCP."""
        return self._first_address()[0]

    @property
    def port(self) -> int:
        """The port of the first address. Raises ``AttributeError`` if the server does not listen on TCP."""
        return self._first_address()[1]

    def _first_address(self) -> tuple[str, int]:
        if not self._addresses:
            raise AttributeError("this server does not listen on TCP: it has no host and no port")
        return self._addresses[0]

    # ---- the steps of serving, in the server's own thread

    def _begin(self) -> None:
        self._engine.start()
        if self._udp is not None:
            Task(self._serve_datagrams, self._udp, name="rioecho udp", group=self._threads).start()
        if self._metrics is not None:
            self._metrics.start()
            log_line(logging.INFO, "Serving metrics on %s", self._metrics.url, event="metrics", url=self._metrics.url)
        self._report_shortages()

    def _report_shortages(self) -> None:
        # Python prints the warnings of a program without a log on stderr. Such a program gets none about the default
        # limits, which exceed those of many systems.
        has_log = log.hasHandlers()
        connections, backlog = self._acceptor.limit, self._backlog if self._listeners.sockets else 0
        for was_asked_for, found in (
            (connections != MAX_CONNECTIONS, shortages(connections, 0)),
            (backlog != LISTENQ, shortages(0, backlog)),
        ):
            for text in found:
                log_line(logging.WARNING if was_asked_for or has_log else logging.INFO, text, event="shortage")

    def _stop_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.stop()

    def _serve(self) -> None:
        self._acceptor.run()

    def _report_stopping(self) -> None:
        if self._life.has_begun:
            active = self._acceptor.active() if self._active_at_stop is None else self._active_at_stop
            log_line(logging.INFO, "Stopping: %d active", active, event="stopping", active=active)

    def _report_stopped(self) -> None:
        if self._life.has_begun:
            counts: dict[str, Any] = self.stats()
            shown = [name for name, n in counts.items() if n or name not in TROUBLES]
            text = ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in shown)
            log_line(logging.INFO, "Stopped: %s", text, event="stopped", **counts)

    def _take_the_queue(self) -> None:
        # Close early: a client that connects later is refused at once, rather than reset.
        if self._life.has_begun and self._acceptor.take_the_queue():
            self._listeners.stop_listening()

    def _serve_the_queue(self) -> None:
        if self._life.has_begun:
            self._acceptor.serve_the_queue()

    def _join_engine(self) -> None:
        # Each echo keeps the drain deadline itself; the grace is for the engine to notice that it has ended.
        self._engine.join(self._life.stop.time_left(1.0))

    def _join_datagrams(self) -> None:
        self._threads.close()
        self._threads.wait()

    def _serve_datagrams(self, udp: UdpEcho) -> None:
        try:
            udp.run()
        except Exception as error:
            self.fail(error)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from rioecho._server.loopcall import call_in_thread  # it imports asyncio

        self.stop()
        await call_in_thread(self.close)

    # ---- counts

    def stats(self) -> dict[str, int]:
        """Return the counts so far, by name.

        ``accepted``, ``active``, ``refused`` (closed unserved), ``closed``, ``errors`` (those closed because of an
        error) count connections; ``bytes_in``, ``bytes_out`` and ``lines`` (whole ones, that were echoed or given to a
        handler; none with raw framing) what they carried. With UDP there are also
        ``datagrams`` (answered) and ``dropped`` (not answered), whose bytes are included in the byte counts.

        A reset before the first byte is no error. A connection that is refused because of its PROXY header counts as
        accepted and closed too.
        """
        # Read again if a connection was accepted in between, so that `active` is neither negative nor above the limit.
        admitted = self._acceptor.counts
        while True:
            accepted = admitted.accepted
            counts = [count.now() for count in self._engine.counts]
            if accepted == admitted.accepted:
                break
        total = dict.fromkeys(("closed", "errors", "bytes_in", "bytes_out", "lines"), 0)
        for each in counts:
            for name in total:
                total[name] += each[name]
        refused = admitted.refused + sum(count.refused for count in self._engine.counts)
        stats = {"accepted": accepted, "active": accepted - total["closed"], "refused": refused, **total}
        if self._udp is not None:
            for name, n in self._udp.counts().items():
                stats[name] = stats.get(name, 0) + n
        return stats


# EchoServer inherits the method, and error messages name it.
Service.__init__.__qualname__ = "EchoServer.__init__"

#: The keyword arguments of a server.
OPTIONS = frozenset(Service.__init__.__kwdefaults__ or ())
