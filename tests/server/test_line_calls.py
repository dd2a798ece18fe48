"""The calls of a LineServer's handler: their order, their errors, and the threads that make them."""

import gc
import queue
import socket
import subprocess
import sys
import threading
import time
import weakref

import pytest

from rioecho import EchoServer
from support.handlers import Life, call, ended, raising, serve, still_serves, upper
from support.peers import SECONDS, Running, dial, receive, receive_all, reset
from support.procfs import until


@pytest.fixture
def life():
    return Life()


# The order of calls


def test_the_calls_come_in_order(life):
    with serve(life.handler()) as server:
        call(server, b"x\n")
        life.next("made")
        assert life.next("input") == [b"x\n"]
        assert life.next("lost") is None
        until(lambda: server.stats()["active"] == 0)
    life.silent()


def test_connection_made_does_not_wait_for_input(life):
    with serve(life.handler()) as server, dial(server.addresses[0]):
        life.next("made")


def test_a_handler_needs_no_other_method(caplog):
    class Only:
        def lines_received(self, lines):
            return lines

    with serve(Only) as server:
        still_serves(server)
        with dial(server.addresses[0]) as client:
            reset(client)
        still_serves(server)
    assert "Traceback" not in caplog.text


def test_each_connection_has_its_own_object(life):
    class Count:
        def __init__(self):
            self.n = 0

        def lines_received(self, lines):
            self.n += len(lines)
            return b"%d\n" % self.n

    with serve(Count) as server:
        for _ in range(3):
            with dial(server.addresses[0]) as client:
                for n in range(1, 4):
                    client.sendall(b"x\n")
                    assert receive(client, 2) == b"%d\n" % n


def test_a_function_serves_all_connections():
    seen = set()
    with serve(lambda lines: seen.add(threading.get_ident()) or lines) as server:
        for _ in range(3):
            still_serves(server)
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_methods_found_on_the_object_are_called():
    class Dynamic:
        def __init__(self):
            self.lines_received = upper

    class Static:
        lines_received = staticmethod(upper)

    with serve(Static) as server:
        assert call(server, b"a\n") == b"A\n"


def test_handler_and_connection_are_freed_at_the_end():
    seen = []

    class Handler:
        def connection_made(self, conn):
            self.conn = conn
            seen.extend([weakref.ref(self)])

        def lines_received(self, lines):
            return lines

    with serve(Handler) as server:
        for _ in range(5):
            still_serves(server)
        until(lambda: server.stats()["active"] == 0)
        gc.collect()
        assert [ref() for ref in seen] == [None] * 5


# Handlers that raise

FAULTS = [ValueError("the fault"), OSError(5, "the fault"), ConnectionResetError("the fault"), MemoryError("the fault"),
          SystemExit("the fault"), KeyboardInterrupt("the fault"), StopIteration("the fault"),
          BlockingIOError("the fault"), GeneratorExit("the fault"), BaseException("the fault")]  # fmt: skip


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("framing", ["line", "raw"])
def test_a_handler_that_raises_ends_its_connection_only(error, framing, life, caplog):
    def answer(conn, data):
        if b"fail" in b"".join(data) if framing == "line" else b"fail" in data:
            raise error
        return data

    with serve(life.handler(answer), framing=framing) as server:
        with dial(server.addresses[0]) as client, dial(server.addresses[0]) as other:
            other.sendall(b"one\n")
            assert receive(other, 4) == b"one\n"
            client.sendall(b"fail\n")
            assert not ended(client)
            assert life.lost() is error
            other.sendall(b"two\n")
            assert receive(other, 4) == b"two\n"
            assert server.stats()["active"] >= 1
        until(lambda: server.stats()["closed"] == 2)
        assert server.stats()["errors"] == 1
    assert "Traceback" in caplog.text
    assert "the fault" in caplog.text


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_connection_made_that_raises_ends_its_connection(error, life, caplog):
    with serve(life.handler(made=raising(error))) as server:
        with dial(server.addresses[0]) as client:
            assert not ended(client)
        assert life.lost() is error
        until(lambda: server.stats()["closed"] == 1)
    life.silent()
    assert "the fault" in caplog.text


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_connection_lost_that_raises_is_logged(error, life, caplog):
    with serve(life.handler(lost=raising(error))) as server:
        still_serves(server)
        still_serves(server)
        life.lost()
        life.lost()
        until(lambda: server.stats()["closed"] == 2)
    life.silent()
    assert caplog.text.count("Traceback") == 2


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_class_that_cannot_be_made_ends_its_connection(error, caplog):
    fail = [True]

    class Handler:
        def __init__(self):
            if fail:
                raise error

        def lines_received(self, lines):
            return lines

    with serve(Handler) as server:
        with dial(server.addresses[0]) as client:
            assert not ended(client)
        fail.clear()
        still_serves(server)
        until(lambda: server.stats()["closed"] == 2)
        assert server.stats()["errors"] == 1
    assert "the fault" in caplog.text


