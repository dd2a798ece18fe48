"""rioecho-server and signals: every received line is echoed, the status is 0, and a second signal exits at once."""

import contextlib
import shutil
import signal
import socket
import time

import pytest

from support.peers import SECONDS, Running, Server, acknowledged, ask, binary, dial, fill, lines, receive, receive_all
from support.procfs import until
from support.visitors import Visitors


@pytest.fixture(params=["SIGTERM", "SIGINT", "SIGHUP"])
def number(request):
    return getattr(signal, request.param)


@pytest.mark.long
@pytest.mark.sampled(3)
def test_an_idle_server_exits_with_status_0_and_prints_nothing_more(number, engine):
    with Server("-q", "--engine", engine) as server:
        server.signal(number)
        assert server.status() == 0
        assert server.out.text.count("\n") == 1
        assert server.err.text == ""


@pytest.mark.long
@pytest.mark.sampled(3)
def test_a_connected_client_gets_its_bytes_back_before_the_close(number, engine):
    with Server("--engine", engine) as server, dial(server.address) as sock:
        ask(sock)
        sock.sendall(b"one\ntwo\nand a half")
        acknowledged(sock)
        server.signal(number)
        assert receive_all(sock) == b"one\ntwo\nand a half"
        sock.close()
        assert server.status() == 0
        assert "Traceback" not in server.err.text


@pytest.mark.long
def test_every_received_line_is_echoed_to_all_of_many_clients(number):
    with Server("-q") as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.addresses[i % 2])) for i in range(30)]
        for sock in clients:
            ask(sock)
        sent = [b"".join(lines(400, seed=i)) for i in range(30)]
        for sock, data in zip(clients, sent, strict=True):
            sock.sendall(data)
            acknowledged(sock)
        server.signal(number)
        for sock, data in zip(clients, sent, strict=True):
            assert receive_all(sock) == data
            sock.close()
        assert server.status() == 0
        assert server.err.text == ""


@pytest.mark.long
def test_under_load_every_client_gets_its_lines_and_eof_and_no_reset(number):
    def chatter(address, started):
        """Exchange lines until the server closes; report whether that was between two lines."""
        with dial(address) as sock:
            ask(sock)
            started.append(address)
            while True:
                line = binary(40, len(started)).replace(b"\n", b"n") + b"\n"
                sock.sendall(line * 10)
                back = b""
                while len(back) < 410:
                    part = sock.recv(1 << 16)
                    if not part:
                        return (line * 10).startswith(back) and back.endswith((b"\n", b""))
                    back += part
                assert back == line * 10

    with Server("-q") as server:
        started = []
        running = [Running(chatter, server.addresses[i % 2], started) for i in range(20)]
        until(lambda: len(started) == 20)
        server.signal(number)
        assert all(each.result() for each in running)
        assert server.status() == 0
        assert server.err.text == ""


@pytest.mark.long
@pytest.mark.sampled(2)
def test_a_client_connected_but_not_yet_accepted_gets_its_line_back(engine):
    with Server("--engine", "iterative") as server, dial(server.address) as first, dial(server.address) as second:
        ask(first)
        second.sendall(b"I can wait\n")
        second.shutdown(socket.SHUT_WR)
        acknowledged(second)
        server.signal(signal.SIGTERM)
        assert receive_all(first) == b""
        first.close()
        assert receive_all(second) == b"I can wait\n"
        assert server.status() == 0


@pytest.mark.slow
@pytest.mark.parametrize("flood", [False, True])
def test_a_client_that_does_not_close_is_disconnected_at_the_drain_deadline(number, engine, flood):
    with Server("--engine", engine, "--drain-timeout", "0.3") as server, dial(server.address) as sock:
        ask(sock)
        if flood:
            fill(sock)
        start = time.monotonic()
        server.signal(number)
        assert server.status() == 0
        assert time.monotonic() - start < SECONDS / 3
        assert "drain timeout" in server.err.text


@pytest.mark.slow
@pytest.mark.sampled(1)
def test_a_second_signal_exits_at_once_if_it_comes_more_than_a_second_after_the_first(number, engine):
    with Server("--engine", engine, "--drain-timeout", "1000") as server, dial(server.address) as sock:
        ask(sock)
        start = time.monotonic()
        server.signal(number)
        assert receive_all(sock) == b""  # it has received the first signal, and waits for the client's close
        server.signal_until_it_ends(signal.SIGTERM)
        assert time.monotonic() - start > 1
        assert server.status() == 128 + signal.SIGTERM


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_within_a_second_are_one_stop(number, second, engine):
    """As those of timeout(1), which signals the command and then its process group."""
    data = b"".join(lines(60_000))
    with Server("-q", "--engine", engine) as server, dial(server.address) as sock:
        ask(sock)
        sending = Running(sock.sendall, data)
        back = receive(sock, 1000)
        server.signal(number)
        server.signal(second)
        server.signal(number)
        back += receive_all(sock)
        assert data.startswith(back)
        with contextlib.suppress(ConnectionError):
            sending.result()
        sock.close()
        assert server.status() == 0
        assert server.err.text == ""


