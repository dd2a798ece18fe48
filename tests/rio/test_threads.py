"""One reader and one writer may work at the same time; a second one raises ConcurrentCall and has no effect."""

import os
import random
import select
import sys
import threading
import time

import pytest

from rioecho import ConcurrentCall, Rio

READERS = {
    "read": lambda rio: rio.read(1),
    "read to the end": lambda rio: rio.read(),
    "read, large": lambda rio: rio.read(10**6),
    "readline": lambda rio: rio.readline(),
    "iteration": lambda rio: next(rio),
    "readlines": lambda rio: rio.readlines(),
    "readlines1": lambda rio: rio.readlines1(),
    "readexactly": lambda rio: rio.readexactly(1),
    "readuntil": lambda rio: rio.readuntil(),
    "read1": lambda rio: rio.read1(),
    "readinto": lambda rio: rio.readinto(bytearray(5)),
    "readinto1": lambda rio: rio.readinto1(bytearray(5)),
    "peek": lambda rio: rio.peek(),
    "fill": lambda rio: rio.fill(1),
    "skipline": lambda rio: rio.skipline(),
    "has_line": lambda rio: rio.has_line(),
    "read_buffered": lambda rio: rio.read_buffered(),
    "detach": lambda rio: rio.detach(),
    "close": lambda rio: rio.close(),
}
WRITERS = {
    "write": lambda rio: rio.write(b"x"),
    "writen": lambda rio: rio.writen(b"x"),
    "writelines": lambda rio: rio.writelines([b"x"]),
    "flush": lambda rio: rio.flush(),
    "detach": lambda rio: rio.detach(),
    "close": lambda rio: rio.close(),
}


