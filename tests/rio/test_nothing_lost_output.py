"""Whatever interrupts a write: each byte is sent once, is buffered, or is the caller's according to the error."""

import random
import signal
from functools import partial

import pytest

from rioecho import Rio

REST = 20  # seconds after which a test fails
BYTES = random.Random(8).randbytes(3 << 19)  # more than the buffer of a pipe or a socket holds
KINDS = ["pipe", "socketpair", "tcp", pytest.param("pty", marks=pytest.mark.slow)]


@pytest.fixture(params=KINDS)
def outward(request, wire):
    return wire(request.param, output=True)


@pytest.fixture
def data(outward):
    """Return more data than the wire can hold. A terminal holds less and is slow."""
    return data_for(outward.kind)


def data_for(kind):
    return BYTES[:150_000] if kind == "pty" else BYTES


@pytest.fixture(params=["timeout", "timeout of 0", "raising handler", "KeyboardInterrupt"])
def interrupted(request, alarm, on_alarm):
    """Return a function that calls one that has to wait, interrupts it and returns its error."""

    def press_ctrl_c(signum, frame):
        signal.raise_signal(signal.SIGINT)

    def call(rio, function, *arguments):
        rio.timeout = {"timeout": 0.01, "timeout of 0": 0}.get(request.param, REST)
        error = {"timeout": TimeoutError, "timeout of 0": BlockingIOError, "raising handler": alarm.error}
        with pytest.raises(error.get(request.param, KeyboardInterrupt)) as caught:
            if request.param == "raising handler":
                alarm(0.01)
            elif request.param == "KeyboardInterrupt":
                on_alarm(press_ctrl_c, 0.01)
            function(*arguments)
        rio.timeout = REST
        return caught.value

    return call


def receive_in_background(wire, n, background):
    """Receive n bytes in a thread. Returns a list to which they will be appended, and the thread."""
    received = []
    return received, background(lambda: received.append(wire.take_exactly(n)))


def test_writen_continues_after_the_bytes_that_the_error_reports_as_sent(outward, interrupted, background, data):
    rio = Rio(outward.near, bufsize=1000)
    error = interrupted(rio, rio.writen, data)
    sent = error.characters_written
    assert 0 < sent < len(data)
    again = interrupted(rio, rio.writen, data[sent:]).characters_written  # few bytes or none: the wire is full
    assert 0 <= again < len(data) - sent
    sent += again
    received, thread = receive_in_background(outward, len(data), background)
    assert rio.writen(data[sent:]) == len(data) - sent
    thread.join(REST)
    assert received == [data]


def test_writen_buffers_none_of_its_unsent_bytes(outward, interrupted, background, data):
    rio = Rio(outward.near, bufsize=1000)
    sent = interrupted(rio, rio.writen, data).characters_written
    received, thread = receive_in_background(outward, sent + 4, background)
    rio.flush()
    rio.writen(b"next")
    thread.join(REST)
    assert received == [data[:sent] + b"next"]


def test_writen_after_buffered_output_counts_only_its_own_data(outward, interrupted, background, data):
    held, mine = b"held" * 40_000, b"mine" * 40_000  # more than a terminal accepts after it was full
    rio = Rio(outward.near, bufsize=len(held) + len(mine))
    filling = interrupted(rio, rio.writen, data).characters_written
    rio.write(held)
    assert interrupted(rio, rio.writen, mine).characters_written == 0
    whole = data[:filling] + held + b"behind" + mine
    received, thread = receive_in_background(outward, len(whole), background)
    rio.writen(b"behind")
    rio.writen(mine)
    thread.join(REST)
    assert received == [whole]


