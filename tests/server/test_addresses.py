"""The addresses of EchoServer: both loopback families, one port for all, and errors that name the address."""

import errno
import os
import socket
import struct

import pytest

from rioecho._server.accepted import source_name
from rioecho.server import EchoServer
from support.peers import Running, ask, binary, dial, exchange, receive_all

V4, V6 = "127.0.0.1", "::1"


def free_port():
    """Return a port that is free at both loopback addresses, and the two sockets that reserve it."""
    while True:
        one = socket.create_server((V4, 0))
        try:
            other = socket.create_server((V6, one.getsockname()[1]), family=socket.AF_INET6)
        except OSError:
            one.close()
            continue
        return one.getsockname()[1], one, other


def hosts_of(server):
    return [host for host, _ in server.addresses]


def test_by_default_it_listens_on_both_loopback_addresses_and_one_port():
    with EchoServer() as server:
        assert hosts_of(server) == [V4, V6]
        assert len({port for _, port in server.addresses}) == 1
        for address in server.addresses:
            with dial(address) as sock:
                ask(sock)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (V4, [V4]),
        (V6, [V6]),
        ([V4], [V4]),
        ((V6, V4), [V6, V4]),
        ([V4, "localhost", V6], [V4, V6]),
        ("0.0.0.0", ["0.0.0.0"]),  # noqa: S104
        ("::", ["::"]),
        (["0.0.0.0", "::"], ["0.0.0.0", "::"]),  # noqa: S104
    ],
)
def test_it_listens_on_the_given_hosts(host, expected):
    with EchoServer(host=host) as server:
        assert hosts_of(server) == expected
        assert len({port for _, port in server.addresses}) == 1
        for name, port in server.addresses:
            with dial((name.replace("0.0.0.0", V4).replace("::1", "::").replace("::", V6), port)) as sock:  # noqa: S104
                ask(sock)


def test_an_ipv6_address_accepts_no_ipv4_client():
    with EchoServer(host="::") as server, pytest.raises(ConnectionRefusedError):
        dial((V4, server.addresses[0][1]))


@pytest.mark.parametrize("as_text", [False, True])
def test_a_port_may_be_an_int_or_a_str(as_text):
    port, *sockets = free_port()
    for sock in sockets:
        sock.close()
    with EchoServer(str(port) if as_text else port) as server:
        assert server.addresses == [(V4, port), (V6, port)]


def test_a_port_can_be_reused_immediately_after_a_server_stops():
    with EchoServer() as server, dial(server.addresses[0]) as sock:
        ask(sock)
        port = server.addresses[0][1]
        server.stop()
        assert sock.recv(1) == b""  # the server closed first: its port is in TIME_WAIT
    with EchoServer(port) as server, dial(server.addresses[0]) as sock:
        ask(sock)


@pytest.mark.parametrize("taken", [V4, V6, "both"])
def test_a_port_in_use_at_either_address_is_an_error_that_names_it(taken):
    port, one, other = free_port()
    with one, other:
        if taken == V4:
            other.close()
        elif taken == V6:
            one.close()
        before = set(os.listdir("/dev/fd"))
        with pytest.raises(OSError, match=rf"{V6 if taken == V6 else V4} port {port}") as raised:
            EchoServer(port)
        assert raised.value.errno == errno.EADDRINUSE
        assert set(os.listdir("/dev/fd")) == before


def test_a_port_in_use_by_another_echo_server_is_an_error():
    with EchoServer() as server, pytest.raises(OSError, match="port") as raised:
        EchoServer(server.addresses[0][1])
    assert raised.value.errno == errno.EADDRINUSE


def test_an_unknown_host_is_an_error_that_names_it_and_nothing_stays_open():
    with pytest.raises(socket.gaierror, match=r"no-such-host\.invalid"):
        EchoServer(host=[V4, "no-such-host.invalid"])


def test_an_address_of_another_machine_is_an_error_that_names_it():
    with pytest.raises(OSError, match=r"192\.0\.2\.1") as raised:
        EchoServer(host=[V4, "192.0.2.1"])
    assert raised.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "magic"}, "engine"),
        ({"framing": "xml"}, "framing"),
        ({"port": -1}, "port"),
        ({"port": 65_536}, "port"),
        ({"port": "80 "}, "port"),
        ({"port": True}, "port"),
        ({"port": 8.5}, "port"),
        ({"host": b"localhost"}, "host"),
        ({"host": [V4, None]}, "host"),
        ({"host": "local\0host"}, "host"),
        ({"host": []}, "host"),
        ({"backlog": -1}, "backlog"),
        ({"max_line": -1}, "max_line"),
        ({"max_line": 1.5}, "max_line"),
        ({"max_line": 1 << 70}, "max_line"),
        ({"max_line": "8"}, None),
        ({"idle_timeout": -0.1}, "idle_timeout"),
        ({"idle_timeout": float("nan")}, "idle_timeout"),
        ({"idle_timeout": "8"}, None),
        ({"drain_timeout": -1}, "drain_timeout"),
        ({"drain_timeout": float("nan")}, "drain_timeout"),
    ],
)
def test_an_invalid_argument_is_an_error_that_names_it_and_nothing_stays_open(options, words):
    with pytest.raises((ValueError, TypeError, OverflowError), match=words):
        EchoServer(**options).close()


def test_clients_wait_in_the_listen_queue_until_the_server_is_started():
    server = EchoServer()
    with dial(server.addresses[0]) as sock:
        sock.sendall(b"early\n")
        sock.shutdown(socket.SHUT_WR)
        with server:
            assert receive_all(sock) == b"early\n"


def test_closing_a_server_that_was_never_started_leaves_nothing_open():
    server = EchoServer()
    server.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        dial(server.addresses[0])


def test_clients_of_both_families_are_served_concurrently():
    with EchoServer(engine="thread") as server:
        running = [Running(client, server.addresses[i % 2], i) for i in range(10)]
        for i, each in enumerate(running):
            assert each.result() == binary(80_000, i)


def client(address, i):
    with dial(address) as sock:
        return exchange(sock, binary(80_000, i))


def test_the_interface_of_a_link_local_address_that_is_gone_is_named_by_its_number():
    source = struct.pack("=16sIHBB", socket.inet_pton(socket.AF_INET6, "fe80::1"), 0x7FFFFFFF, 4321, 2, 0)
    assert source_name(source) == "(fe80::1%2147483647, 4321)"
