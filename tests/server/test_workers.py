"""The workers of the event engine share the connections evenly and lose none; the engine works without epoll."""

import contextlib
import errno
import os
import socket
import sys
import threading

import pytest

from rioecho._server import eventengine
from rioecho.server import EchoServer

# Tests of the engine run again with poll(2), using `engine` and `framing` of this file.
from server.test_echo_server import (  # noqa: F401
    test_a_line_is_echoed_only_when_it_is_complete,
    test_a_line_longer_than_max_line_is_echoed_in_pieces,
    test_a_max_line_of_zero_means_no_limit,
    test_a_reset_closes_one_connection_only_and_is_counted,
    test_clients_that_disconnect_before_accept_do_no_harm,
    test_no_thread_is_left_running,
    test_raw_bytes_are_echoed_at_once,
    test_received_bytes_are_echoed_after_a_half_close,
    test_the_log_names_the_client_and_never_the_payload,
)
from server.test_stopping import (  # noqa: F401
    test_a_client_connected_but_not_yet_accepted_is_served,
    test_a_client_that_never_closes_is_disconnected_at_the_drain_deadline,
    test_bytes_that_had_arrived_are_echoed_before_the_close,
    test_close_waits_until_serving_has_ended,
    test_no_new_client_is_accepted_after_the_stop,
    test_serve_forever_serves_in_the_calling_thread_until_stopped,
)
from support.event_loops import until
from support.peers import SECONDS, Running, acknowledged, ask, binary, dial, exchange, receive_all
from support.pollers import POLLERS


@pytest.fixture(autouse=True)
def poller(request, monkeypatch):
    """Serve without epoll, unless the test requests another poller."""
    name = getattr(request, "param", "poll")
    monkeypatch.setenv("RIOECHO_POLLER", name)
    return name


@pytest.fixture
def engine():
    return "event"


@pytest.fixture(params=["line", "raw"])
def framing(request):
    return request.param


every_poller = pytest.mark.parametrize("poller", POLLERS, indirect=True)
two_or_three = pytest.mark.parametrize("workers", [2, 3])


def lines_of(server):
    """Return the number of lines that each worker has served."""
    return [count.now()["lines"] for count in server._engine.counts]


def worker_of(server, sock):
    """Return the index of the worker that serves this client."""
    before = lines_of(server)
    ask(sock)
    served = [now - then for now, then in zip(lines_of(server), before, strict=True)]
    assert sum(served) == 1
    return served.index(1)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no epoll")
@pytest.mark.parametrize("poller", ["epoll", "poll"], indirect=True)
@two_or_three
def test_each_worker_uses_the_requested_poller(poller, workers):
    def epolls():
        numbers = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                numbers.append(os.readlink(f"/proc/self/fd/{number}"))
        return numbers.count("anon_inode:[eventpoll]")

    before = epolls()
    with EchoServer(workers=workers) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        assert epolls() - before == (workers if poller == "epoll" else 0)


@every_poller
@two_or_three
def test_connections_are_spread_evenly(poller, workers):
    with EchoServer(workers=workers) as server, contextlib.ExitStack() as stack:
        clients = []
        for i in range(12):
            clients.append(stack.enter_context(dial(server.addresses[i % 2])))
            ask(clients[-1])
        assert lines_of(server) == [12 // workers] * workers
        for sock in clients:
            ask(sock)
        assert lines_of(server) == [24 // workers] * workers


@two_or_three
def test_clients_that_connect_at_once_are_spread_evenly(workers):
    server = EchoServer(workers=workers)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.addresses[i % 2])) for i in range(60)]
        for sock in clients:
            sock.sendall(b"in the queue\n")
        with server:
            for sock in clients:
                assert sock.recv(13) == b"in the queue\n"
            assert lines_of(server) == [60 // workers] * workers
            for sock in clients:
                sock.close()


def test_a_new_connection_goes_to_the_worker_with_the_fewest():
    with EchoServer(workers=3) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.addresses[0])) for _ in range(9)]
        by_worker = [[], [], []]
        for sock in clients:
            by_worker[worker_of(server, sock)].append(sock)
        assert [len(each) for each in by_worker] == [3, 3, 3]
        for worker in (1, 2, 0):
            closed = server.stats()["closed"]
            for sock in by_worker[worker][:2]:
                sock.close()
            until(lambda n=closed: server.stats()["closed"] == n + 2)
            for _ in range(2):
                sock = stack.enter_context(dial(server.addresses[0]))
                assert worker_of(server, sock) == worker