@pytest.mark.long
@pytest.mark.skipif(shutil.which("timeout") is None, reason="timeout(1) is not installed")
def test_timeout_1_ends_the_server_in_good_order():
    """GNU timeout passes a signal on to the command and then to its process group, within microseconds."""
    data = b"".join(lines(60_000))
    with Server("-q", prelude='set -- timeout 1000 "$@"') as server, dial(server.address) as sock:
        ask(sock)
        sending = Running(sock.sendall, data)
        acknowledged(sock)
        server.signal(signal.SIGTERM)
        back = receive_all(sock)
        assert data.startswith(back)
        with contextlib.suppress(ConnectionError):
            sending.result()
        sock.close()
        assert server.status() == 0
        assert server.err.text == ""


@pytest.mark.long
@pytest.mark.sampled(1)
def test_an_ignored_hangup_stays_ignored(engine):
    """As with nohup(1)."""
    with Server("--engine", engine, prelude="trap '' HUP") as server, dial(server.address) as sock:
        ask(sock)
        server.signal(signal.SIGHUP)
        ask(sock)
        server.drain(sock)


@pytest.mark.long
def test_a_hangup_removes_the_socket_file(tmp_path):
    path = tmp_path / "socket"
    with Server("--unix", path) as server:
        assert path.is_socket()
        server.signal(signal.SIGHUP)
        assert server.status() == 0
    assert not path.exists()


@pytest.mark.long
def test_the_stop_is_logged_with_the_totals(engine):
    with Server("--engine", engine) as server, dial(server.address) as sock:
        ask(sock, b"12345\n")
        ask(sock, b"1234567\n")
        server.drain(sock)
    log = [line.partition(" INFO ")[2] for line in server.err.text.splitlines()]
    assert "Stopping: 1 active" in log
    totals = "1 accepted, 1 closed, 14 bytes in, 14 bytes out, 2 lines"
    assert log[-1] == f"Stopped: {totals}"


@pytest.mark.long
def test_no_client_is_accepted_after_the_signal():
    with Server() as server, dial(server.address) as sock:
        ask(sock)
        server.signal(signal.SIGTERM)
        assert receive_all(sock) == b""
        with pytest.raises((ConnectionError, AssertionError)), dial(server.address) as late:
            receive(late, 1)
        sock.close()
        assert server.status() == 0


@pytest.mark.long
@pytest.mark.parametrize("seconds", ["1e12", "1e300"])
def test_with_a_huge_drain_timeout_the_server_exits_after_the_last_client(seconds):
    with Server("--drain-timeout", seconds) as server, dial(server.address) as sock:
        ask(sock)
        server.drain(sock)
        assert "Traceback" not in server.err.text


@pytest.mark.slow
def test_a_signal_right_after_the_ready_line_is_not_lost(number):
    for _ in range(5):
        with Server() as server:
            server.signal(number)
            assert server.status() == 0


@pytest.mark.slow
def test_a_signal_during_a_transfer_is_not_lost(number, engine):
    """There is no wait to interrupt then, and possibly no later event that would wake the server."""
    for _ in range(5):
        with Server("-q", "--engine", engine, "--drain-timeout", "0.05") as server, dial(server.address) as sock:
            ask(sock)
            server.signal(number)
            assert server.status() == 0


@pytest.mark.slow
@pytest.mark.sampled(2)
def test_clients_in_the_queue_at_the_stop_are_served_and_no_later_ones(engine):
    """Clients come all the time. Each has one connection, so that no more than they are can be in the queue."""
    n = 16
    with Server("--engine", engine, "--drain-timeout", SECONDS) as server, Visitors(server.address, n) as visitors:
        visitors.wait_for(300)
        signalled = time.monotonic()
        server.signal(signal.SIGTERM)
        server.err.wait_for("Stopping: ")
        stopped = time.monotonic()
        assert server.status() == 0
        visitors.end()
    assert [outcome for began, outcome in visitors.visits if began < signalled - 0.01 and outcome != "served"] == []
    assert sum(began > stopped and outcome == "served" for began, outcome in visitors.visits) <= n
