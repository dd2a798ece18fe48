"""The echo over UDP: a datagram is sent back unchanged to its source, or dropped and counted (RFC 862).

A source address can be forged: one datagram whose source is another echo, or any service that answers everything,
makes the two answer each other without limit (CERT CA-1996-01, CVE-2024-2169). So ``refusal()`` decides which sources
get no answer, and a ``Limiter`` how many answers a source gets. An echo reflects forged datagrams but never amplifies
them: at most one answer, of the same size. Datagrams sent to a broadcast or multicast address get no answer, because a
network of echoes would multiply them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import select
import socket
import struct
import sys
from collections import OrderedDict
from functools import lru_cache
from time import monotonic, sleep

from rioecho._core.addresses import check_host, check_port, describe_error, look_up, open_socket, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from typing import Any, TypeAlias

    _Ancillary: TypeAlias = tuple[tuple[int, int, bytes], ...]

log = logging.getLogger("rioecho.server")

#: Answers per second that a source gets, and the maximum number of sources with a bucket of their own.
RATE, MAX_SOURCES = 1000.0, 4096
#: Above the maximum size of a datagram, whose length is a 16-bit number (65507 bytes over IPv4, 65527 over IPv6).
LARGEST = 1 << 16
#: Maximum number of datagrams answered per socket before the other sockets and the stop are checked; after the stop.
BATCH, LAST = 64, 4096
#: Pause in seconds if a socket is reported as ready and has no datagram.
PAUSE = 0.01
#: Errors of recvmsg(2) that mean that the socket itself is broken; all others are temporary.
BROKEN = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}

MAPPED = bytes(10) + b"\xff\xff"
BROADCAST, LOOPBACK_BROADCAST = b"\xff" * 4, b"\x7f\xff\xff\xff"
UNSPECIFIED_V6 = bytes(16)

# Socket options that make the kernel report the destination address of a datagram; Python lacks those of IPv4.
#: struct in_pktinfo: the interface, the local address, the destination of the datagram (ip(7)).
IP_PKTINFO = {"linux": 8, "darwin": 26}.get(sys.platform)
#: The destination only.
IP_RECVDSTADDR = None if IP_PKTINFO else 7
IPV6_RECVPKTINFO = getattr(socket, "IPV6_RECVPKTINFO", None)
IPV6_PKTINFO = getattr(socket, "IPV6_PKTINFO", None)
#: Flags of a datagram received by broadcast or multicast, on systems that have them.
MANY = getattr(socket, "MSG_BCAST", 0) | getattr(socket, "MSG_MCAST", 0)
PKTINFO, PKTINFO_V6 = struct.Struct("=I4s4s"), struct.Struct("=16sI")
#: Size in bytes of the ancillary buffer: for both forms of the destination and for options set on a passed socket.
ANCILLARY = 512
#: Maximum number of destinations in the cache.
MAX_DESTINATIONS = 1024


class BrokenSocket(Exception):
    """No datagram can come from a socket any more; the cause is recvfrom()'s error."""


