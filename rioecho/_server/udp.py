"""The echo over UDP: a datagram goes back as it came to where it came from, or is dropped and counted (RFC 862).

A source address can be forged, and an echo answers whatever it is sent: one datagram that names another echo as its
source, or any service that answers everything, and the two answer each other for ever (CERT CA-1996-01,
CVE-2024-2169). So ``refusal()`` says which sources get no answer, and a ``Limiter`` how many answers a source gets.
An echo reflects what is sent in another's name, but never adds to it: one answer at most, of the same size. For that
a datagram that was sent to a broadcast or multicast address gets none: a network of echoes would multiply it.
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
from time import monotonic

from rioecho._core.addresses import check_host, check_port, describe_error, look_up, open_socket, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from typing import Any, TypeAlias

    Ancillary: TypeAlias = tuple[tuple[int, int, bytes], ...]

log = logging.getLogger("rioecho.server")

#: Answers a second that a source gets, and of how many sources the pace is remembered.
RATE, MAX_SOURCES = 1000.0, 4096
#: No datagram is longer: its length is a 16-bit number (65507 bytes of data over IPv4, 65527 over IPv6).
LARGEST = 1 << 16
#: Datagrams of one socket that are answered before the others, and a stop, are looked at; and those after a stop.
BATCH, LAST = 64, 4096
#: Seconds to pause when a socket says that it is ready, and nothing is there.
PAUSE = 0.01
#: Errors of recvfrom() that say that the socket itself is broken; any other passes.
BROKEN = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}

MAPPED = bytes(10) + b"\xff\xff"
BROADCAST, LOOPBACK_BROADCAST = b"\xff" * 4, b"\x7f\xff\xff\xff"
UNSPECIFIED_V6 = bytes(16)

# How the kernel says to which address a datagram was sent. Python has no names for those of IPv4.
#: struct in_pktinfo: the interface, the address of ours that belongs to it, the datagram's destination.
IP_PKTINFO = {"linux": 8, "darwin": 26}.get(sys.platform)
#: The destination alone.
IP_RECVDSTADDR = None if IP_PKTINFO else 7
IPV6_RECVPKTINFO = getattr(socket, "IPV6_RECVPKTINFO", None)
IPV6_PKTINFO = getattr(socket, "IPV6_PKTINFO", None)
#: Flags of a received datagram, where the system has them.
MANY = getattr(socket, "MSG_BCAST", 0) | getattr(socket, "MSG_MCAST", 0)
PKTINFO, PKTINFO_V6 = struct.Struct("=I4s4s"), struct.Struct("=16sI")
#: Room for the destination in both forms, and for what the caller of a socket that was passed in has asked for.
ANCILLARY = 512
#: Destinations that are remembered.
MAX_DESTINATIONS = 1024


class UdpEcho:
    """Echoes the datagrams of UDP sockets, which stay the caller's; they are made non-blocking, and never broadcast.

    A source that ``refusal()`` names gets no answer, any other at most ``rate`` a second, and ``burst`` at once after
    a pause (by default a second's worth). IPv6 sources of one /64 count as one. The pace of the last ``max_sources``
    is remembered. With ``rate`` 0 there is no limit, and a loop with a service on a high port does not end.

    Nor does a datagram that was sent to a broadcast or multicast address get an answer. Which addresses are broadcast
    on a network, the kernel says on Linux and the BSDs; on macOS only 255.255.255.255 and 127.255.255.255 are known.
    An answer leaves from the address that the datagram was sent to; outside Linux, over IPv4 and from a socket that is
    bound to 0.0.0.0, from the one that the route to its receiver has. Raises ``ValueError`` for a wrong argument.
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
        # Those whose answers could leave from another address than the datagram was sent to.
        self._any_address = frozenset(sock for sock, name in names.items() if not any(packed(name[0])))
        self._warned: set[str] = set()
        self._datagrams = self._dropped = self._bytes_in = self._bytes_out = 0
        for sock in self._sockets:
            sock.setblocking(False)
            # Which addresses are broadcast on a network here only the kernel knows: it refuses to send there (EACCES).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
            ask_for_destinations(sock)
        self._buffer = memoryview(bytearray(LARGEST))
        self._buffers = [self._buffer]
        self._destinations: dict[Ancillary, Destination] = {}

    def run(self) -> None:
        """Echo until ``stop_fd`` is readable, then also what has arrived before, and return.

        No error of an answer leaves here, only one that says that a socket is broken.
        """
        stopped = select.poll()
        stopped.register(self._stop_fd, select.POLLIN)
        ready = select.poll()
        ready.register(self._stop_fd, select.POLLIN)
        by_fd = {sock.fileno(): sock for sock in self._sockets}
        for fd in by_fd:
            ready.register(fd, select.POLLIN)
        while True:
            fds = [fd for fd, _ in ready.poll()]
            if self._stop_fd in fds:
                break
            # Nothing where something was to be: a datagram with a wrong checksum, or an error that poll() reports and
            # recvfrom() does not take away (IP_RECVERR). Trying again at once would only burn a processor.
            if not sum([self._answer(by_fd[fd], BATCH) for fd in fds]) and stopped.poll(PAUSE * 1000):
                break
        for sock in by_fd.values():
            self._answer(sock, LAST)

    def counts(self) -> dict[str, int]:
        """What has happened so far: datagrams (answered), dropped (all others), bytes_in (of both), bytes_out."""
        # In the opposite order of the counting, so that no more seems to have gone out than had come in.
        bytes_out, datagrams, dropped = self._bytes_out, self._datagrams, self._dropped
        return {"datagrams": datagrams, "dropped": dropped, "bytes_in": self._bytes_in, "bytes_out": bytes_out}

    def _answer(self, sock: socket.socket, most: int) -> int:
        """Answer what has arrived, at most so many datagrams; return how many there were."""
        received = 0
        any_address = sock in self._any_address
        for _ in range(most):
            try:
                n, ancillary, flags, address = sock.recvmsg_into(self._buffers, ANCILLARY)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in BROKEN:
                    raise
                continue  # an earlier answer did not arrive (ECONNREFUSED): that is no error of this socket
            received += 1
            self._bytes_in += n
            source = packed(address[0])
            why = refusal(source, address[1], self._own_ports)
            key = tuple(ancillary)
            to = self._destinations.get(key) or self._new_destination(key)
            if why is not None:
                self._drop(address, "guard", why)
            elif to.is_many or flags & MANY:
                self._drop(address, "destination", "it was sent to a broadcast or multicast address")
            elif self._limiter is not None and not self._limiter.allows(source):
                self._drop(address, "rate", f"more than {self._limiter.rate:g} a second")
            else:
                # Counted before it leaves, as of a connection: who has an answer finds it among the counts.
                self._bytes_out += n
                self._datagrams += 1
                try:
                    if any_address and to.reply:
                        sock.sendmsg([self._buffer[:n]], to.reply, 0, address)
                    else:
                        sock.sendto(self._buffer[:n], address)
                except OSError:
                    # No room in the send buffer (EAGAIN, ENOBUFS), no way there (ENETUNREACH, EHOSTUNREACH, EPERM,
                    # EACCES, EMSGSIZE), or the error of an earlier answer (ECONNREFUSED): as if lost on the way, which
                    # a client over UDP must bear. To wait would be to let one client hold up all others.
                    self._bytes_out -= n
                    self._datagrams -= 1
                    self._dropped += 1
        return received

    def _new_destination(self, ancillary: Ancillary) -> Destination:
        if len(self._destinations) >= MAX_DESTINATIONS:
            self._destinations.clear()
        self._destinations[ancillary] = new = Destination(ancillary)
        return new

    def _drop(self, address: Any, rule: str, why: str) -> None:
        self._dropped += 1
        if rule not in self._warned:  # once: whoever can send datagrams could fill the log
            self._warned.add(rule)
            log.warning("dropped a datagram from %s port %d: %s (said once)", address[0], address[1], why)


def ask_for_destinations(sock: socket.socket) -> None:
    """Have the kernel say with each datagram to which address it was sent, where it can."""
    options = [(socket.IPPROTO_IP, IP_PKTINFO), (socket.IPPROTO_IP, IP_RECVDSTADDR)]
    if sock.family == socket.AF_INET6:  # which may take IPv4 too
        options.append((socket.IPPROTO_IPV6, IPV6_RECVPKTINFO))
    for level, option in options:
        if option is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, 1)


