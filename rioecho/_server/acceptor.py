"""The accept loop, which accepts connections from the listeners and hands them to the engine.

While the limit is reached, or the system has no descriptor, memory, thread or process left, accepting pauses and
clients wait in the listen queue. A connection is refused only if closing one of the server's own could not free the
resource.

One rule applies to every exception in the loop: accepting pauses and then continues. Only a broken listener ends the
loop.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
from collections import deque
from time import monotonic

from rioecho._server.accepted import AcceptCounts, accept, adopt, queue_length
from rioecho._server.engine import EngineClosed, log_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Container, Sequence

    from rioecho._server.accepted import Accepted
    from rioecho._server.engine import Engine
    from rioecho._server.hosts import HostTable
    from rioecho._server.notify import Stop, WakePipe

#: Errors of accept(2) that mean that the listener itself is broken; all others are temporary.
BROKEN = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}
#: First and longest pause of accepting while a resource is scarce, in seconds.
PAUSE, MAX_PAUSE = 0.01, 1.0
#: Time in seconds before the same warning is logged again.
SILENCE = 60.0
#: Maximum length of a listen queue by default (net.core.somaxconn on Linux).
MAX_QUEUE = 4096


class BrokenListener(Exception):
    """A listener is broken and accepts no more connections; its cause is the error of accept(2)."""


class Acceptor:
    """Accepts connections from ``sockets``, which are non-blocking, and hands them to ``engine``.

    ``connected`` are connected sockets, which are served first; with ``until_closed``, serving ends when the last
    connection is closed. At most ``limit`` connections are served at once; 0 means no limit. Call ``run()`` until the
    stop is requested, then ``take_the_queue()`` and ``serve_the_queue()``, which leave the listen queues of ``shared``
    listeners alone. ``closings`` is notified when a connection is closed. ``hosts`` limits the connections of each
    address; what is more is closed.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        engine: Engine,
        *,
        limit: int,
        backlog: int,
        stop: Stop,
        closings: WakePipe,
        hosts: HostTable | None = None,
        connected: Sequence[socket.socket] = (),
        until_closed: bool = False,
        shared: Container[socket.socket] = (),
    ) -> None:
        #: Connections that the engine has taken, and connections closed unserved.
        self.counts = AcceptCounts()
        self._sockets = tuple(sockets)
        self._own = [sock for sock in self._sockets if sock not in shared]
        self._connected = deque(connected)
        self._until_closed = until_closed
        self._first = 0  # index of the listener to try first the next time
        self._hosts = hosts
        self._engine = engine
        #: The maximum number of connections served at once, as asked for; 0: none.
        self.limit = limit
        self._limit = min((n for n in (limit, engine.at_once) if n), default=0)
        self._queue = max(backlog, MAX_QUEUE) + 1
        self._left: dict[socket.socket, int] = {}  # connections still to accept after the stop
        self._queued: deque[Accepted] = deque()  # those accepted after the stop, and not yet served
        self._stop = stop
        self._closings = closings
        self._pause = PAUSE
        self._closings_reported = False  # whether every close of a connection is reported
        self._last_warned: dict[str, float] = {}  # when each warning was last logged
        self._held: Accepted | None = None  # accepted, and not yet the engine's
        self._last: socket.socket | None = None  # the listener used last
        self._ready = select.poll()
        self._ready.register(stop.fd, select.POLLIN)
        for sock in self._sockets:
            self._ready.register(sock, select.POLLIN)
        self._spare = open(os.devnull, "rb", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        """Close the descriptors and the connections not yet handed over."""
        self._spare.close()
        self._held = None
        self._queued.clear()

    def active(self) -> int:
        """Return the number of connections being served."""
        return self.counts.active(self._engine.counts)

    def run(self) -> None:
        """Accept connections until the stop. Raises the ``OSError`` of a listener that is broken.

        With ``until_closed``, return when the last connection is closed.
        """
        while not self._stop.requested:
            try:
                if self._until_closed and self._held is None and not self._connected:
                    if self.active() == 0:
                        return
                    self._report_closings(True)
                    if self.active():
                        self._stop.pause(self._closings, MAX_PAUSE)
                else:
                    self._accept_some()
            except BrokenListener as broken:
                raise broken.__cause__ or broken from None
            except Exception as error:
                self._pause_for(error)

    def take_the_queue(self) -> bool:
        """Accept the connections that are in the listen queues at the stop, whose bytes the kernel has acknowledged.

        Only those are accepted, even if more keep arriving; the limit does not apply. Returns False if some are left
        because descriptors or memory are scarce: the listeners must then stay open until ``serve_the_queue()`` returns.
        A second call continues where the first was interrupted.
        """
        self._spare.close()
        for listener in self._own:
            if listener not in self._left:
                n = queue_length(listener.fileno())
                self._left[listener] = self._queue if n is None else n
        # The kernel gives out the lowest free number. Half of them are left to the engine, which may need more.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        try:
            while self._hold_next():
                held = self._held
                if held is None or (most > 0 and held.fileno() > most):
                    return False
                self._queued.append(held)
                self._held = None
        except Exception:
            return False
        return True

    def serve_the_queue(self) -> None:
        """Serve the connections of the listen queues (see ``take_the_queue()``), until the drain deadline.

        A second call continues where the first was interrupted.
        """
        while not self._stop.is_over:
            try:
                if self._held is None and self._queued:
                    self._held = self._queued.popleft()
                if self._held is None and not self._hold_next():
                    break
                self._hand_over()
            except Exception as error:
                self._pause_for(error, draining=True)
        self._refuse_held("the drain timeout has expired")
        self._queued.clear()

    # ---- one connection

    def _accept_some(self) -> None:
        """Wait for connections and accept one from each ready listener; at the limit, wait for a close instead."""
        if self._is_full():
            self._wait_for_room()
            return
        if self._held is None and self._connected:
            self._adopt()
        if self._held is None:
            fds = {fd for fd, _ in self._ready.poll()}
            first = self._first
            for i in range(first, first + len(self._sockets)):
                listener = self._sockets[i % len(self._sockets)]
                if listener.fileno() in fds or listener.fileno() < 0:  # closed by somebody else: broken
                    if self._stop.requested or self._is_full():
                        return
                    self._first = (i + 1) % len(self._sockets)
                    self._accept_from(listener)
                    self._hand_over()
        else:
            self._hand_over()

    def _accept_from(self, listener: socket.socket) -> bool:
        """Accept and hold a connection; return False if there is none."""
        self._last = listener
        try:
            self._held = accept(listener.fileno(), self.counts)
        except OSError as error:
            if error.errno in BROKEN:
                raise BrokenListener from error
            raise
        return self._held is not None

    def _hand_over(self) -> None:
        """Hand the held connection to the engine. Raises what the engine raises, and keeps holding the connection."""
        held = self._held
        if held is None:
            return
        try:
            if not held.is_taken:
                if self._hosts is not None and not held.admit(self._hosts):
                    self._refuse_held(f"max_per_host ({self._hosts.limit}) reached by {held.peer}")
                    return
                self._engine.serve(held, self._stop.time_left())
        except EngineClosed as error:
            self._refuse_held(str(error))
            return
        finally:
            if held.is_taken:
                self._held = None
        self._pause = PAUSE
        if self._closings_reported:
            self._report_closings(False)

    def _hold_next(self) -> bool:
        """After the stop, hold the next connection to be served, unless one is held; return False if there is none."""
        if self._held is None and self._connected:
            self._adopt()
        for listener in self._own:
            while self._held is None and self._left.get(listener, 0) > 0:
                try:
                    found = self._accept_from(listener)
                except BrokenListener:
                    found = False
                self._left[listener] = self._left[listener] - 1 if found else 0
        return self._held is not None

    def _adopt(self) -> None:
        """Hold the next of the connected sockets."""
        self._held = adopt(self._connected[0], self.counts)
        self._connected.popleft()

    def _refuse_held(self, reason: object) -> None:
        """Close the held connection, if there is one, which counts it as refused."""
        held, self._held = self._held, None
        if held is not None:
            held.close()
            self._warn("refused a connection: %s", reason)

    def _refuse_one(self) -> None:
        """Refuse a connection for which no descriptor is left, using the spare one to accept it."""
        self._spare.close()
        try:
            if self._last is not None and self._accept_from(self._last):
                self._refuse_held("no file descriptor is left")
        finally:
            self._spare = open(os.devnull, "rb", buffering=0)  # noqa: SIM115

    def _warn(self, text: str, reason: object) -> None:
        """Log a warning, unless the same one was logged within ``SILENCE`` seconds."""
        now = monotonic()
        if now - self._last_warned.get(text, -SILENCE) >= SILENCE:
            self._last_warned[text] = now
            log_line(logging.WARNING, text, reason)

    # ---- waiting for room

    def _is_full(self) -> bool:
        return self._limit > 0 and self.active() >= self._limit

    def _is_stuck(self) -> bool:
        """Report whether a resource has been scarce for long and the server has no connection to free it."""
        return self._pause >= MAX_PAUSE and not self._spare.closed and self.active() == 0

    def _wait_for_room(self) -> None:
        """Wait until there are fewer connections than the limit, or until the stop."""
        if self._limit != self._engine.at_once:
            self._warn("max_connections (%s) reached: clients wait until a connection closes", self._limit)
        self._report_closings(True)  # before the check, so that no close is missed
        # A notification may be lost for lack of memory, so check periodically as well.
        while self._is_full() and not self._stop.pause(self._closings, MAX_PAUSE):
            pass

    def _pause_for(self, error: BaseException, *, draining: bool = False) -> None:
        """Pause until a connection closes or the pause, doubled each time, is over. Raises nothing."""
        try:
            self._report_closings(True)
            self._make_room(error)
            pause, self._pause = self._pause, min(self._pause * 2, MAX_PAUSE)
        except Exception:  # no memory even for this: the pause is what helps
            pause = PAUSE
        self._stop.pause(self._closings, pause, draining)

    def _report_closings(self, wanted: bool) -> None:
        """Have every close of a connection end a pause; only until the next hand-over, because reporting has a cost."""
        self._closings_reported = True
        self._closings.arm(wanted)
        self._engine.report_closings(wanted)
        self._closings_reported = wanted

    def _make_room(self, error: BaseException) -> None:
        """Log that accepting pauses; refuse a connection if no pause would help."""
        reason = getattr(error, "strerror", None) or str(error) or "out of memory"
        if self._is_stuck():
            if self._held is not None:
                self._refuse_held(reason)
                return
            self._refuse_one()
        self._warn("accepting pauses: %s; clients wait in the listen queue", reason)
