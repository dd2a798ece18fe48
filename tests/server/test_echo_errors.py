"""Errors of rioecho.echo(), which report the number of bytes echoed and the unsent bytes."""

import functools
import os
import random
import signal
import socket
import threading
import time

import pytest

from rioecho import echo
from support.delivery import fileno
from support.event_loops import tcp_pair
from support.peers import SECONDS, Running, binary, exchange, fill, receive, receive_all


@pytest.fixture(params=["line", "raw"])
def framing(request):
    return request.param


def test_a_disconnected_peer_is_a_broken_pipe_whose_error_has_the_received_bytes(stream, framing):
    stream.feed(b"one\ntwo\nthr")
    stream.close_far()
    with pytest.raises(BrokenPipeError) as raised:
        echo(stream.near, framing)
    assert raised.value.characters_written == 0
    assert raised.value.unsent == b"one\ntwo\nthr"
    os.fstat(fileno(stream.near))


def test_a_reset_is_raised_after_the_bytes_received_before_it(wire):
    connection = wire("tcp")
    connection.feed(b"part of a line")
    connection.reset()
    with pytest.raises(ConnectionResetError) as raised:
        echo(connection.near)
    assert raised.value.characters_written == 0
    assert raised.value.unsent == b"part of a line"


def test_bytes_echoed_before_a_reset_are_counted(wire, framing):
    connection = wire("tcp")
    running = Running(echo, connection.near, framing)
    assert exchange(connection.far, b"one\n", finish=False) == b"one\n"
    connection.reset()
    with pytest.raises(ConnectionResetError) as raised:
        running.result()
    assert raised.value.characters_written == 4
    assert raised.value.unsent == b""


def test_no_sigpipe_reaches_the_process(child):
    printed = child("""if True:
        import signal, socket, rioecho
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        near, far = socket.socketpair()
        with near:
            far.sendall(b"one\\n")
            far.close()
            try:
                rioecho.echo(near)
            except BrokenPipeError:
                print("alive")
        """)
    assert printed == "alive\n"


def test_a_silent_peer_is_a_timeout_whose_error_has_the_partial_line(pair):
    if pair.kind == "pipe":
        pytest.skip("a pipe has one direction")
    pair.feed(b"one\nthr")
    start = time.monotonic()
    with pytest.raises(TimeoutError) as raised:
        echo(pair.near, timeout=0.05)
    assert 0.05 <= time.monotonic() - start < SECONDS
    assert raised.value.characters_written == 4
    assert raised.value.unsent == b"thr"
    assert pair.take_exactly(4) == b"one\n"


@pytest.mark.slow
def test_every_received_byte_restarts_the_timeout(stream, framing):
    """Including those of a line that stays incomplete for a long time."""

    def drip():
        end = time.monotonic() + 3
        while time.monotonic() < end:
            stream.feed(b"x")
            threading.Event().wait(0.05)  # the pause is what is tested; nobody reads the echo, which must fit
        stream.end()

    running = Running(drip)
    count = echo(stream.near, framing, timeout=2.5)
    running.result()
    stream.near.shutdown(socket.SHUT_WR)
    assert receive_all(stream.far) == b"x" * count


