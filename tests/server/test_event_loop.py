"""EventLoop on its own, with epoll and with poll(2): the echo, the ways a connection closes, and its costs."""

import contextlib
import errno
import gc
import logging
import os
import queue
import random
import select
import socket
import subprocess
import sys
import time
import tracemalloc
import weakref

import pytest

from rioecho._server.eventloop import EventLoop
from support.event_loops import BULK, CHUNK, Loop, nothing_comes, tcp_pair, until
from support.peers import (
    SECONDS,
    Running,
    acknowledged,
    ask,
    binary,
    exchange,
    fill,
    lines,
    receive,
    receive_all,
    reset,
)
from support.pollers import POLLERS, each_poller


@pytest.fixture(params=POLLERS)
def loop_with(request):
    """Return a function that creates a loop with each poller: ``loop_with(framing, ...)``."""

    def make(*arguments, **options):
        return Loop(*arguments, poller=request.param, **options)

    return make


@pytest.fixture(params=["unix", "tcp"])
def kind(request):
    return request.param


@pytest.fixture(params=["line", "raw"])
def framing(request):
    return request.param


# ---- the echo


def test_whole_lines_are_echoed_and_the_beginning_of_one_is_kept(loop_with, kind):
    with loop_with() as run:
        sock = run.client(kind=kind)
        sock.sendall(b"one\n\ntwo\nthr")
        assert receive(sock, 9) == b"one\n\ntwo\n"
        assert nothing_comes(sock)
        sock.sendall(b"ee\nf")
        assert receive(sock, 6) == b"three\n"
        assert nothing_comes(sock)


def test_a_line_that_arrives_byte_by_byte_is_echoed_whole(loop_with):
    line = bytes(range(11, 250)) + b"\n"
    with loop_with() as run:
        sock = run.client()
        for i in range(len(line) - 1):
            sock.sendall(line[i : i + 1])
            until(lambda n=i + 1: run.counts()["bytes_in"] == n)
        assert nothing_comes(sock)
        sock.sendall(b"\n")
        assert receive(sock, len(line)) == line


def test_the_loop_echoes_raw_bytes_at_once(loop_with, kind):
    with loop_with("raw") as run:
        sock = run.client(kind=kind)
        for piece in (b"he", b"llo\n", b"\n", b"x" * CHUNK):
            ask(sock, piece)


def test_an_unterminated_line_is_echoed_after_the_half_close(loop_with, framing, kind):
    data = b"".join(lines(100)) + b"and no newline"
    with loop_with(framing) as run:
        sock = run.client("a", kind=kind)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == data
        assert run.next_closing() == ("a", "end of input", 0, len(data))


def test_a_connection_without_input_gets_no_output(loop_with, framing, kind):
    with loop_with(framing) as run:
        sock = run.client("a", kind=kind)
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""
        assert run.next_closing() == ("a", "end of input", 0, 0)


@pytest.mark.parametrize("max_line", [1, 2, 7, 1000, CHUNK - 1, CHUNK, CHUNK + 1])
def test_a_partial_line_is_echoed_only_when_it_reaches_max_line(loop_with, max_line):
    with loop_with(max_line=max_line) as run:
        sock = run.client()
        for _ in range(2):
            if max_line > 1:
                sock.sendall(b"x" * (max_line - 1))
                assert nothing_comes(sock)
            sock.sendall(b"y")
            assert receive(sock, max_line) == b"x" * (max_line - 1) + b"y"
        ask(sock, b"z\n")
        assert run.counts()["lines"] == 1


def test_max_line_zero_means_no_limit(loop_with):
    data = b"x" * 1_000_000
    with loop_with(max_line=0) as run:
        sock = run.client()
        sock.sendall(data)
        until(lambda: run.counts()["bytes_in"] == len(data))
        assert nothing_comes(sock)
        sock.sendall(b"\n")
        assert receive(sock, len(data) + 1) == data + b"\n"


@pytest.mark.parametrize("n", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3_000_001])
def test_binary_data_is_echoed_unchanged(loop_with, framing, n):
    data = binary(n)
    with loop_with(framing) as run:
        assert exchange(run.client(), data) == data
        assert exchange(run.client(kind="tcp", small=True), data[:300_000]) == data[:300_000]


def test_many_concurrent_connections_each_get_their_own_bytes_back(loop_with, framing):
    with loop_with(framing) as run:
        running = [Running(exchange, run.client(kind=("unix", "tcp")[i % 2]), binary(50_000 + i, i)) for i in range(20)]
        for i, each in enumerate(running):
            assert each.result() == binary(50_000 + i, i)


def test_more_ready_connections_than_one_wait_reports_are_all_served(loop_with):
    """READY_MAX of them never stop sending; the others still get their echo."""
    with loop_with() as run:
        clients = [run.client(small=True) for _ in range(300)]
        for _ in range(5):
            for i, sock in enumerate(clients):
                sock.sendall(b"%d\n" % i)
            for i, sock in enumerate(clients):
                assert receive(sock, len(b"%d\n" % i)) == b"%d\n" % i


# ---- the oracle


