"""Every delivery x method x buffer size x descriptor, compared with the oracle."""

import random
import signal
import threading

import pytest

from rioecho import IncompleteRead, Rio
from support.delivery import KINDS, WAYS, Wire, deliver, pieces
from support.oracle import Incomplete, Oracle


def make_data(size, seed=0):
    """Return random lines and separators, and an unterminated last line."""
    chance = random.Random(seed)
    data = bytearray()
    while len(data) < size:
        data += bytes(chance.choices(b"AB\r\n\0\xff", k=chance.randrange(12)))
        data += chance.choice([b"\n", b"\r\n", b"ABA", b"\n\n", b"", b"A" * 30])
    return bytes(data) + b"end"


DATA = make_data(120)


def same(real, ideal):
    """Check that two functions return or raise the same in every call, up to EOF."""
    while True:
        try:
            expected = ideal()
        except Incomplete as error:
            with pytest.raises(IncompleteRead) as caught:
                real()
            assert caught.value.partial == error.args[0]  # noqa: PT017, two errors are compared
            if not caught.value.partial:
                return
            continue
        assert real() == expected
        if not expected:
            return


def read_into(method, size):
    buffer = bytearray(size)
    return bytes(buffer[: method(buffer)])


def by_parts(read):
    """Return a check for a method that returns a varying number of bytes: together they are all bytes, in order."""

    def check(rio, oracle):
        while part := read(rio):
            assert part == oracle.take(len(part))
        assert oracle.data == b""

    return check


def whole_lines(rio, oracle):
    while lines := rio.readlines1():
        assert lines == [oracle.readline() for _ in lines]
    assert oracle.data == b""


def filled(rio):
    held = rio.fill(5)
    shown = rio.peek()
    assert held == len(shown) == rio.buffered
    return rio.read(min(held, 5))


METHODS = {
    "readline": lambda rio, oracle: same(rio.readline, oracle.readline),
    "readline(5)": lambda rio, oracle: same(lambda: rio.readline(5), lambda: oracle.readline(5)),
    "iteration": lambda rio, oracle: same(lambda: next(rio, b""), oracle.readline),
    "read(1)": lambda rio, oracle: same(lambda: rio.read(1), lambda: oracle.read(1)),
    "read(7)": lambda rio, oracle: same(lambda: rio.read(7), lambda: oracle.read(7)),
    "read(100)": lambda rio, oracle: same(lambda: rio.read(100), lambda: oracle.read(100)),
    "read()": lambda rio, oracle: same(rio.read, oracle.read),
    "readexactly(9)": lambda rio, oracle: same(lambda: rio.readexactly(9), lambda: oracle.readexactly(9)),
    "readuntil()": lambda rio, oracle: same(rio.readuntil, oracle.readuntil),
    "readuntil(CR LF)": lambda rio, oracle: same(lambda: rio.readuntil(b"\r\n"), lambda: oracle.readuntil(b"\r\n")),
    "readuntil(ABA)": lambda rio, oracle: same(lambda: rio.readuntil(b"ABA"), lambda: oracle.readuntil(b"ABA")),
    "readlines()": lambda rio, oracle: same(rio.readlines, oracle.readlines),
    "readlines1()": whole_lines,
    "read1(3)": by_parts(lambda rio: rio.read1(3)),
    "read1()": by_parts(lambda rio: rio.read1()),
    "readinto(10)": lambda rio, oracle: same(lambda: read_into(rio.readinto, 10), lambda: oracle.read(10)),
    "readinto(90)": lambda rio, oracle: same(lambda: read_into(rio.readinto, 90), lambda: oracle.read(90)),
    "readinto1(10)": by_parts(lambda rio: read_into(rio.readinto1, 10)),
    "fill(5)": by_parts(filled),
    "peek()": by_parts(lambda rio: rio.read(len(rio.peek()))),
    "skipline()": lambda rio, oracle: same(rio.skipline, oracle.skipline),
}


DELIVERIES = [(kind, way) for kind in KINDS for way in WAYS if kind != "file" or way == "whole"]


@pytest.mark.parametrize("bufsize", [1, 2, 7, 64, 65536])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "not blocking"])
@pytest.mark.parametrize(("kind", "way"), DELIVERIES)
def test_every_method_returns_what_the_oracle_returns(kind, blocking, way, bufsize, on_alarm):
    if way == "under signals":
        on_alarm(lambda *_: None, 0.0003, 0.0003)
    parts = pieces(DATA, way, (b"\r\n", b"ABA"), seed=bufsize)
    for check in METHODS.values():
        wire = Wire(kind, blocking=blocking)
        stop = threading.Event()
        writer = None
        try:
            if way == "whole":
                wire.feed(DATA)
                wire.end()
            else:
                pause = 0.0005 if way == "with pauses" else 0
                writer = threading.Thread(target=deliver, args=(wire, parts, stop, pause))
                writer.start()
            rio = Rio(wire.near, bufsize=bufsize, timeout=20)
            check(rio, Oracle(DATA))
            assert rio.read() == b""
        finally:
            stop.set()
            if writer is not None:
                writer.join(20)
            wire.close()
    signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.parametrize("bufsize", [1, 7, 4096, 65536])
@pytest.mark.parametrize("kind", ["pipe", "socketpair", "tcp", "pty"])
def test_a_random_mix_of_methods_reads_a_long_stream_as_the_oracle_does(wire, kind, bufsize, background):
    stream = wire(kind)
    size = 20_000 if bufsize == 1 else 150_000
    data = make_data(size, seed=bufsize)
    chance = random.Random(bufsize)

    def send():
        at = 0
        while at < len(data):
            end = at + random.choice((1, 10, 3000))
            stream.feed(data[at:end])
            at = end
        stream.end()

    thread = background(send)
    rio, oracle = Rio(stream.near, bufsize=bufsize, timeout=20), Oracle(data)
    while oracle.data:
        n = chance.choice((1, 5, 300, 9000))
        ideal = Oracle(oracle.data[: n + (1 << 16)])  # enough for one call, and short to copy
        name, *arguments = chance.choice((("readline",), ("readline", n), ("read", n), ("skipline",)))
        assert getattr(rio, name)(*arguments) == getattr(ideal, name)(*arguments)
        oracle.take(min(len(oracle.data), n + (1 << 16)) - len(ideal.data))
    assert rio.read() == b""
    thread.join(20)
