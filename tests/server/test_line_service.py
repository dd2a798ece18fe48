"""A LineServer as a whole: counts and logs, limits, the stop, sockets that others opened, arguments."""

import asyncio
import logging
import re
import shutil
import socket
import subprocess
import threading
import time
from functools import partial

import pytest

from support.handlers import Life, call, ended, iter_events, nothing, raising, serve, upper
from support.peers import SECONDS, dial, exchange, receive, receive_all, reset
from support.procfs import until


@pytest.fixture
def life():
    return Life()


# Counts and logs


def test_counts_are_those_of_the_input_and_of_the_answers(life):
    with serve(lambda lines: b"ok\n" * len(lines)) as server:
        for _ in range(3):
            assert call(server, b"12345\n" * 4 + b"end") == b"ok\n" * 5
        until(lambda: server.stats()["closed"] == 3)
        stats = server.stats()
        assert {name: stats[name] for name in ("accepted", "active", "refused", "closed", "errors")} == {
            "accepted": 3, "active": 0, "refused": 0, "closed": 3, "errors": 0}  # fmt: skip
        assert stats["bytes_in"] == 3 * 27
        assert stats["bytes_out"] == 3 * 15
        assert stats["lines"] == 3 * 4  # newlines, as the echo server counts them


def test_what_is_written_counts_too(life):
    with serve(life.handler(nothing)) as server, dial(server.addresses[0]) as client:
        life.next("made").write(b"12345")
        receive(client, 5)
        assert server.stats()["bytes_out"] == 5


def test_logs_are_those_of_the_echo_server_and_without_payload(life, caplog):
    caplog.set_level(logging.DEBUG)
    with serve(life.handler()) as server:
        call(server, b"secret words\n")
        life.lost()
        until(lambda: server.stats()["active"] == 0)
        until(lambda: "Connected to (" in caplog.text and "server received 13 bytes" in caplog.text)
    assert "secret" not in caplog.text


def test_a_raised_error_is_logged_once(life, caplog):
    with serve(life.handler(raising(ZeroDivisionError("mine")))) as server:
        call(server, b"x\n")
        life.lost()
        until(lambda: server.stats()["active"] == 0)
    assert caplog.text.count("ZeroDivisionError") == 1
    assert "raise error" in caplog.text  # the line of the handler


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("kind", ["class", "function"])
def test_the_metrics_are_the_counts(life, kind):
    pytest.importorskip("prometheus_client")

    def curl(path):
        command = ["curl", "-fsS", "http://{}:{}{}".format(*server.metrics_address, path)]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout

    with serve(upper if kind == "function" else life.handler(), metrics=0) as server:
        call(server, b"one\ntwo\n")
        until(lambda: server.stats()["closed"] == 1)
        text = curl("/metrics")
        shown = dict(re.findall(r"^rioecho_(\w+?)(?:_total)? (\S+)$", text, re.MULTILINE))
        assert {name: float(n) for name, n in shown.items()} == server.stats()
        assert shown["lines"] == "2.0"
        assert curl("/healthz") == "ok\n"


# Limits


def test_at_max_connections_the_next_client_waits(life):
    with serve(life.handler(), max_connections=1) as server, dial(server.addresses[0]) as one:
        life.next("made")
        with dial(server.addresses[0]) as two:
            two.sendall(b"two\n")
            one.sendall(b"one\n")
            assert life.next("input") == [b"one\n"]
            assert receive(one, 4) == b"one\n"
            life.silent()
            one.close()
            assert receive(two, 4) == b"two\n"


def test_more_than_max_per_host_are_refused_without_a_handler(life):
    with serve(life.handler(), max_per_host=1) as server, dial(server.addresses[0]) as one:
        one.sendall(b"x\n")
        receive(one, 2)
        with dial(server.addresses[0]) as two:
            assert not ended(two)
        until(lambda: server.stats()["refused"] == 1)
        life.next("made")
        life.next("input")
        life.silent()


@pytest.mark.long
def test_at_max_memory_a_connection_with_a_whole_line_is_still_served(life):
    with serve(life.handler(), max_memory=1 << 20, max_line=0) as server, dial(server.addresses[0]) as hog:
        hog.setblocking(False)
        sent = 0
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            try:
                sent += hog.send(b"x" * 65_536)
            except BlockingIOError:
                threading.Event().wait(0.01)
        with dial(server.addresses[0]) as other:
            other.sendall(b"x\n")
            assert receive(other, 2) == b"x\n"
        hog.close()


# The stop


def test_the_stop_answers_what_has_arrived_and_ends_orderly(life):
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        client.sendall(b"one\n")
        receive(client, 4)
        client.sendall(b"two\nbeginning")
        server.stop()
        assert receive_all(client) == b"two\n"
        client.close()
    assert life.lost() is None
    life.silent()


def test_at_the_stop_the_beginning_of_a_line_is_not_handled(life):
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        client.sendall(b"one\nbeginning")
        receive(client, 4)
        server.stop()
        assert receive_all(client) == b""
        client.close()
    assert b"beginning" not in [line for kind, line in iter_events(life) if kind == "input"]