class Conversation:
    """One client: the bytes that it has sent, the bytes received, and those that are due."""

    def __init__(self, run, chance, max_line, framing):
        self.kind = chance.choice(["unix", "tcp"])
        self.sock = run.client(kind=self.kind, small=chance.random() < 0.3)
        self.sock.setblocking(False)
        self.max_line = max_line or sys.maxsize
        self.raw = framing == "raw"
        self.sent, self.back = bytearray(), bytearray()

    def send(self, data):
        with contextlib.suppress(BlockingIOError):
            while data:
                n = self.sock.send(data)
                self.sent += data[:n]
                data = data[n:]

    def receive(self, most=1 << 20):
        with contextlib.suppress(BlockingIOError):
            while most > 0 and (part := self.sock.recv(min(most, 1 << 16))):
                self.back += part
                most -= len(part)
        assert self.sent.startswith(self.back)

    def is_what_is_due(self):
        """Report whether all whole lines, and all but less than max_line of the remaining bytes, were received."""
        if self.raw:
            return len(self.back) == len(self.sent)
        due = max(self.sent.rfind(b"\n") + 1, len(self.sent) - self.max_line + 1)
        tail = len(self.back) - (self.back.rfind(b"\n") + 1)
        return len(self.back) >= due and (tail == 0 or tail >= self.max_line)

    def receive_what_is_due(self):
        self.receive()
        while not self.is_what_is_due():
            assert select.select([self.sock], [], [], SECONDS)[0], (
                f"{len(self.back)} bytes of {len(self.sent)} are back"
            )
            self.receive()

    def reset(self):
        if self.kind == "tcp":
            reset(self.sock)
        else:
            self.sock.close()  # possibly with unread input

    def end(self):
        """Half-close, and receive everything up to EOF."""
        self.sock.shutdown(socket.SHUT_WR)
        self.sock.settimeout(SECONDS)
        self.back += receive_all(self.sock)
        assert self.back == self.sent
        self.sock.close()


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("framing", "max_line"), [("raw", 1), *(("line", n) for n in (0, 1, 2, 7, 200, CHUNK - 1, CHUNK, CHUNK + 1))]
)
def test_each_client_gets_back_what_is_due_whatever_the_others_do(loop_with, framing, max_line):
    chance = random.Random(f"{framing} {max_line}")
    with loop_with(framing, max_line=max_line) as run:
        live = [Conversation(run, chance, max_line, framing) for _ in range(8)]
        bytes_back = resets = 0
        for _ in range(250):
            each = chance.choice(live)
            what = chance.random()
            if what < 0.45:
                size = chance.choice([1, 2, 6, 7, 8, 100, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 200_000])
                newlines = chance.choice([b"", b"\n", b"\nxxxxxxx", b"\n" + b"x" * 3000])
                data = bytearray(chance.randbytes(size).replace(b"\n", b"x"))
                for _ in range(chance.randrange(4)):
                    at = chance.randrange(size)
                    data[at : at + 1] = newlines[:1]
                each.send(data + newlines)
            elif what < 0.75:
                each.receive(chance.choice([1, 100, 10_000, 1 << 20]))
            elif what < 0.85:
                each.receive_what_is_due()
            elif what < 0.93:
                os.sched_yield()
            else:
                if what < 0.965:
                    each.end()
                    bytes_back += len(each.back)
                else:
                    each.reset()
                    resets += 1
                live.remove(each)
                live.append(Conversation(run, chance, max_line, framing))
        for each in live:
            each.receive_what_is_due()
            each.end()
            bytes_back += len(each.back)
        run.finish()
        counts = run.counts()
    assert counts["closed"] > 8
    assert counts["errors"] <= resets
    assert counts["bytes_in"] >= counts["bytes_out"] >= bytes_back