def test_what_was_answered_before_a_handler_raised_is_sent(life):
    def answer(conn, lines):
        if b"fail\n" in lines:
            conn.write(b"sorry\n")
            raise ValueError
        return lines

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"fail\n" + b"more\n" * 1000)
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"sorry\n"


# Threads and re-entrance


def test_handlers_of_a_worker_are_never_called_at_the_same_time():
    inside, most, guard = [], [], threading.Lock()

    def answer(lines):
        with guard:
            inside.append(1)
            most.append(len(inside))
        time.sleep(0.001)
        with guard:
            inside.pop()
        return lines

    with serve(answer) as server:
        talks = [Running(call, server, b"x\n" * 20) for _ in range(5)]
        for talk in talks:
            assert talk.result() == b"x\n" * 20
    assert max(most) == 1


def test_with_workers_a_connection_stays_in_its_thread(life):
    threads = {}

    class Handler:
        def lines_received(self, lines):
            threads.setdefault(id(self), set()).add(threading.get_ident())
            return lines

    with serve(Handler, workers=3) as server:
        clients = [dial(server.addresses[0]) for _ in range(9)]
        for _ in range(5):
            for client in clients:
                client.sendall(b"x\n")
                receive(client, 2)
        for client in clients:
            client.close()
    assert all(len(seen) == 1 for seen in threads.values())
    assert len(set.union(*threads.values())) == 3


@pytest.mark.parametrize("method", ["close", "wait"])
@pytest.mark.parametrize("where", ["made", "input", "lost"])
def test_the_end_of_the_server_cannot_be_awaited_in_a_handler(method, where, life):
    errors = queue.SimpleQueue()

    def wait(*_):
        with pytest.raises(RuntimeError):
            getattr(server, method)()
        errors.put(True)

    places = {"made": {"made": wait}, "input": {"answer": wait}, "lost": {"lost": wait}}[where]
    with serve(life.handler(**places)) as server:
        call(server, b"x\n")
        errors.get(timeout=SECONDS)


@pytest.mark.parametrize("where", ["made", "input", "lost"])
def test_stop_in_a_handler_stops_the_server(where, life):
    def stop(*_):
        server.stop()

    places = {"made": {"made": stop}, "input": {"answer": stop}, "lost": {"lost": stop}}[where]
    server = serve(life.handler(**places), drain_timeout=2)
    server.start()
    with dial(server.addresses[0]) as client:
        client.sendall(b"x\n")
        client.shutdown(socket.SHUT_WR)
        ended(client)
        server.wait()
    server.close()
    life.lost()
    life.silent()


def test_a_handler_may_run_a_child_process():
    def answer(lines):
        return subprocess.run([sys.executable, "-S", "-c", "print('child')"], capture_output=True, check=True).stdout

    with serve(answer) as server:
        assert call(server, b"x\n") == b"child\n"


def test_a_handler_may_be_a_client_of_another_server():
    with EchoServer(host="127.0.0.1") as inner, serve(lambda lines: call(inner, b"".join(lines))) as outer:
        assert call(outer, b"through\n") == b"through\n"


def test_a_handler_may_run_another_server():
    def answer(lines):
        with serve(upper) as inner:
            return call(inner, b"".join(lines))

    with serve(answer) as outer:
        assert call(outer, b"through\n") == b"THROUGH\n"
