"""The memory of all connections: its limit, the connections that wait for it, and its return to the system."""

import contextlib
import errno
import os
import queue
import select
import signal
import time

import pytest

from rioecho import EchoServer
from rioecho._core.budget import MemoryBudget, Share
from support.event_loops import CHUNK, Loop, until
from support.peers import SECONDS, Running, ask, dial, exchange, lines, receive, receive_all, reset
from support.pollers import POLLERS
from support.procfs import children, memory, needs_proc

CHUNK_MIN = 4096  # size of a read of a connection without a buffer while memory is short
ENGINES = ("event", "thread", "process")


@pytest.fixture(params=POLLERS)
def loop_with(request):
    """Return a function that creates a loop with a budget of ``limit`` bytes: ``loop_with(limit, ...)``."""

    def make(limit, **options):
        budget = MemoryBudget(limit)
        run = Loop(poller=request.param, memory=budget, **options)
        run.memory = budget
        return run

    return make


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def send_some(sock, data):
    """Send until the socket buffer stays full; return the number of bytes sent."""
    sock.setblocking(False)
    sent = 0
    while sent < len(data) and select.select([], [sock], [], 0.2)[1]:
        with contextlib.suppress(BlockingIOError):
            sent += sock.send(data[sent : sent + CHUNK])
    sock.settimeout(SECONDS)
    return sent


def settled(number):
    """Wait until ``number()`` has not changed for a while, and return it."""
    last, since = number(), time.monotonic()
    while time.monotonic() - since < 0.3:
        time.sleep(0.01)
        if number() != last:
            last, since = number(), time.monotonic()
    return last


@contextlib.contextmanager
def crowded(run, n=8):
    """Yield n clients that have each sent more of a line than there is memory for, when nothing moves any more.

    They are reset at the end, because the server never reads the EOF of a connection that it does not read from.
    """
    clients = [run.client(i, kind="tcp") for i in range(n)]
    try:
        for sock in clients:
            send_some(sock, b"x" * 400_000)
        settled(lambda: run.counts()["bytes_in"])
        yield clients
    finally:
        for sock in clients:
            if sock.fileno() >= 0:
                reset(sock)


# ---- the limit


@pytest.mark.long
@pytest.mark.sampled(1)
def test_partial_lines_use_no_more_than_the_limit_and_others_are_served(loop_with):
    limit = 600_000
    with loop_with(limit) as run, crowded(run) as clients:
        assert run.counts()["bytes_in"] < limit + len(clients) * CHUNK_MIN
        assert limit // 4 < run.memory.used < limit + len(clients) * 2 * CHUNK_MIN
        for _ in range(20):
            ask(run.client())
            ask(run.client(), b"y" * 4000 + b"\n")
        before = run.counts()["bytes_in"]
        assert settled(lambda: run.counts()["bytes_in"]) == before


@pytest.mark.slow
def test_a_loop_whose_connections_wait_for_memory_sleeps(loop_with):
    with loop_with(600_000) as run, crowded(run):
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.2


def test_lines_that_do_not_fit_together_are_all_echoed(loop_with):
    """The reserve allows one line at a time to be completed while other connections wait in the middle of theirs."""
    data = b"x" * 300_000 + b"\n"
    with loop_with(800_000, max_line=1 << 20) as run:
        running = [Running(exchange, run.client(kind=("unix", "tcp")[i % 2]), data, finish=False) for i in range(8)]
        for each in running:
            assert each.result() == data
    assert run.memory.used == 0


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_waiting_connection_resumes_when_memory_is_free(loop_with):
    with loop_with(1_200_000) as run, crowded(run, 4) as (*clients, last):
        for sock in clients:
            reset(sock)
        rest = b"y" * 1000 + b"\n"
        sending = Running(last.sendall, rest)
        back = receive(last, 400_000)
        assert back.count(b"x") == 400_000
        assert receive(last, len(rest)) == rest
        sending.result()