# ---- back-pressure


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_client_that_does_not_read_is_stopped_by_back_pressure(loop_with, framing, kind):
    with loop_with(framing) as run:
        deaf = run.client("deaf", kind=kind)
        sent = fill(deaf)
        # The beginning of a line may have been held at the last read.
        most = CHUNK + 4095 if framing == "line" else BULK
        assert run.counts()["bytes_in"] - run.counts()["bytes_out"] <= most
        taken = run.counts()["bytes_in"]
        for _ in range(20):
            ask(run.client())
        assert run.counts()["bytes_in"] == taken + 20 * 15
        deaf.settimeout(SECONDS)
        back = receive(deaf, sent // 4096 * 4096)
        assert back == (b"x" * 4095 + b"\n") * (sent // 4096)
        deaf.shutdown(socket.SHUT_WR)
        assert len(receive_all(deaf)) == sent % 4096
        assert run.next_closing() == ("deaf", "end of input", 0, sent)


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="AddressSanitizer keeps freed memory")
def test_a_connection_holds_at_most_a_line_and_a_chunk_and_nothing_once_all_is_sent(loop_with, framing):
    line = 300_000
    with loop_with(framing, max_line=line) as run:
        deaf = run.client()
        ask(deaf)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            sent = fill(deaf)
            held, peak = (n - before for n in tracemalloc.get_traced_memory())
            assert held <= (CHUNK if framing == "line" else BULK) + 4096
            assert peak < 1 << 20  # fill() allocates memory as well
            deaf.settimeout(SECONDS)
            tail = sent % 4096 if framing == "line" else 0
            receive(deaf, sent - tail)
            if tail:
                ask_rest(deaf, tail)
            until(lambda: tracemalloc.get_traced_memory()[0] - before < 4096)
            if framing == "line":  # an incomplete line
                n = run.counts()["bytes_in"]
                for i in range(10_000, line, 10_000):
                    deaf.sendall(b"y" * 10_000)
                    until(lambda n=n + i: run.counts()["bytes_in"] == n)
                    assert tracemalloc.get_traced_memory()[0] - before < 2 * (line + CHUNK) + 50_000
                deaf.sendall(b"y" * 10_000)
                receive(deaf, line)
                until(lambda: tracemalloc.get_traced_memory()[0] - before < 4096)
        finally:
            tracemalloc.stop()


def ask_rest(sock, tail):
    sock.sendall(b"\n")
    receive(sock, tail + 1)


@pytest.mark.sampled(1)
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="AddressSanitizer keeps freed memory")
def test_an_idle_connection_costs_less_than_a_quarter_of_a_kilobyte(loop_with):
    with loop_with() as run:
        for _ in range(20):
            ask(run.client())
        pairs = [socket.socketpair() for _ in range(200)]
        with contextlib.ExitStack() as stack:
            for far, _ in pairs:
                stack.enter_context(far)
            numbers = [near.detach() for _, near in pairs]
            tracemalloc.start()
            try:
                for fd in numbers:
                    run.loop.adopt(fd)
                for far, _ in pairs:
                    far.settimeout(SECONDS)
                    ask(far, b"x" * 1000 + b"\n")
                # The test itself keeps only a few hundred bytes of frames; without a GIL, once each thread has run.
                until(lambda: gc.collect() is not None and tracemalloc.get_traced_memory()[0] < 200 * 256 + 20_000)
            finally:
                tracemalloc.stop()


# ---- timeouts


@pytest.mark.slow
def test_idle_connections_are_closed_in_the_order_of_their_last_progress(loop_with):
    idle = 2.0
    chance = random.Random(7)
    with loop_with(idle=idle) as run:
        clients = {i: run.client(i, kind=("unix", "tcp")[i % 2]) for i in range(30)}
        order, asked = [], {}
        for i in chance.sample(range(30), 30) + chance.sample(range(30), 10):  # ten make progress a second time
            asked[i] = time.monotonic()
            ask(clients[i])
            if i in order:
                order.remove(i)
            order.append(i)
        closed = {}
        for _ in range(30):
            peer, reason, err, n = run.next_closing()
            closed[peer] = time.monotonic()
            assert (reason, err) == ("idle timeout", 0)
            assert n in (15, 30)
        turns = {closing[0]: turn for closing, turn in zip(run.closings, run.closed_then, strict=True)}
        assert sorted(order, key=turns.get) == order  # sorted() is stable, so the order within a turn does not matter
        for i, sock in clients.items():
            assert receive_all(sock) == b""
            assert idle <= closed[i] - asked[i] < idle + SECONDS / 3
    assert run.counts()["errors"] == 0


@pytest.mark.slow
def test_no_connection_is_closed_before_its_idle_timeout(loop_with):
    idle = 1.0
    with loop_with(idle=idle) as run:
        start = time.monotonic()
        run.client("silent")
        busy = run.client("busy")
        last = start
        while not run.closings:
            last = time.monotonic()
            ask(busy)
        assert run.next_closing() == ("silent", "idle timeout", 0, 0)
        assert time.monotonic() - start >= idle
        assert run.next_closing()[:2] == ("busy", "idle timeout")
        assert time.monotonic() - last >= idle


@pytest.mark.slow
def test_bytes_of_an_incomplete_line_are_progress(loop_with):
    with loop_with(idle=2.0) as run:
        silent, dripping = run.client("silent"), run.client("dripping")
        n = 0
        while nothing_comes(silent, 0.01):
            dripping.sendall(b"x")
            n += 1
        assert run.next_closing()[0] == "silent"
        dripping.sendall(b"\n")
        assert receive(dripping, n + 1) == b"x" * n + b"\n"


def test_a_client_that_sends_and_never_reads_is_closed_as_idle(loop_with, kind):
    with loop_with(idle=0.1) as run:
        deaf = run.client("deaf", kind=kind)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                deaf.sendall(b"x" * 65_535 + b"\n")
        assert run.next_closing()[:3] == ("deaf", "idle timeout", 0)


@pytest.mark.slow
def test_a_slow_reader_makes_progress_and_stays_connected(loop_with):
    data = b"".join(lines(10_000))
    with loop_with(idle=2.0) as run:
        silent = run.client("silent")
        slow = run.client("slow", small=True)
        sending = Running(slow.sendall, data)
        back = b""
        while nothing_comes(silent, 0.005):
            back += slow.recv(3000)
        assert run.next_closing()[0] == "silent"
        assert back + receive(slow, len(data) - len(back)) == data
        sending.result()


@pytest.mark.slow
def test_a_reader_too_slow_for_poll_to_report_makes_progress(loop_with):
    """The send buffer grows to megabytes, and poll() reports room only when a third of it is free."""
    data = b"x" * (16 << 20)  # more than the send buffer holds
    far, near = tcp_pair(64 << 10)
    far.settimeout(SECONDS)
    back = 0
    with far, loop_with("raw", idle=2.0) as run:
        run.loop.adopt(near.detach(), "slow")
        sending = Running(far.sendall, data)
        for turn in range(2):
            silent = run.client(turn)
            while nothing_comes(silent, 0.05):
                back += len(far.recv(16 << 10))
            assert run.next_closing()[0] == turn
        assert receive(far, len(data) - back) == data[back:]
        sending.result()


