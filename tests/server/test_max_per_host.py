"""The limit of connections of one address, and keepalive."""

import contextlib
import ipaddress
import os
import random
import socket
import struct
import sys

import pytest

from rioecho._server.accepted import AcceptCounts, adopt
from rioecho._server.hosts import HostTable
from rioecho.server import EchoServer
from support.peers import ask, dial, needs_ipv6, receive, receive_all
from support.procfs import tcp_row, until
from support.proxies import LOCAL, raw_version_2, version_1, version_2

ENGINES = ("process", "thread", "event")


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def refused(sock, data=b""):
    try:
        sock.sendall(data)
        return receive_all(sock) == b""
    except ConnectionError:
        return True


def stats_until(server, name, n):
    until(lambda: server.stats()[name] == n, f"{name} to be {n}")
    return server.stats()


def test_what_an_address_has_beyond_the_limit_is_closed_and_counted(engine):
    with EchoServer(engine=engine, max_per_host=2) as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(dial(server.addresses[0])) for _ in range(2)]
        for sock in held:
            ask(sock)
        for _ in range(3):
            with dial(server.addresses[0]) as sock:
                assert refused(sock)
        assert stats_until(server, "refused", 3)["accepted"] == 2
        held[0].close()
        stats_until(server, "active", 1)
        with dial(server.addresses[0]) as sock:
            ask(sock)


@needs_ipv6
def test_each_address_has_its_own_limit(engine):
    with EchoServer(engine=engine, max_per_host=1) as server, contextlib.ExitStack() as stack:
        for address in server.addresses:
            ask(stack.enter_context(dial(address)))
        if sys.platform == "linux":  # all of 127.0.0.0/8
            other = stack.enter_context(
                socket.create_connection(server.addresses[0], 30, source_address=("127.0.0.2", 0))
            )
            ask(other)
        assert server.stats()["refused"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a dual-stack socket is passed in")
@needs_ipv6
def test_an_ipv4_address_is_one_address_on_a_dual_stack_socket(engine):
    dual = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    port = dual.getsockname()[1]
    single = socket.create_server(("127.0.0.1", 0))
    other = single.getsockname()[1]
    with (
        EchoServer(None, engine=engine, sockets=[dual, single], max_per_host=1),
        dial(("127.0.0.1", port)) as first,
        dial(("127.0.0.1", other)) as second,
    ):
        ask(first)
        assert refused(second)


def test_unix_sockets_are_exempt(engine, tmp_path):
    path = str(tmp_path / "socket")
    with EchoServer(None, unix=path, engine=engine, max_per_host=1) as server, contextlib.ExitStack() as stack:
        for _ in range(3):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(30)
            sock.connect(path)
            ask(sock)
        assert server.stats()["refused"] == 0


@pytest.mark.long
@pytest.mark.parametrize("version", [version_1, version_2])
@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::5"])
def test_the_address_in_the_proxy_header_counts(engine, version, host):
    with (
        EchoServer(engine=engine, max_per_host=2, proxy_protocol=True) as server,
        contextlib.ExitStack() as stack,
    ):
        held = []
        for client in [host, "192.0.2.99", host]:
            held.append(stack.enter_context(dial(server.addresses[0])))
            held[-1].sendall(version(client) + b"hello\n")
            assert receive(held[-1], 6) == b"hello\n"
        with dial(server.addresses[0]) as sock:
            assert refused(sock, version(host) + b"hello\n")
        stats = stats_until(server, "refused", 1)
        assert (stats["accepted"], stats["active"], stats["closed"], stats["errors"]) == (4, 3, 1, 0)
        held[0].close()
        stats_until(server, "active", 2)
        with dial(server.addresses[0]) as sock:
            sock.sendall(version(host))
            ask(sock)


def test_a_header_without_an_address_counts_for_the_balancer(engine):
    header = raw_version_2(LOCAL, 0)
    with (
        EchoServer(engine=engine, max_per_host=1, proxy_protocol=True) as server,
        dial(server.addresses[0]) as first,
        dial(server.addresses[0]) as second,
    ):
        first.sendall(header)
        ask(first)
        assert refused(second, header)
        stats_until(server, "refused", 1)


@pytest.mark.slow
def test_the_count_is_exact_after_many_connections(engine):
    with EchoServer(engine=engine, max_per_host=3, workers=2 if engine == "event" else 1) as server:
        for _ in range(100):
            with dial(server.addresses[0]) as sock:
                ask(sock)
            stats_until(server, "active", 0)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                ask(stack.enter_context(dial(server.addresses[0])))
            assert refused(stack.enter_context(dial(server.addresses[0])))
    assert server.stats()["refused"] == 1


@pytest.mark.parametrize("value", [-1, 1.5, "3"])
def test_an_invalid_limit_is_refused(value):
    with pytest.raises((ValueError, TypeError), match="max_per_host"):
        EchoServer(max_per_host=value)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/net/tcp shows the timers")
@pytest.mark.parametrize("engine", ["iterative", *ENGINES])
def test_keepalive_is_on(engine):
    with EchoServer(engine=engine) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        assert tcp_row(sock)[5][:2] == "02"  # the keepalive timer is armed


def connection_from(address):
    """Return what an acceptor has of a connection whose PROXY header names an IPv4 address."""
    connection = adopt(socket.socket(), AcceptCounts())
    host = ipaddress.IPv6Address("::ffff:0:0").packed[:12] + address.packed
    connection.name_source(struct.pack("=16sIHBB", host, 0, 1234, 2, 1))
    assert connection.peer == f"({address}, 1234)"
    return connection


def test_addresses_that_share_a_place_in_the_table_are_counted_apart():
    table, chance = HostTable(1), random.Random(5)
    hosts = [ipaddress.IPv4Address(number) for number in chance.sample(range(1 << 24, 1 << 31), 400)]
    held = {host: connection_from(host) for host in hosts}
    assert all(connection.admit(table) for connection in held.values())
    for _ in range(3):  # in the thousands of places of the table several of them meet
        chance.shuffle(hosts)
        for host in hosts:
            again = connection_from(host)
            assert not again.admit(table)
            held.pop(host).close()
            assert again.admit(table)
            held[host] = again
    for connection in held.values():
        connection.close()


def test_connections_that_outlive_their_table_are_closed():
    table = HostTable(2)
    held = [connection_from(ipaddress.IPv4Address("192.0.2.7")) for _ in range(3)]
    assert [connection.admit(table) for connection in held] == [True, True, False]
    del table
    for connection in held:
        connection.close()
        assert connection.fileno() == -1


def test_a_forked_child_that_drops_its_copies_releases_nothing_of_the_parent():
    table = HostTable(1)
    held = connection_from(ipaddress.IPv4Address("192.0.2.7"))
    assert held.admit(table)
    pid = os.fork()
    if pid == 0:
        held.close()
        again = connection_from(ipaddress.IPv4Address("192.0.2.7"))
        status = 0 if not again.admit(table) else 1
        del again, held, table
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    again = connection_from(ipaddress.IPv4Address("192.0.2.7"))
    assert not again.admit(table)
    held.close()
    assert again.admit(table)
    again.close()