@pytest.mark.long
def test_the_stop_takes_no_longer_than_the_drain_timeout(life):
    clients = []
    begun = []
    with serve(life.handler(), drain_timeout=0.5) as server:
        clients = [dial(server.addresses[0]) for _ in range(5)]
        for _ in clients:
            life.next("made")
        begun.append(time.monotonic())
    took = time.monotonic() - begun[0]
    assert took < 10
    for _ in clients:
        life.lost()
    for client in clients:
        client.close()
    life.silent()


@pytest.mark.slow
def test_every_connection_made_is_lost_once_also_at_the_stop():
    made, lost = [], []

    class Handler:
        def connection_made(self, conn):
            made.append(self)

        def lines_received(self, lines):
            return lines

        def connection_lost(self, reason):
            lost.append(self)

    with serve(Handler, drain_timeout=1, workers=2) as server:
        clients = [dial(server.addresses[0]) for _ in range(40)]
        for n, client in enumerate(clients):
            client.sendall(b"x\n")
            if n % 4 == 0:
                client.close()
            elif n % 4 == 1:
                reset(client)
            elif n % 4 == 2:
                client.shutdown(socket.SHUT_WR)
    for client in clients:
        client.close()
    assert sorted(map(id, made)) == sorted(map(id, lost))


def test_a_server_serves_once():
    server = serve(upper)
    server.start()
    with pytest.raises(RuntimeError):
        server.start()
    server.close()
    server.close()
    with pytest.raises(RuntimeError):
        server.start()


def test_in_an_async_block_the_clients_may_run_on_the_loop():
    async def talk():
        async with serve(upper) as server:
            reader, writer = await asyncio.open_connection(*server.addresses[0])
            writer.write(b"a\n")
            assert await reader.readline() == b"A\n"
            writer.close()
            await writer.wait_closed()

    asyncio.run(talk())


# Sockets that others opened


def test_a_listening_socket_passed_in_is_served(life):
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    with serve(life.handler(), port=None, sockets=[listener]), dial(address) as client:
        assert exchange(client, b"x\n") == b"x\n"


@pytest.mark.parametrize("end", ["peer", "handler", "abort", "raise"])
def test_a_connected_socket_passed_in_is_served_to_its_end(end, life):
    def answer(conn, lines):
        if lines == [b"quit\n"]:
            if end == "raise":
                raise ValueError
            (conn.abort if end == "abort" else conn.close)()
        return lines

    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(SECONDS)
        server = serve(life.handler(answer), port=None, sockets=[theirs])
        server.start()
        ours.sendall(b"x\n")
        assert receive(ours, 2) == b"x\n"
        if end == "peer":
            ours.shutdown(socket.SHUT_WR)
        else:
            ours.sendall(b"quit\n")
        ended(ours)
        ours.close()
        server.wait()
        server.close()
    life.lost()
    life.silent()


# Arguments


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"engine": "event"}, TypeError),
        ({"udp": True}, TypeError),
        ({"framing": "frames"}, ValueError),
        ({"write_limit": -1}, ValueError),
        ({"write_limit": "1"}, TypeError),
        ({"write_limit": None}, TypeError),
        ({"max_line": -1}, ValueError),
        ({"idle_timeout": -1}, ValueError),
        ({"workers": 0}, ValueError),
        ({"unknown": 1}, TypeError),
    ],
    ids=repr,
)
def test_an_invalid_argument_is_refused(options, error):
    with pytest.raises(error):
        serve(upper, **options).close()


@pytest.mark.parametrize("handler", [None, 3, "text", b"", [], object()], ids=lambda handler: type(handler).__name__)
def test_a_handler_that_is_not_callable_is_refused(handler):
    with pytest.raises(TypeError):
        serve(handler).close()


@pytest.mark.parametrize("framing", ["line", "raw"])
def test_a_class_without_the_method_is_refused(framing):
    class Wrong:
        pass

    with pytest.raises(TypeError):
        serve(Wrong, framing=framing).close()


async def shout(lines):
    return lines


class AsynchronousCall:
    async def __call__(self, lines):
        return lines


async def generated(lines):
    for line in lines:
        yield line


@pytest.mark.parametrize("framing", ["line", "raw"])
@pytest.mark.parametrize(
    "handler",
    [shout, generated, AsynchronousCall(), AsynchronousCall().__call__, partial(shout), partial(AsynchronousCall())],
    ids=["function", "generator", "object", "method", "partial", "partial of an object"],
)
def test_a_coroutine_function_as_the_handler_is_refused(framing, handler):
    with pytest.raises(TypeError, match=r"coroutine function.*rioecho\.aio\.start_server\(\)"):
        serve(handler, framing=framing).close()


@pytest.mark.parametrize("name", ["connection_made", "received", "connection_lost"])
@pytest.mark.parametrize("framing", ["line", "raw"])
def test_a_class_with_a_coroutine_function_that_would_be_called_is_refused(framing, name):
    called = "data_received" if framing == "raw" else "lines_received"
    name = called if name == "received" else name

    async def method(self, what):
        return None

    handler = type("Late", (), {called: lambda self, what: None, name: method})
    with pytest.raises(TypeError, match=rf"Late has a coroutine function {name}\(\).*rioecho\.aio\.start_server\(\)"):
        serve(handler, framing=framing).close()


def test_a_class_may_have_coroutine_functions_that_the_server_does_not_call():
    class Mixed:
        def lines_received(self, lines):
            return lines

        async def data_received(self, data):
            return None

        async def __call__(self, lines):
            return None

    serve(Mixed).close()
