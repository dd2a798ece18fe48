"""The echo server: its arguments, its counts, and its life from listening to the last connection's end.

How connections are accepted (acceptor.py), how they are served (engines.py), what is listened on (listeners.py) and in
which order a server begins and ends (lifecycle.py) is in _server.
"""

from __future__ import annotations

import contextlib
import errno
import math
import operator
import sys
import threading

from rioecho._core.addresses import LISTENQ
from rioecho._core.budget import MemoryBudget
from rioecho._server.acceptor import Acceptor
from rioecho._server.engines import ENGINES
from rioecho._server.lifecycle import Lifecycle
from rioecho._server.listeners import LISTEN_ATTEMPTS, Listeners
from rioecho._server.listeners import passed_sockets as passed_sockets
from rioecho._server.notify import WakePipe
from rioecho._server.tasks import Task, WaitGroup
from rioecho._server.udp import UdpEcho, udp_sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Literal, Self, TypeVar

    from rioecho._core.addresses import Path
    from rioecho._server.engine import _Framing

    _Number = TypeVar("_Number", int, float)

MAX_WORKERS = 1024


class EchoServer:
    """An echo server: what a client sends comes back (the book's echo server, CS:APP 11.4.9; RFC 862 with "raw").

    ``port`` 0 is one free port for all addresses, None no TCP at all. ``host`` is a name or an address, or several;
    ``localhost`` listens on both loopback addresses. ``unix`` is the path of a unix socket; ``sockets`` are listening
    sockets that come from elsewhere and are taken over (``listeners.passed_sockets()``); ``udp`` echoes datagrams on
    the same addresses and on the datagram sockets among ``sockets``.

    ``engine``: ``"event"``, ``workers`` loops in as many threads, each with many connections and without the GIL;
    ``"thread"``, a thread for each connection; ``"process"``, a child process for each; ``"iterative"``, one
    connection at a time. ``framing``: ``"line"`` sends whole lines back, ``"raw"`` bytes as they come.

    ``backlog`` connections may wait in the kernel. At ``max_connections`` further clients wait there. A connection
    without progress for ``idle_timeout`` seconds is closed. A line longer than ``max_line`` bytes goes back in pieces.
    ``drain_timeout``: seconds that stopping may take. ``max_memory``: bytes that connections may hold all together;
    beyond it one that holds the beginning of a line is not read from until there is room. For these five 0 means no
    limit.

    As a context manager it serves in a thread of its own, from entering to leaving the block. Raises ``OSError`` that
    names the address when it cannot listen there, ``ValueError`` and ``TypeError`` for a wrong argument.
    """

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
        max_connections: int = 10_000,
        idle_timeout: float = 300.0,
        max_line: int = 1 << 20,
        drain_timeout: float = 5.0,
        max_memory: int = 256 << 20,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(sorted(ENGINES))}, not {engine!r}")
        if framing not in ("line", "raw"):
            raise ValueError(f"framing must be 'line' or 'raw', not {framing!r}")
        self.framing: _Framing = framing
        self.workers = _limit("workers", _whole("workers", workers), MAX_WORKERS, least=1)
        if self.workers > 1 and engine != "event":
            raise ValueError(f"workers are for the event engine; the {engine} engine has none")
        self.max_line = _limit("max_line", _whole("max_line", max_line), sys.maxsize)
        self.idle_timeout = _limit("idle_timeout", idle_timeout, math.inf)
        self.drain_timeout = _limit("drain_timeout", drain_timeout, math.inf) or math.inf
        self.memory = MemoryBudget(_limit("max_memory", _whole("max_memory", max_memory), sys.maxsize))
        limit = _limit("max_connections", _whole("max_connections", max_connections), sys.maxsize)
        backlog = _limit("backlog", _whole("backlog", backlog), 0x7FFFFFFF)
        hosts = () if port is None else (host,) if isinstance(host, str) else tuple(host)
        passed = list(sockets)
        if port is not None and not hosts:
            raise ValueError("no host to listen on")
        if not hosts and unix is None and not passed:
            raise ValueError("nothing to listen on: give a port, or a unix socket's path")
        self._closed = False
        self._closing = threading.RLock()  # a signal handler may close() in the middle of close()
        with contextlib.ExitStack() as opened:
            self._listeners, datagrams = _listen(hosts, port or 0, unix, passed, backlog, udp=udp)
            opened.callback(self._listeners.close)
            for sock in datagrams:
                opened.callback(sock.close)
            #: Notified when a connection has gone, its descriptor with it.
            self.closings = WakePipe(armed=False)
            opened.callback(self.closings.close)
            self._engine = ENGINES[engine](self)
            self._threads = WaitGroup()  # of UDP
            self._life = Lifecycle(
                self._begin,
                self._serve,
                (
                    self._listeners.hide,
                    self._serve_the_queue,
                    self._listeners.close,
                    self._join_engine,
                    self._join_datagrams,
                ),
                drain=self.drain_timeout,
            )
            opened.callback(self._life.stop.close)
            self._udp = UdpEcho(datagrams, stop_fd=self.stop_fd) if datagrams else None
            self._acceptor = Acceptor(
                self._listeners.sockets,
                self._engine,
                limit=limit,
                backlog=backlog,
                stop=self._life.stop,
                closings=self.closings,
            )
            opened.callback(self._acceptor.close)
            opened.pop_all()
        # Each closes what it has, and does nothing the next time: close() may be interrupted, and called again.
        self._closers = (
            self._acceptor.close,
            self._life.stop.close,
            self.closings.close,
            *(sock.close for sock in datagrams),
            self._listeners.close,
        )
        #: The (host, port) pairs that are listened on, and the paths of the unix sockets that are.
        self.addresses: list[tuple[str, int]] = []
        self.paths: list[str] = []
        for address in self._listeners.addresses:
            if isinstance(address, str):
                self.paths.append(address)
            else:
                self.addresses.append(address)

    # ---- life cycle

    def start(self) -> None:
        """Serve in a thread of its own; raises OSError, RuntimeError or MemoryError when that cannot begin.

        A server serves once: RuntimeError otherwise.
        """
        if not self._life.start():
            raise RuntimeError("this server has served already; make another one")

    def serve_forever(self) -> None:
        """Accept and serve until stop(); return when every connection is closed, or the time to drain is over.

        That goes on in a thread of its own while this one waits: a signal handler that raises (Ctrl-C) does so at no
        wrong moment. Where start(), or entering the block, has begun it already, this only waits. Raises OSError when
        serving fails.
        """
        try:
            if not self._life.start() and self._closed:
                raise RuntimeError("this server has been closed; make another one")
            self.wait()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Wait for the end of serving, which start() has begun. Raises OSError when serving has failed."""
        self._life.wait()

    def stop(self) -> None:
        """Stop accepting, echo what has arrived, close: from any thread, or a signal handler. Returns at once."""
        self._life.stop.request()

    def kill(self) -> None:
        """Kill all child processes. For callers that exit without stop(). Returns at once."""
        self._engine.kill()

    def close(self) -> None:
        """Stop, wait for the end of serving, and give everything back. Closing again does nothing.

        Not from a signal handler under serve_forever(), which it would wait for: there, stop() is enough.
        """
        self._closed = True
        served = self._life.close()
        with self._closing:
            if not served:
                self._join_engine()
            for closer in self._closers:
                closer()

    def fail(self, error: BaseException) -> None:
        """Stop, for serving cannot go on; serve_forever() raises the error."""
        self._life.fail(error)

    @property
    def stop_fd(self) -> int:
        """A descriptor that is readable from the stop on, for everything that waits; -1 once closed."""
        return self._life.stop.fd

    # ---- the steps of serving, in the server's own thread

    def _begin(self) -> None:
        self._engine.start()
        if self._udp is not None:
            Task(self._serve_datagrams, self._udp, name="rioecho udp", group=self._threads).start()

    def _serve(self) -> None:
        self._acceptor.run()

    def _serve_the_queue(self) -> None:
        if self._life.has_begun:
            self._acceptor.serve_the_queue()

    def _join_engine(self) -> None:
        # The echoes keep the deadline themselves; they only need to be seen off.
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

    # ---- counts

    def stats(self) -> dict[str, int]:
        """What has happened so far, by name.

        accepted, active, refused (closed unserved), closed, errors (of those closed), bytes_in, bytes_out, lines; with
        UDP also datagrams (answered) and dropped (not answered), whose bytes are among the others.
        """
        # Look again if a connection came meanwhile: never more are active than were accepted, or than there may be.
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
        stats = {"accepted": accepted, "active": accepted - total["closed"], "refused": admitted.refused, **total}
        if self._udp is not None:
            for name, n in self._udp.counts().items():
                stats[name] = stats.get(name, 0) + n
        return stats


def _listen(
    hosts: Sequence[str], port: int | str, unix: Path | None, passed: list[socket.socket], backlog: int, *, udp: bool
) -> tuple[Listeners, list[socket.socket]]:
    """Listen, and for UDP on the same ports: the listeners, and the datagram sockets."""
    attempt = 0
    while True:
        attempt += 1
        listeners = Listeners(hosts, port, paths=() if unix is None else (unix,), passed=passed, backlog=backlog)
        try:
            if not udp:
                if listeners.datagrams:
                    raise ValueError("a datagram socket was passed, and UDP was not asked for")
                return listeners, []
            pairs = [address for address in listeners.addresses if isinstance(address, tuple)]
            if not pairs and not listeners.datagrams:
                raise ValueError("UDP needs a port to listen on")
            return listeners, [*listeners.datagrams, *udp_sockets(pairs)]
        except OSError as error:
            # Port 0: what is free for TCP may be taken for UDP, and another one not.
            listeners.close()
            if port != 0 or passed or error.errno != errno.EADDRINUSE or attempt == LISTEN_ATTEMPTS:
                raise
        except BaseException:
            listeners.close()
            raise


def _whole(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None


def _limit(name: str, value: _Number, most: float, *, least: int = 0) -> _Number:
    """Check a limit; NaN is none."""
    if not least <= value <= most:
        raise ValueError(
            f"{name} must be at least {least}{'' if most == math.inf else f' and at most {most}'}, not {value!r}"
        )
    return value
