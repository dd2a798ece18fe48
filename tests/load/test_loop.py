"""The load loop against peers that echo correctly, at once, late or in pieces: its counts, schedule and life cycle."""

import contextlib
import errno
import itertools
import os
import select
import socket
import sys
import threading
import time

import pytest
from conftest import open_descriptors

from rioecho import EchoServer
from rioecho._load.loop import LoadLoop, messages, monotonic_ns
from support.loads import connected, echo, latencies, lateness, loop, peer, until_closed
from support.peers import SECONDS, Running, receive
from support.pollers import each_poller

SIZES = (1, 2, 16, 17, 64, 4097, 65_536, 65_537, 1 << 20)


# ---- messages


@pytest.mark.parametrize("size", SIZES)
def test_each_message_has_its_size_and_ends_in_the_only_newline(size):
    cycle = messages(size)
    whole = cycle[: len(cycle) - (1 << 16)]
    each = [whole[i : i + size] for i in range(0, len(whole), size)]
    assert all(message.find(b"\n") == size - 1 for message in each)
    assert whole.isascii()
    assert b"".join(each).replace(b"\n", b"").decode().isprintable()
    if size > 16:
        assert [int(message[:7]) for message in each] == list(range(len(each)))
        assert len(set(each)) == len(each) >= 3
    assert (whole * (1 + (1 << 16) // len(whole)))[: 1 << 16] == cycle[len(whole) :]


@pytest.mark.parametrize("size", [0, -1])
def test_a_message_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match="at least one byte"):
        messages(size)


# ---- correct echoes


@pytest.mark.sampled(6)
@each_poller
@pytest.mark.parametrize("pipeline", [1, 3, 100])
@pytest.mark.parametrize("size", SIZES)
def test_its_counts_agree_with_those_of_the_server(size, pipeline, poller):
    if size * pipeline > 1 << 24:
        pipeline = 16
    with EchoServer(framing="raw" if pipeline == 3 else "line") as server:
        opened, socks = connected(server, 4)
        with opened:
            echoed = 0
            while not echoed:  # nothing is sent where this thread had no processor for all of that time
                load = loop(socks, size, pipeline=pipeline, duration=0.03, warmup=0.01, poller=poller)
                assert load.run() == ("done", 0, 0, 0)
                measured, echoed, in_flight = load.counts()
                assert in_flight == 0
        assert measured <= echoed
        assert load.measured_seconds == pytest.approx(0.03, abs=1e-6)
        # Messages echoed after the end count too.
        assert measured <= latencies(load).count <= measured + 4 * pipeline
        server.stop()
        stats = server.stats()
        assert stats["bytes_in"] == stats["bytes_out"] == echoed * size
        assert stats["errors"] == 0
        if pipeline != 3 and size < 1 << 20:
            assert stats["lines"] == echoed


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("size", [1, 2, 64, 5000])
def test_echoes_may_arrive_in_any_pieces(size):
    def talk(end):
        pieces = itertools.cycle([1, 2, 63, 64, 65, 1000, 7])
        with contextlib.suppress(ConnectionError):
            while data := end.recv(4000):
                while data:
                    n = next(pieces)
                    end.sendall(data[:n])
                    data = data[n:]

    with peer(talk) as ends:
        load = loop(ends, size, pipeline=5)
        assert load.run()[0] == "done"
        assert load.counts()[1] > 0


@pytest.mark.parametrize("pipeline", [1, 4])
def test_the_pipeline_bounds_the_messages_in_flight_and_each_echo_releases_one(pipeline):
    seen = []

    def talk(end):
        data = receive(end, pipeline * 64)
        for _ in range(20):
            seen.append(bool(select.select([end], [], [], 0.005)[0]))
            end.sendall(data[:64])
            data = data[64:] + receive(end, 64)
        load.stop()
        end.sendall(data)
        echo(end)

    with peer(talk) as ends:
        load = loop(ends, pipeline=pipeline, duration=1000)
        assert load.run()[0] == "done"
    assert seen == [False] * 20


def test_each_connection_begins_at_another_place_of_the_cycle():
    first = []

    def talk(*ends):
        for end in ends:
            first.append(receive(end, 64))
        for end, data in zip(ends, first, strict=True):
            end.sendall(data)

    with peer(talk, 5) as ends:
        load = loop(ends, first=1, step=3, duration=30)
        load.run()
    assert len(set(first)) == 5


# ---- the schedule


@pytest.mark.long
@pytest.mark.sampled(1)
@each_poller
def test_with_a_rate_nothing_is_sent_before_it_is_due(poller):
    with EchoServer() as server:
        opened, socks = connected(server, 3)
        with opened:
            load = loop(socks, rate=500, warmup=0.1, duration=0.3, pipeline=200, poller=poller)
            assert load.run()[0] == "done"
        # 0, 2, 4 ... 398 ms; the loop may not have run when the last of them were due.
        assert 1 <= load.counts()[1] <= 200
        assert latencies(load).count <= 200
        assert latencies(load).count >= latencies(load, corrected=False).count


def test_connections_alternate_on_the_schedule():
    counts = []

    def count(end):
        n = 0
        while data := end.recv(100):
            n += len(data)
            end.sendall(data)
        counts.append(n)

    def talk(*ends):
        for each in [Running(count, end) for end in ends]:
            each.result()

    with peer(talk, 4) as ends:
        load = loop(ends, 1, rate=400, pipeline=100, duration=0.1)
        assert load.run()[0] == "done"
        for end in ends:
            end.shutdown(socket.SHUT_WR)
    assert 1 <= sum(counts) == load.counts()[1]
    # 40 were due, and no more than 10 on each; the loop may not have run when the last of them were.
    assert latencies(load).count == 40
    assert max(counts) <= 10


@pytest.mark.long
def test_the_lateness_of_the_loop_counts_from_when_each_message_was_due():
    with peer(echo) as ends:
        load = loop(ends, rate=1000, duration=0.3)
        assert load.run(monotonic_ns() - 200_000_000)[0] == "done"
    late = lateness(load)
    assert late.count == 300
    assert late.max >= 200_000
    # 200 of them were due at the first look, the last one just then. None was released after the end.
    assert 49_000 < late.percentile(50) <= 151_000
    assert late.percentile(90) > 169_000


def test_without_a_rate_no_message_is_late():
    with peer(echo) as ends:
        load = loop(ends, duration=0.02)
        assert load.run()[0] == "done"
    assert lateness(load).count == 0


@pytest.mark.slow
def test_a_stall_shows_in_the_corrected_latencies_and_hardly_in_the_uncorrected():
    def talk(end):
        stall_at = time.monotonic() + 0.3
        with contextlib.suppress(ConnectionError):
            while data := end.recv(1 << 16):
                if time.monotonic() >= stall_at:
                    time.sleep(0.5)
                    stall_at = float("inf")
                end.sendall(data)

    with peer(talk) as ends:
        load = loop(ends, rate=1000, duration=1)
        assert load.run()[0] == "done"
    corrected, uncorrected = latencies(load), latencies(load, corrected=False)
    # 500 of 1000 messages were due during the stall; the slowest 10 waited for more than 0.48 s.
    assert corrected.percentile(99) > 400_000
    assert corrected.percentile(75) > 50_000
    assert uncorrected.percentile(99) < 250_000
    assert uncorrected.max >= 500_000
    assert corrected.count >= uncorrected.count  # messages that were due and could not be sent before the end
    assert lateness(load).count == 1000
    assert lateness(load).percentile(99) < corrected.percentile(99) / 2  # the loop was not late: its peer was


@pytest.mark.slow
def test_the_uncorrected_latency_counts_from_the_send_even_if_an_older_message_is_in_flight():
    def talk(one, two):
        first = receive(one, 64)
        two.sendall(receive(two, 64))
        one.sendall(first)

    with peer(talk, 2) as ends:
        load = loop(ends, rate=1, duration=1.2)  # the second message is sent after a second
        load.run()
    assert latencies(load, corrected=False).percentile(50) < 800_000
    assert latencies(load, corrected=False).max > 800_000


@pytest.mark.long
def test_messages_that_were_due_and_never_sent_count():
    with peer(until_closed) as ends:
        load = loop(ends, rate=1000, duration=0.3, stall_timeout=0.4)
        assert load.run()[0] == "stalled"
    assert latencies(load, corrected=False).count == 1
    assert latencies(load).count == 300
    assert latencies(load).percentile(50) >= 100_000


@pytest.mark.long
def test_messages_released_and_never_sent_count():
    def talk(end):
        assert select.select([end], [], [], SECONDS)[0]  # the measurement has begun
        time.sleep(0.15)  # and has ended, but not the messages in flight
        echo(end)

    with peer(talk) as ends:
        load = loop(ends, 1 << 16, rate=1000, pipeline=200, duration=0.1)
        assert load.run()[0] == "done"
    assert 0 < load.counts()[1] == latencies(load, corrected=False).count < 100
    assert latencies(load).count == 100


@pytest.mark.slow
def test_a_backlog_of_millions_is_recorded_without_a_loop_over_each():
    with EchoServer() as server:
        opened, socks = connected(server, 3)
        with opened:
            load = loop(socks, rate=1e9, duration=0.5)
            used = time.thread_time()
            assert load.run()[0] == "done"
            assert time.thread_time() - used < 1.5
    h = latencies(load)
    assert h.count == 500_000_000  # one every nanosecond
    assert h.max >= 499_000
    # Nearly all of them were never sent; their latency is the time from when they were due to the end.
    for p in (10, 50, 90):
        assert h.percentile(p) == pytest.approx(p * 5000, rel=0.05)
    assert h.mean == pytest.approx(250_000, rel=0.05)


@pytest.mark.slow
def test_a_phase_delays_the_first_message():
    with peer(echo) as ends:
        load = loop(ends, rate=0.1, phase=0.1, duration=2)
        running = Running(load.run)
        running.result()
        assert load.counts()[1] == 1
        load = loop(ends, rate=1, phase=0.2, duration=0.1)
        load.run()
        assert load.counts()[1] == 0


@pytest.mark.long
def test_the_minimum_rate_sends_one_message_and_ends_in_time():
    with peer(echo) as ends:
        load = loop(ends, rate=2.0**-31, duration=0.4)
        assert load.run()[0] == "done"
        assert load.counts()[1] == 1
    assert 0 < latencies(load).max < SECONDS * 1e6


# ---- life cycle


@contextlib.contextmanager
def peer_that_has_echoed_three():
    """Run a peer; yield its sockets and an event that is set when it has received the fourth message."""
    three_are_back = threading.Event()

    def talk(end):
        for _ in range(3):
            end.sendall(receive(end, 64))
        fourth = receive(end, 64)
        three_are_back.set()
        end.sendall(fourth)
        echo(end)

    with peer(talk) as ends:
        yield ends, three_are_back


@pytest.mark.parametrize("rate", [None, 100.0])
def test_stop_in_another_thread_ends_the_loop_early(rate):
    with peer_that_has_echoed_three() as (ends, three_are_back):
        load = loop(ends, rate=rate, duration=1000)
        running = Running(load.run)
        assert three_are_back.wait(SECONDS)
        assert load.counts()[0] >= 3
        load.stop()
        assert running.result() == ("done", 0, 0, 0)
        assert 0 < load.measured_seconds < SECONDS
        assert load.counts()[2] == 0


def test_a_second_stop_does_not_wait_for_what_is_in_flight():
    with peer(until_closed) as ends:
        load = loop(ends, duration=1000)
        load.stop()
        load.stop()
        assert load.run() == ("done", 0, 0, 0)
        assert load.counts()[:2] == (0, 0)


def test_a_stop_during_the_warm_up_measures_nothing():
    with peer_that_has_echoed_three() as (ends, three_are_back):
        load = loop(ends, warmup=1000)
        running = Running(load.run)
        assert three_are_back.wait(SECONDS)
        assert load.counts()[1] >= 3
        load.stop()
        assert running.result()[0] == "done"
        assert (load.counts()[0], load.measured_seconds, latencies(load).count) == (0, 0.0, 0)


@pytest.mark.long
def test_the_counts_can_be_read_during_the_run_and_only_grow():
    with peer(echo) as ends:
        load = loop(ends, pipeline=4, duration=0.2)
        running, seen = Running(load.run), []
        while running._thread.is_alive():
            seen.append((*load.counts()[:2], latencies(load).count))
        running.result()
    for before, after in itertools.pairwise(seen):
        assert all(a <= b for a, b in zip(before, after, strict=True))


def test_it_runs_once():
    with peer(echo) as ends:
        load = loop(ends, duration=0.01)
        load.run(monotonic_ns())
        with pytest.raises(RuntimeError, match="once"):
            load.run()


@pytest.mark.long
def test_other_threads_run_during_the_run():
    with peer(echo) as ends:
        load = loop(ends, duration=0.2)
        ran = []
        thread = threading.Thread(target=lambda: ran.append(load.run()[0]))
        thread.start()
        turns = 0
        while thread.is_alive():
            turns += 1
        thread.join()
    assert ran == ["done"]
    assert turns > 100


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_it_opens_one_descriptor_and_closes_it():
    with peer(echo) as ends:
        before = open_descriptors()
        load = loop(ends)
        assert len(open_descriptors() - before) == 1
        del load
        assert open_descriptors() == before
        os.fstat(ends[0].fileno())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pipeline": 0}, "in flight"),
        ({"rate": 0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": 1e-10}, "rate"),
        ({"rate": 1e-300}, "rate"),
        ({"message_bytes": 63}, "cycle"),
        ({"message_bytes": 0}, "cycle"),
        ({"duration": -1}, "seconds"),
        ({"duration": None}, "seconds"),
        ({"warmup": None}, "seconds"),
        ({"fds": []}, "connection"),
    ],
)
def test_wrong_arguments_are_refused(options, words, stream):
    given = {"fds": [stream.near.fileno()], "message_bytes": 64, "duration": 1} | options
    with pytest.raises(ValueError, match=words):
        LoadLoop(given.pop("fds"), messages(64), **given)


@pytest.mark.parametrize("options", [{"cycle": None}, {"cycle": "text"}, {"message_bytes": "64"}, {"pipeline": None}])
def test_wrong_types_are_refused_and_nothing_is_closed(options, stream):
    given = {"fds": [stream.near.fileno()], "cycle": messages(64), "message_bytes": 64, "duration": 1} | options
    before = open_descriptors()
    with pytest.raises(TypeError):
        LoadLoop(given.pop("fds"), given.pop("cycle"), **given)
    assert open_descriptors() == before


def test_a_descriptor_that_is_not_a_socket_is_refused():
    with open(os.devnull) as file, pytest.raises(ValueError, match="not a socket"):
        loop([file])
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        LoadLoop([1 << 20], messages(64), message_bytes=64, duration=1)


# ---- its thread


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def started(ends, pipe):
    """Return a load loop that runs for a long time in a thread of its own, with something in flight."""
    load = loop(ends, duration=10 * SECONDS)
    load.start(wake_fd=pipe[1])
    deadline = time.monotonic() + SECONDS
    while not load.counts()[1]:
        assert time.monotonic() < deadline
        os.sched_yield()
    return load


def test_a_loop_that_is_dropped_while_its_thread_runs_ends_it(pipe):
    with peer(echo) as ends:
        before = open_descriptors()
        load = started(ends, pipe)
        del load
        assert open_descriptors() == before
        assert os.read(pipe[0], 10) == b"e"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("end", ["join", "del"])
def test_a_forked_child_neither_ends_the_thread_nor_waits_for_it(end, pipe):
    with peer(echo) as ends:
        load = started(ends, pipe)
        pid = os.fork()
        if pid == 0:
            if end == "join":
                load.join()
            else:
                del load
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not load.ended
        load.stop()
        load.join()
        assert load.outcome()[0] == "done"


def test_without_a_descriptor_for_its_wake_fd_no_thread_is_started():
    with peer(echo) as ends:
        load = loop(ends)
        with pytest.raises(OSError, match="Bad file descriptor"):
            load.start(wake_fd=-1)
        load.join()
        assert not load.ended


def test_without_a_stall_timeout_an_echo_may_take_any_time():
    def talk(end):
        data = receive(end, 64)
        time.sleep(0.05)
        end.sendall(data)
        until_closed(end)

    with peer(talk) as ends:
        load = loop(ends, duration=0.01, stall_timeout=None)
        assert load.run()[0] == "done"
        assert load.counts()[1] == 1
