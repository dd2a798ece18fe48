"""UdpEcho on real sockets: every datagram is echoed whole, or dropped and counted, and every loop ends."""

import contextlib
import errno
import fcntl
import ipaddress
import logging
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from rioecho._server.udp import (
    BATCH,
    LAST,
    MAX_DESTINATIONS,
    Destination,
    Limiter,
    UdpEcho,
    packed,
    refusal,
    udp_sockets,
)
from support.peers import SECONDS, Output, Running, binary
from support.properties import EXAMPLES, given, settings, st

V4, V6 = "127.0.0.1", "::1"
ANY = "0.0.0.0"  # noqa: S104
SIZES = (0, 1, 2, 511, 1472, 1473, 4096, 9217, 32_768, 65_506, 65_507)
OWN = frozenset({7000, 40_000})

deterministic = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="forged sources and IP_RECVERR as on Linux")


class Serving:
    """A UdpEcho that runs in a thread until the end of the block; after stop() its counts are final."""

    def __init__(self, *hosts, sockets=None, **options):
        self.sockets = udp_sockets([(host, 0) for host in hosts]) if sockets is None else sockets
        self.addresses = [sock.getsockname() for sock in self.sockets]
        self.address = self.addresses[0]
        self._stop_pipe = os.pipe()
        try:
            self.echo = UdpEcho(self.sockets, stop_fd=self._stop_pipe[0], **options)
            self.running = Running(self.echo.run)
        except BaseException:
            self._close()
            raise

    def stop(self):
        os.write(self._stop_pipe[1], b"s")
        self.running.result()
        return self.echo.counts()

    def _close(self):
        for sock in self.sockets:
            sock.close()
        for fd in self._stop_pipe:
            os.close(fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            self._close()


@contextlib.contextmanager
def stop_pipe():
    read_fd, write_fd = os.pipe()
    try:
        yield read_fd, write_fd
    finally:
        os.close(read_fd)
        os.close(write_fd)


@contextlib.contextmanager
def client(address, host=None, port=0):
    """Return a UDP socket connected to the address."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        if host or port:
            sock.bind((host or address[0], port))
        sock.connect(address)
        yield sock


def ask(sock, data=b"are you there?"):
    """Send a datagram and check that it is echoed."""
    sock.send(data)
    assert sock.recv(1 << 17) == data


def nothing_more(sock):
    """Check that no datagram is left to receive; on loopback a sent datagram has arrived at once."""
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1 << 17)


def until(condition):
    """Wait until the condition is true."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "timed out waiting for the condition"
        os.sched_yield()


def counted(datagrams=0, dropped=0, bytes_in=0, bytes_out=0):
    return {"datagrams": datagrams, "dropped": dropped, "bytes_in": bytes_in, "bytes_out": bytes_out}


# ---- the echo


@pytest.mark.parametrize("host", [V4, V6])
def test_a_datagram_of_every_size_is_echoed_whole(host):
    with Serving(host) as server, client(server.address) as sock:
        for n in SIZES:
            ask(sock, binary(n))
        total = sum(SIZES)
        assert server.stop() == counted(len(SIZES), 0, total, total)
        nothing_more(sock)


def test_the_longest_datagram_of_ipv6_is_echoed_whole():
    with Serving(V6) as server, client(server.address) as sock:
        try:
            sock.send(binary(65_527))
        except OSError as error:
            pytest.skip(f"cannot send it: {error}")
        assert sock.recv(1 << 17) == binary(65_527)


def test_each_datagram_is_answered_at_most_once_and_with_the_same_bytes():
    chance = random.Random(862)
    total = 0
    with Serving(V4, V6, rate=0) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(server.addresses[i % 2])) for i in range(6)]
        for i in range(100):
            sent = {sock: [] for sock in clients}
            for j in range(20):  # no more than fit into the socket buffer
                sock = chance.choice(clients)
                sent[sock].append(b"%d %d " % (i, j) + chance.randbytes(chance.choice((0, 1, 30, 1500))))
                sock.send(sent[sock][-1])
            for sock in clients:
                assert [sock.recv(1 << 17) for _ in sent[sock]] == sent[sock]
                total += sum(map(len, sent[sock]))
        assert server.stop() == counted(2000, 0, total, total)
        for sock in clients:
            nothing_more(sock)


def test_an_answer_comes_from_the_destination_address():
    with Serving(V4, V6) as server:
        for address in server.addresses:
            with client(address) as sock:
                sock.send(b"who?")
                assert sock.recvfrom(100) == (b"who?", address)


def test_empty_datagrams_are_echoed_one_for_one():
    with Serving(V4) as server, client(server.address) as sock:
        for _ in range(10):
            sock.send(b"")
        assert [sock.recv(100) for _ in range(10)] == [b""] * 10
        assert server.stop() == counted(10)
        nothing_more(sock)