# ---- the stop


def test_bytes_that_had_arrived_are_echoed_after_the_stop_before_the_close(loop_with, framing, kind):
    data = b"".join(lines(300)) + b"and no newline"
    with loop_with(framing) as run:
        clients = [run.client(i, kind=kind) for i in range(20)]
        for sock in clients:
            ask(sock)
            sock.sendall(data)
            if kind == "tcp":
                acknowledged(sock)
        run.stop()
        for sock in clients:
            assert receive_all(sock) == data
        assert run.closings == []  # they linger
        for i, sock in enumerate(clients):
            sock.close()
            assert run.next_closing() == (i, "server stopped", 0, len(data) + 15)
    assert run.counts()["errors"] == 0
    assert run.counts()["bytes_in"] == run.counts()["bytes_out"] == 20 * (len(data) + 15)


def test_bytes_sent_after_the_half_close_are_discarded_without_a_reset(loop_with):
    with loop_with() as run:
        sock = run.client("a", kind="tcp")
        ask(sock)
        run.stop()
        assert receive_all(sock) == b""
        for _ in range(50):
            sock.sendall(b"too late\n" * 1000)
            assert sock.recv(1) == b""
        sock.shutdown(socket.SHUT_WR)
        assert run.next_closing() == ("a", "server stopped", 0, 15)
    assert run.counts()["bytes_in"] == 15


@pytest.mark.long
@pytest.mark.sampled(1)
def test_clients_that_stay_are_disconnected_at_the_drain_deadline(loop_with, kind):
    with loop_with(drain=0.2) as run:
        lingering = [run.client(i, kind=kind) for i in range(10)]
        deaf = run.client("deaf", kind=kind)
        for sock in lingering:
            ask(sock)
        n = fill(deaf)
        start = time.monotonic()
        run.stop()
        closings = [run.next_closing() for _ in range(11)]
        assert 0.2 <= time.monotonic() - start < SECONDS / 3
        assert sorted(map(str, closings)) == sorted(
            [str((i, "drain timeout", 0, 15)) for i in range(10)] + [str(next(c for c in closings if c[0] == "deaf"))]
        )
        assert next(c for c in closings if c[0] == "deaf")[3] < n
        for sock in lingering:
            assert receive_all(sock) == b""
    assert run.counts()["errors"] == 0


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_client_that_never_stops_sending_is_disconnected_at_the_drain_deadline(loop_with, framing):
    with loop_with(framing, drain=0.2) as run:
        sock = run.client("a", kind="tcp")

        ask(sock)
        flooding = Running(flood, sock)
        sinking = Running(sink, sock)
        start = time.monotonic()
        run.stop()
        assert run.next_closing()[:2] == ("a", "drain timeout")
        assert 0.2 <= time.monotonic() - start < SECONDS / 3
        flooding.result()
        sinking.result()


def flood(sock):
    with contextlib.suppress(ConnectionError):
        while True:
            sock.sendall(b"x" * 65_535 + b"\n")


def sink(sock):
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 16):
            pass


def test_without_a_drain_timeout_the_loop_waits_for_the_last_client(loop_with):
    with loop_with(drain=None) as run:
        sock = run.client("a")
        ask(sock)
        run.stop()
        assert receive_all(sock) == b""
        sock.sendall(b"x")
        assert run.closings == []
        sock.close()
        assert run.next_closing()[:2] == ("a", "server stopped")


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_client_that_reads_late_gets_everything_it_had_sent(loop_with, framing):
    with loop_with(framing) as run:
        late = run.client("late")
        sent = fill(late)
        run.stop()
        late.settimeout(SECONDS)
        assert len(receive_all(late)) == sent
        late.close()
        assert run.next_closing() == ("late", "server stopped", 0, sent)


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_client_that_had_half_closed_gets_everything(loop_with):
    with loop_with() as run:
        late = run.client("late")
        sent = fill(late)
        late.shutdown(socket.SHUT_WR)
        run.stop()
        late.settimeout(SECONDS)
        assert len(receive_all(late)) == sent
        assert run.next_closing() == ("late", "server stopped", 0, sent)


@pytest.mark.long
def test_a_connection_adopted_after_the_stop_is_drained(loop_with, kind):
    with loop_with() as run:
        first = run.client("first")
        run.stop()
        assert receive_all(first) == b""
        far, near = socket.socketpair() if kind == "unix" else tcp_pair()
        with far:
            far.settimeout(SECONDS)
            far.sendall(b"in the queue\nand a rest")
            if kind == "tcp":
                acknowledged(far)
            run.loop.adopt(near.detach(), "second")
            assert receive_all(far) == b"in the queue\nand a rest"
        assert run.next_closing() == ("second", "server stopped", 0, 23)