@pytest.mark.long
@pytest.mark.sampled(1)
def test_the_reset_of_a_waiting_connection_is_noticed(loop_with):
    with loop_with(600_000) as run, crowded(run) as clients:
        for sock in clients:
            reset(sock)
        closings = sorted(run.next_closing() for _ in clients)
        assert [peer for peer, *_ in closings] == list(range(8))
        assert {(reason, err) for _, reason, err, _ in closings} == {("error", errno.ECONNRESET)}
        until(lambda: run.memory.used == 0)


def test_a_waiting_connection_that_half_closes_gets_its_bytes_back(loop_with):
    data = b"x" * 400_000
    with loop_with(900_000) as run:
        clients = [run.client(i, kind=("tcp", "unix")[i % 2]) for i in range(6)]
        running = [Running(exchange, sock, data) for sock in clients]
        for each in running:
            assert each.result() == data
        assert sorted(run.next_closing() for _ in clients) == [(i, "end of input", 0, len(data)) for i in range(6)]


@pytest.mark.slow
def test_a_waiting_connection_is_closed_at_its_idle_timeout(loop_with):
    with loop_with(100_000, idle=2.0) as run:
        clients = [run.client(i, kind="tcp") for i in range(3)]
        for sock in clients:
            send_some(sock, b"x" * 200_000)
        for _ in clients:
            assert run.next_closing()[1:3] == ("idle timeout", 0)
        until(lambda: run.memory.used == 0)


@pytest.mark.slow
def test_waiting_connections_get_everything_back_after_the_stop(loop_with):
    with loop_with(600_000) as run:
        clients = [run.client(i) for i in range(6)]
        sent = [send_some(sock, b"x" * 400_000) for sock in clients]
        settled(lambda: run.counts()["bytes_in"])
        assert run.counts()["bytes_in"] < sum(sent)
        run.stop()
        running = [Running(receive_all, sock) for sock in clients]
        assert [len(each.result()) for each in running] == sent
        for sock in clients:
            sock.close()
        for _ in clients:
            assert run.next_closing()[1] == "server stopped"