def test_an_answer_contains_no_bytes_of_an_earlier_longer_datagram():
    with Serving(V4) as server, client(server.address) as one, client(server.address) as other:
        ask(one, b"x" * 60_000)
        ask(other, b"short")
        ask(other, b"")


@pytest.mark.parametrize("program", ["nc", "socat"])
@pytest.mark.parametrize("host", [V4, V6])
def test_common_client_programs_get_their_lines_back(program, host):
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    with Serving(host) as server:
        port = str(server.address[1])
        if program == "nc":
            arguments = ["-u", host, port]
        else:
            arguments = ["-", f"UDP6:[{host}]:{port}" if host == V6 else f"UDP4:{host}:{port}"]
        process = subprocess.Popen([path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            out = Output(process.stdout)
            for line in (b"hello\n", b"world\n", binary(1000) + b"\n"):
                process.stdin.write(line)
                process.stdin.flush()
                out.wait_for(line)
        finally:
            process.kill()
            process.stdin.close()
            process.wait(SECONDS)
            out.join()
        assert out.data == b"hello\nworld\n" + binary(1000) + b"\n"


def test_a_socket_past_descriptor_1023_is_served():
    (low,) = udp_sockets([(V4, 0)])
    with low:
        try:
            fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1100)
        except OSError as error:
            pytest.skip(f"there is no such descriptor: {error}")
    with Serving(sockets=[socket.socket(fileno=fd)]) as server, client(server.address) as sock:
        ask(sock)


# ---- the guard: which sources get no answer


def expected(address, port):
    """Return the verdict of the standard library on the address."""
    if address.version == 6 and address.ipv4_mapped:
        address = address.ipv4_mapped
    return (
        port < 1024
        or port in OWN
        or address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and address in ipaddress.ip_network("0.0.0.0/8"))
        or str(address) in ("255.255.255.255", "127.255.255.255")
    )


four_bytes = st.ip_addresses(v=4) | st.sampled_from(
    [
        *("0.0.0.0", "0.0.0.1", "0.255.255.255", "1.0.0.0", "126.255.255.255", "127.0.0.0", "127.0.0.1"),  # noqa: S104
        *("127.255.255.255", "128.0.0.0", "223.255.255.255", "224.0.0.0", "239.255.255.255", "240.0.0.0"),
        *("255.255.255.254", "255.255.255.255"),
    ]
).map(ipaddress.IPv4Address)
mapped = four_bytes.map(lambda address: ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed))
sixteen_bytes = st.ip_addresses(v=6) | st.sampled_from(
    ["::", "::1", "::2", "::ffff:0:0:1", "::fffe:7f00:1", "fe80::1", "feff:ffff::", "ff00::", "ff02::1", "2001:db8::1"]
).map(ipaddress.IPv6Address)
addresses = four_bytes | mapped | sixteen_bytes
ports = st.integers(0, 65_535) | st.sampled_from([0, 1023, 1024, *OWN])


@pytest.mark.long
@deterministic
@given(addresses, ports)
def test_the_guard_agrees_with_the_standard_library_about_addresses(address, port):
    assert bool(refusal(packed(str(address)), port, OWN)) == expected(address, port)


@deterministic
@given(addresses)
def test_packed_agrees_with_the_standard_library(address):
    shorter = address.ipv4_mapped if address.version == 6 and address.ipv4_mapped else address
    assert packed(str(address)) == shorter.packed
    if address.version == 6:
        for form in (address.exploded, address.compressed.upper(), f"{address.compressed}%lo"):
            assert packed(form) == shorter.packed


def test_the_dotted_form_of_a_mapped_address_is_the_ipv4_address():
    assert packed("::ffff:192.0.2.1") == bytes((192, 0, 2, 1))
    assert refusal(packed("::ffff:224.0.0.1"), 5000, OWN)
    assert not refusal(packed("::ffff:127.0.0.1"), 5000, OWN)


@pytest.mark.parametrize("port", [1, 7, 19, 53, 123, 1023])
def test_a_client_on_a_port_below_1024_gets_no_answer(port):
    with contextlib.ExitStack() as stack:
        try:
            low = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            stack.enter_context(low)
            low.bind(("127.0.0.7", port))  # an address that is probably unused
        except OSError as error:
            pytest.skip(f"cannot bind the port: {error}")
        server = stack.enter_context(Serving(V4))
        low.sendto(b"ping", server.address)
        with client(server.address) as sock:
            ask(sock, b"another")
        assert server.stop() == counted(1, 1, 11, 7)
        nothing_more(low)


def test_a_client_on_port_1024_gets_an_answer():
    with Serving(V4) as server:
        try:
            context = client(server.address, "127.0.0.7", 1024)
            with context as sock:
                ask(sock)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
            pytest.skip(f"cannot bind the port: {error}")