@two_or_three
def test_many_clients_of_several_workers_each_get_their_own_bytes_back(framing, workers):
    def converse(address, data):
        with dial(address) as sock:
            return exchange(sock, data)

    with EchoServer(workers=workers, framing=framing) as server:
        running = [Running(converse, server.addresses[i % 2], binary(50_000 + i, i)) for i in range(30)]
        for i, each in enumerate(running):
            assert each.result() == binary(50_000 + i, i)
    stats = server.stats()
    assert (stats["accepted"], stats["closed"], stats["errors"]) == (30, 30, 0)
    assert stats["bytes_in"] == stats["bytes_out"] == sum(50_000 + i for i in range(30))


@pytest.mark.sampled(1)
@every_poller
@two_or_three
def test_nothing_is_lost_when_the_server_stops_under_load(poller, workers):
    """Every client keeps sending; each gets back what the server has received, and then EOF rather than a reset."""

    def talk(address, back):
        with dial(address) as sock:
            sending = Running(send_until_told, sock)
            while part := sock.recv(1 << 16):
                back += part
            told.set()
            sending.result()
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""

    def send_until_told(sock):
        n = 0
        while not told.is_set():
            sock.sendall(b"%d\n" % n * 50)
            n += 1

    told = threading.Event()
    with EchoServer(workers=workers, drain_timeout=SECONDS) as server:
        backs = [bytearray() for _ in range(12)]
        running = [Running(talk, server.addresses[i % 2], back) for i, back in enumerate(backs)]
        until(lambda: all(backs))
        server.stop()
        for each in running:
            each.result()
    stats = server.stats()
    assert (stats["accepted"], stats["closed"], stats["errors"], stats["refused"]) == (12, 12, 0, 0)
    assert stats["bytes_in"] == stats["bytes_out"] == sum(map(len, backs))


@two_or_three
def test_clients_in_the_queue_at_the_stop_are_all_served(workers):
    server = EchoServer(workers=workers)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.addresses[i % 2])) for i in range(40)]
        for i, sock in enumerate(clients):
            sock.sendall(b"%d\n" % i)
            sock.shutdown(socket.SHUT_WR)
        for sock in clients:
            acknowledged(sock)
        server.stop()
        with server:
            for i, sock in enumerate(clients):
                assert receive_all(sock) == b"%d\n" % i
    assert server.stats()["closed"] == 40


def test_a_limit_applies_to_all_workers_together():
    with EchoServer(workers=3, max_connections=5) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.addresses[0])) for _ in range(12)]
        for i, sock in enumerate(clients):
            sock.sendall(b"%d\n" % i)
        for i, sock in enumerate(clients):  # one disconnects, one connects
            assert receive_line(sock) == b"%d\n" % i
            assert server.stats()["active"] <= 5
            sock.close()


def receive_line(sock):
    line = b""
    while not line.endswith(b"\n"):
        part = sock.recv(100)
        assert part
        line += part
    return line


@two_or_three
def test_a_port_in_use_is_an_error_with_workers(workers):
    with EchoServer(workers=workers) as server:
        for host, port in server.addresses:
            with pytest.raises(OSError, match=str(port)) as caught:
                EchoServer(port=port, host=host, workers=workers)
            assert caught.value.errno == errno.EADDRINUSE
        with dial(server.addresses[0]) as sock:
            ask(sock)


@pytest.mark.parametrize("workers", [0, -1, 1025])
def test_an_invalid_number_of_workers_is_an_error(workers):
    with pytest.raises(ValueError, match="workers"):
        EchoServer(workers=workers)


@pytest.mark.parametrize("engine", ["iterative", "process", "thread"])
def test_only_the_event_engine_has_workers(engine):
    with pytest.raises(ValueError, match="workers"):
        EchoServer(engine=engine, workers=2)


@every_poller
def test_a_worker_that_fails_stops_the_server_and_the_others_are_drained(poller, monkeypatch, caplog):
    """Waiting fails if the kernel has no memory. Further clients of the failed worker are refused."""
    loops = []

    class Failing:
        def __init__(self, *arguments, **options):
            self.loop = real(*arguments, **options)
            self.fails = not loops
            loops.append(self)

        def __getattr__(self, name):
            return getattr(self.loop, name)

        def run(self):
            if self.fails:
                self.loop.close()
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            self.loop.run()

    real = eventengine.EventLoop
    monkeypatch.setattr(eventengine, "EventLoop", Failing)
    before = set(threading.enumerate())
    server = EchoServer(workers=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.addresses[0])) for _ in range(4)]
        with server:
            for sock in clients:
                with contextlib.suppress(ConnectionResetError):
                    assert receive_all(sock) == b""
    assert set(threading.enumerate()) <= before
    assert f"serving has failed, and the server stops: {os.strerror(errno.ENOMEM)}" in caplog.messages
    stats = server.stats()
    assert stats["accepted"] + stats["refused"] == 4
    assert stats["closed"] == stats["accepted"]
