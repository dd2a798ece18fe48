"""The accept loop: connections come from the listeners and go to the engine, as long as there is room for them.

Where there is none - the limit is reached, or the system has no descriptor, memory, thread or process left - clients
wait in the listen queue. They are refused for that only where closing one of ours could not free what is scarce.

There is one rule for exceptions, wherever in the loop they are raised: accepting pauses, and then the loop goes on.
Only a broken listener ends it.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from time import monotonic

from rioecho._server.accepted import AcceptCounts, accept, queue_length
from rioecho._server.engine import EngineClosed, log_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from rioecho._server.accepted import Accepted
    from rioecho._server.engine import Engine
    from rioecho._server.notify import Stop, WakePipe

#: Errors of accept() that say that the listener itself is broken; any other passes.
BROKEN = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}
#: Seconds that accepting pauses when something is scarce: at first, and at most.
PAUSE, MAX_PAUSE = 0.01, 1.0
#: Seconds for which the same warning is not repeated.
SILENCE = 60.0
#: The longest listen queue that a kernel keeps without being told to (net.core.somaxconn).
MAX_QUEUE = 4096


class BrokenListener(Exception):
    """No connection can come from a listener any more; the cause is accept()'s error."""


class Acceptor:
    """Accepts from ``sockets``, which do not block, for ``engine``; ``limit`` connections at once, 0 for no limit.

    run() until the stop is requested; then serve_the_queue(). ``closings`` is notified when a connection has gone.
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
    ) -> None:
        #: Connections that the engine has taken, and connections closed unserved.
        self.counts = AcceptCounts()
        self._sockets = tuple(sockets)
        self._first = 0  # of them, the next time
        self._engine = engine
        self._limit = min((n for n in (limit, engine.at_once) if n), default=0)
        self._queue = max(backlog, MAX_QUEUE) + 1
        self._queues: dict[int, int] = {}  # what may still be accepted after the stop, by descriptor
        self._stop = stop
        self._closings = closings
        self._pause = PAUSE
        self._hears = False  # of connections that have gone
        self._said: dict[str, float] = {}
        self._held: Accepted | None = None  # accepted, and not the engine's yet
        self._last: socket.socket | None = None  # that was accepted from
        self._ready = select.poll()
        self._ready.register(stop.fd, select.POLLIN)
        for sock in self._sockets:
            self._ready.register(sock, select.POLLIN)
        self._spare = open(os.devnull, "rb", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        """Give the descriptors back."""
        self._spare.close()
        self._held = None

    def active(self) -> int:
        """Return how many connections are being served."""
        return self.counts.active(self._engine.counts)

    def run(self) -> None:
        """Accept until the stop. Raises the OSError of a listener that is broken."""
        while not self._stop.requested:
            try:
                self._accept_some()
            except BrokenListener as broken:
                raise broken.__cause__ or broken from None
            except Exception as error:
                self._pause_for(error)

    def serve_the_queue(self) -> None:
        """After the stop, serve those whom the kernel has connected by now: their bytes are acknowledged.

        Only those, however many keep coming, and no longer than the time to drain; the limit does not hold them up.
        Called again it goes on.
        """
        self._spare.close()
        for listener in self._sockets:
            if listener.fileno() not in self._queues:
                n = queue_length(listener.fileno())
                self._queues[listener.fileno()] = self._queue if n is None else n
        while not self._stop.is_over:
            try:
                if not self._serve_one_of_the_queue():
                    break
            except Exception as error:
                self._pause_for(error, draining=True)
        self._refuse_held("the time to drain is over")

    # ---- one connection

    def _accept_some(self) -> None:
        """Wait for connections, or for room; accept one from each listener that is ready."""
        if self._is_full():
            self._wait_for_room()
            return
        if self._held is None:
            fds = {fd for fd, _ in self._ready.poll()}
            first = self._first
            for i in range(first, first + len(self._sockets)):
                listener = self._sockets[i % len(self._sockets)]
                if listener.fileno() in fds:
                    if self._stop.requested or self._is_full():
                        return
                    self._first = (i + 1) % len(self._sockets)
                    self._accept_from(listener)
                    self._hand_over()
        else:
            self._hand_over()

    def _accept_from(self, listener: socket.socket) -> bool:
        """Accept and hold a connection; False where there is none."""
        self._last = listener
        try:
            self._held = accept(listener.fileno(), self.counts)
        except OSError as error:
            if error.errno in BROKEN:
                raise BrokenListener from error
            raise
        return self._held is not None

    def _hand_over(self) -> None:
        """Give the held connection to the engine. What it raises leaves here, and the connection is held on."""
        held = self._held
        if held is None:
            return
        try:
            if not held.is_taken:
                self._engine.serve(held, self._stop.time_left())
        except EngineClosed as error:
            self._refuse_held(str(error))
            return
        finally:
            if held.is_taken:
                self._held = None
        self._pause = PAUSE
        if self._hears:
            self._hear_of_closings(False)

    def _serve_one_of_the_queue(self) -> bool:
        """Serve the one that is held, or the next of the queue; False where there is none."""
        if self._held is not None:
            self._hand_over()
            return True
        for listener in self._sockets:
            fd = listener.fileno()
            left = self._queues[fd] - 1
            if left >= 0:
                try:
                    found = self._accept_from(listener)
                except BrokenListener:
                    found = False
                self._queues[fd] = left if found else 0
                if found:
                    self._hand_over()
                    return True
        return False

    def _refuse_held(self, why: object) -> None:
        """Close the connection that is held, if there is one: by dropping it, which counts it too."""
        held, self._held = self._held, None
        if held is not None:
            held.close()
            self._warn("refused a connection: %s", why)

    def _turn_one_away(self) -> None:
        """Close a client's connection that there is no descriptor for, by giving one up meanwhile."""
        self._spare.close()
        try:
            if self._last is not None and self._accept_from(self._last):
                self._refuse_held("no descriptor is left for it")
        finally:
            self._spare = open(os.devnull, "rb", buffering=0)  # noqa: SIM115

    def _warn(self, text: str, why: object) -> None:
        """Log a warning, but not the same one again and again."""
        now = monotonic()
        if now - self._said.get(text, -SILENCE) >= SILENCE:
            self._said[text] = now
            log_line(logging.WARNING, text, why)

    # ---- waiting for room

    def _is_full(self) -> bool:
        return self._limit > 0 and self.active() >= self._limit

    def _nothing_will_change(self) -> bool:
        """Report whether something is scarce for long, and none of our connections is there to give it back."""
        return self._pause >= MAX_PAUSE and not self._spare.closed and self.active() == 0

    def _wait_for_room(self) -> None:
        """Wait until the limit lets another one in, or the stop comes."""
        if self._limit != self._engine.at_once:
            self._warn("max_connections (%s) reached: clients wait until one leaves", self._limit)
        self._hear_of_closings(True)  # from before we look whether there is room
        # A notification may be lost where there is no memory for it: so look again after a while.
        while self._is_full() and not self._stop.pause(self._closings, MAX_PAUSE):
            pass

    def _pause_for(self, error: BaseException, *, draining: bool = False) -> None:
        """Pause until one of ours leaves, or for a while, longer each time. No error leaves here."""
        try:
            self._hear_of_closings(True)
            self._make_room(error)
            pause, self._pause = self._pause, min(self._pause * 2, MAX_PAUSE)
        except Exception:  # scarcer still: the pause is what helps
            pause = PAUSE
        self._stop.pause(self._closings, pause, draining)

    def _hear_of_closings(self, wanted: bool) -> None:
        """Have every closing end our pauses; until the next connection is handed over, for it is not free of charge."""
        self._hears = True
        self._closings.arm(wanted)
        self._engine.report_closings(wanted)
        self._hears = wanted

    def _make_room(self, error: BaseException) -> None:
        """Say that accepting pauses; turn a client away where no pause would help."""
        why = getattr(error, "strerror", None) or str(error) or "out of memory"
        if self._nothing_will_change():
            if self._held is not None:
                self._refuse_held(why)
                return
            self._turn_one_away()
        self._warn("accepting pauses: %s; clients wait until there is more", why)
