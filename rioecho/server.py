"""The echo server: its sockets, its accept loop, its counts and its life cycle.

How a connection is served once it is accepted is an engine's business (engines.py).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
from time import monotonic

from rioecho.engines import ENGINES, Connection
from rioecho.sockets import LISTENQ, listen_sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Literal, Self

    from rioecho.engines import _Framing

log = logging.getLogger("rioecho.server")

#: accept() cannot serve anybody now, and trying again at once would only burn a processor.
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
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
        if min(backlog, max_line, idle_timeout, drain_timeout) < 0:
            raise ValueError("backlog, max_line, idle_timeout and drain_timeout must not be negative")
        self.framing: _Framing = framing
        self.max_line = max_line
        self.idle_timeout = idle_timeout
        self.drain_timeout = drain_timeout
        self._engine = ENGINES[engine]()
        self._lock = threading.Lock()
        self._live: set[Connection] = set()
        self._counts = dict.fromkeys(("accepted", "refused", "closed", "errors", "bytes_in", "bytes_out", "lines"), 0)
        self._thread: threading.Thread | None = None
        hosts = (host,) if isinstance(host, str) else tuple(host)
        self._listeners = listen_sockets(hosts, port, backlog=backlog)
        #: The (host, port) pairs that are listened on.
        self.addresses: list[tuple[str, int]] = [sock.getsockname()[:2] for sock in self._listeners]
        for sock in self._listeners:
            sock.setblocking(False)  # a client may be gone between poll() and accept()
        # Readable from stop() on, for everything that waits: the accept loop and every echo.
        self.stop_fd, self._stop_fd = os.pipe()

    # ---- life cycle

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread = threading.Thread(target=self.serve_forever, name="rioecho accept", daemon=True)
        self._thread.start()

    def serve_forever(self) -> None:
        """Accept and serve until stop(); returns when every connection is closed, or the time to drain is over."""
        try:
            self._accept_until_stopped()
        finally:
            deadline = monotonic() + self.drain_timeout
            for sock in self._listeners:
                sock.close()
            self._engine.join(deadline + 1.0)  # the echoes keep the deadline themselves; they only need to be seen off

    def stop(self) -> None:
        """Stop accepting, echo what has arrived, close: from any thread, or a signal handler. Returns at once."""
        if self._stop_fd >= 0:
            os.write(self._stop_fd, b"s")

    def close(self) -> None:
        """Stop, wait for the end of serving, and give everything back. Closing again does nothing."""
        if self._stop_fd < 0:
            return
        self.stop()
        if self._thread is not None:
            self._thread.join()
        for sock in self._listeners:
            sock.close()
        os.close(self.stop_fd)
        os.close(self._stop_fd)
        self.stop_fd = self._stop_fd = -1

    def __enter__(self) -> Self:
        self.start()
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
        poller = select.poll()
        poller.register(self.stop_fd, select.POLLIN)
        for sock in self._listeners:
            poller.register(sock, select.POLLIN)
        by_fd = {sock.fileno(): sock for sock in self._listeners}
        pause = PAUSE
        while True:
            ready = [fd for fd, _ in poller.poll()]
            if self.stop_fd in ready:
                return
            for fd in ready:
                try:
                    sock, address = by_fd[fd].accept()
                except (BlockingIOError, ConnectionAbortedError):
                    continue
                except OSError as error:
                    if error.errno not in EXHAUSTED:
                        raise
                    if pause == PAUSE:
                        log.warning("accepting pauses: %s", error.strerror)
                    if select.select([self.stop_fd], [], [], pause)[0]:
                        return
                    pause = min(pause * 2, LONGEST_PAUSE)
                    continue
                pause = PAUSE
                self._serve(sock, address)

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
            sock.close()
            with self._lock:
                self._counts["refused"] += 1
            log.warning("refused a connection: %s", error)