@pytest.mark.slow
def test_a_peer_that_never_reads_is_a_timeout_and_no_byte_is_lost(stream, framing):
    running = Running(echo, stream.near, framing, timeout=1.0)
    sent = fill(stream.far)
    with pytest.raises(TimeoutError) as raised:
        running.result()
    error = raised.value
    assert error.unsent
    stream.far.setblocking(True)
    back = stream.take_exactly(error.characters_written) + error.unsent
    stream.end()
    back += receive_all(stream.near)
    assert back == (b"x" * 4095 + b"\n") * (sent // 4096) + b"x" * (sent % 4096)


@pytest.mark.slow
def test_a_slow_reader_restarts_the_timeout(stream, framing):
    running = Running(echo, stream.near, framing, timeout=2.5)
    sent = fill(stream.far)  # ends with 0.3 s without progress
    stream.far.setblocking(True)
    end = time.monotonic() + 3
    got = 0
    while time.monotonic() < end:
        got += len(stream.take(4096))
        threading.Event().wait(0.01)
        if got == sent:
            break
    stream.end()
    while got < sent:
        got += len(stream.take())
    assert running.result() == sent


@pytest.mark.slow
def test_a_reader_too_slow_for_poll_to_report_restarts_the_timeout(framing):
    """The send buffer grows to megabytes, and poll() reports room only when a third of it is free."""
    data = (b"x" * 4095 + b"\n") * 4096  # more than the send buffer holds
    far, near = tcp_pair(64 << 10)
    far.settimeout(SECONDS)
    with near, far:
        running = Running(echo, near, framing, timeout=2.5)
        sending = Running(far.sendall, data)
        back = b""
        end = time.monotonic() + 3
        while time.monotonic() < end:
            back += far.recv(16 << 10)
            threading.Event().wait(0.05)
        assert back + receive(far, len(data) - len(back)) == data
        sending.result()
        far.shutdown(socket.SHUT_WR)
        assert running.result() == len(data)


def test_a_timeout_of_zero_echoes_what_has_arrived_without_blocking(stream):
    stream.feed(b"one\ntwo\n")
    with pytest.raises(BlockingIOError) as raised:
        echo(stream.near, timeout=0)
    assert raised.value.characters_written == 8
    assert stream.take() == b"one\ntwo\n"


@pytest.mark.parametrize("timeout", [1e9, 1e300, float("inf"), 10**12])
def test_a_huge_timeout_means_no_timeout(stream, timeout):
    stream.feed(b"one\n")
    stream.end()
    assert echo(stream.near, timeout=timeout) == 4


def test_signal_handlers_run_and_the_echo_continues(stream, framing, on_alarm):
    def handler(signum, frame):
        stream.feed(b"from the handler\n")
        stream.end()

    on_alarm(handler, 0.01)
    assert echo(stream.near, framing) == 17
    assert stream.take() == b"from the handler\n"


@pytest.mark.long
def test_signals_do_not_restart_the_timeout(stream, on_alarm):
    on_alarm(lambda signum, frame: None, 0.01, 0.01)
    with pytest.raises(TimeoutError):
        echo(stream.near, timeout=0.2)


def test_signals_lose_no_byte_of_a_long_echo(wire, framing, on_alarm):
    connection = wire("tcp")
    data = binary(3_000_000)
    running = Running(exchange, connection.far, data)
    calls = []
    on_alarm(lambda signum, frame: calls.append(signum), 0.001, 0.001)
    assert echo(connection.near, framing) == len(data)
    connection.near.shutdown(socket.SHUT_WR)
    assert running.result() == data
    assert set(calls) <= {signal.SIGALRM}


def test_the_error_of_a_raising_handler_has_the_unsent_bytes(stream, alarm):
    stream.feed(b"one\nthr")
    alarm(0.02)
    with pytest.raises(alarm.error) as raised:
        echo(stream.near)
    assert raised.value.characters_written == 4
    assert raised.value.unsent == b"thr"


def test_an_error_of_a_handler_without_attributes_is_raised_unchanged(stream, on_alarm):
    class Bare(BaseException):
        __slots__ = ()

        def __setattr__(self, name, value):
            raise AttributeError(name)

    def handler(signum, frame):
        raise Bare

    on_alarm(handler, 0.02)
    with pytest.raises(Bare):
        echo(stream.near)


@pytest.mark.parametrize("seed", range(3))
def test_no_byte_is_lost_or_duplicated_under_a_storm_of_raising_handlers(wire, framing, storm, seed):
    connection = wire("tcp")
    data = binary(4_000_000, seed)
    running = Running(exchange, connection.far, data)
    storm(random.Random(seed), 0.0005)
    total = 0
    while True:
        count, error = storm.attempt(functools.partial(echo, connection.near, framing))
        if error is None:
            break
        if hasattr(error, "unsent"):  # otherwise the handler raised before the echo began
            total += error.characters_written + len(error.unsent)
            connection.near.sendall(error.unsent)
    assert total + count == len(data)
    connection.near.shutdown(socket.SHUT_WR)
    assert running.result() == data


def test_a_signal_during_a_transfer_is_handled_promptly(stream, on_alarm):
    """There is no wait to interrupt then, and the handler must not be delayed until many more bytes are transferred."""
    handled = threading.Semaphore(0)
    on_alarm(lambda signum, frame: handled.release(), 0, 1)  # installs the handler only, no timer

    def peer():
        try:
            for _ in range(300):
                stream.feed(b"one\n")
                stream.take_exactly(4)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
                stream.feed(b"two\n")
                stream.take_exactly(4)
                assert handled.acquire(timeout=SECONDS), "the handler has not run after another line was echoed"
        finally:
            stream.end()

    running = Running(peer)
    echo(stream.near)
    running.result()