def test_a_connection_adopted_after_the_drain_deadline_is_closed_and_counted(loop_with):
    with loop_with(drain=0) as run:
        first = run.client("first")
        run.stop()
        assert run.next_closing() == ("first", "drain timeout", 0, 0)
        assert receive_all(first) == b""
        second = run.client("second")
        receive_all(second)
        assert run.next_closing()[:2] == ("second", "drain timeout")
    assert run.counts()["closed"] == 2


def test_after_no_more_the_loop_ends_with_the_last_connection(loop_with):
    with loop_with() as run:
        first, second = run.client(), run.client()
        ask(first)
        run.loop.no_more()
        ask(first)
        ask(second)
        first.close()
        ask(second)
        run.stop()
        assert receive_all(second) == b""
        second.close()
        run.finish()
    assert run.counts()["closed"] == 2


def test_a_stop_without_connections_leaves_the_loop_waiting_for_no_more(loop_with):
    with loop_with() as run:
        run.stop()
        late = run.client("late")
        late.sendall(b"x\n")
        late.close()
        assert run.next_closing()[0] == "late"


# ---- the life cycle


def make(**options):
    reader, writer = os.pipe()
    options = {"idle_timeout": None, "max_line": 0, "drain_timeout": 1, "on_closed": lambda *_: None} | options
    return EventLoop("line", stop_fd=reader, **options), (reader, writer)


@pytest.fixture
def idle_loop(request):
    """A loop that is not running."""
    loop, pipe = make()
    yield loop
    loop.close()
    for fd in pipe:
        os.close(fd)


def test_connections_adopted_before_run_are_served(loop_with):
    run = loop_with()
    clients = [run.client() for _ in range(200)]
    for i, sock in enumerate(clients):
        sock.sendall(b"%d\n" % i)
    with run:
        for i, sock in enumerate(clients):
            assert receive(sock, len(b"%d\n" % i)) == b"%d\n" % i


class Peer:
    """A peer that supports weak references."""


@pytest.mark.parametrize("end", ["close", "del"])
def test_closing_a_loop_that_never_ran_closes_its_connections(end):
    called = []
    loop, pipe = make(on_closed=lambda *closing: called.append(closing))
    peer = Peer()
    gone = weakref.ref(peer)
    clients = []
    for i in range(100):
        far, near = socket.socketpair()
        clients.append(far)
        far.send(b"x")
        loop.adopt(near.detach(), (None, peer)[i % 2])
    del peer
    assert gone() is not None
    counts = loop.counts
    if end == "close":
        loop.close()
        loop.close()
        assert loop.run() is None
        with pytest.raises(ValueError, match="no more connections"):
            loop.adopt(pipe[0])
    del loop
    gc.collect()
    for sock in clients:
        with sock, contextlib.suppress(ConnectionResetError):
            sock.settimeout(SECONDS)
            assert sock.recv(1) == b""
    assert gone() is None
    assert counts.now()["closed"] == 100
    assert called == []
    for fd in pipe:
        os.close(fd)


def test_a_loop_in_a_garbage_cycle_counts_into_memory_that_still_exists(child):
    """The collector clears objects before it frees them; the counts must outlive the connections."""
    child("""if True:
        import gc, os, socket
        from rioecho._server.eventloop import EventLoop

        class Owner:
            def closed(self, *_):
                pass

        for _ in range(20):
            owner = Owner()
            reader, writer = os.pipe()
            owner.loop = EventLoop(
                "line", idle_timeout=None, max_line=0, drain_timeout=1, stop_fd=reader, on_closed=owner.closed
            )
            far, near = socket.socketpair()
            owner.loop.adopt(near.detach())
            other = [owner.loop]
            other.append(other)
            del owner, other
            gc.collect()
            far.settimeout(30)
            assert far.recv(1) == b""
            far.close()
            os.close(reader)
            os.close(writer)
    """)


@pytest.mark.sampled(1)
def test_closing_with_held_lines_releases_descriptors_and_memory(loop_with):
    before = set(os.listdir("/dev/fd"))
    for _ in range(3):
        run = loop_with(drain=0)
        with run:
            for i in range(20):
                sock = run.client("held")
                sock.sendall(b"x" * 10_000 * i)
                until(lambda run=run, n=i: run.counts()["bytes_in"] == 10_000 * sum(range(n + 1)))
            run.stop()
            for _ in range(20):
                run.next_closing()
        assert [c[1] for c in run.closings] == ["drain timeout"] * 20
        run.closings.clear()
    del run, sock
    gc.collect()
    assert set(os.listdir("/dev/fd")) == before


def test_nothing_is_adopted_after_no_more_and_the_caller_keeps_the_descriptor(idle_loop):
    left, right = socket.socketpair()
    with left, right:
        idle_loop.no_more()
        idle_loop.no_more()
        with pytest.raises(ValueError, match="no more connections"):
            idle_loop.adopt(right.fileno(), "peer")
        left.sendall(b"x")
        assert right.recv(1) == b"x"
    idle_loop.run()


def test_a_running_loop_cannot_be_closed_or_run_again(loop_with):
    with loop_with() as run:
        sock = run.client()
        ask(sock)
        with pytest.raises(RuntimeError, match="running"):
            run.loop.close()
        with pytest.raises(RuntimeError, match="running"):
            run.loop.run()
        ask(sock)


