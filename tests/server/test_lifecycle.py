"""The life cycle of a server that handlers and threads stop and close at any time, before the start included."""

import contextlib
import random
import socket
import threading
import time

import pytest

from rioecho._core.counts import Counts
from rioecho._server.accepted import AcceptCounts, adopt
from rioecho._server.notify import WakePipe
from rioecho.server import EchoServer
from support.peers import SECONDS, Running, ask, dial


def test_a_signal_handler_may_stop_the_server_at_any_time(engine, on_alarm):
    """During start(), stop(), close() and another stop()."""
    current = []
    on_alarm(lambda number, frame: [server.stop() for server in current], 0.0003, 0.0003)
    for _ in range(30):
        server = EchoServer(engine=engine, drain_timeout=SECONDS)
        current[:] = [server]
        server.start()
        server.stop()
        server.wait()
        server.close()
        assert server.stats()["active"] == 0


def test_a_signal_handler_may_close_the_server_at_any_time(engine, on_alarm):
    current = []
    on_alarm(lambda number, frame: [server.close() for server in current], 0.0003, 0.0003)
    for _ in range(30):
        server = EchoServer(engine=engine, drain_timeout=SECONDS)
        current[:] = [server]
        with contextlib.suppress(RuntimeError):  # closed before the start
            server.start()
        server.close()


def test_the_server_can_be_closed_after_a_handler_raised(engine, storm):
    """During start(), wait() and close(): closing continues where it was interrupted."""
    before = set(threading.enumerate())
    chance = random.Random(engine)
    deadline = time.monotonic() + SECONDS
    raised = 0
    while raised < 20:
        assert time.monotonic() < deadline
        server = EchoServer(engine=engine, drain_timeout=SECONDS)
        storm(chance, 0.00005)
        for call in (server.start, server.close):
            _, error = storm.attempt(call)
            raised += error is not None
        server.close()
    assert set(threading.enumerate()) == before


def close_and_look(server):
    """Close the server; return the number of active connections."""
    server.close()
    return server.stats()["active"]


@pytest.mark.sampled(1)
def test_many_threads_may_close_the_server_at_once(engine):
    for _ in range(20):
        server = EchoServer(engine=engine)
        server.start()
        with dial(server.addresses[0]) as sock:
            ask(sock)
            sock.close()
            for each in [Running(close_and_look, server) for _ in range(10)]:
                assert each.result() == 0  # each call waited for the end


def test_exactly_one_of_two_threads_starts_the_server(engine):
    for _ in range(10):
        server = EchoServer(engine=engine)
        begun = []

        def begin(server=server, begun=begun):
            with contextlib.suppress(RuntimeError):
                server.start()
                begun.append(True)

        for each in [Running(begin) for _ in range(5)]:
            each.result()
        assert begun == [True]
        server.close()


def test_a_server_closed_during_its_start_serves_or_raises(engine):
    for _ in range(30):
        server = EchoServer(engine=engine)

        def begin(server=server):
            with contextlib.suppress(RuntimeError):
                server.serve_forever()

        beginning = Running(begin)
        server.close()
        beginning.result()
        with pytest.raises(RuntimeError):
            server.start()


def test_a_connection_is_lent_once_and_is_the_acceptors_again_if_that_fails():
    tally, counts, closings = AcceptCounts(), Counts(), WakePipe()
    connection = adopt(socket.socket(), tally)

    def fail():
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError):
        connection.lend(fail, counts, closings)
    assert (tally.accepted, connection.is_taken) == (0, False)
    connection.lend(lambda: None, counts, closings)
    with pytest.raises(ValueError, match="taken already"):
        connection.lend(lambda: None, counts, closings)
    connection.close(failed=True)
    assert (tally.accepted, tally.refused) == (1, 0)
    assert (counts.now()["closed"], counts.now()["errors"]) == (1, 1)
    closings.close()