def until_refused(call, rio):
    """Repeat a call without effects until another thread holds the side."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            call(rio)
        except ConcurrentCall:
            return
        os.sched_yield()
    raise AssertionError("timed out waiting for the other thread")


@pytest.mark.parametrize("call", READERS.values(), ids=READERS)
def test_a_second_reader_raises_and_does_not_affect_the_first(pair, call, background):
    rio = Rio(pair.near, timeout=20)
    lines = []
    thread = background(lambda: lines.extend([rio.readline(), rio.readline()]))
    until_refused(Rio.has_line, rio)
    for _ in range(3):
        with pytest.raises(ConcurrentCall, match="reading"):
            call(rio)
    pair.feed(b"o")
    assert rio.buffered <= 1
    pair.feed(b"ne\ntwo\n")
    thread.join(20)
    assert lines == [b"one\n", b"two\n"]
    assert not rio.closed


@pytest.mark.sampled(2)
@pytest.mark.parametrize("call", WRITERS.values(), ids=WRITERS)
def test_a_second_writer_raises_and_does_not_affect_the_first(pair, wire, call, background):
    outward = wire(pair.kind, output=True)
    rio = Rio(outward.near, timeout=20)
    data = b"0123456789abcdef" * (1 << (13 if pair.kind == "pty" else 16))  # a terminal holds less and is slow
    thread = background(rio.writen, data)
    until_refused(lambda rio: rio.writelines([b""]), rio)
    for _ in range(3):
        with pytest.raises(ConcurrentCall, match="writing"):
            call(rio)
    assert outward.take_exactly(len(data)) == data
    thread.join(20)
    assert not rio.closed


@pytest.mark.parametrize("call", READERS.values(), ids=READERS)
def test_a_read_in_a_signal_handler_that_interrupted_a_read_raises(pair, call, on_alarm):
    rio = Rio(pair.near, timeout=20)
    met = []

    def ring(signum, frame):
        try:
            call(rio)
        except ConcurrentCall as error:
            met.append(error)
        pair.feed(b"line\n")

    on_alarm(ring, 0.005)
    assert rio.readline() == b"line\n"
    assert len(met) == 1


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("call", WRITERS.values(), ids=WRITERS)
def test_a_write_in_a_signal_handler_that_interrupted_a_write_raises(pair, wire, call, on_alarm, background):
    outward = wire(pair.kind, output=True)
    rio = Rio(outward.near, timeout=20)
    data = b"0123456789abcdef" * (1 << (13 if pair.kind == "pty" else 16))  # a terminal holds less and is slow
    met, go = [], threading.Event()

    def ring(signum, frame):
        try:
            call(rio)
        except ConcurrentCall as error:
            met.append(error)
        go.set()

    taken = []
    thread = background(lambda: go.wait(20) and taken.append(outward.take_exactly(len(data))))
    on_alarm(ring, 0.01)
    assert rio.writen(data) == len(data)
    thread.join(20)
    assert len(met) == 1
    assert taken == [data]


def test_an_uncaught_error_of_a_handler_ends_the_read_and_loses_nothing(stream, on_alarm):
    rio = Rio(stream.near, timeout=20)
    stream.feed(b"be")
    on_alarm(lambda *_: rio.readline(), 0.005)
    with pytest.raises(ConcurrentCall):
        rio.readline()
    stream.feed(b"gun\n")
    assert rio.readline() == b"begun\n"


@pytest.mark.parametrize("kind", ["socketpair", "tcp", pytest.param("pty", marks=pytest.mark.slow)])
def test_one_reader_and_one_writer_work_at_the_same_time(wire, kind, background):
    both = wire(kind)
    size = 1 << 17 if kind == "pty" else 8 << 20
    sent, received = (random.Random(seed).randbytes(size) for seed in (1, 2))
    near, far = Rio(both.near, bufsize=4096, timeout=30), Rio(both.far, bufsize=1000, timeout=30)

    def write(rio, data):
        at = 0
        chance = random.Random(3)
        while at < len(data):
            end = at + chance.choice([1, 100, 4096, 70_000])
            at += (rio.write if chance.random() < 0.7 else rio.writen)(data[at:end])
        rio.flush()

    def read(rio, data):
        parts = []
        chance = random.Random(4)
        left = len(data)
        while left:
            parts.append(rio.read(min(left, chance.choice([1, 50, 5000, 100_000]))))
            left -= len(parts[-1])
        assert b"".join(parts) == data

    threads = [
        background(write, near, sent),
        background(write, far, received),
        background(read, near, received),
        background(read, far, sent),
    ]
    for thread in threads:
        thread.join(60)


def test_a_waiting_reader_sends_the_output_of_another_thread_at_most_once(stream, background):
    rio = Rio(stream.near, bufsize=64, timeout=20)
    lines = [b"%d\n" % n for n in range(20_000)]
    reader = background(rio.readline)

    def write():
        for line in lines:
            rio.write(line)
        rio.flush()

    writer = background(write)
    whole = b"".join(lines)
    assert stream.take_exactly(len(whole)) == whole
    writer.join(20)
    stream.feed(b"end\n")
    reader.join(20)


def gil_is_enabled():
    return getattr(sys, "_is_gil_enabled", lambda: True)()


@pytest.mark.slow
@pytest.mark.skipif(not gil_is_enabled(), reason="the GIL is disabled")
@pytest.mark.parametrize(("kind", "blocking"), [("socketpair", True), ("tcp", True), ("pipe", False)])
def test_the_gil_is_not_released_while_there_is_data(wire, kind, blocking, background):
    data = wire(kind, blocking=blocking)
    rio = Rio(data.near, bufsize=2, timeout=20)
    count = 300
    data.feed(b"x\n" * count)
    turns, stop = [0], threading.Event()

    def burn():
        while not stop.is_set():
            turns[0] += 1

    before = sys.getswitchinterval()
    sys.setswitchinterval(0.5)  # the other thread runs only if this one releases the GIL
    try:
        thread = background(burn)
        select.select([], [], [], 0)  # release it here, so that a new interval begins
        seen = turns[0]
        lines = [rio.readline() for _ in range(count)]
        assert turns[0] == seen
        assert lines == [b"x\n"] * count
    finally:
        stop.set()
        sys.setswitchinterval(before)
        thread.join(20)


@pytest.mark.slow
@pytest.mark.skipif(not gil_is_enabled(), reason="the GIL is disabled")
def test_the_gil_is_not_released_while_output_can_be_sent(stream, background):
    rio = Rio(stream.near, timeout=20)
    turns, stop = [0], threading.Event()

    def burn():
        while not stop.is_set():
            turns[0] += 1

    before = sys.getswitchinterval()
    sys.setswitchinterval(0.5)
    try:
        thread = background(burn)
        select.select([], [], [], 0)
        seen = turns[0]
        for _ in range(100):
            rio.writen(b"x\n")
        assert turns[0] == seen
    finally:
        stop.set()
        sys.setswitchinterval(before)
        thread.join(20)


def test_the_gil_is_released_while_a_call_waits(pair, background):
    rio = Rio(pair.near, timeout=20)
    background(pair.feed, b"line\n")
    assert rio.readline() == b"line\n"