@pytest.mark.parametrize("host", [V4, V6])
def test_a_datagram_from_the_socket_itself_gets_no_answer(host):
    with Serving(host) as server:
        server.sockets[0].sendto(b"me", server.address)
        assert server.stop() == counted(0, 1, 2, 0)


def test_a_datagram_between_two_sockets_of_the_server_gets_no_answer():
    with Serving(V4, V4) as server:
        one, other = server.sockets
        one.sendto(b"ping", other.getsockname())
        other.sendto(b"pong", one.getsockname())
        assert server.stop() == counted(0, 2, 8, 0)


def test_the_same_port_of_another_address_gets_no_answer():
    with Serving(V4) as server:
        try:
            context = client(server.address, "127.0.0.7", server.address[1])
            with context as sock:
                sock.send(b"ping")
                assert server.stop() == counted(0, 1, 4, 0)
                nothing_more(sock)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            pytest.skip("127.0.0.1 is the only loopback address")


@pytest.fixture
def forge():
    """Return a function that sends a datagram with a forged source: ``forge(source, address, data)``."""
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except OSError as error:
        pytest.skip(f"cannot create a raw socket: {error}")

    def send(source, address, data):
        udp = struct.pack("!4H", source[1], address[1], 8 + len(data), 0) + data
        ends = socket.inet_aton(source[0]) + socket.inet_aton(address[0])
        raw.sendto(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends + udp, (address[0], 0))

    with raw:
        yield send


@linux_only
@pytest.mark.parametrize(
    "source",
    [
        *((V4, 0), (V4, 7), (V4, 1023), ("0.1.2.3", 5000), ("224.0.0.1", 5000), ("239.255.255.255", 5000)),
        # The last is the broadcast address of the loopback network, which only the kernel recognises.
        *(("255.255.255.255", 5000), ("127.255.255.255", 5000)),
    ],
)
def test_a_forged_source_gets_no_answer(forge, source):
    with Serving(V4) as server:
        forge(source, server.address, b"forged")
        with client(server.address) as sock:
            ask(sock, b"honest")
        counts = server.stop()
        if counts["bytes_in"] == 6:
            pytest.skip("this kernel does not deliver the datagram")
        assert counts == counted(1, 1, 12, 6)


def test_a_local_client_gets_an_answer_from_a_wildcard_socket():
    with Serving(ANY) as server, client((V4, server.address[1])) as sock:
        ask(sock)


def test_a_local_ipv4_client_gets_an_answer_from_a_dual_stack_socket():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as both:
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        with Serving(sockets=[both]) as server, client((V4, server.address[1])) as sock:
            ask(sock)


def test_a_dual_stack_socket_answers_a_mapped_client_in_its_form():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as both:
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::ffff:127.0.0.1", 0))
        with Serving(sockets=[both]) as server, client((V4, server.address[1])) as sock:
            ask(sock)


def test_no_answer_is_broadcast():
    (sock,) = udp_sockets([(V4, 0)])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    with Serving(sockets=[sock]):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 0


# ---- the address that a datagram was sent to


def broadcast_addresses():
    """Return the broadcast addresses of this machine's networks, and 255.255.255.255."""
    yield "127.255.255.255"
    yield "255.255.255.255"
    if sys.platform == "linux":
        path = shutil.which("ip")
        printed = subprocess.run([path, "-4", "addr"], capture_output=True, text=True).stdout if path else ""
        for words in map(str.split, printed.splitlines()):
            if "brd" in words and words[0] == "inet":
                yield words[words.index("brd") + 1]


@pytest.mark.parametrize("bound", ["any", "itself"])
@pytest.mark.parametrize("address", list(broadcast_addresses()))
def test_a_datagram_to_a_broadcast_address_is_dropped_and_counted(address, bound, logged):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.settimeout(SECONDS)
        try:
            context = Serving(ANY if bound == "any" else address)
        except OSError as error:
            pytest.skip(f"cannot listen on the address: {error}")
        with context as server:
            port = server.address[1]
            try:
                sock.sendto(b"everybody?", (address, port))
            except OSError as error:
                pytest.skip(f"there is no such network: {error}")
            if bound == "any":
                sock.sendto(b"you?", (V4, port))
                assert sock.recv(100) == b"you?"
            counts = server.stop()
            if counts["dropped"] == 0:
                pytest.skip("this system does not deliver the datagram")
            assert counts["dropped"] == 1
            assert counts["datagrams"] == (bound == "any")
            nothing_more(sock)
    assert [line.partition(": ")[2] for _, line in logged] == [
        "it was sent to a broadcast or multicast address (logged once)"
    ]


