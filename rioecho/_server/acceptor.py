"""The accept loop: connections come from the listeners and go to the engine, as long as there is room for them.

Where there is none - the limit is reached, or the system has no descriptor, memory, thread or process left - clients
wait in the kernel's queue. They are never turned away for that, unless nothing of ours could ever leave.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from rioecho._server.engines import Engine

log = logging.getLogger("rioecho.server")

#: Errors of accept() that say that the listener itself is broken; any other passes.
BROKEN = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}
#: Errors of accept() that are one client's, who has gone: accept(2).
GONE = {errno.ECONNABORTED, errno.EINTR, errno.EAGAIN, errno.EPROTO}
#: Seconds that accepting pauses when something is scarce: at first, and at most.
PAUSE, MAX_PAUSE = 0.01, 1.0
#: Seconds for which the same warning is not repeated.
SILENCE = 60.0
#: The longest queue of a listener that a kernel keeps without being told to (net.core.somaxconn).
MAX_QUEUE = 4096


class Acceptor:
    """Accepts from ``sockets``, which do not block, for ``engine``; ``limit`` connections at once, 0 for no limit.

    run() until ``stop_fd`` becomes readable; then serve_the_queue(). ``drain()`` says how many seconds a connection may
    take from the stop on.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        engine: Engine,
        *,
        limit: int,
        stop_fd: int,
        backlog: int,
        drain: Callable[[], float],
    ) -> None:
        #: Connections given to the engine, and connections closed unserved.
        self.accepted = 0
        self.refused = 0
        self._sockets = list(sockets)
        self._engine = engine
        self._limit = min((n for n in (limit, engine.at_once) if n), default=0)
        self._stop_fd = stop_fd
        self._queue = max(backlog, MAX_QUEUE) + 1
        self._drain = drain
        self._lock = threading.Lock()
        self._pause = PAUSE
        self._said: dict[str, float] = {}
        self._held: tuple[socket.socket, Any] | None = None  # accepted, and not yet to be served
        self._listening = False  # for those who leave
        self._left, wake = os.pipe()
        os.set_blocking(self._left, False)
        os.set_blocking(wake, False)
        self._wake = open(wake, "wb", buffering=0)  # a file, which knows when it is closed  # noqa: SIM115
        self._spare = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        """Give the descriptors back."""
        self._wake.close()
        for fd in (self._left, self._spare):
            if fd >= 0:
                os.close(fd)
        self._left = self._spare = -1

    def active(self) -> int:
        """How many connections are being served."""
        with self._lock:
            return self.accepted - sum(count.now()["closed"] for count in self._engine.counts)

    def connection_closed(self) -> None:
        """Hear that a connection has gone; from any thread."""
        if self._listening:
            with contextlib.suppress(ValueError, BlockingIOError):  # closed; or it has enough to read
                self._wake.write(b"l")

    def run(self) -> None:
        """Accept until the stop. Raises the OSError of a listener that is broken."""
        ready = select.poll()
        ready.register(self._stop_fd, select.POLLIN)
        for sock in self._sockets:
            ready.register(sock, select.POLLIN)
        while True:
            if self._is_full():
                stopped = self._wait_for_room()
            elif self._held is not None:
                held, self._held = self._held, None
                stopped = not self._serve(*held) and self._wait_for_more()
            else:
                fds = {fd for fd, _ in ready.poll()}
                stopped = self._stop_fd in fds or self._accept_from([s for s in self._sockets if s.fileno() in fds])
            if stopped:
                return

    def serve_the_queue(self, deadline: float) -> None:
        """Serve those whom the kernel has connected: their bytes are acknowledged, so they are echoed, and no more.

        After the stop, and to that moment of the monotonic clock; the limit does not hold them up any more.
        """
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        waiting = select.poll()
        waiting.register(self._left, select.POLLIN)
        self._listen(True)
        for listener in self._sockets:
            taken = 0
            while taken < self._queue:
                try:
                    sock, address = self._held or listener.accept()
                    self._held = None
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in BROKEN:
                        break
                    if error.errno not in GONE:
                        if monotonic() >= deadline:
                            break
                        self._hear(waiting, min(deadline - monotonic(), self._pause))
                    continue
                if monotonic() >= deadline:
                    self._refuse(sock, "the time to drain is over")
                elif self._serve(sock, address):
                    taken += 1
                else:
                    self._hear(waiting, min(deadline - monotonic(), self._pause))
        if self._held is not None:
            self._refuse(self._held[0], "the time to drain is over")
            self._held = None

    # ---- one connection

    def _accept_from(self, sockets: list[socket.socket]) -> bool:
        """Accept one from each that is ready; True when the stop came meanwhile."""
        for listener in sockets:
            # The next time another one comes first.
            self._sockets.remove(listener)
            self._sockets.append(listener)
            try:
                sock, address = listener.accept()
            except OSError as error:
                if error.errno in BROKEN:
                    raise
                if error.errno in GONE:
                    continue
                self._warn("accepting pauses: %s; clients wait until there is more", error.strerror)
                if self._nothing_will_change():
                    self._turn_one_away(listener)
                return self._wait_for_more()
            if not self._serve(sock, address):
                return self._wait_for_more()
            if self._is_full():
                break
        return False

    def _serve(self, sock: socket.socket, address: Any) -> bool:
        """Give a connection to the engine, or turn it away; False: it is held, for the engine has no room now."""
        try:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an answer is sent whole, and at once
        except OSError as error:  # macOS: it has gone already
            self._refuse(sock, error.strerror)
            return True
        with self._lock:
            self.accepted += 1
        try:
            self._engine.serve(sock, _shown(address), self._drain())
        except (OSError, RuntimeError, MemoryError) as error:  # RuntimeError: can't start new thread
            with self._lock:
                self.accepted -= 1
            why = getattr(error, "strerror", None) or str(error) or "out of memory"
            if self._nothing_will_change():
                self._refuse(sock, why)
                return True
            self._warn("accepting pauses: %s; clients wait until there is more", why)
            self._held = sock, address
            return False
        except ValueError as error:  # the engine has failed and takes no more, and the server is about to stop
            with self._lock:
                self.accepted -= 1
            self._refuse(sock, error)
        self._pause = PAUSE
        return True

    def _refuse(self, sock: socket.socket, why: object) -> None:
        sock.close()
        with self._lock:
            self.refused += 1
        self._warn("refused a connection: %s", why)

    def _turn_one_away(self, listener: socket.socket) -> None:
        """Close a client's connection that there is no descriptor for, by giving one up meanwhile."""
        os.close(self._spare)
        self._spare = -1
        try:
            with contextlib.suppress(OSError):
                self._refuse(listener.accept()[0], "no descriptor is left for it")
        finally:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)

    def _warn(self, text: str, why: object) -> None:
        """Log a warning, but not the same one again and again."""
        now = monotonic()
        if now - self._said.get(text, -SILENCE) >= SILENCE:
            self._said[text] = now
            log.warning(text, why)

    # ---- waiting for room

    def _is_full(self) -> bool:
        return self._limit > 0 and self.active() >= self._limit

    def _nothing_will_change(self) -> bool:
        """Is something scarce for long, and none of our connections there to give it back?"""
        return self._pause >= MAX_PAUSE and self._spare >= 0 and self.active() == 0

    def _wait_for_room(self) -> bool:
        """Wait until the limit lets another one in; True when the stop came meanwhile."""
        if self._limit != self._engine.at_once:
            self._warn("max_connections (%s) reached: clients wait until one leaves", self._limit)
        self._listen(True)
        try:
            while self._is_full():
                if self._wait(None):
                    return True
        finally:
            self._listen(False)
        return False

    def _wait_for_more(self) -> bool:
        """Pause until one of ours leaves, or for a while, longer each time; True when the stop came meanwhile."""
        self._listen(True)
        try:
            return self._wait(self._pause)
        finally:
            self._listen(False)
            self._pause = min(self._pause * 2, MAX_PAUSE)

    def _wait(self, timeout: float | None) -> bool:
        ready = select.poll()
        ready.register(self._stop_fd, select.POLLIN)
        ready.register(self._left, select.POLLIN)
        return self._stop_fd in self._hear(ready, timeout)

    def _hear(self, ready: select.poll, timeout: float | None) -> list[int]:
        """Wait for one of the descriptors, and take what those who left have written."""
        fds = [fd for fd, _ in ready.poll(None if timeout is None else max(0.0, timeout * 1000))]
        if self._left in fds:
            os.read(self._left, 1 << 16)
        return fds

    def _listen(self, wanted: bool) -> None:
        """Have connection_closed() wake us, from before we look whether there is room."""
        self._listening = wanted
        self._engine.report_closings(wanted)


def _shown(address: Any) -> str:
    return f"({address[0]}, {address[1]})" if isinstance(address, tuple) else "(unix socket)"
