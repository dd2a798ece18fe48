"""EchoServer: every client gets its own bytes back with every engine and framing, and the counts are exact."""

import logging
import select
import socket
import threading

import pytest

from rioecho.server import EchoServer
from support.peers import SIZES, Running, ask, binary, dial, exchange, lines, receive, receive_all, reset


@pytest.fixture(params=["line", "raw"])
def framing(request):
    return request.param


def converse(address, data):
    """Run one client: connect, send, receive the echo, close."""
    with dial(address) as sock:
        return exchange(sock, data)


@pytest.mark.parametrize("n", SIZES)
def test_random_bytes_are_echoed_unchanged(engine, framing, n):
    data = binary(n)
    with EchoServer(engine=engine, framing=framing) as server:
        assert converse(server.addresses[0], data) == data
    stats = server.stats()
    assert (stats["bytes_in"], stats["bytes_out"]) == (n, n)
    assert stats["lines"] == (data.count(b"\n") if framing == "line" else 0)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "clients"), [("event", 50), ("thread", 50), ("process", 50), ("iterative", 20)])
def test_many_concurrent_clients_each_get_their_own_bytes_back(engine, framing, clients):
    with EchoServer(engine=engine, framing=framing) as server:
        addresses = server.addresses
        running = [Running(converse, addresses[i % 2], binary(100_000 + i, i)) for i in range(clients)]
        for i, each in enumerate(running):
            assert each.result() == binary(100_000 + i, i)
    assert server.stats() == {
        "accepted": clients,
        "active": 0,
        "refused": 0,
        "closed": clients,
        "errors": 0,
        "bytes_in": sum(100_000 + i for i in range(clients)),
        "bytes_out": sum(100_000 + i for i in range(clients)),
        "lines": sum(binary(100_000 + i, i).count(b"\n") for i in range(clients)) if framing == "line" else 0,
    }


@pytest.mark.sampled(1)
@pytest.mark.parametrize("engine", ["process", "thread", "event"])
def test_fifty_clients_are_served_concurrently(engine):
    with EchoServer(engine=engine) as server:
        clients = [dial(server.addresses[0]) for _ in range(50)]
        for _ in range(2):  # each while all others are connected
            for client in clients:
                ask(client)
        assert server.stats()["active"] == 50
        for client in clients:
            client.close()


def test_the_iterative_engine_serves_one_client_at_a_time():
    with (
        EchoServer(engine="iterative") as server,
        dial(server.addresses[0]) as first,
        dial(server.addresses[0]) as second,
    ):
        ask(first)
        second.sendall(b"I can wait\n")
        ask(first)
        assert not select.select([second], [], [], 0.05)[0]
        assert server.stats()["accepted"] == 1
        first.close()
        assert receive(second, 11) == b"I can wait\n"


def test_a_line_is_echoed_only_when_it_is_complete(engine):
    with EchoServer(engine=engine) as server, dial(server.addresses[0]) as sock:
        for piece in (b"he", b"llo\r"):
            ask_nothing(sock, piece)
        sock.sendall(b"\nand")
        assert receive(sock, 7) == b"hello\r\n"
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"and"


def ask_nothing(sock, piece):
    sock.sendall(piece)
    assert not select.select([sock], [], [], 0.02)[0]


def test_raw_bytes_are_echoed_at_once(engine):
    with EchoServer(engine=engine, framing="raw") as server, dial(server.addresses[0]) as sock:
        for piece in (b"he", b"llo\r", b"\n"):
            ask(sock, piece)


def test_received_bytes_are_echoed_after_a_half_close(engine, framing):
    data = b"".join(lines(500)) + b"and no newline"
    with EchoServer(engine=engine, framing=framing) as server, dial(server.addresses[0]) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == data


def test_a_line_longer_than_max_line_is_echoed_in_pieces(engine):
    with EchoServer(engine=engine, max_line=1000) as server, dial(server.addresses[0]) as sock:
        ask_nothing(sock, b"x" * 999)
        sock.sendall(b"y")
        assert receive(sock, 1000) == b"x" * 999 + b"y"
        ask(sock, b"the end of it\n")


def test_a_max_line_of_zero_means_no_limit(engine):
    data = binary(3_000_000).replace(b"\n", b"n")
    with EchoServer(engine=engine, max_line=0) as server, dial(server.addresses[0]) as sock:
        sock.sendall(data)
        assert not select.select([sock], [], [], 0.05)[0]
        sock.sendall(b"\n")
        assert receive(sock, len(data) + 1) == data + b"\n"