@pytest.mark.parametrize(("host", "group"), [(ANY, "224.0.0.1"), ("::", "ff02::1"), ("::", "ff01::1")])
def test_a_datagram_to_a_multicast_address_is_dropped_and_counted(host, group):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with Serving(host) as server, socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        port = server.address[1]
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(V4))
            to = [(group, port)]
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 0)  # to this machine only
            to = [(group, port, 0, index) for index, _ in socket.if_nameindex()]
        for address in to:
            with contextlib.suppress(OSError):
                sock.sendto(b"everybody?", address)
                break
        else:
            pytest.skip("cannot send it")
        local = (V6 if ":" in host else V4, port)
        sock.sendto(b"you?", local)
        assert sock.recvfrom(100)[1][:2] == local
        counts = server.stop()
        if counts["dropped"] == 0:
            pytest.skip("this system does not deliver the datagram")
        assert counts == counted(1, 1, 14, 4)
        nothing_more(sock)


def test_a_broadcast_to_a_dual_stack_socket_is_dropped():
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as both,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        with Serving(sockets=[both]) as server:
            sock.sendto(b"everybody?", ("127.255.255.255", server.address[1]))
            with client(("127.0.0.9", server.address[1])) as honest:
                ask(honest, b"you?")
            counts = server.stop()
            if counts["dropped"] == 0:
                pytest.skip("this system does not deliver the datagram")
            assert counts == counted(1, 1, 14, 4)
            nothing_more(sock)


@linux_only
@pytest.mark.parametrize("host", [V4, "127.0.0.9", "127.255.255.254"])
def test_an_answer_of_a_wildcard_socket_comes_from_the_destination_address(host):
    with Serving(ANY) as server, client((host, server.address[1])) as sock:
        sock.send(b"who?")
        assert sock.recvfrom(100) == (b"who?", (host, server.address[1]))


@linux_only
def test_an_answer_over_ipv6_comes_from_the_destination_address():
    path = shutil.which("ip")
    printed = subprocess.run([path, "-6", "addr"], capture_output=True, text=True).stdout if path else ""
    lines = [line.split() for line in printed.splitlines()]
    interface = None
    found = [("::1", 0)]
    for words in lines:
        if words[0].endswith(":") and words[0][:-1].isdigit():
            interface = int(words[0][:-1])
        elif words[0] == "inet6":
            host = words[1].partition("/")[0]
            found.append((host, interface if host.startswith("fe80") else 0))
    with Serving("::") as server, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        for host, scope in found:
            address = (host, server.address[1], 0, scope)
            sock.sendto(b"who?", address)
            assert sock.recvfrom(100) == (b"who?", address)


@pytest.mark.long
def test_the_cache_of_destinations_is_bounded():
    with Serving(ANY) as server:
        for i in range(MAX_DESTINATIONS + 10):
            try:
                context = client((f"127.0.{i // 250}.{i % 250 + 1}", server.address[1]))
            except OSError as error:
                pytest.skip(f"127.0.0.1 is the only loopback address: {error}")
            with context as sock:
                sock.send(b"x")
                assert sock.recv(10) == b"x"
        assert len(server.echo._destinations) <= MAX_DESTINATIONS


@pytest.mark.parametrize(
    ("ancillary", "many"),
    [
        ([], False),
        ([(socket.IPPROTO_IP, 99, b"?")], False),
        ([(socket.IPPROTO_IP, 8, b"short")], False),
        ([(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, bytes(15) + b"\1" + bytes(4))], False),
        ([(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, b"\xff\2" + bytes(18))], True),
        ([(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, bytes(10) + b"\xff" * 6 + bytes(4))], True),
    ],
)
def test_a_destination_is_read_from_the_ancillary_data(ancillary, many):
    assert Destination(tuple(ancillary)).is_many is many


# ---- the rate limit


class Clock:
    """A clock set by the test."""

    now = 1000.0

    def __call__(self):
        return self.now


A, B = packed("192.0.2.1"), packed("192.0.2.2")


def limiter(rate, burst, max_sources=100):
    clock = Clock()
    return Limiter(rate, burst, max_sources, clock=clock), clock


def allowed(limit, source, attempts):
    return sum(limit.allows(source) for _ in range(attempts))


def test_a_source_gets_its_burst_at_once_and_then_its_rate():
    limit, clock = limiter(rate=10, burst=5)
    assert [limit.allows(A) for _ in range(7)] == [True] * 5 + [False] * 2
    clock.now += 0.25
    assert allowed(limit, A, 10) == 2
    clock.now += 0.25
    assert allowed(limit, A, 10) == 3
    clock.now += 1e9
    assert allowed(limit, A, 10) == 5