def test_running_again_after_the_end_does_not_block(loop_with):
    with loop_with() as run:
        run.client().close()
        run.finish()
        run.loop.run()
        run.loop.close()
        run.loop.run()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_line": -1}, ValueError),
        ({"max_line": None}, TypeError),
        ({"idle_timeout": -1}, ValueError),
        ({"drain_timeout": float("nan")}, ValueError),
        ({"stop_fd": -1}, OSError),
        ({"stop_fd": -1, "poller": "poll"}, OSError),
        ({"poller": "select"}, ValueError),
        ({"framing": "lines"}, ValueError),
    ],
)
def test_an_invalid_argument_is_an_error_and_leaves_nothing_open(options, error):
    reader, writer = os.pipe()
    try:
        wanted = {
            "framing": "line",
            "idle_timeout": None,
            "max_line": 0,
            "drain_timeout": 1,
            "stop_fd": reader,
            "on_closed": print,
        }
        with pytest.raises(error):
            EventLoop(**(wanted | options))
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("fd", [-1, -2])
def test_an_invalid_descriptor_is_closed_as_an_error(loop_with, fd):
    with loop_with() as run:
        run.loop.adopt(fd, "none")
        assert run.next_closing() == ("none", "error", errno.EBADF, 0)
        ask(run.client())


# ---- reports


def test_a_reset_is_reported_with_its_errno(loop_with):
    with loop_with() as run:
        sock = run.client("a", kind="tcp")
        ask(sock)
        reset(sock)
        assert run.next_closing() == ("a", "error", errno.ECONNRESET, 15)
    assert run.counts()["errors"] == 1


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_reset_of_a_client_that_does_not_read_is_reported(loop_with):
    with loop_with() as run:
        sock = run.client("a", kind="tcp")
        fill(sock)
        reset(sock)
        peer, reason, err, _ = run.next_closing()
        assert (peer, reason) == ("a", "error")
        assert err in (errno.ECONNRESET, errno.EPIPE)


def test_a_client_that_disconnects_before_its_echo_is_an_error(loop_with):
    with loop_with() as run:
        far, near = socket.socketpair()
        far.send(b"hello\n")
        far.close()
        run.loop.adopt(near.detach(), "a")
        assert run.next_closing() == ("a", "error", errno.EPIPE, 0)


def test_a_descriptor_that_is_not_a_socket_is_closed_as_an_error(loop_with):
    with loop_with() as run:
        reader, writer = os.pipe()
        os.write(writer, b"x")
        run.loop.adopt(reader, "pipe")
        assert run.next_closing() == ("pipe", "error", errno.ENOTSOCK, 0)
        os.close(writer)


def test_connections_without_a_peer_are_reported_only_on_request(loop_with):
    with loop_with() as run:
        for wanted in (False, True, False, True):
            run.loop.report_closings(wanted)
            for peer in (None, "somebody"):
                run.closings.clear()
                closed = run.counts()["closed"]
                with run.client(peer) as sock:
                    ask(sock)
                until(lambda n=closed: run.counts()["closed"] == n + 1)
                if peer or wanted:
                    until(lambda: run.closings)
                ask(run.client(), b"a turn later\n")
                assert run.closings == ([(peer, "end of input", 0, 15)] if peer or wanted else [])


def test_a_connection_is_counted_as_closed_once_its_descriptor_is_free(loop_with):
    with loop_with() as run:
        far, near = socket.socketpair()
        number = near.detach()
        run.loop.adopt(number)
        far.close()
        until(lambda: run.counts()["closed"] == 1)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


def test_the_lengths_of_lines_are_reported_however_they_arrive(loop_with):
    reported = []
    with loop_with(on_line=reported.append) as run:
        sock = run.client()
        wanted = [1, 2, 5, 100, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 1, 1]
        data = b"".join(b"x" * (n - 1) + b"\n" for n in wanted)
        chance = random.Random(3)
        sent = 0
        while sent < len(data):
            n = chance.choice([1, 3, 50, 20_000, 100_000])
            sock.sendall(data[sent : sent + n])
            sent = min(len(data), sent + n)
            back = data.rfind(b"\n", 0, sent) + 1
            until(lambda n=sent: run.counts()["bytes_in"] == n)
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while sock.recv(1 << 20):
                    pass
            sock.settimeout(SECONDS)
            assert sum(reported) <= back
        sock.sendall(b"the rest")
        sock.shutdown(socket.SHUT_WR)
        receive_all(sock)
    assert reported == [*wanted, 8]
    assert run.counts()["lines"] == len(wanted)


def test_the_lengths_of_pieces_are_reported(loop_with):
    reported = queue.SimpleQueue()
    with loop_with(max_line=10, on_line=reported.put) as run:
        sock = run.client()
        sock.sendall(b"x" * 9)
        assert nothing_comes(sock)
        ask_for = [(b"y", 10), (b"zz\n", 3), (b"one\ntwo\n" + b"w" * 10, 4, 4, 10), (b"\n", 1)]
        for data, *lengths in ask_for:
            sock.sendall(data)
            receive(sock, sum(lengths))
            assert [reported.get(timeout=SECONDS) for _ in lengths] == lengths
    assert run.counts()["lines"] == 4
    assert reported.empty()


