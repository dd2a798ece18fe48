"""The sockets of a load test: connected side by side over all addresses of the target, and again after a loss.

Everything happens in the caller's thread, in step(); nothing blocks but the lookup of the name.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import math
import os
import select
import socket
from time import monotonic
from typing import TYPE_CHECKING, Any

from rioecho._core.addresses import describe_error, look_up, shown, shown_path
from rioecho._load.plan import parse_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from rioecho._load.plan import Plan

#: Maximum number of attempts at a time: few enough for the usual listen queue.
AT_ONCE = 128
#: Seconds until a full listen queue of a unix socket is tried again; no event reports when it has room.
RETRY = 0.005
#: Minimum and maximum seconds between two attempts to replace a lost connection. The first is made at once.
LEAST_DELAY, MOST_DELAY = 0.02, 1.0

#: What to do about an error, in its message.
ADVICE = {
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer connections (-c)",
    errno.ENFILE: "use fewer connections (-c)",
    errno.EADDRNOTAVAIL: "no local port is left: use fewer connections (-c), a server with more addresses, or more "
    "ports (sysctl net.ipv4.ip_local_port_range)",
    errno.ETIMEDOUT: "use fewer connections (-c), or spread them over more time (--ramp)",
}


class _Attempt:
    """Connecting one socket: the addresses not tried yet, and the times at which this one and all are given up."""

    def __init__(self, number: int, addresses: list[Any], deadline: float) -> None:
        self.number = number
        self.addresses = addresses
        self.deadline = deadline
        self.address: Any = None
        self.until = 0.0
        self.sock: socket.socket | None = None
        self.error = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


class Connector:
    """Connects the sockets of a plan and owns them; close() closes all.

    Connection i begins with the address i (modulo their number), so that all addresses of a name get a share of the
    load, and goes on with the others if that one fails; an address that has failed is tried last. Each address has its
    share of the time left of ``connect_timeout``. Raises the OSError of a name that cannot be looked up.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        where: Any = parse_target(plan.target)
        if len(where) == 1:
            self._what = f"cannot connect to {shown_path(where[0])}"
            self._addresses: list[Any] = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, where[0])]
        else:
            self._what = f"cannot connect to {shown(where[0])} port {where[1]}"
            found = look_up(where[0], where[1], 0, self._what)
            self._addresses = [(family, kind, protocol, address) for family, kind, protocol, _, address in found]
        self._bad: set[Any] = set()  # addresses that failed last time
        #: The connected sockets by the number of their connection; None for one that is not connected.
        self.sockets: list[socket.socket | None] = [None] * plan.connections
        #: The number of sockets connected.
        self.connected = 0
        #: The last error of an attempt to replace a lost connection.
        self.last_error: OSError | None = None
        self._due: list[tuple[float, int]] = []  # a heap: when to begin an attempt, and for which connection
        # Of each connection that was lost: seconds before the next attempt, and when it was made again.
        self._delays: dict[int, float] = {}
        self._since: dict[int, float] = {}
        self._pending: dict[int, _Attempt] = {}  # by descriptor
        self._retries: list[_Attempt] = []
        self._poller = select.poll()
        self._strict = True  # an error ends connect_all(), when the attempts begun before it have ended
        self._fatal: OSError | None = None
        self._made: list[int] = []

    def connect_all(
        self, on_step: Callable[[int], object] | None, every: float, stopped: Callable[[], bool] | None
    ) -> bool:
        """Connect all sockets; call ``on_step`` with the number connected every ``every`` seconds.

        Returns False if ``stopped()`` became true before the end. Raises the OSError of the first connection for which
        all addresses failed.
        """
        n = self._plan.connections
        start = monotonic()
        gap = self._plan.ramp / n
        self._due = [(start + number * gap, number) for number in range(n)]  # sorted, hence a heap
        report_at = start + every if on_step is not None else math.inf
        while self.connected < n:
            now = monotonic()
            if on_step is not None and now >= report_at:
                on_step(self.connected)
                report_at += every * math.ceil((now - report_at) / every or 1)
            if stopped is not None and stopped():
                return False
            self.step(min(report_at - now, 1.0 if stopped is None else 0.05))
        self._strict = False
        return True

    def lose(self, number: int) -> None:
        """Close the socket of a lost connection, and connect another one: at once, or later if it was lost before."""
        sock = self.sockets[number]
        if sock is not None:
            sock.close()
            self.sockets[number] = None
            self.connected -= 1
        if monotonic() - self._since.get(number, -math.inf) > MOST_DELAY:
            self._delays.pop(number, None)
        self._try_again(number)

    def step(self, seconds: float, wake: int = -1) -> list[int]:
        """Wait up to ``seconds`` for attempts, begin those that are due, and return the connections that were made.

        Returns early if the descriptor ``wake`` becomes readable.
        """
        self._made = []
        now = monotonic()
        while self._may_begin() and self._due[0][0] <= now:
            _, number = heapq.heappop(self._due)
            self._begin(number)
        retries, self._retries = self._retries, []
        for attempt in retries:
            if not self._connect(attempt):
                self._go_on(attempt)
        if not self._made:
            self._wait(seconds, wake)
        if self._fatal is not None and not self._pending and not self._retries:
            raise self._explained(self._fatal)
        return self._made

    def _may_begin(self) -> bool:
        return bool(self._due) and self._fatal is None and len(self._pending) + len(self._retries) < AT_ONCE

    def _wait(self, seconds: float, wake: int) -> None:
        unfinished = self._fatal is None or self._pending or self._retries
        until = monotonic() + (max(seconds, 0.0) if unfinished else 0.0)
        if self._retries:
            until = min(until, monotonic() + RETRY)
        if self._may_begin():
            until = min(until, self._due[0][0])
        for attempt in self._pending.values():
            until = min(until, attempt.until)
        if wake >= 0:
            self._poller.register(wake, select.POLLIN)
        try:
            ready = self._poller.poll(max(math.ceil((until - monotonic()) * 1000), 0))
        finally:
            if wake >= 0:
                self._poller.unregister(wake)
        for fd, _ in ready:
            if fd in self._pending:
                self._finish(self._detach(fd))
        now = monotonic()
        for fd, attempt in list(self._pending.items()):
            if attempt.until <= now:
                self._detach(fd)
                self._discard(attempt, OSError(errno.ETIMEDOUT, "timed out"))
                self._go_on(attempt)

    def _begin(self, number: int) -> None:
        first = number % len(self._addresses)
        addresses = self._addresses[first:] + self._addresses[:first]
        addresses.sort(key=lambda address: address in self._bad)
        self._go_on(_Attempt(number, addresses, monotonic() + self._plan.connect_timeout))

    def _go_on(self, attempt: _Attempt) -> None:
        """Try the next addresses of an attempt until one does not fail at once; end the attempt if none is left."""
        while attempt.addresses:
            now = monotonic()
            attempt.until = now + max(attempt.deadline - now, 0.0) / len(attempt.addresses)
            attempt.address = attempt.addresses.pop(0)
            if self._connect(attempt):
                return
        self._failed(attempt.number, attempt.error)

    def _connect(self, attempt: _Attempt) -> bool:
        """Call connect() for the current address of an attempt. Returns False if it fails."""
        family, kind, protocol, address = attempt.address
        try:
            attempt.sock = sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            if family != socket.AF_UNIX:  # before connecting: macOS refuses it on a connection that was reset
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = sock.connect_ex(address)
        except OSError as error:  # no descriptor left, or a path that is too long
            return self._discard(attempt, error)
        if number == 0:
            return self._keep(attempt, sock)
        if number == errno.EINPROGRESS:
            self._pending[sock.fileno()] = attempt
            self._poller.register(sock.fileno(), select.POLLOUT)
            return True
        if number == errno.EAGAIN and family == socket.AF_UNIX:
            if monotonic() >= attempt.until:
                return self._discard(attempt, OSError(errno.ETIMEDOUT, "timed out"))
            sock.close()
            self._retries.append(attempt)
            return True
        return self._discard(attempt, OSError(number, os.strerror(number)))

    def _finish(self, attempt: _Attempt) -> None:
        """Take the result of a connect() that has ended, and go on with the next address if it has failed."""
        sock = attempt.sock
        assert sock is not None  # noqa: S101, for the type checker
        try:
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError as error:
            number = error.errno or errno.EIO
        if number == 0 and _is_own_peer(sock):
            number = errno.ECONNREFUSED  # the port was the socket's own: nobody listens there
        if number == 0:
            self._keep(attempt, sock)
        else:
            self._discard(attempt, OSError(number, os.strerror(number)))
            self._go_on(attempt)

    def _keep(self, attempt: _Attempt, sock: socket.socket) -> bool:
        """Keep a connected socket. Returns True."""
        self._bad.discard(attempt.address)
        self.sockets[attempt.number] = sock
        attempt.sock = None
        self.connected += 1
        self._since[attempt.number] = monotonic()
        self._made.append(attempt.number)
        return True

    def _discard(self, attempt: _Attempt, error: OSError) -> bool:
        """Note the error of the current address of an attempt and close its socket. Returns False."""
        if attempt.sock is not None:
            attempt.sock.close()
            attempt.sock = None
        attempt.error = error
        if error.errno in (errno.EMFILE, errno.ENFILE):  # the same for every address
            attempt.addresses.clear()
        else:
            self._bad.add(attempt.address)
        return False

    def _failed(self, number: int, error: OSError) -> None:
        """End an attempt for which all addresses failed."""
        described = describe_error(error, self._what)
        if self._strict:
            self._fatal = self._fatal or described
        else:
            self.last_error = described
            self._try_again(number)

    def _explained(self, described: OSError) -> OSError:
        """Return an error that ends connect_all(), with the number of connections made, and what to do."""
        n = self._plan.connections
        message = described.strerror or str(described)
        if self.connected:
            message += f": {self.connected} of {n} connections were made"
        if described.errno in ADVICE and (n > 1 or described.errno == errno.EADDRNOTAVAIL):
            message += f"; {ADVICE[described.errno]}"
        return type(described)(described.errno, message)

    def _try_again(self, number: int) -> None:
        delay = self._delays.get(number, 0.0)
        self._delays[number] = min(max(2 * delay, LEAST_DELAY), MOST_DELAY)
        heapq.heappush(self._due, (monotonic() + delay, number))

    def _detach(self, fd: int) -> _Attempt:
        """Stop waiting for a descriptor; return its attempt."""
        self._poller.unregister(fd)
        return self._pending.pop(fd)

    def close(self) -> None:
        """Close all sockets."""
        for sock in self.sockets:
            if sock is not None:
                sock.close()
        for attempt in self._pending.values():
            if attempt.sock is not None:
                attempt.sock.close()


def _is_own_peer(sock: socket.socket) -> bool:
    with contextlib.suppress(OSError):  # the peer has closed already; the first read reports it
        return bool(sock.getsockname() == sock.getpeername())
    return False