@pytest.mark.parametrize("step", [1, 300, 999, 1000, 1001, 50_000])
def test_write_counts_the_accepted_bytes_and_buffers_at_most_bufsize(outward, interrupted, background, data, step):
    rio = Rio(outward.near, bufsize=1000)
    parts = (data[at : at + step] for at in range(0, len(data), step))
    counts = []
    error = interrupted(rio, counts.extend, map(rio.write, list(parts)))  # no Python code between the writes
    count = sum(counts) + error.characters_written
    assert count < len(data)
    there = b""
    while count - len(there) > 1000 or outward.readable():
        there += outward.take()
    end = min(count + 100_000, len(data))
    received, thread = receive_in_background(outward, end - len(there), background)
    for at in range(count, end, step):
        rio.write(data[at : min(at + step, end)])
    rio.flush()
    thread.join(REST)
    assert there + received[0] == data[:end]


# Not TCP: its socket buffer may accept more bytes shortly after it was full.
@pytest.mark.parametrize("outward", ["pipe", "socketpair", "pty"], indirect=True)
def test_a_full_buffer_is_accepted_when_nothing_can_be_sent(outward, background, data):
    rio = Rio(outward.near, bufsize=1000, timeout=0)
    with pytest.raises(BlockingIOError) as raised:
        rio.writen(data)
    count = raised.value.characters_written
    assert rio.write(data[count : count + 1000]) == 1000
    with pytest.raises(BlockingIOError) as raised:
        rio.write(b"x")
    assert raised.value.characters_written == 0
    received, thread = receive_in_background(outward, count + 1000, background)
    rio.flush(timeout=REST)
    thread.join(REST)
    assert received == [data[: count + 1000]]


@pytest.mark.parametrize("step", [300, 5000])
def test_writelines_counts_the_accepted_bytes_of_all_lines(outward, interrupted, background, data, step):
    rio = Rio(outward.near, bufsize=1000)
    lines = [data[at : at + step] for at in range(0, len(data), step)]
    count = interrupted(rio, rio.writelines, lines).characters_written
    assert 0 < count < len(data)
    received, thread = receive_in_background(outward, len(data), background)
    rio.writen(data[count:])
    thread.join(REST)
    assert received == [data]


def test_flush_continues_with_the_unsent_bytes(outward, interrupted, background, data):
    rio = Rio(outward.near, bufsize=len(data) + 1)
    rio.write(data)
    interrupted(rio, rio.flush)
    interrupted(rio, rio.flush)
    received, thread = receive_in_background(outward, len(data), background)
    rio.flush()
    thread.join(REST)
    assert received == [data]
    assert not outward.readable()


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_writen_under_a_storm_of_signals_and_timeouts_sends_each_byte_once(wire, kind, blocking, storm, background):
    outward, data = wire(kind, blocking=blocking, output=True), data_for(kind)
    rio = Rio(outward.near, bufsize=1000)
    chance = random.Random(5)
    received, thread = receive_in_background(outward, len(data), background)
    storm(chance, 0.0005)
    sent = 0
    while sent < len(data):
        end = min(len(data), sent + chance.choice([1, 900, 5000, 200_000]))
        count, error = storm.attempt(partial(rio.writen, data[sent:end], timeout=chance.choice([0, 0.0002, REST])))
        sent += count or getattr(error, "characters_written", 0)
    thread.join(REST)
    assert received == [data]


@pytest.mark.parametrize("kind", ["pipe", "socketpair", "tcp"])
def test_received_bytes_are_readable_after_a_broken_pipe(wire, kind):
    outward = wire(kind, output=True)
    if kind != "pipe":
        outward.feed(b"one\ntwo\n")
    rio = Rio(outward.near, timeout=REST)
    if kind != "pipe":
        assert rio.peek() == b"one\ntwo\n"
    outward.close_far()
    with pytest.raises((BrokenPipeError, ConnectionResetError)) as caught:
        for _ in range(100):
            rio.writen(BYTES)
    assert 0 <= caught.value.characters_written <= len(BYTES)
    with pytest.raises(BrokenPipeError) as caught:
        rio.writen(b"more")
    assert caught.value.characters_written == 0
    if kind != "pipe":
        assert [rio.readline(), rio.readline()] == [b"one\n", b"two\n"]