def test_raw_bytes_are_reported_as_they_arrive(loop_with):
    reported = []
    with loop_with("raw", on_line=reported.append) as run:
        sock = run.client()
        for n in (1, 100, 5000):
            ask(sock, b"x\n" * n)
        sock.shutdown(socket.SHUT_WR)
        receive_all(sock)
    assert reported == [2, 200, 10_000]
    assert run.counts()["lines"] == 0


def test_exceptions_of_callbacks_are_logged_at_a_limited_rate_and_the_loop_continues(loop_with, monkeypatch, caplog):
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: os._exit(3))

    def on_line(n):
        raise ZeroDivisionError("of a callback")

    with loop_with(on_line=on_line) as run:
        run.closings = Raising()
        for _ in range(50):
            with run.client("somebody") as sock:
                ask(sock)
        ask(run.client(), b"still there\n")
        until(lambda: run.counts()["closed"] == 50)
    assert run.counts()["errors"] == 0
    assert [record.getMessage() for record in caplog.records] == [
        "a callback of the event loop raised ZeroDivisionError: of a callback"
    ]


def test_an_error_of_on_opened_is_logged_and_the_connection_is_served(caplog):
    def on_opened(peer, source):
        raise ZeroDivisionError("of a callback")

    closings = queue.SimpleQueue()
    loop, pipe = make(on_opened=on_opened, on_closed=lambda *closing: closings.put(closing))
    far, near = socket.socketpair()
    far.settimeout(SECONDS)
    loop.adopt(near.detach(), "somebody")
    loop.no_more()
    running = Running(loop.run)
    with far:
        ask(far)
    running.result()
    loop.close()
    for fd in pipe:
        os.close(fd)
    assert closings.get_nowait() == ("somebody", "end of input", 0, 15)
    assert [record.getMessage() for record in caplog.records] == [
        "a callback of the event loop raised ZeroDivisionError: of a callback"
    ]


def test_a_log_that_raises_while_an_error_of_a_callback_is_logged_is_ignored(loop_with):
    class Broken(logging.Handler):
        records = 0

        def emit(self, record):
            self.records += 1
            raise OSError("the disk is full")

    log, broken = logging.getLogger("rioecho.server"), Broken()
    log.addHandler(broken)
    try:
        with loop_with(on_line=lambda n: 1 / 0) as run:
            ask(run.client())
            ask(run.client())
    finally:
        log.removeHandler(broken)
    assert broken.records == 1


class Raising(list):
    """A list whose append() raises."""

    def append(self, item):
        raise KeyError(item)


def test_closing_the_loop_from_its_own_callback_is_a_harmless_error(loop_with, caplog):
    with loop_with(on_line=lambda n: run.loop.close()) as run:
        for _ in range(2):
            ask(run.client())
    assert [record.getMessage() for record in caplog.records] == [
        "a callback of the event loop raised RuntimeError: this event loop is running"
    ]


def test_connections_may_be_adopted_from_a_callback(loop_with):
    """The inbox is a pipe: a connection written to it by the loop's own thread is read on the next turn."""
    far, near = socket.socketpair()
    with far:
        far.settimeout(SECONDS)
        with loop_with(on_line=lambda n: near.fileno() >= 0 and run.loop.adopt(near.detach())) as run:
            ask(run.client())
            ask(far)
            far.close()


def test_the_counts_are_exact(loop_with, kind):
    with loop_with() as run:
        assert run.counts() == {"closed": 0, "errors": 0, "bytes_out": 0, "bytes_in": 0, "lines": 0}
        first, second = run.client(kind=kind), run.client(kind="tcp")
        ask(first, b"one\ntwo\n")
        first.sendall(b"thr")
        until(lambda: run.counts()["bytes_in"] == 11)
        until(lambda: run.counts()["bytes_out"] == 8)
        assert run.counts()["lines"] == 2
        first.shutdown(socket.SHUT_WR)
        assert receive_all(first) == b"thr"
        until(lambda: run.counts()["closed"] == 1)
        ask(second)
        reset(second)
        until(lambda: run.counts()["closed"] == 2)
    assert run.counts() == {"closed": 2, "errors": 1, "bytes_out": 26, "bytes_in": 26, "lines": 3}


@pytest.mark.long
def test_lines_are_not_read_while_too_many_wait_for_their_report(loop_with):
    """Their connections are not idle meanwhile, and every line is reported in the end."""
    reported = []
    run = loop_with(on_line=reported.append, idle=SECONDS)
    clients = [run.client() for _ in range(40)]
    for sock in clients:
        sock.sendall(b"\n" * (CHUNK if sock is clients[0] else 4000))
    with run:
        for sock in clients:
            sock.shutdown(socket.SHUT_WR)
            receive_all(sock)
    assert reported == [1] * (CHUNK + 39 * 4000)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the descriptor of epoll(7) in /proc")
def test_a_poller_that_somebody_closes_ends_the_loop_and_its_connections():
    loop, pipe = make(poller="epoll")
    far, near = socket.socketpair()
    far.settimeout(SECONDS)
    loop.adopt(near.detach())
    epoll = max(fd for fd in map(int, os.listdir("/proc/self/fd")) if kind_of(fd) == "anon_inode:[eventpoll]")
    running = Running(loop.run)
    ask(far)
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, epoll)  # not only closed: the number must not be reused by a descriptor of the test
    os.close(devnull)
    with contextlib.suppress(ConnectionError):
        far.sendall(b"x\n")  # ends the wait
        receive_all(far)
    with pytest.raises(OSError, match="Invalid argument"):
        running.result()
    assert loop.counts.now()["closed"] == 1
    with pytest.raises(ValueError, match="no more connections"):
        loop.adopt(pipe[0])
    far.close()
    loop.close()
    for fd in pipe:
        os.close(fd)