def test_sources_are_limited_independently():
    limit, _ = limiter(rate=1, burst=3)
    assert allowed(limit, A, 100) == 3
    assert allowed(limit, B, 3) == 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::1", "0.0.0.1", False),
    ],
)
def test_a_source_is_an_ipv4_address_or_an_ipv6_network_of_64_bits(one, other, same):
    limit, _ = limiter(rate=1, burst=1)
    assert limit.allows(packed(one))
    assert limit.allows(packed(other)) is not same


@pytest.mark.parametrize("rate", [0.5, 4, 1000, 3e6])
def test_a_busy_source_gets_at_most_its_rate_and_one_burst(rate):
    limit, clock = limiter(rate, burst=8)
    start, answers = clock.now, 0
    for _ in range(5000):
        clock.now += random.Random(f"{clock.now}").random() / rate
        answers += limit.allows(A)
        assert answers <= 8 + (clock.now - start) * rate + 1e-3
    assert answers >= (clock.now - start) * rate - 1


@deterministic
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), max_size=80), st.integers(1, 6))
def test_the_limiter_agrees_with_a_model_of_whole_tokens(steps, burst):
    limit, clock = limiter(rate=4, burst=burst)
    eighths = {}  # eighths of a token, and the tick of that count: a tick is 1/8 of the time of a token
    tick = 0
    for ticks, number in steps:
        tick += ticks
        clock.now = 1000 + tick / 32
        held, then = eighths.get(number, (burst * 8, tick))
        held = min(burst * 8, held + tick - then)
        assert limit.allows(bytes([192, 0, 2, number])) == (held >= 8)
        eighths[number] = (held - 8 if held >= 8 else held, tick)


def test_only_the_sources_seen_last_are_remembered():
    limit, _ = limiter(rate=1, burst=1, max_sources=3)
    for i in range(10_000):
        assert limit.allows(i.to_bytes(4, "big"))
        assert len(limit) == min(i + 1, 3)
    seen = [i.to_bytes(4, "big") for i in range(9_997, 10_000)]
    assert not limit.allows(seen[0])  # it is seen last now
    assert limit.allows(A)  # this evicts the second of them
    assert not limit.allows(seen[0])
    assert not limit.allows(seen[2])
    assert limit.allows(seen[1])


def test_an_active_source_is_not_forgotten_for_others():
    limit, _ = limiter(rate=1, burst=1, max_sources=10)
    assert limit.allows(A)
    for i in range(1000):
        limit.allows(i.to_bytes(4, "big"))
        assert not limit.allows(A)


def test_a_source_gets_no_more_answers_than_the_limit():
    with Serving(V4, rate=1e-9, burst=5) as server, client(server.address) as one:
        for i in range(12):
            one.send(b"%02d" % i)
        assert [one.recv(100) for _ in range(5)] == [b"%02d" % i for i in range(5)]
        try:
            with client(server.address, "127.0.0.7") as other:
                ask(other)
                others = 1
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            others = 0
        counts = server.stop()
        assert (counts["datagrams"], counts["dropped"]) == (5 + others, 7)
        nothing_more(one)


def test_another_port_is_the_same_source():
    with Serving(V4, rate=1e-9, burst=5) as server:
        for _ in range(12):
            with client(server.address) as sock:
                sock.send(b"x")
        counts = server.stop()
        assert (counts["datagrams"], counts["dropped"]) == (5, 7)


@pytest.mark.long
def test_a_rate_of_0_means_no_limit():
    with Serving(V4, rate=0) as server, client(server.address) as sock:
        for i in range(3000):
            ask(sock, b"%d" % i)
        assert server.stop()["datagrams"] == 3000


def test_by_default_a_client_gets_a_thousand_answers_at_once():
    with Serving(V4) as server, client(server.address) as sock:
        for i in range(1000):
            ask(sock, b"%d" % i)


# ---- loops


def test_a_loop_between_two_echoes_ends_when_the_limit_is_reached():
    with Serving(V4, rate=1, burst=50) as one, Serving(V4, rate=1, burst=50) as other:
        start = time.monotonic()
        other.sockets[0].sendto(b"round and round", one.address)
        until(lambda: one.echo.counts()["dropped"] + other.echo.counts()["dropped"])
        a, b = one.stop(), other.stop()
        most = 50 + (time.monotonic() - start)
        assert a["dropped"] + b["dropped"] == 1  # the only datagram in circulation: the loop has ended
        assert 50 <= a["datagrams"] <= most
        assert 49 <= b["datagrams"] <= most
        nothing_more(one.sockets[0])
        nothing_more(other.sockets[0])


def test_many_loops_between_two_echoes_end():
    with Serving(V4, V6, rate=1, burst=100) as one, Serving(V4, V6, rate=1, burst=100) as other:
        start = time.monotonic()
        for i in range(20):
            other.sockets[i % 2].sendto(b"%d" % i, one.addresses[i % 2])
        until(lambda: one.echo.counts()["dropped"] + other.echo.counts()["dropped"] == 20)
        a, b = one.stop(), other.stop()
        assert a["dropped"] + b["dropped"] == 20
        assert a["datagrams"] + b["datagrams"] <= 4 * (100 + time.monotonic() - start)