@pytest.mark.parametrize("limit", [1, 1000, 4096, 10_000, 100_000])
def test_the_smallest_limits_serve_lines_of_a_few_kilobytes(loop_with, limit):
    with loop_with(limit) as run:
        for n in (1, 100, 4000):
            ask(run.client(), b"x" * n + b"\n")
            ask(run.client(kind="tcp"), b"x\n" * (n // 2 + 1))
        until(lambda: run.memory.used == 0)


def test_without_a_limit_everything_is_read(loop_with):
    with loop_with(0, max_line=0) as run:
        clients = [run.client() for _ in range(4)]
        for sock in clients:
            sock.sendall(b"x" * 1_000_000)
        until(lambda: run.counts()["bytes_in"] == 4_000_000)
        assert run.memory.used >= 4_000_000
        for sock in clients:
            sock.sendall(b"\n")
            assert len(receive(sock, 1_000_001)) == 1_000_001


# ---- every engine


def test_every_engine_keeps_to_the_limit_and_serves_the_others(engine):
    data = b"x" * 300_000 + b"\n"
    with EchoServer(engine=engine, max_memory=800_000) as server:
        address = server.addresses[0]
        clients = [dial(address) for _ in range(6)]
        running = [Running(exchange, sock, data, finish=False) for sock in clients]
        most = 0
        while any(each._thread.is_alive() for each in running):
            most = max(most, server.memory.used)
            with dial(address) as sock:
                ask(sock)
        for each in running:
            assert each.result() == data
        assert most <= 800_000 + 12 * CHUNK_MIN + CHUNK
        for sock in clients:
            sock.close()
    assert server.memory.used == 0


@pytest.mark.long
@pytest.mark.sampled(1)
def test_every_engine_notices_the_reset_of_a_waiting_connection(engine):
    with EchoServer(engine=engine, max_memory=300_000) as server:
        clients = [dial(server.addresses[0]) for _ in range(4)]
        for sock in clients:
            send_some(sock, b"x" * 300_000)
        settled(lambda: server.stats()["bytes_in"])
        for sock in clients:
            reset(sock)
        until(lambda: server.stats()["active"] == 0)
        assert server.stats()["errors"] == 4
        until(lambda: server.memory.used == 0)


@pytest.mark.long
@pytest.mark.sampled(1)
def test_every_engine_closes_a_waiting_connection_at_its_idle_timeout(engine):
    with EchoServer(engine=engine, max_memory=100_000, idle_timeout=1) as server:
        clients = [dial(server.addresses[0]) for _ in range(3)]
        for sock in clients:
            with contextlib.suppress(ConnectionError):  # the time may be over already
                send_some(sock, b"x" * 200_000)
        until(lambda: server.stats()["active"] == 0)
        until(lambda: server.memory.used == 0)
        for sock in clients:
            sock.close()


@pytest.mark.long
@needs_proc
def test_the_memory_of_a_killed_child_is_returned():
    before = children(os.getpid())
    with EchoServer(engine="process", max_memory=300_000) as server:
        clients = [dial(server.addresses[0]) for _ in range(4)]
        for sock in clients:
            send_some(sock, b"x" * 300_000)
        settled(lambda: server.stats()["bytes_in"])
        assert server.memory.used > 100_000
        for pid in children(os.getpid()) - before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: server.memory.used == 0)
        with dial(server.addresses[0]) as sock:
            ask(sock, b"z" * 100_000 + b"\n")  # the reserve is free again as well
        for sock in clients:
            sock.close()


# ---- return of memory to the system


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 64 << 20])
def test_the_memory_of_lines_is_returned_to_the_system(limit):
    """Two waves of clients each send the beginning of a long line and disconnect."""
    clients_n, piece = 400, b"x" * 700_000
    with EchoServer(max_memory=limit, backlog=1000) as server:
        with dial(server.addresses[0]) as sock:
            ask(sock)
        before = memory(os.getpid())
        for _ in range(2):
            clients = [dial(server.addresses[0]) for _ in range(clients_n)]
            for sock in clients:
                sock.setblocking(False)
            sent = dict.fromkeys(clients, 0)
            quiet = time.monotonic()
            while time.monotonic() - quiet < 0.5 and min(sent.values()) < len(piece):
                for sock in clients:
                    with contextlib.suppress(BlockingIOError):
                        sent[sock] += sock.send(piece[sent[sock] : sent[sock] + CHUNK])
                        quiet = time.monotonic()
            settled(lambda: server.stats()["bytes_in"])
            assert memory(os.getpid()) - before > 40 << 20
            if limit:
                assert server.memory.used < limit + clients_n * 2 * CHUNK_MIN
            for sock in clients:
                sock.close()
            until(lambda: server.stats()["active"] == 0)
            until(lambda: server.memory.used == 0)
            assert memory(os.getpid()) - before < 6 << 20


@needs_proc
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="AddressSanitizer keeps freed memory")
def test_a_connection_idle_after_a_long_line_has_no_buffer():
    n = 1000
    line = b"x" * 99_999 + b"\n"
    with EchoServer(backlog=1000) as server:
        clients = [dial(server.addresses[0]) for _ in range(n)]
        for sock in clients:
            ask(sock, b"x" * 10 + b"\n")
        before = memory(os.getpid())
        for first in range(0, n, 50):
            some = clients[first : first + 50]
            for sock in some:
                sock.sendall(line[:70_000])
            for sock in some:
                sock.sendall(line[70_000:])
            for sock in some:
                receive(sock, len(line))
        until(lambda: server.memory.used == 0)
        assert memory(os.getpid()) - before < n * 200 + (2 << 20)
        for sock in clients:
            sock.close()


# ---- the accounting


