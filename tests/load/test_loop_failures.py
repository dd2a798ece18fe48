"""The load loop against peers that echo wrong bytes, close the connection, or send nothing: outcomes and counts."""

import contextlib
import errno
import socket
import time

import pytest

from rioecho import EchoServer
from support.loads import connected, echo, latencies, loop, peer, until_closed
from support.peers import SECONDS, Running, dial, receive, reset
from support.pollers import each_poller

# ---- wrong echoes


@each_poller
@pytest.mark.parametrize("at", [0, 1, 62, 63, 64, 100, 191, 10_000])
def test_a_wrong_byte_is_found_with_its_connection_and_offset(at, poller):
    def talk(right, bad):
        running = Running(echo, right)
        passed = 0
        with contextlib.suppress(ConnectionError):
            while data := bytearray(bad.recv(1 << 16)):
                if passed <= at < passed + len(data):
                    data[at - passed] ^= 1
                bad.sendall(data)
                passed += len(data)
        right.shutdown(socket.SHUT_RDWR)
        running.result()

    with peer(talk, 2) as ends:
        load = loop(ends, pipeline=3, duration=SECONDS, first=10, step=5, poller=poller)
        assert load.run() == ("wrong echo", 15, at, 0)


@pytest.mark.parametrize("size", [1, 64])
def test_bytes_that_were_never_sent_are_wrong(size):
    def talk(end):
        data = receive(end, size)
        end.sendall(data + data)
        until_closed(end)

    with peer(talk) as ends:
        assert loop(ends, size, duration=SECONDS).run() == ("wrong echo", 0, size, 0)


def test_exchanged_echoes_of_two_connections_are_wrong():
    def talk(one, two):
        first, second = receive(one, 64), receive(two, 64)
        with contextlib.suppress(ConnectionError):
            one.sendall(second)
            two.sendall(first)
        until_closed(one)

    with peer(talk, 2) as ends:
        outcome, _, offset, _ = loop(ends, duration=SECONDS).run()
        assert outcome == "wrong echo"
        assert offset < 64


def test_a_missing_message_is_a_wrong_echo():
    def talk(end):
        end.sendall(receive(end, 3 * 64)[64:])
        until_closed(end)

    with peer(talk) as ends:
        assert loop(ends, pipeline=3, duration=SECONDS).run()[0] == "wrong echo"


# ---- lost and stalled connections


def test_a_closed_connection_is_lost_and_the_missing_bytes_are_counted():
    def talk(end):
        end.sendall(receive(end, 128)[:30])

    with peer(talk) as ends:
        load = loop(ends, pipeline=2, duration=SECONDS)
        assert load.run() == ("lost", 0, 98, 0)
        assert load.counts() == (0, 0, 2)
        assert latencies(load).count == 2
        assert load.measured_seconds < SECONDS


def test_a_reset_is_lost_with_its_errno_and_the_echoes_before_it_count():
    with EchoServer() as server:
        opened, socks = connected(server, 1)
        with opened, socket.create_server(("127.0.0.1", 0)) as listener:
            ours = opened.enter_context(dial(listener.getsockname()))
            theirs, _ = listener.accept()
            load = loop([*socks, ours], duration=SECONDS)
            running = Running(load.run)
            theirs.sendall(receive(theirs, 64))
            receive(theirs, 64)
            reset(theirs)
            assert running.result() == ("lost", 1, 64, errno.ECONNRESET)
            assert load.counts()[0] >= 1


@pytest.mark.long
@pytest.mark.sampled(1)
@each_poller
@pytest.mark.parametrize("rate", [None, 1000.0])
def test_without_an_echo_the_load_stalls_and_the_ages_of_messages_count(rate, poller):
    with peer(until_closed) as ends:
        load = loop(ends, pipeline=2, duration=SECONDS, stall_timeout=0.2, rate=rate, poller=poller)
        before = time.monotonic()
        assert load.run() == ("stalled", 0, 2, 0)
        assert 0.2 <= time.monotonic() - before < SECONDS
        assert load.counts() == (0, 0, 2)
        assert latencies(load, corrected=False).count == 2
        assert latencies(load, corrected=False).max >= 200_000
        h = latencies(load)
        assert h.max >= 200_000
        assert h.count == 2 if rate is None else h.count >= 100


@pytest.mark.slow
def test_messages_in_flight_at_the_end_are_awaited_and_then_stalled():
    def talk(end):
        end.sendall(receive(end, 64))
        receive(end, 64)
        until_closed(end)

    with peer(talk) as ends:
        load = loop(ends, duration=2, stall_timeout=2.5)
        assert load.run() == ("stalled", 0, 1, 0)
        assert load.counts() == (1, 1, 1)
        assert latencies(load).count == 2
        assert latencies(load).max >= 200_000
        assert load.measured_seconds == pytest.approx(2, abs=1e-6)


@pytest.mark.long
def test_an_echo_after_the_end_counts_with_its_latency():
    def talk(end):
        data = receive(end, 64)
        time.sleep(0.15)
        end.sendall(data)
        assert end.recv(1) == b""  # nothing new was sent

    with peer(talk) as ends:
        load = loop(ends, duration=0.05)
        assert load.run()[0] == "done"
        assert load.counts() == (0, 1, 0)
        assert latencies(load).count == 1
        assert latencies(load).min >= 150_000


@pytest.mark.slow
def test_a_slow_echo_that_arrives_byte_by_byte_is_not_a_stall():
    def talk(end):
        data = receive(end, 64)
        for i in range(64):
            end.sendall(data[i : i + 1])
            time.sleep(0.05)
        until_closed(end)

    with peer(talk) as ends:
        load = loop(ends, duration=0.05, stall_timeout=2.5)
        assert load.run()[0] == "done"
        assert latencies(load).max >= 3_000_000
