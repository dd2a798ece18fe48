"""The echo server: its arguments, its counts, and its life from listening to the last connection's end.

How connections are accepted (acceptor.py), how they are served (engines.py) and what is listened on (listeners.py)
is in _server.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import operator
import os
import sys
import threading
from time import monotonic

from rioecho._core.addresses import LISTENQ
from rioecho._core.budget import MemoryBudget
from rioecho._server.acceptor import Acceptor
from rioecho._server.engines import ENGINES
from rioecho._server.listeners import LISTEN_ATTEMPTS, Listeners
from rioecho._server.udp import UdpEcho, udp_sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Literal, Self, TypeVar

    from rioecho._core.addresses import Path
    from rioecho._server.engines import _Framing

    _Number = TypeVar("_Number", int, float)

log = logging.getLogger("rioecho.server")

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
        self._lock = threading.Lock()
        self._stopping = threading.RLock()  # a signal handler may stop() in the middle of stop() or close()
        self._pid = os.getpid()
        self._closing = threading.RLock()
        self._thread: threading.Thread | None = None
        self._begun = self._serving = self._closed = False
        self._refusal: BaseException | None = None  # why serving could not begin
        self._failure: BaseException | None = None  # and why it could not go on
        self._stopped_at = math.inf  # on the monotonic clock
        # Each is held until it is so. No Events: a signal handler that raises in their wait() leaves them locked.
        self._ready, self._served = threading.Lock(), threading.Lock()
        self._ready.acquire()
        self._served.acquire()
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            self._listeners, datagrams = _listen(hosts, port or 0, unix, passed, backlog, udp=udp)
            opened.callback(self._listeners.close)
            for sock in datagrams:
                opened.callback(sock.close)
            # Readable from stop() on, for everything that waits: the accept loop and every echo.
            self.stop_fd, stop_fd = os.pipe()
            opened.callback(self._close_stop_fd)
            os.set_blocking(stop_fd, False)  # stop() returns at once, however often it is called
            self._stop_pipe = open(stop_fd, "wb", buffering=0)  # noqa: SIM115
            opened.callback(self._close_stop_pipe)
            self._udp = UdpEcho(datagrams, stop_fd=self.stop_fd) if datagrams else None
            self._engine = ENGINES[engine](self)
            opened.callback(self._give_engine_up)
            self._acceptor = Acceptor(
                self._listeners.sockets,
                self._engine,
                limit=limit,
                stop_fd=self.stop_fd,
                backlog=backlog,
                drain=self._time_to_drain,
            )
            opened.callback(self._acceptor.close)
            self._resources = opened.pop_all()
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
        """Serve in a thread of its own; raises OSError or RuntimeError when that cannot begin.

        A server serves once: RuntimeError otherwise.
        """
        if not self._begin():
            raise RuntimeError("this server has served already; make another one")

    def _begin(self) -> bool:
        """Start serving; False where somebody has done so already."""
        with self._lock:
            if self._begun or self._closed:
                return False
            self._begun = True
        self._thread = threading.Thread(target=self._serve, name="rioecho accept", daemon=True)
        self._thread.start()
        with self._ready:
            if self._refusal is not None:
                raise self._refusal
        return True

    def serve_forever(self) -> None:
        """Accept and serve until stop(); return when every connection is closed, or the time to drain is over.

        That goes on in a thread of its own while this one waits: a signal handler that raises (Ctrl-C) does so at no
        wrong moment. Where start(), or entering the block, has begun it already, this only waits. Raises OSError when
        serving fails.
        """
        try:
            if not self._begin() and self._closed:
                raise RuntimeError("this server has been closed; make another one")
            self.wait()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Wait for the end of serving, which start() has begun. Raises OSError when serving has failed."""
        with self._served:
            if self._failure is not None:
                raise self._failure

    def stop(self) -> None:
        """Stop accepting, echo what has arrived, close: from any thread, or a signal handler. Returns at once."""
        if os.getpid() != self._pid:
            return  # a forked child: it is the parent's server
        self._stopped_at = min(self._stopped_at, monotonic())
        # It is closed, or about to be; or it has been said often enough.
        with self._stopping, contextlib.suppress(ValueError, BrokenPipeError, BlockingIOError):
            self._stop_pipe.write(b"s")

    def kill(self) -> None:
        """Leave no child process behind: for who is about to exit without having stopped. Returns at once."""
        self._engine.kill()

    def close(self) -> None:
        """Stop, wait for the end of serving, and give everything back. Closing again does nothing.

        Not from a signal handler under serve_forever(), which it would wait for: there, stop() is enough.
        """
        self.stop()
        with self._lock:
            self._closed = True
        if self._serving and os.getpid() == self._pid:
            with self._served:
                pass
            if self._thread is not None:
                self._thread.join()
        with self._closing:
            self._resources.close()

    def fail(self, error: BaseException) -> None:
        """Stop, for serving cannot go on; serve_forever() raises the error."""
        log.error("serving has failed, and the server stops: %s", getattr(error, "strerror", None) or error)
        self._failure = self._failure or error
        self.stop()

    def _serve(self) -> None:
        """In the server's own thread: from the beginning of serving to its end."""
        with self._lock:
            self._serving = not self._closed
            if self._closed:  # before it had begun
                self._ready.release()
                self._served.release()
                return
        datagrams = None
        try:
            try:
                self._engine.start()
                if self._udp is not None:
                    thread = threading.Thread(target=self._serve_datagrams, args=(self._udp,), name="rioecho udp")
                    thread.start()
                    datagrams = thread
            except BaseException as error:
                self._refusal = error
                self.stop()
                return
            finally:
                self._ready.release()
            try:
                self._acceptor.run()
            except BaseException as error:
                self.fail(error)
            finally:
                self.stop()
                self._acceptor.serve_the_queue(self._stopped_at + self.drain_timeout)
        except BaseException as error:
            self.fail(error)
        finally:
            self._listeners.close()
            # The echoes keep the deadline themselves; they only need to be seen off.
            self._engine.join(self._stopped_at + self.drain_timeout + 1.0)
            if datagrams is not None:
                datagrams.join()
            self._served.release()

    def _serve_datagrams(self, udp: UdpEcho) -> None:
        try:
            udp.run()
        except OSError as error:
            self.fail(error)

    def _time_to_drain(self) -> float:
        """Seconds that a connection may take from the stop on: what is left, if the server has been stopped."""
        since = max(0.0, monotonic() - self._stopped_at)
        return max(0.0, self.drain_timeout - since)

    def _give_engine_up(self) -> None:
        if os.getpid() == self._pid:  # a forked child's copy shares pipes with the parent's, who needs them
            self._engine.join(0.0)

    def _close_stop_pipe(self) -> None:
        with self._stopping:  # not while another thread writes: the number may be a stranger's at once
            self._stop_pipe.close()

    def _close_stop_fd(self) -> None:
        with self._lock:
            stop_fd, self.stop_fd = self.stop_fd, -1
        if stop_fd >= 0:
            os.close(stop_fd)

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
        # Of one moment, as far as that matters: never more active than were accepted, or than there may be.
        while True:
            accepted = self._acceptor.accepted
            counts = [count.now() for count in self._engine.counts]
            if accepted == self._acceptor.accepted:
                break
        total = {
            name: sum(each[name] for each in counts) for name in ("closed", "errors", "bytes_in", "bytes_out", "lines")
        }
        stats = {
            "accepted": accepted,
            "active": accepted - total["closed"],
            "refused": self._acceptor.refused,
            **total,
        }
        if self._udp is not None:
            for name, n in self._udp.counts().items():
                stats[name] = stats.get(name, 0) + n
        return stats

    def connection_closed(self) -> None:
        """For the engine, when a connection has gone."""
        self._acceptor.connection_closed()


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