def test_a_loop_between_two_echoes_on_one_port_does_not_begin():
    with Serving(V4) as one:
        try:
            sockets = udp_sockets([("127.0.0.7", one.address[1])])
        except OSError as error:
            pytest.skip(f"cannot bind the port: {error}")
        with Serving(sockets=sockets) as other:
            other.sockets[0].sendto(b"round and round", one.address)
            assert one.stop() == counted(0, 1, 15, 0)
            assert other.stop() == counted()


def test_a_service_that_answers_everything_gets_no_more_than_the_limit():
    with Serving(V4, rate=10, burst=20) as server, client(server.address) as reflector:
        start = time.monotonic()
        answers = 0
        reflector.send(b"x")
        reflector.settimeout(0.05)
        while not server.echo.counts()["dropped"]:
            with contextlib.suppress(TimeoutError):
                reflector.send(reflector.recv(100))
                answers += 1
            assert answers <= 20 + (time.monotonic() - start) * 10
        assert answers >= 20
        assert server.stop()["dropped"] == 1
        nothing_more(reflector)


# ---- errors of sending and receiving


class Hindered(socket.socket):
    """A UDP socket of which every second answer fails with an error that a test cannot provoke in the kernel."""

    error = 0
    calls = 0

    def sendto(self, data, address):
        self.calls += 1
        if self.calls % 2:
            raise OSError(self.error, os.strerror(self.error))
        return super().sendto(data, address)


@pytest.mark.parametrize(
    "name",
    "EAGAIN ENOBUFS ECONNREFUSED EHOSTUNREACH ENETUNREACH ENETDOWN EPERM EACCES EMSGSIZE ENOMEM EINVAL".split(),
)
def test_an_answer_that_cannot_be_sent_is_dropped_and_the_next_is_sent(name):
    with Hindered(socket.AF_INET, socket.SOCK_DGRAM) as hindered:
        hindered.error = getattr(errno, name)
        hindered.bind((V4, 0))
        with Serving(sockets=[hindered]) as server, client(server.address) as sock:
            for i in range(6):
                sock.send(b"%d" % i)
            assert [sock.recv(100) for _ in range(3)] == [b"1", b"3", b"5"]
            assert server.stop() == counted(3, 3, 6, 3)
            nothing_more(sock)


@linux_only
def test_an_answer_that_the_kernel_does_not_send_is_dropped(forge):
    with Serving(V4) as server, client(server.address) as sock:
        forge(("198.51.100.7", 5000), server.address, b"from elsewhere")  # there is no route from a loopback address
        ask(sock, b"honest")
        counts = server.stop()
        if counts["bytes_in"] == 6:
            pytest.skip("this kernel does not deliver the datagram")
        assert counts == counted(1, 1, 20, 6)


@pytest.mark.parametrize("host", [V4, V6])
def test_a_disconnected_client_loses_only_its_own_answers(host):
    (connected,) = udp_sockets([(host, 0)])
    with client(connected.getsockname(), host) as sock:
        connected.connect(sock.getsockname())  # so that the kernel reports undelivered datagrams
        gone = sock.getsockname()
        for _ in range(4):
            sock.send(b"x")
    with Serving(sockets=[connected]) as server, client(server.address, host, gone[1]) as sock:
        until(lambda: sum(server.echo.counts()[name] for name in ("datagrams", "dropped")) == 4)
        while True:  # a pending error may cost this answer as well
            sock.send(b"back")
            sock.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                assert sock.recv(100) in (b"back", b"x")
                break


@pytest.mark.slow
@linux_only
def test_a_persistent_error_is_not_a_busy_loop():
    (sock,) = udp_sockets([(V4, 0)])
    sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: the caller should read its error queue, and does not
    with Serving(sockets=[sock]) as server:
        with client(server.address) as gone:
            gone.send(b"x")
            gone.recv(1)
            gone.setblocking(False)
            address = gone.getsockname()
        sock.sendto(b"nobody there", address)
        clock = time.pthread_getcpuclockid(server.running._thread.ident)
        before = time.clock_gettime(clock)
        with client(server.address) as other:
            other.settimeout(0.5)
            with pytest.raises(TimeoutError):
                other.recv(1)
            assert time.clock_gettime(clock) - before < 0.1
            ask(other)


