"""The memory of connections with a handler that hold the beginning of a line: at its limit, at EOF and at the stop."""

import contextlib
import errno
import socket
import time

import pytest

from rioecho._core.budget import MemoryBudget
from support.event_loops import Loop, until
from support.peers import Running, receive, receive_all
from support.pollers import POLLERS

CHUNK_MIN = 4096  # size of a read of a connection without a buffer while memory is short
LIMIT = 200_000  # of which half is the reserve
CLIENTS = 8


class Lengths:
    """A handler that answers the length of each line, and keeps the most memory that was taken at a call."""

    def __init__(self, limit=LIMIT):
        self.memory = MemoryBudget(limit)
        self.most = 0
        self.seen = []

    def __call__(self, lines):
        self.most = max(self.most, self.memory.used)
        self.seen += [len(line) for line in lines]
        return [b"%d\n" % len(line) for line in lines]

    def check_limit(self):
        assert self.memory.limit // 4 < self.most < self.memory.limit + CLIENTS * 2 * CHUNK_MIN


@pytest.fixture
def handler():
    return Lengths()


@pytest.fixture(params=POLLERS)
def loop_with(request):
    """Return a function that makes a loop with the handler and its memory limit."""
    return lambda handler, **options: Loop(poller=request.param, memory=handler.memory, handler=handler, **options)


def clients_that_have_sent(run, data):
    """Return clients of a loop that does not run yet; data must fit into the buffers of the kernel."""
    clients = [run.client(i) for i in range(CLIENTS)]
    for sock in clients:
        sock.sendall(data)
    return clients


def test_one_line_at_a_time_uses_the_reserve_until_it_is_whole(loop_with):
    handler = Lengths(10 * LIMIT)
    with loop_with(handler) as run:
        clients = [run.client() for _ in range(CLIENTS)]
        sending = [Running(sock.sendall, b"x" * 799_999 + b"\n") for sock in clients]
        assert [receive(sock, 7) for sock in clients] == [b"800000\n"] * CLIENTS
        for each in sending:
            each.result()
    handler.check_limit()


def test_unterminated_last_lines_wait_for_memory(loop_with, handler):
    run = loop_with(handler)
    clients = clients_that_have_sent(run, b"x" * 80_000)
    for sock in clients:
        sock.shutdown(socket.SHUT_WR)
    with run:
        assert [receive_all(sock) for sock in clients] == [b"80000\n"] * CLIENTS
    handler.check_limit()
    assert run.counts()["errors"] == handler.memory.used == 0


@pytest.mark.parametrize("how", ["half-closed", "closed"])
def test_the_end_of_input_needs_no_memory(loop_with, handler, how):
    """One client sends nothing more, and has the reserve; others have sent the part of a line, which is all."""
    with loop_with(handler) as run:
        others = [run.client() for _ in range(3)]
        for sock in others:
            sock.sendall(b"y" * 3000)
        silent = run.client()
        silent.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # until the server reads no more
            while True:
                silent.send(b"x" * 4000)
                until(lambda: run.counts()["bytes_in"] >= 3 * 3000)
        until(lambda: handler.memory.used > LIMIT // 2)
        for sock in others:
            if how == "closed":
                sock.close()
            else:
                sock.shutdown(socket.SHUT_WR)
        if how == "half-closed":
            assert [receive_all(sock) for sock in others] == [b"3000\n"] * 3
        until(lambda: run.counts()["closed"] == 3)
        silent.close()


def test_at_the_stop_whole_lines_wait_for_memory(loop_with, handler):
    run = loop_with(handler)
    clients = clients_that_have_sent(run, b"x" * 79_999 + b"\n")
    run.stop()
    with run:
        assert [receive_all(sock) for sock in clients] == [b"80000\n"] * CLIENTS
    handler.check_limit()


def test_at_the_stop_a_line_that_has_no_room_even_in_the_reserve_gives_way_to_others(loop_with, handler):
    run = loop_with(handler, drain=None)
    clients = clients_that_have_sent(run, b"x" * 149_999 + b"\n")
    run.stop()
    with run:
        assert {receive_all(sock) for sock in clients} == {b"", b"150000\n"}
    handler.check_limit()
    assert run.counts()["errors"] == handler.memory.used == 0


def test_an_unterminated_last_line_that_has_no_room_even_in_the_reserve_gives_way_to_others(loop_with, handler):
    run = loop_with(handler)
    clients = clients_that_have_sent(run, b"x" * 150_000)
    for sock in clients:
        sock.shutdown(socket.SHUT_WR)
    answers = []
    with run:
        for sock in clients:
            with contextlib.suppress(ConnectionResetError):
                answers.append(receive_all(sock))
    assert set(answers) == {b"150000\n"}
    handler.check_limit()
    assert run.counts()["errors"] == CLIENTS - len(answers) > 0
    assert {err for _, _, err, *_ in run.closings if err} == {errno.ENOMEM}


@pytest.fixture
def hog(loop_with, handler):
    """Yield a client that has taken all memory with a part of a line, and its loop.

    Another client has sent a line without a newline, and has gone.
    """
    with loop_with(handler) as run:
        sock, gone = run.client(), run.client()
        sending = Running(sock.sendall, b"x" * (LIMIT + 50_000))
        until(lambda: handler.memory.used > LIMIT - CHUNK_MIN)
        before = run.counts()["bytes_in"]
        gone.sendall(b"y" * 3 * CHUNK_MIN)
        gone.close()
        until(lambda: run.counts()["bytes_in"] > before)
        sending.result()
        yield sock, run


def test_the_line_of_a_client_that_has_gone_waits_for_memory(hog, handler):
    assert not handler.seen
    hog[0].close()
    until(lambda: handler.seen == [3 * CHUNK_MIN])


@pytest.mark.slow
@pytest.mark.usefixtures("hog")
def test_the_loop_sleeps_while_the_line_of_a_client_that_has_gone_waits_for_memory():
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.2