def test_a_reset_closes_one_connection_only_and_is_counted(engine):
    with EchoServer(engine=engine) as server:
        for _ in range(5):
            sock = dial(server.addresses[0])
            ask(sock)
            reset(sock)
        with dial(server.addresses[0]) as sock:
            ask(sock)
    stats = server.stats()
    assert (stats["accepted"], stats["closed"], stats["errors"]) == (6, 6, 5)


@pytest.mark.sampled(1)
def test_clients_that_disconnect_before_accept_do_no_harm(engine):
    with EchoServer(engine=engine) as server:
        for i in range(50):
            sock = dial(server.addresses[i % 2])
            if i % 3:
                sock.sendall(b"good bye\n")
            reset(sock)
        assert converse(server.addresses[0], b"hello\n") == b"hello\n"
        assert converse(server.addresses[1], b"hello\n") == b"hello\n"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["process", "thread", "event"])
def test_clients_that_do_not_read_do_not_affect_others(engine):
    with EchoServer(engine=engine) as server:
        deaf = [dial(server.addresses[0]) for _ in range(3)]
        for sock in deaf:
            sock.setblocking(False)
            while select.select([], [sock], [], 0.1)[1]:
                sock.send(b"x" * 65_535 + b"\n")
        assert converse(server.addresses[0], binary(300_000)) == binary(300_000)
        for sock in deaf:
            reset(sock)


def test_the_counts_are_exact_while_a_client_is_connected(engine):
    with EchoServer(engine=engine) as server, dial(server.addresses[0]) as sock:
        ask(sock, b"one\ntwo\n")
        stats = server.stats()
        assert (stats["accepted"], stats["active"], stats["closed"]) == (1, 1, 0)
        assert (stats["bytes_in"], stats["lines"]) == (8, 2)
        assert stats["bytes_out"] in (0, 8)  # the client may receive the line before it is counted


def test_the_log_names_the_client_and_never_the_payload(engine, caplog):
    caplog.set_level(logging.DEBUG, "rioecho.server")
    with EchoServer(engine=engine) as server, dial(server.addresses[0]) as sock:
        host, port = sock.getsockname()
        ask(sock, b"s3cret\n")
        ask(sock, b"s3cret, again\n")
    assert f"Connected to ({host}, {port})" in caplog.messages
    assert [m for m in caplog.messages if "received" in m] == ["server received 7 bytes", "server received 14 bytes"]
    assert "s3cret" not in caplog.text


@pytest.mark.long
def test_no_thread_is_left_running(engine):
    before = set(threading.enumerate())
    with EchoServer(engine=engine) as server:
        for _ in range(10):
            assert converse(server.addresses[0], b"hello\n") == b"hello\n"
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before


@pytest.mark.long
@pytest.mark.sampled(1)
def test_several_servers_run_in_one_process(framing):
    with (
        EchoServer(engine="thread", framing=framing) as first,
        EchoServer(engine="iterative", framing=framing) as second,
        EchoServer(engine="event", framing=framing) as third,
        EchoServer(engine="process", framing=framing) as fourth,
    ):
        servers = (first, second, third, fourth)
        assert len({server.addresses[0] for server in servers}) == 4
        running = [Running(converse, servers[i % 4].addresses[0], binary(50_000, i)) for i in range(20)]
        for i, each in enumerate(running):
            assert each.result() == binary(50_000, i)
    assert [server.stats()["closed"] for server in servers] == [5, 5, 5, 5]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["process", "thread", "event"])
def test_an_idle_client_is_closed_and_a_busy_one_is_not(engine):
    with (
        EchoServer(engine=engine, idle_timeout=2.0) as server,
        dial(server.addresses[0]) as idle,
        dial(server.addresses[0]) as busy,
    ):
        while not select.select([idle], [], [], 0.02)[0]:
            ask(busy)
        assert idle.recv(1) == b""
        ask(busy)
    assert server.stats()["errors"] == 0


@pytest.mark.slow
def test_a_client_that_sends_and_never_reads_is_closed_as_idle(engine):
    with EchoServer(engine=engine, idle_timeout=0.5) as server, dial(server.addresses[0]) as deaf:
        running = Running(send_for_ever, deaf)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            running.result()


def send_for_ever(sock):
    while True:
        sock.sendall(b"x" * 65_535 + b"\n")
