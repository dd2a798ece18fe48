"""The echo server: its sockets, its accept loop, its counts and its life cycle.

How a connection is served once it is accepted is an engine's business (engines.py).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import operator
import os
import select
import socket
import sys
import threading
from time import monotonic

from rioecho.engines import ENGINES, Connection
from rioecho.sockets import LISTENQ, listen_sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Literal, Self, TypeVar

    from rioecho.engines import _Framing

    _Number = TypeVar("_Number", int, float)

log = logging.getLogger("rioecho.server")

#: Errors of accept() that say that the listener itself is broken; any other passes.
BROKEN = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}
#: Seconds to pause accepting then: at first, and at most.
PAUSE, LONGEST_PAUSE = 0.01, 1.0


class EchoServer:
    """An echo server: what a client sends comes back (the book's echo server, CS:APP 11.4.9; RFC 862 with "raw").

    ``port`` 0 is one free port for all addresses. ``host`` is a name or an address, or several; ``localhost`` listens
    on both loopback addresses. ``engine``: ``"thread"``, a thread for each connection, or ``"iterative"``, one
    connection at a time. ``framing``: ``"line"`` sends whole lines back, ``"raw"`` bytes as they come. A line longer
    than ``max_line`` goes back in pieces; a connection without progress for ``idle_timeout`` seconds is closed; 0 for
    either means no limit. ``drain_timeout``: seconds that stopping may take.

    As a context manager it serves in a thread of its own, from entering to leaving the block. Raises ``OSError`` that
    names the address when it cannot listen there, ``ValueError`` and ``TypeError`` for a wrong argument.
    """

    def __init__(
        self,
        port: int | str = 0,
        host: str | Sequence[str] = "localhost",
        *,
        engine: Literal["iterative", "thread"] = "thread",
        framing: _Framing = "line",
        backlog: int = LISTENQ,
        idle_timeout: float = 300.0,
        max_line: int = 1 << 20,
        drain_timeout: float = 5.0,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(sorted(ENGINES))}, not {engine!r}")
        if framing not in ("line", "raw"):
            raise ValueError(f"framing must be 'line' or 'raw', not {framing!r}")
        self.framing: _Framing = framing
        self.max_line = _limit("max_line", _whole("max_line", max_line), sys.maxsize)
        self.idle_timeout = _limit("idle_timeout", idle_timeout, math.inf)
        self.drain_timeout = _limit("drain_timeout", drain_timeout, math.inf)
        hosts = (host,) if isinstance(host, str) else tuple(host)
        if not hosts:
            raise ValueError("no host to listen on")
        self._engine = ENGINES[engine]()
        self._lock = threading.Lock()
        self._live: set[Connection] = set()
        self._counts = dict.fromkeys(("accepted", "refused", "closed", "errors", "bytes_in", "bytes_out", "lines"), 0)
        self._thread: threading.Thread | None = None
        self._stopped_at = math.inf  # on the monotonic clock
        self._serving = threading.Event()  # set from the start of serving on
        self._served = threading.Event()  # set at its end
        self._listeners = listen_sockets(hosts, port, backlog=_limit("backlog", _whole("backlog", backlog), 0x7FFFFFFF))
        #: The (host, port) pairs that are listened on.
        self.addresses: list[tuple[str, int]] = [sock.getsockname()[:2] for sock in self._listeners]
        try:
            for sock in self._listeners:
                sock.setblocking(False)  # a client may be gone between poll() and accept()
            # Readable from stop() on, for everything that waits: the accept loop and every echo.
            self.stop_fd, stop_fd = os.pipe()
            os.set_blocking(stop_fd, False)  # stop() returns at once, however often it is called
        except BaseException:
            self._close_listeners()
            raise
        self._stop_pipe = open(stop_fd, "wb", buffering=0)  # a file, which knows when it is closed  # noqa: SIM115

    # ---- life cycle

    def start(self) -> None:
        """Serve in a thread of its own. A server serves once: RuntimeError otherwise."""
        self._begin()
        thread = threading.Thread(target=self._serve_until_stopped, name="rioecho accept", daemon=True)
        try:
            thread.start()
        except BaseException:
            self._served.set()
            raise
        self._thread = thread

    def serve_forever(self) -> None:
        """Accept and serve until stop(); return when every connection is closed, or the time to drain is over."""
        self._begin()
        self._serve_until_stopped()

    def stop(self) -> None:
        """Stop accepting, echo what has arrived, close: from any thread, or a signal handler. Returns at once."""
        self._stopped_at = min(self._stopped_at, monotonic())
        with contextlib.suppress(ValueError):  # closed already
            self._stop_pipe.write(b"s")

    def close(self) -> None:
        """Stop, wait for the end of serving, and give everything back. Closing again does nothing.

        Not from a signal handler under serve_forever(), which it would wait for: there, stop() is enough.
        """
        self.stop()
        if self._serving.is_set():
            self._served.wait()
        if self._thread is not None:
            self._thread.join()
        self._close_listeners()
        self._stop_pipe.close()
        with self._lock:
            stop_fd, self.stop_fd = self.stop_fd, -1
        if stop_fd >= 0:
            os.close(stop_fd)

    def time_to_drain(self) -> float:
        """Seconds that a connection may take from the stop on: what is left, if the server has been stopped."""
        since = max(0.0, monotonic() - self._stopped_at)
        return max(0.0, self.drain_timeout - since)

    def _begin(self) -> None:
        with self._lock:
            if self._serving.is_set() or self._stop_pipe.closed:
                raise RuntimeError("this server has served already; make another one")
            self._serving.set()

    def _serve_until_stopped(self) -> None:
        try:
            self._accept_until_stopped()
        finally:
            try:
                self.stop()  # also where an error ended the accepting: the echoes must hear of it
                deadline = self._stopped_at + self.drain_timeout
                self._serve_the_queue(deadline)
                self._close_listeners()
                # The echoes keep the deadline themselves; they only need to be seen off.
                self._engine.join(deadline + 1.0)
            finally:
                self._close_listeners()
                self._served.set()

    def _close_listeners(self) -> None:
        for sock in self._listeners:
            sock.close()

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

        accepted, active, refused (closed unserved), closed, errors (of those closed), bytes_in, bytes_out, lines.
        """
        with self._lock:
            counts = dict(self._counts, active=len(self._live))
            for connection in self._live:
                for name in ("bytes_in", "bytes_out", "lines"):
                    counts[name] += getattr(connection.echo, name)
        return counts

    def closed(self, connection: Connection, *, failed: bool) -> None:
        """Count a connection that has been served."""
        with self._lock:
            self._live.discard(connection)
            self._counts["closed"] += 1
            self._counts["errors"] += failed
            for name in ("bytes_in", "bytes_out", "lines"):
                self._counts[name] += getattr(connection.echo, name)

    # ---- accepting

    def _accept_until_stopped(self) -> None:
        stopped = select.poll()
        stopped.register(self.stop_fd, select.POLLIN)
        ready = select.poll()
        ready.register(self.stop_fd, select.POLLIN)
        for sock in self._listeners:
            ready.register(sock, select.POLLIN)
        by_fd = {sock.fileno(): sock for sock in self._listeners}
        pause = PAUSE
        while True:
            fds = [fd for fd, _ in ready.poll()]
            if self.stop_fd in fds:
                return
            for fd in fds:
                try:
                    sock, address = by_fd[fd].accept()
                except (BlockingIOError, ConnectionAbortedError):
                    continue
                except OSError as error:
                    if error.errno in BROKEN:
                        raise
                    # No descriptor or memory is left, or the network has an error pending (accept(2)): trying again at
                    # once would only burn a processor.
                    if pause == PAUSE:
                        log.warning("accepting pauses: %s", error.strerror)
                    if stopped.poll(pause * 1000):
                        return
                    pause = min(pause * 2, LONGEST_PAUSE)
                    continue
                pause = PAUSE
                self._serve(sock, address)

    def _serve_the_queue(self, deadline: float) -> None:
        """Serve what the kernel has accepted for us: to the client it is connected, and its bytes are acknowledged.

        Each is served as all are that are connected when the server stops: what has arrived is echoed.
        """
        for listener in self._listeners:
            while True:
                try:
                    sock, address = listener.accept()
                except ConnectionAbortedError:
                    continue
                except OSError:
                    break  # the queue is empty, or cannot be served
                if monotonic() < deadline:
                    self._serve(sock, address)
                else:
                    self._refuse(sock, "the time to drain is over")

    def _serve(self, sock: socket.socket, address: object) -> None:
        try:
            sock.setblocking(True)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an answer is sent whole, and at once
            connection = Connection(sock, address, self)
            with self._lock:
                self._counts["accepted"] += 1
                self._live.add(connection)
            try:
                self._engine.serve(connection)
            except BaseException:
                with self._lock:
                    self._live.discard(connection)
                raise
        except (OSError, RuntimeError, MemoryError) as error:  # RuntimeError: can't start new thread
            self._refuse(sock, error)

    def _refuse(self, sock: socket.socket, why: object) -> None:
        sock.close()
        with self._lock:
            self._counts["refused"] += 1
        log.warning("refused a connection: %s", why)


def _whole(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None


def _limit(name: str, value: _Number, most: float) -> _Number:
    """Check a limit; NaN is none."""
    if not 0 <= value <= most:
        raise ValueError(
            f"{name} must be at least 0{'' if most == math.inf else f' and at most {most}'}, not {value!r}"
        )
    return value