@pytest.mark.parametrize("name", ["EBADF", "ENOTSOCK"])
def test_a_broken_socket_is_an_error(name):
    class Broken(socket.socket):
        """A socket whose descriptor is broken."""

        def recvmsg_into(self, buffers, ancillary):
            raise OSError(getattr(errno, name), "broken")

    with Broken(socket.AF_INET, socket.SOCK_DGRAM) as broken, stop_pipe() as (stop_fd, stop):
        broken.bind((V4, 0))
        broken.sendto(b"x", broken.getsockname())
        running = Running(UdpEcho([broken], stop_fd=stop_fd).run)
        try:
            with pytest.raises(OSError, match="broken") as raised:
                running.result()
        finally:
            os.write(stop, b"s")
        assert raised.value.errno == getattr(errno, name)


# ---- stopping


def test_datagrams_that_arrived_before_the_stop_are_answered():
    sockets = udp_sockets([(V4, 0), (V6, 0)])
    with sockets[0], sockets[1], stop_pipe() as (stop_fd, stop), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(sock.getsockname())) for sock in sockets]
        for i in range(100):
            for sock in clients:
                sock.send(b"%d" % i)
        os.write(stop, b"s")
        echo = UdpEcho(sockets, stop_fd=stop_fd)
        echo.run()
        for sock in clients:
            assert [sock.recv(100) for _ in range(100)] == [b"%d" % i for i in range(100)]
        assert echo.counts()["datagrams"] == 200
        echo.run()  # the pipe is still readable: this returns at once
        assert echo.counts()["datagrams"] == 200
        assert all(sock.fileno() >= 0 for sock in sockets)


def test_a_closed_stop_pipe_is_a_stop():
    sockets = udp_sockets([(V4, 0)])
    read_fd, write_fd = os.pipe()
    with sockets[0], open(read_fd, "rb", buffering=0):
        os.close(write_fd)
        UdpEcho(sockets, stop_fd=read_fd).run()


@pytest.mark.parametrize("rate", [0, 1000])
def test_a_stop_is_noticed_during_a_flood(rate):
    over = threading.Event()

    def flood(address):
        with client(address) as sock:
            sock.setblocking(False)
            while not over.is_set():
                with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                    sock.send(b"flood")

    with Serving(V4, rate=rate) as server:
        floods = [Running(flood, server.address) for _ in range(2)]
        try:
            until(lambda: sum(server.echo.counts()[name] for name in ("datagrams", "dropped")) > 2000)
            start = time.monotonic()
            counts = server.stop()
            assert time.monotonic() - start < SECONDS / 2
        finally:
            over.set()
            for each in floods:
                each.result()
        assert counts["bytes_in"] == 5 * (counts["datagrams"] + counts["dropped"])
        assert counts["bytes_out"] == 5 * counts["datagrams"]


class Endless(socket.socket):
    """A socket that always has a datagram to receive."""

    received = 0

    def recvmsg_into(self, buffers, ancillary):
        self.received += 1
        if self.received == self.stop_at:
            os.write(self.stop, b"s")
        return 1, [], 0, (V4, 50_000)

    def sendto(self, data, address):
        return len(data)


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_stop_is_noticed_after_a_batch_and_the_rest_is_bounded(batches):
    with Endless(socket.AF_INET, socket.SOCK_DGRAM) as endless, stop_pipe() as (stop_fd, endless.stop):
        endless.bind((V4, 0))
        with client(endless.getsockname()) as sock:
            sock.send(b"x")  # never received, so that poll() always reports the socket
        endless.stop_at = batches * BATCH
        if not batches:
            os.write(endless.stop, b"s")
        UdpEcho([endless], stop_fd=stop_fd, rate=0).run()
        assert endless.received == batches * BATCH + LAST


@pytest.mark.slow
@pytest.mark.usefixtures("often")
def test_counts_are_consistent_at_any_time():
    over = threading.Event()
    with Serving(V4, rate=0) as server:

        def look():
            while not over.is_set():
                counts = server.echo.counts()
                assert counts["bytes_out"] <= counts["bytes_in"]
                assert 3 * (counts["datagrams"] + counts["dropped"]) <= counts["bytes_in"]

        looking = Running(look)
        try:
            with client(server.address) as sock:
                for _ in range(2000):
                    ask(sock, b"abc")
        finally:
            over.set()
            looking.result()


# ---- the log


