"""Connecting the sockets of a load test: side by side, over all addresses, spread over time, and what errors say."""

import contextlib
import errno
import os
import socket
import sys
import threading
import time

import pytest

from rioecho import EchoServer
from rioecho._load.connector import AT_ONCE, Connector
from rioecho.bench import Plan, run
from support.peers import SECONDS, Running, needs_ipv6
from support.procfs import until


def lookups(monkeypatch, *addresses):
    """Let every name have these addresses of IPv4, (host, port)."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@contextlib.contextmanager
def connecting(target, **options):
    connector = Connector(Plan(target, **options))
    try:
        yield connector
    finally:
        connector.close()


@contextlib.contextmanager
def unanswered():
    """Yield an address that neither accepts nor refuses a connection: its listen queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as others:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse what their queue has no room for")
def test_connections_to_a_server_that_answers_late_are_made_side_by_side():
    """The kernel answers a connect to a full listen queue a second later: it takes one second, not one for each."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        accepted = []

        def accept():
            while len(accepted) < 20:
                accepted.append(listener.accept()[0])

        with connecting("{}:{}".format(*listener.getsockname()), connections=20) as connector:
            seen = []
            done = Running(connector.connect_all, seen.append, 0.05, None)
            time.sleep(0.5)  # all connects have begun, and most have been dropped
            listener.listen(20)
            begun = time.monotonic()
            accepting = Running(accept)
            assert done.result() is True
            accepting.result()
            assert time.monotonic() - begun < 8
            assert seen == sorted(seen)
            assert 0 <= seen[0] < 20
        for sock in accepted:
            sock.close()


def test_connections_alternate_over_all_addresses_of_the_name(monkeypatch):
    with EchoServer(host="127.0.0.1") as one, EchoServer(host="127.0.0.2") as two:
        lookups(monkeypatch, one.addresses[0], two.addresses[0])
        assert run(Plan("name:1", connections=6, duration=0.1, warmup=0)).messages > 0
        assert (one.stats()["accepted"], two.stats()["accepted"]) == (3, 3)


@needs_ipv6
def test_an_address_where_nobody_listens_leaves_its_connections_to_the_others():
    with EchoServer(host="127.0.0.1") as server:
        assert run(Plan(f"localhost:{server.addresses[0][1]}", connections=4, duration=0.1)).messages > 0
        assert server.stats()["accepted"] == 4


def test_an_address_that_does_not_answer_uses_only_its_share_of_the_time(monkeypatch):
    with unanswered() as dead, EchoServer(host="127.0.0.1") as server:
        lookups(monkeypatch, dead, server.addresses[0])
        with connecting("name:1", connections=AT_ONCE + 50, connect_timeout=0.6) as connector:
            before = time.monotonic()
            assert connector.connect_all(None, 1.0, None)
            # Those that begin later try the address that answers first.
            assert time.monotonic() - before < 0.6
            assert {sock.getpeername() for sock in connector.sockets} == {server.addresses[0]}


def test_no_answer_in_time_is_an_error_that_says_how_many_were_connected_and_what_to_do(monkeypatch):
    with (
        unanswered() as dead,
        connecting("{}:{}".format(*dead), connections=5, connect_timeout=0.2) as connector,
        pytest.raises(TimeoutError) as raised,
    ):
        connector.connect_all(None, 1.0, None)
    assert raised.value.errno == errno.ETIMEDOUT
    assert raised.value.strerror.endswith(
        "timed out; use fewer connections (-c), or spread them over more time (--ramp)"
    )


def test_too_few_descriptors_are_an_error_that_says_how_many_were_connected_and_what_to_do(child):
    printed = child("""if True:
        import resource
        from rioecho import EchoServer
        from rioecho.bench import Plan, run
        with EchoServer() as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
            try:
                run(Plan(f"127.0.0.1:{server.addresses[0][1]}", connections=100))
            except OSError as error:
                print(error.strerror.partition(": ")[2])
                print(error.result.error == error.strerror)
    """)
    message, same = printed.splitlines()
    assert message.startswith("Too many open files: ")
    assert message.endswith(
        " of 100 connections were made; raise the limit of open files (ulimit -n), or use fewer connections (-c)"
    )
    assert same == "True"


def test_the_lack_of_local_ports_is_said_with_a_remedy(monkeypatch):
    with EchoServer() as server, connecting(f"127.0.0.1:{server.addresses[0][1]}", connections=9) as connector:
        real, calls = socket.socket.connect_ex, iter(range(100))
        # The system's range of local ports is too large to use up, and can be changed by root only.
        monkeypatch.setattr(
            socket.socket,
            "connect_ex",
            lambda sock, to: real(sock, to) if next(calls) < 2 else errno.EADDRNOTAVAIL,
        )
        words = "2 of 9 connections were made; no local port is left: use fewer connections"
        with pytest.raises(OSError, match=words) as raised:
            connector.connect_all(None, 1.0, None)
    assert raised.value.errno == errno.EADDRNOTAVAIL


def test_a_ramp_spreads_the_connects():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        times = []

        def accept():
            for _ in range(5):
                sock, _ = listener.accept()
                times.append(time.monotonic())
                sockets.append(sock)

        sockets = []
        accepting = Running(accept)
        with connecting("{}:{}".format(*listener.getsockname()), connections=5, ramp=0.5) as connector:
            before = time.monotonic()
            assert connector.connect_all(None, 1.0, None)
            accepting.result()
        for number, at in enumerate(times):
            assert at - before >= 0.1 * number - 0.01
        for sock in sockets:
            sock.close()


def test_a_stop_while_connecting_returns_a_result_of_nothing():
    stop = threading.Event()
    seen = []

    def report(progress):
        seen.append(progress)
        stop.set()

    with unanswered() as dead:
        result = run(Plan("{}:{}".format(*dead), connections=2, connect_timeout=SECONDS), report, 0.05, stop=stop)
    assert (result.messages, result.interrupted, result.error) == (0, True, None)
    assert result.warnings == ["stopped early: 0 of 2 connections were made"]
    assert (seen[0].connecting, seen[0].connected, seen[0].elapsed) == (True, 0, 0.0)


def test_a_full_listen_queue_of_a_unix_socket_is_waited_for(tmp_path):
    path = os.fspath(tmp_path / "echo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with connecting(f"unix:{path}", connections=8) as connector:
            done = Running(connector.connect_all, None, 1.0, None)
            sockets = [listener.accept()[0] for _ in range(8)]
            assert done.result() is True
        for sock in sockets:
            sock.close()
        with (
            connecting(f"unix:{path}", connections=8, connect_timeout=0.1) as connector,
            pytest.raises(TimeoutError, match="of 8 connections were made"),
        ):
            connector.connect_all(None, 1.0, None)


def test_no_descriptor_is_left_open_after_any_end(monkeypatch):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("there is no /proc")
    with unanswered() as dead, EchoServer(host="127.0.0.1") as server:
        run(Plan("{}:{}".format(*server.addresses[0]), connections=1, duration=0.02))
        until(lambda: server.stats()["active"] == 0)
        before = len(os.listdir("/proc/self/fd"))
        for address in (dead, ("127.0.0.1", 1), server.addresses[0]):
            with contextlib.suppress(OSError):
                run(Plan("{}:{}".format(*address), connections=9, duration=0.02, connect_timeout=0.1))
            until(lambda: len(os.listdir("/proc/self/fd")) == before)