class Destination:
    """The address to which a datagram was sent, from its ancillary data; it may be unknown."""

    def __init__(self, ancillary: Ancillary) -> None:
        #: Whether it is a broadcast or multicast address.
        self.is_many = False
        #: Ancillary data with which an answer leaves from there; none: sendto() will do.
        self.reply: Ancillary = ()
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(data) == PKTINFO.size:
                _, local, address = PKTINFO.unpack(data)
                # Linux gives the interface's address beside a broadcast or multicast one; macOS leaves it out.
                self.is_many |= is_many(address) or local not in (bytes(4), address)
                if sys.platform == "linux":
                    self.reply = ((level, kind, PKTINFO.pack(0, address, bytes(4))),)
            elif level == socket.IPPROTO_IP and kind == IP_RECVDSTADDR and len(data) == 4:
                self.is_many |= is_many(data)
            elif level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO and len(data) == PKTINFO_V6.size:
                address, interface = PKTINFO_V6.unpack(data)
                self.is_many |= is_many(address.removeprefix(MAPPED))
                # The interface belongs to a link-local address; to any other the route decides.
                link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
                if not self.reply and not address.startswith(MAPPED):
                    self.reply = ((level, kind, PKTINFO_V6.pack(address, interface if link_local else 0)),)


def is_many(address: bytes) -> bool:
    """Report whether a ``packed()`` address is known for that of many hosts: multicast, or broadcast anywhere."""
    if len(address) == 4:
        return 224 <= address[0] < 240 or address in (BROADCAST, LOOPBACK_BROADCAST)
    return address[0] == 0xFF