def test_shares_return_their_memory_and_their_places():
    budget = MemoryBudget(1000)
    assert (budget.limit, budget.used) == (1000, 0)
    shares = [Share(budget, 100) for _ in range(1000)]
    assert [share.taken for share in shares] == [0] * 1000
    del shares
    for _ in range(70_000):  # more shares than there are places
        Share(budget, 100)
    assert MemoryBudget(0).limit == 0
    assert Share(None, 0).taken == 0
    with pytest.raises(ValueError, match="max_memory"):
        MemoryBudget(-1)


@pytest.mark.parametrize("engine", [*ENGINES, "iterative"])
def test_a_line_of_nearly_all_the_memory_is_echoed_if_no_other_connection_needs_it(engine):
    line = b"x" * 1_000_000 + b"\n"
    with EchoServer(engine=engine, max_memory=1 << 20, idle_timeout=SECONDS) as server:
        for _ in range(2):
            with dial(server.addresses[0]) as sock:
                for _ in range(2):
                    assert exchange(sock, line, finish=False) == line


# ---- reported lines


def taking(seconds):
    """Return an on_line that takes so long, as a log does."""

    def on_line(n):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return on_line


def test_every_line_of_a_flood_is_reported(loop_with):
    reported = []
    data = b"\n" * 300_000
    with loop_with(0, on_line=reported.append) as run:
        first, second = run.client(), run.client()
        flooding = Running(exchange, first, data)
        assert exchange(second, b"".join(lines(500))) == b"".join(lines(500))
        assert flooding.result() == data
        first.close()
        second.close()
    assert len(reported) == len(data) + 500
    assert sum(reported) == len(data) + len(b"".join(lines(500)))
    assert run.counts()["lines"] == len(data) + 500


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_connection_that_waits_while_lines_are_reported_is_not_idle(loop_with):
    """The lines of another one are reported for longer than its time to be idle."""
    with loop_with(0, on_line=taking(2e-5), idle=0.3) as run:
        flooding = run.client()
        data = b"\n" * 30_000
        running = Running(exchange, flooding, data)
        with run.client() as sock:
            for _ in range(20):
                ask(sock)
        assert running.result() == data
        flooding.close()


@pytest.mark.slow
def test_reporting_a_flood_of_lines_does_not_delay_other_connections(loop_with):
    def latency(run, n=200):
        times = []
        sock = run.client()
        for _ in range(n):
            start = time.perf_counter()
            ask(sock)
            times.append(time.perf_counter() - start)
        return sorted(times)[n // 2]

    with loop_with(0, on_line=taking(1e-5)) as run:
        flooding = run.client()
        stopped = []

        def flood():
            flooding.setblocking(False)
            while not stopped:
                select.select([flooding], [flooding], [], 0.01)
                with contextlib.suppress(BlockingIOError):
                    flooding.send(b"\n" * CHUNK)
                with contextlib.suppress(BlockingIOError):
                    while flooding.recv(1 << 20):
                        pass

        running = Running(flood)
        try:
            assert latency(run) < 0.05  # 65,536 calls take 0.6 s and more
        finally:
            stopped.append(True)
            running.result()


def test_a_closing_whose_report_fails_for_lack_of_memory_is_reported_later(loop_with):
    reported, failures = queue.SimpleQueue(), iter([True] * 6)

    def on_line(n):
        if next(failures, False):
            raise MemoryError
        reported.put(n)

    with loop_with(0, on_line=on_line) as run:
        closed = Failing(run, 5)
        run.on_closed = closed
        sock = run.client("somebody")
        for _ in range(6):
            ask(sock)
        ask(sock)
        assert reported.get(timeout=SECONDS) == 15
        assert reported.empty()
        sock.close()
        assert run.next_closing() == ("somebody", "end of input", 0, 105)
        assert closed.failed == 5


class Failing:
    """Callbacks of which the first n calls raise MemoryError."""

    def __init__(self, run, n):
        self.n, self.failed, self.call = n, 0, Loop._on_closed.__get__(run)

    def __call__(self, *closing):
        if self.failed < self.n:
            self.failed += 1
            raise MemoryError
        self.call(*closing)