class UdpEcho:
    """Echoes the datagrams of UDP sockets, which the caller owns; they are made non-blocking, with SO_BROADCAST off.

    A source that ``refusal()`` rejects gets no answer; any other gets at most ``rate`` answers per second, and
    ``burst`` at once after a pause (by default one second's worth). IPv6 sources of one /64 share a bucket. The buckets
    of the last ``max_sources`` sources are kept. ``rate`` 0 means no limit: a loop with a service on a high port does
    not end then.

    A datagram sent to a broadcast or multicast address gets no answer. On Linux and the BSDs the kernel reports which
    addresses are broadcast addresses of a network; on macOS only 255.255.255.255 and 127.255.255.255 are recognised.
    An answer is sent from the address that the datagram was sent to; over IPv4 outside Linux, a socket bound to 0.0.0.0
    answers from the address that the route implies. Raises ``ValueError`` for an invalid argument.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        *,
        stop_fd: int,
        rate: float = RATE,
        burst: float | None = None,
        max_sources: int = MAX_SOURCES,
    ) -> None:
        self._sockets = tuple(sockets)
        for sock in self._sockets:
            if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_DGRAM:
                raise ValueError(f"not a UDP socket: {sock!r}")
        if not 0 <= rate < math.inf:
            raise ValueError(f"rate must be at least 0 and finite, not {rate!r}")
        if burst is None:
            burst = max(1.0, rate)
        self._limiter = Limiter(rate, burst, max_sources) if rate else None
        self._stop_fd = stop_fd
        names = {sock: sock.getsockname() for sock in self._sockets}
        self._own_ports = frozenset(name[1] for name in names.values())
        # Sockets bound to all addresses, which could answer from an address other than the datagram's destination.
        self._any_address = frozenset(sock for sock, name in names.items() if not any(packed(name[0])))
        self._warned: set[str] = set()
        self._datagrams = self._dropped = self._bytes_in = self._bytes_out = 0
        for sock in self._sockets:
            sock.setblocking(False)
            # Only the kernel knows the broadcast addresses of attached networks: it refuses to send there (EACCES).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
            ask_for_destinations(sock)
        self._buffer = memoryview(bytearray(LARGEST))
        self._buffers = [self._buffer]
        self._destinations: dict[_Ancillary, Destination] = {}

    def run(self) -> None:
        """Echo until ``stop_fd`` is readable, then answer the datagrams that have arrived, and return.

        An error in sending an answer counts as a drop. Raises ``OSError`` only if a socket is broken; any other error
        pauses the echo.
        """
        stopped = select.poll()
        stopped.register(self._stop_fd, select.POLLIN)
        ready = select.poll()
        ready.register(self._stop_fd, select.POLLIN)
        by_fd = {sock.fileno(): sock for sock in self._sockets}
        for fd in by_fd:
            ready.register(fd, select.POLLIN)
        going_on = True
        while going_on:
            try:
                # A ready socket without a datagram: one with a wrong checksum, or an error that poll() reports and
                # recvmsg() does not clear (IP_RECVERR). Pause, because trying again at once would be a busy loop.
                going_on = bool(self._answer_ready(ready, by_fd) or not stopped.poll(PAUSE * 1000))
            except BrokenSocket as broken:
                raise broken.__cause__ or broken from None
            except Exception:  # no memory, for one
                sleep(PAUSE)
        for sock in by_fd.values():
            with contextlib.suppress(Exception):
                self._answer(sock, LAST)

    def _answer_ready(self, ready: select.poll, by_fd: dict[int, socket.socket]) -> int:
        """Wait, and answer what has arrived; return how many datagrams there were: none once the stop has come."""
        fds = [fd for fd, _ in ready.poll()]
        return 0 if self._stop_fd in fds else sum([self._answer(by_fd[fd], BATCH) for fd in fds])

    def counts(self) -> dict[str, int]:
        """Return the counts: ``datagrams`` (answered), ``dropped``, ``bytes_in`` (of both) and ``bytes_out``."""
        # Read in the opposite order of counting, so that bytes_out never exceeds bytes_in.
        bytes_out, datagrams, dropped = self._bytes_out, self._datagrams, self._dropped
        return {"datagrams": datagrams, "dropped": dropped, "bytes_in": self._bytes_in, "bytes_out": bytes_out}

    def _answer(self, sock: socket.socket, limit: int) -> int:
        """Answer at most ``limit`` of the datagrams that have arrived. Returns the number received."""
        received = 0
        any_address = sock in self._any_address
        for _ in range(limit):
            try:
                n, ancillary, flags, address = sock.recvmsg_into(self._buffers, ANCILLARY)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in BROKEN:
                    raise BrokenSocket from error
                continue  # the error of an earlier answer (ECONNREFUSED), not of this socket
            received += 1
            self._bytes_in += n
            source = packed(address[0])
            reason = refusal(source, address[1], self._own_ports)
            key = tuple(ancillary)
            to = self._destinations.get(key) or self._new_destination(key)
            if reason is not None:
                self._drop(address, "guard", reason)
            elif to.is_many or flags & MANY:
                self._drop(address, "destination", "it was sent to a broadcast or multicast address")
            elif self._limiter is not None and not self._limiter.allows(source):
                self._drop(address, "rate", f"more than {self._limiter.rate:g} a second")
            else:
                # Count before sending, so that a client that holds its answer always finds it in the counts.
                self._bytes_out += n
                self._datagrams += 1
                try:
                    if any_address and to.reply:
                        sock.sendmsg([self._buffer[:n]], to.reply, 0, address)
                    else:
                        sock.sendto(self._buffer[:n], address)
                except BaseException as error:
                    # The send buffer is full (EAGAIN, ENOBUFS), there is no route (ENETUNREACH, EHOSTUNREACH, EPERM,
                    # EACCES, EMSGSIZE), or an earlier answer failed (ECONNREFUSED). The answer is dropped, as UDP
                    # permits: waiting would let one client block all others.
                    self._bytes_out -= n
                    self._datagrams -= 1
                    self._dropped += 1
                    if not isinstance(error, OSError):
                        raise
        return received

    def _new_destination(self, ancillary: _Ancillary) -> Destination:
        if len(self._destinations) >= MAX_DESTINATIONS:
            self._destinations.clear()
        self._destinations[ancillary] = new = Destination(ancillary)
        return new

    def _drop(self, address: Any, rule: str, reason: str) -> None:
        self._dropped += 1
        if rule not in self._warned:  # once for each rule: otherwise any sender could fill the log
            self._warned.add(rule)
            with contextlib.suppress(BaseException):  # of a handler, which may exit: no log line is worth the echo
                log.warning("dropped a datagram from %s port %d: %s (logged once)", address[0], address[1], reason)


def ask_for_destinations(sock: socket.socket) -> None:
    """Request the destination address with each received datagram, on systems that can report it."""
    options = [(socket.IPPROTO_IP, IP_PKTINFO), (socket.IPPROTO_IP, IP_RECVDSTADDR)]
    if sock.family == socket.AF_INET6:  # it may receive IPv4 as well
        options.append((socket.IPPROTO_IPV6, IPV6_RECVPKTINFO))
    for level, option in options:
        if option is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, 1)


class Destination:
    """The destination address of a datagram, from its ancillary data; it may be unknown."""

    def __init__(self, ancillary: _Ancillary) -> None:
        #: Whether it is a broadcast or multicast address.
        self.is_many = False
        #: _Ancillary data that makes an answer leave from that address; empty if sendto() is enough.
        self.reply: _Ancillary = ()
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(data) == PKTINFO.size:
                _, local, address = PKTINFO.unpack(data)
                # For a broadcast or multicast address, Linux reports the interface's address too; macOS does not.
                self.is_many |= is_many(address) or local not in (bytes(4), address)
                if sys.platform == "linux":
                    self.reply = ((level, kind, PKTINFO.pack(0, address, bytes(4))),)
            elif level == socket.IPPROTO_IP and kind == IP_RECVDSTADDR and len(data) == 4:
                self.is_many |= is_many(data)
            elif level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO and len(data) == PKTINFO_V6.size:
                address, interface = PKTINFO_V6.unpack(data)
                self.is_many |= is_many(address.removeprefix(MAPPED))
                # A link-local address needs its interface; for any other the route decides.
                link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
                if not self.reply and not address.startswith(MAPPED):
                    self.reply = ((level, kind, PKTINFO_V6.pack(address, interface if link_local else 0)),)


def is_many(address: bytes) -> bool:
    """Report whether a ``packed()`` address is a multicast or a well-known broadcast address."""
    if len(address) == 4:
        return 224 <= address[0] < 240 or address in (BROADCAST, LOOPBACK_BROADCAST)
    return address[0] == 0xFF


@lru_cache(MAX_SOURCES)
def packed(host: str) -> bytes:
    """Return the 4 or 16 bytes of an address; an IPv4-mapped one (::ffff:a.b.c.d) becomes the IPv4 address."""
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    address = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return address[12:] if address.startswith(MAPPED) else address


def refusal(address: bytes, port: int, own_ports: Container[int]) -> str | None:
    """Return the reason why a datagram from this source gets no answer, or None if it may get one.

    ``address`` is a ``packed()`` one; ``own_ports`` are the ports that the server listens on. A loopback source is
    allowed, because no kernel accepts it from a network.
    """
    if port < 1024:  # an echo, chargen, DNS or NTP service; nothing can be sent to port 0
        return "the source port is below 1024"
    if port in own_ports:  # this server, or the same program elsewhere
        return "the source port is one that this server listens on"
    if is_many(address):  # many hosts would receive the answer
        return "the source address is not a unicast address"
    if address[0] == 0 if len(address) == 4 else address == UNSPECIFIED_V6:
        return "the source address is unspecified"
    return None


class Limiter:
    """A token bucket for each source: ``burst`` answers at once, then ``rate`` per second.

    The buckets of the ``max_sources`` sources seen last are kept; any other source starts with a full bucket.
    """

    # A service that answers everything may run on any port, and looks like a client there. The limit ends its loop:
    # only a few datagrams circulate, and each one that finds the bucket empty leaves the loop. A fast loop ends after
    # about `burst` answers; a loop over a slow path may last, at `rate` answers per second.
    #
    # There is one bucket for each address, not for each port, because a forger can name 65536 ports; and one for each
    # /64 of IPv6, because a host may have all of its addresses. Forging thousands of addresses can evict the bucket of
    # any source, but gains nothing: each address may have `rate` answers anyway.

    def __init__(self, rate: float, burst: float, max_sources: int, *, clock: Callable[[], float] = monotonic) -> None:
        if not 0 < rate < math.inf:
            raise ValueError(f"rate must be above 0 and finite, not {rate!r}")
        if not 1 <= burst < math.inf:
            raise ValueError(f"burst must be at least 1 and finite, not {burst!r}")
        if max_sources < 1:
            raise ValueError(f"max_sources must be at least 1, not {max_sources!r}")
        self.rate = rate
        self._burst = burst
        self._max_sources = max_sources
        self._clock = clock
        # Tokens and the time of that count for each source, the one seen last at the end.
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def allows(self, address: bytes) -> bool:
        """Take a token of a ``packed()`` address; report whether there was one."""
        source = address[:8]  # the /64 of an IPv6 address, all of an IPv4 one
        now = self._clock()
        tokens, then = self._buckets.pop(source, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self.rate)
        allowed = tokens >= 1
        self._buckets[source] = (tokens - allowed, now)
        if len(self._buckets) > self._max_sources:
            self._buckets.popitem(last=False)
        return allowed


def udp_sockets(addresses: Iterable[tuple[str, int]]) -> list[socket.socket]:
    """Bind a UDP socket to each numeric ``(host, port)``. Returns blocking sockets, which the caller owns.

    An IPv6 socket receives IPv6 only. Raises ``OSError``, which names the address; nothing stays open then.
    """
    opened: list[socket.socket] = []
    try:
        for host, port in addresses:
            what = f"cannot listen on {shown(check_host(host))} port {shown(str(port))} (UDP)"
            found = look_up(host, check_port(port), socket.AI_NUMERICHOST, what)
            family, _, _, _, address = found[0]
            try:
                opened.append(open_socket(family, socket.SOCK_DGRAM, 0, address, _bind))
            except OSError as exc:
                raise describe_error(exc, what) from None
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return opened


def _bind(sock: socket.socket, address: Any) -> None:
    # Without SO_REUSEADDR, which for UDP would allow binding a port that is in use.
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    # By default some systems have buffers too small for the largest datagram, and refuse to receive or send it.
    for size in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        if sock.getsockopt(socket.SOL_SOCKET, size) < 2 * LARGEST:
            sock.setsockopt(socket.SOL_SOCKET, size, 2 * LARGEST)
    sock.bind(address)
