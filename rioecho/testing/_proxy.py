"""Class Proxy: a server that passes on what comes, in both directions, with faults."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from typing import TypeAlias

from rioecho._core.addresses import check_host, check_path, check_port
from rioecho.testing._faults import Faults, Flow
from rioecho.testing._service import Service, reset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rioecho.testing._ending import Ending

#: Seconds that connecting to the upstream server may take.
CONNECTING = 5.0


class Proxy(Service):
    """A server that passes on what comes to another one, ``upstream``, and back, with faults.

    ``upstream`` is a ``(host, port)``, the path of a unix socket, or an object that has one as its ``address``: an
    ``EchoServer``, a ``Peer``, another ``Proxy``. The proxy listens on a free port of 127.0.0.1, from ``start()`` to
    ``close()`` or for the length of a ``with`` or ``async with`` block. These faults happen in each direction:

    ``cut`` is the largest piece, in bytes, that is passed on at once; the seed decides how long each is. ``delay`` is
    the time in seconds that each piece waits. ``bandwidth`` is in bytes per second. After ``reset_after`` bytes, passed
    on in one of the directions, both connections are reset. ``corrupt`` is the probability that a byte is changed.

    What the seed decides depends on nothing else but the number of the client, from 1, the direction and the position
    of the byte: the same bytes are changed, and the same places cut, in every run.
    """

    def __init__(
        self,
        upstream: Any,
        *,
        seed: int | str = 0,
        cut: int | None = None,
        delay: float | None = None,
        bandwidth: float | None = None,
        reset_after: int | None = None,
        corrupt: float = 0,
    ) -> None:
        super().__init__()
        self._faults = Faults(seed, cut, delay, bandwidth, reset_after, corrupt)
        self._upstream = _checked(upstream)
        #: The errors of connecting to the upstream server; the client's connection is then reset.
        self.errors: list[Exception] = []

    def __repr__(self) -> str:
        return f"Proxy({self._upstream!r}, {self._faults})"

    @property
    def seed(self) -> int | str:
        """The seed of the faults."""
        return self._faults.seed

    def _begin(self, sock: socket.socket, number: int) -> None:
        assert self._ending is not None  # noqa: S101 - for type checkers
        link = _Link(sock, self._ending, self._faults.flow(number, "to"), self._faults.flow(number, "from"))
        self._run(lambda: self._pass_on(link), sock, number)

    def _pass_on(self, link: _Link) -> None:
        try:
            link.run(self._upstream)
        except Exception as error:  # a mistake of this module's too must not pass for a fault
            self.errors.append(error)
        finally:
            link.close()


class _Link:
    """A client's connection, the one to the upstream server, and what is on its way between them."""

    def __init__(self, client: socket.socket, ending: Ending, there: Flow, back: Flow) -> None:
        self._client = client
        self._server: socket.socket | None = None
        self._ending = ending
        self._accepted = time.monotonic()
        self._there, self._back = there, back
        self._broken = False  # close by a reset

    def run(self, upstream: Any) -> None:
        """Pass on until both sides have ended, or the proxy is closed. Raises OSError if it cannot connect."""
        if self._there.resets or self._back.resets:  # after no byte
            self._broken = True
            return
        try:
            self._server, was_reset = _connect(upstream, self._ending)
        except Exception:
            self._broken = True
            raise
        ends = ((self._there, self._client, self._server), (self._back, self._server, self._client))
        for sock in (self._client, self._server):
            with contextlib.suppress(OSError):  # a unix socket
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not self._ending.requested and not all(flow.finished for flow, _, _ in ends):
            wanted: dict[int, int] = {}
            now = time.monotonic()
            dues = []
            for flow, source, sink in ends:
                if flow.has_room:
                    wanted[source.fileno()] = wanted.get(source.fileno(), 0) | select.POLLIN
                due = flow.due(now)
                if due is not None and due > now:
                    dues.append(due)
                elif due is not None:
                    wanted[sink.fileno()] = wanted.get(sink.fileno(), 0) | select.POLLOUT
            found = self._ending.poll(wanted, min(dues) - now if dues else None)
            for flow, source, sink in ends:
                if flow.has_room and found.get(source.fileno(), 0) & ~select.POLLOUT:
                    self._take(flow, source)
                    if flow.has_ended and source is self._server and was_reset:
                        flow.torn = True
                if found.get(sink.fileno(), 0) & ~select.POLLIN:
                    self._give(flow, sink)
                if flow.resets or (flow.torn and not flow.held):
                    self._broken = True
                    return
                if flow.has_ended and not flow.held and not flow.finished:
                    flow.finished = True
                    with contextlib.suppress(OSError):  # it has gone
                        sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close both connections, by a reset if that is what a fault, or one of the two, has done."""
        for sock in (self._client, self._server):
            if sock is None:
                continue
            if self._broken:
                reset(sock, self._ending, self._accepted)
            else:
                sock.close()

    def _take(self, flow: Flow, source: socket.socket) -> None:
        try:
            flow.take(source.recv(flow.room))
        except BlockingIOError:
            pass
        except OSError:  # reset: pass on what came before it, then the reset
            flow.has_ended = flow.torn = True

    def _give(self, flow: Flow, sink: socket.socket) -> None:
        piece = flow.piece(time.monotonic())
        if not piece:
            return
        try:
            flow.given(sink.send(piece))
        except BlockingIOError:
            pass
        except OSError:  # the sink has gone: what it has sent before is still passed on, then the reset
            flow.held.clear()
            flow.has_ended = flow.finished = self._broken = True


def _checked(upstream: Any) -> Any:
    """Return the address of an upstream server. Raises TypeError or ValueError for what is none."""
    address = getattr(upstream, "address", upstream)
    if isinstance(address, tuple) and len(address) >= 2:
        return (check_host(address[0]), check_port(address[1]), *address[2:])
    if not isinstance(address, str | bytes | os.PathLike):
        raise TypeError(f"upstream must be (host, port), a path, or have an address, not {upstream!r}")
    return check_path(address)


def _connect(upstream: Any, ending: Ending) -> tuple[socket.socket, bool]:
    """Return a connected non-blocking socket, and whether it has been reset already. Tries each address of a name."""
    if not isinstance(upstream, tuple):
        return _connected(socket.AF_UNIX, upstream, ending)
    failure: OSError | None = None
    host, port = upstream[:2]
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return _connected(family, address, ending)
        except OSError as error:
            failure = error
    raise failure or OSError(f"no address for {upstream!r}")


def _connected(family: int, address: Any, ending: Ending) -> tuple[socket.socket, bool]:
    sock = socket.socket(family)
    try:
        sock.setblocking(False)
        deadline = time.monotonic() + CONNECTING
        number = sock.connect_ex(address)
        while number == errno.EAGAIN and time.monotonic() < deadline and ending.sleep(0.001):
            number = sock.connect_ex(address)  # the listen queue of a unix socket was full
        if number == errno.EINPROGRESS:
            if not ending.poll({sock.fileno(): select.POLLOUT}, deadline - time.monotonic()):
                raise TimeoutError(f"no connection to {address!r} in {CONNECTING:g} s")
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number not in (0, errno.ECONNRESET):  # after a reset, what came before it can still be read
            raise OSError(number, f"connect to {address!r}: {os.strerror(number)}")
    except BaseException:
        sock.close()
        raise
    return sock, number != 0


#: The type of the fixture ``proxy``. It is called as the class is; what it returns has been started and is closed after
#: the test.
ProxyFactory: TypeAlias = type[Proxy]