class Records(logging.Handler):
    """Collects the log records."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append((record.levelname, record.getMessage()))


@pytest.fixture
def logged():
    handler = Records()
    logger = logging.getLogger("rioecho.server")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def test_the_guard_and_the_limit_are_logged_once_each(logged):
    with Serving(V4, rate=1e-9, burst=2) as server, client(server.address) as sock:
        for _ in range(10):
            server.sockets[0].sendto(b"secret", server.address)
            sock.send(b"secret")
        assert server.stop()["dropped"] == 18
        port = sock.getsockname()[1]
    assert sorted(logged) == sorted(
        [
            (
                "WARNING",
                f"dropped a datagram from 127.0.0.1 port {server.address[1]}: "
                "the source port is one that this server listens on (logged once)",
            ),
            ("WARNING", f"dropped a datagram from 127.0.0.1 port {port}: more than 1e-09 a second (logged once)"),
        ]
    )


def test_answers_are_not_logged(logged):
    with Serving(V4) as server, client(server.address) as sock:
        ask(sock)
    assert logged == []


# ---- arguments, and binding


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": -1}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"burst": 0}, "burst"),
        ({"burst": float("nan")}, "burst"),
        ({"burst": float("inf")}, "burst"),
        ({"max_sources": 0}, "max_sources"),
    ],
)
def test_an_invalid_argument_is_an_error_that_names_it(options, words):
    with pytest.raises(ValueError, match=words):
        UdpEcho([], stop_fd=0, **options)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_limiter_needs_a_rate(rate):
    with pytest.raises(ValueError, match="rate"):
        Limiter(rate, 1, 1)


@pytest.mark.parametrize(
    ("family", "kind"), [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM)]
)
def test_only_udp_sockets_are_accepted(family, kind):
    with socket.socket(family, kind) as sock, pytest.raises(ValueError, match="UDP"):
        UdpEcho([sock], stop_fd=0)


def test_sockets_are_bound_to_the_given_addresses_each_family_separately():
    (probe,) = udp_sockets([(V4, 0)])
    port = probe.getsockname()[1]
    probe.close()
    sockets = udp_sockets([(V4, port), (V6, port), ("::", 0)])
    try:
        assert [sock.getsockname()[:2] for sock in sockets[:2]] == [(V4, port), (V6, port)]
        assert [sock.family for sock in sockets] == [socket.AF_INET, socket.AF_INET6, socket.AF_INET6]
        assert {sock.type for sock in sockets} == {socket.SOCK_DGRAM}
        assert [sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for sock in sockets[1:]] == [1, 1]
        assert not any(os.get_inheritable(sock.fileno()) for sock in sockets)
        assert all(sock.getblocking() for sock in sockets)
    finally:
        for sock in sockets:
            sock.close()


def test_the_wildcard_addresses_of_both_families_share_a_port():
    (probe,) = udp_sockets([(ANY, 0)])
    port = probe.getsockname()[1]
    probe.close()
    for sock in udp_sockets([("::", port), (ANY, port)]):
        sock.close()


@pytest.mark.parametrize("taken", [V4, V6])
def test_a_port_in_use_is_an_error_that_names_it_and_nothing_stays_open(taken):
    (other,) = udp_sockets([(taken, 0)])
    with other:
        port = other.getsockname()[1]
        before = set(os.listdir("/dev/fd"))
        with pytest.raises(
            OSError, match=rf"^\[Errno \d+\] cannot listen on {taken} port {port} \(UDP\): \w+"
        ) as raised:
            udp_sockets([(V4, 0), (V6, 0), (taken, port)])
        assert raised.value.errno == errno.EADDRINUSE
        assert set(os.listdir("/dev/fd")) == before


def test_a_port_in_use_by_a_socket_that_permits_sharing_is_an_error():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((V4, 0))
        with pytest.raises(OSError, match="UDP") as raised:
            udp_sockets([other.getsockname()])
        assert raised.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("address", "error", "number"),
    [
        (("192.0.2.1", 8000), OSError, errno.EADDRNOTAVAIL),
        (("localhost", 8000), socket.gaierror, socket.EAI_NONAME),
        (("x" * 64, 8000), socket.gaierror, socket.EAI_NONAME),
    ],
)
def test_an_unavailable_address_is_an_error_that_names_it(address, error, number):
    with pytest.raises(error, match=rf"cannot listen on {address[0]} port 8000 \(UDP\): ") as raised:
        udp_sockets([(V4, 0), address])
    assert raised.value.errno == number


def test_a_port_below_1024_without_permission_is_a_permission_error(child):
    if os.geteuid() != 0:
        pytest.skip("only root can drop the permission")
    printed = child("""if True:
        import os
        from rioecho._server.udp import udp_sockets
        for sock in udp_sockets([("127.0.0.1", 0)]):
            sock.close()  # everything is imported before the permissions are dropped
        os.setuid(65534)
        try:
            udp_sockets([("127.0.0.1", 7)])
        except PermissionError as error:
            print(error)
        else:
            print("allowed")
    """)
    if printed == "allowed\n":
        pytest.skip("no port is privileged")
    assert "cannot listen on 127.0.0.1 port 7 (UDP): " in printed


def test_importing_it_is_cheap(child):
    printed = child("""if True:
        import sys
        import logging, rioecho.sockets
        before = set(sys.modules)
        import rioecho._server.udp
        print(*sorted(set(sys.modules) - before))
    """)
    assert set(printed.split()) <= {"rioecho._server", "rioecho._server.udp", "select"}