def kind_of(fd):
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}")


# ---- reused descriptor numbers, and sockets that another process holds


def test_descriptor_numbers_are_reused_at_once(loop_with, framing):
    with loop_with(framing) as run:
        numbers = set()
        for i in range(300):
            far, near = socket.socketpair()
            with far:
                far.settimeout(SECONDS)
                far.sendall(b"%d\n" % i)
                numbers.add(near.fileno())
                run.loop.adopt(near.detach())
                assert receive(far, len(b"%d\n" % i)) == b"%d\n" % i
                if i % 3:
                    far.sendall(b"more, perhaps unread")
            if i % 2:
                until(lambda n=i: run.counts()["closed"] > n)
        assert len(numbers) < 100


def test_new_connections_are_not_confused_with_closed_ones(loop_with):
    """In one turn, new connections get the memory and the descriptor numbers of closed ones."""
    with loop_with() as run:
        old = [run.client() for _ in range(50)]
        for turn in range(15):
            for sock in old:
                sock.sendall(b"x" * 3000 + b"\n")
                sock.close()
            new = [run.client() for _ in range(50)]
            for i, sock in enumerate(new):
                sock.sendall(b"%d of turn %d\n" % (i, turn))
            for i, sock in enumerate(new):
                wanted = b"%d of turn %d\n" % (i, turn)
                assert receive(sock, len(wanted)) == wanted
            old = new


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_closed_connection_that_another_process_holds_causes_no_events(loop_with):
    with loop_with() as run:
        for _ in range(3):
            far, near = socket.socketpair()
            with far, subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[near.fileno()]) as holder:
                far.settimeout(SECONDS)
                number = near.detach()
                run.loop.adopt(number, "held")
                ask(far)
                far.shutdown(socket.SHUT_WR)
                assert run.next_closing() == ("held", "end of input", 0, 15)
                # It stays readable, and the next connection gets its number.
                again, near = socket.socketpair()
                assert number in (again.fileno(), near.fileno())
                with again:
                    again.settimeout(SECONDS)
                    run.loop.adopt(near.detach(), "again")
                    for _ in range(20):
                        ask(again)
                assert run.next_closing() == ("again", "end of input", 0, 300)
                holder.stdin.close()
        time_before = time.process_time()
        nothing_comes(run.client(), 0.2)
        assert time.process_time() - time_before < 0.15  # the loop sleeps


@pytest.mark.long
@pytest.mark.sampled(1)
@each_poller
def test_a_forked_child_that_holds_every_descriptor_does_no_harm(child, poller):
    """Of the poller, the inbox and the connections: the loop ends and gets no events of closed connections."""
    out = child(
        """if True:
        import os, socket, sys, threading, time
        from rioecho._server.eventloop import EventLoop

        closings = []
        reader, writer = os.pipe()
        loop = EventLoop(
            "line", idle_timeout=None, max_line=0, drain_timeout=5, stop_fd=reader, poller=sys.argv[1],
            on_closed=lambda *closing: closings.append(closing),
        )
        pairs = [socket.socketpair() for _ in range(20)]
        for i, (far, near) in enumerate(pairs):
            far.settimeout(30)
            loop.adopt(near.detach(), i)
        hold, release = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(release)
            os.read(hold, 1)   # until the parent exits
            os._exit(0)
        os.close(hold)
        thread = threading.Thread(target=loop.run)
        thread.start()

        def ask(sock, line):
            sock.sendall(line)
            back = b""
            while len(back) < len(line):
                part = sock.recv(100)
                assert part
                back += part
            assert back == line

        clients = [far for far, _ in pairs]
        for i, sock in enumerate(clients):
            ask(sock, b"%d\\n" % i)
        for sock in clients[:10]:
            sock.shutdown(socket.SHUT_WR)
        while len(closings) < 10:
            os.sched_yield()
        more = [socket.socketpair() for _ in range(10)]   # with the numbers of closed connections
        for i, (far, near) in enumerate(more):
            far.settimeout(30)
            loop.adopt(near.detach(), 20 + i)
        for turn in range(20):
            for sock in clients[10:] + [far for far, _ in more]:
                ask(sock, b"%d\\n" % turn)
        used = time.process_time()
        time.sleep(0.2)
        used = time.process_time() - used
        for sock in clients[10:] + [far for far, _ in more]:
            sock.shutdown(socket.SHUT_WR)
        loop.no_more()
        thread.join(30)
        assert not thread.is_alive()
        assert sorted(c[0] for c in closings) == list(range(30)), closings
        assert {c[1:3] for c in closings} == {("end of input", 0)}, closings
        assert used < 0.15, used
        loop.close()
        os.close(release)
        os.waitpid(pid, 0)
        for sock in clients + [far for far, _ in more]:
            sock.close()
        print("good")
        """,
        poller,
    )
    assert out == "good\n"