@lru_cache(MAX_SOURCES)
def packed(host: str) -> bytes:
    """Give the 4 or 16 bytes of an address; an IPv4-mapped one (::ffff:a.b.c.d) is the IPv4 address that it maps."""
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    address = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return address[12:] if address.startswith(MAPPED) else address


def refusal(address: bytes, port: int, own_ports: Container[int]) -> str | None:
    """Say why a datagram from there gets no answer; None where it may have one.

    ``address`` is a ``packed()`` one, ``own_ports`` are those that we listen on ourselves. A loopback address is as
    good as any: no kernel takes it from a network.
    """
    if port < 1024:  # an echo, chargen, DNS or NTP service; to port 0 nothing can be sent
        return "the source port is below 1024"
    if port in own_ports:  # ourselves, or the same program elsewhere
        return "the source port is one that we listen on"
    if is_many(address):  # one datagram, and many would get the answer
        return "the source address is not that of one host"
    if address[0] == 0 if len(address) == 4 else address == UNSPECIFIED_V6:
        return "the source address is unspecified"
    return None


class Limiter:
    """A token bucket for each source: ``burst`` at once, then ``rate`` a second.

    Of at most ``max_sources`` sources, those last seen; one that was forgotten begins anew with a full bucket.
    """

    # Whom a datagram's port gives away is refused an answer, but a service that answers everything may be on any port,
    # and looks like a client there. What tells it from one is that it never has enough: the loop turns as fast as the
    # network does. It is a few datagrams that go round, and each that finds the bucket empty is out of the loop: a
    # fast loop ends after `burst` answers or so; one over a slow path may last, at `rate` answers a second.
    #
    # The bucket is the address's and not the port's, for a forger has 65536 of those to name; nor is it the IPv6
    # address's, of which any host has a /64. Whoever forges addresses by the thousand can have any source forgotten,
    # but gains nothing: each of them may have `rate` answers as it is.

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
        # What is in the bucket, and when it was: last the source that was seen last.
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def allows(self, address: bytes) -> bool:
        """Take a token for a ``packed()`` address, if there is one."""
        source = address[:8]  # of IPv6 the /64, of IPv4 all
        now = self._clock()
        tokens, then = self._buckets.pop(source, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self.rate)
        allowed = tokens >= 1
        self._buckets[source] = (tokens - allowed, now)
        if len(self._buckets) > self._max_sources:
            self._buckets.popitem(last=False)
        return allowed


def udp_sockets(addresses: Iterable[tuple[str, int]]) -> list[socket.socket]:
    """Bind a UDP socket to each (host, port), both numbers: blocking sockets, the caller's to close.

    An IPv6 socket takes IPv6 only. Raises ``OSError`` that names the address; nothing stays open then.
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
    # No SO_REUSEADDR: with UDP it would let us take a port that is in use.
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    # Some systems begin with less than the largest datagram needs, and then refuse to take or to send it.
    for size in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        if sock.getsockopt(socket.SOL_SOCKET, size) < 2 * LARGEST:
            sock.setsockopt(socket.SOL_SOCKET, size, 2 * LARGEST)
    sock.bind(address)
