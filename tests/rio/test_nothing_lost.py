"""Whatever interrupts a read, at any byte: all received bytes are still readable, and the next call continues."""

import os
import signal

import pytest

from rioecho import LineTooLong, Rio
from support.delivery import Wire

DATA = b"first line\r\nsecond\r\n\r\nlast, without an end"
REST = 20  # seconds after which a test fails


def read_into(rio, method, size):
    buffer = bytearray(size)
    return bytes(buffer[: method(buffer)])


def peeked(rio):
    shown = rio.peek()
    assert rio.read(len(shown)) == shown
    return shown


def filled(rio):
    held = rio.fill(15)
    assert held == rio.buffered
    return rio.read_buffered()


# For each method, a call and the number of bytes it needs before it returns; None: it needs EOF.
METHODS = {
    "readline": (lambda rio: rio.readline(), 12),
    "readline with a limit": (lambda rio: rio.readline(9), 9),
    "iteration": (lambda rio: next(rio, b""), 12),
    "read, some": (lambda rio: rio.read(3), 3),
    "read, more than the buffer": (lambda rio: rio.read(30), 30),
    "read to the end": (lambda rio: rio.read(), None),
    "readexactly": (lambda rio: rio.readexactly(17), 17),
    "readuntil, one byte": (lambda rio: rio.readuntil(b"d"), 18),
    "readuntil, four bytes": (lambda rio: rio.readuntil(b"\r\n\r\n"), 22),
    "readuntil, several": (lambda rio: rio.readuntil((b"\n\r", b"c", b"zz")), 14),
    "skip": (lambda rio: DATA[: rio.skip(14)], 14),
    "skip, more than the buffer": (lambda rio: DATA[: rio.skip(30)], 30),
    "readlines": (lambda rio: b"".join(rio.readlines()), None),
    "readlines with a hint": (lambda rio: b"".join(rio.readlines(13)), 20),
    "readlines1": (lambda rio: b"".join(rio.readlines1()), 12),
    "read1": (lambda rio: rio.read1(), 1),
    "readinto": (lambda rio: read_into(rio, rio.readinto, 13), 13),
    "readinto, more than the buffer": (lambda rio: read_into(rio, rio.readinto, 33), 33),
    "readinto1": (lambda rio: read_into(rio, rio.readinto1, 40), 1),
    "fill": (filled, 15),
    "peek": (peeked, 1),
    "skipline": (lambda rio: DATA[: rio.skipline()], 12),
}
SKIPPING = [METHODS[name][0] for name in ("skipline", "skip", "skip, more than the buffer")]


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.fixture(params=["timeout", "timeout of 0", "raising handler", "KeyboardInterrupt"])
def interrupted(request, alarm, on_alarm):
    """Return a function that calls a method that has to wait, and interrupts it."""

    def press_ctrl_c(signum, frame):
        signal.raise_signal(signal.SIGINT)

    def call(method, rio):
        rio.timeout = {"timeout": 0.001, "timeout of 0": 0}.get(request.param, REST)
        error = {"timeout": TimeoutError, "timeout of 0": BlockingIOError, "raising handler": alarm.error}
        with pytest.raises(error.get(request.param, KeyboardInterrupt)):
            if request.param == "raising handler":
                alarm(0.001)
            elif request.param == "KeyboardInterrupt":
                on_alarm(press_ctrl_c, 0.001)
            method(rio)
        rio.timeout = REST

    return call


@pytest.mark.sampled(16)
@pytest.mark.parametrize("bufsize", [4, 64])
@pytest.mark.parametrize("kind", ["pipe", "socketpair"])
def test_an_interrupted_read_loses_nothing_at_any_byte(kind, bufsize, method, interrupted):
    call, needed = method
    for position in range(len(DATA) + 1 if needed is None else needed):
        wire = Wire(kind)
        try:
            rio = Rio(wire.near, bufsize=bufsize)
            wire.feed(DATA[:position])
            interrupted(call, rio)
            assert rio.buffered <= position  # fewer, if a signal came before the last read
            wire.feed(DATA[position:])
            wire.end()
            answer = call(rio)
            assert len(answer) >= (needed or len(DATA))
            assert answer + rio.read() == DATA
        finally:
            wire.close()


def test_a_read_interrupted_before_each_byte_loses_nothing(pair, method):
    call, needed = method
    rio = Rio(pair.near, bufsize=4, timeout=0)
    for position in range(len(DATA) if needed is None else needed):
        with pytest.raises(BlockingIOError):
            call(rio)
        pair.feed(DATA[position : position + 1])
        pair.drained() or rio.fill(position + 1, timeout=REST)
        while rio.buffered <= position:  # a terminal delivers with a delay
            rio.fill(position + 1, timeout=REST)
    pair.feed(DATA[len(DATA) if needed is None else needed :])
    pair.end()
    rio.timeout = REST
    answer = call(rio)
    assert answer + rio.read() == DATA


def test_a_read_continues_after_repeated_interruptions(stream, method, interrupted):
    call, _ = method
    rio = Rio(stream.near, bufsize=4)
    for _ in range(5):
        interrupted(call, rio)
    stream.feed(DATA)
    stream.end()
    assert call(rio) + rio.read() == DATA


@pytest.mark.parametrize("bufsize", [4, 64])
def test_bytes_received_before_a_reset_are_returned_before_it_is_raised(bufsize, method):
    call, _ = method
    for position in range(len(DATA) + 1):
        wire = Wire("tcp")
        try:
            rio = Rio(wire.near, bufsize=bufsize, timeout=REST)
            wire.feed(DATA[:position])
            wire.reset()
            parts = []
            with pytest.raises(ConnectionResetError):
                while len(parts) <= position:
                    if call in SKIPPING:  # they do not return the bytes
                        parts.append(rio.readline())
                    else:
                        parts.append(call(rio))
            rest = rio.read_buffered()
            assert b"".join(parts) + rest == DATA[:position]
            if call is METHODS["iteration"][0]:
                assert b"\n" not in rest, "complete lines are returned before the error"
            assert rio.read() == b"", "the error is raised once"
        finally:
            wire.close()


def test_buffered_lines_are_readable_after_the_reset_was_raised(wire):
    tcp = wire("tcp")
    rio = Rio(tcp.near, timeout=REST)
    tcp.feed(b"one\ntwo\nthree")
    tcp.reset()
    with pytest.raises(ConnectionResetError):
        rio.read(100)
    assert [rio.readline(), rio.readline()] == [b"one\n", b"two\n"]
    assert rio.read_buffered() == b"three"


TOO_LONG = {
    "readline": lambda rio: rio.readline(),
    "iteration": lambda rio: next(rio),
    "readlines": lambda rio: rio.readlines(),
    "readlines1": lambda rio: rio.readlines1(),
    "readuntil": lambda rio: rio.readuntil(b"\n"),
    "readuntil, two bytes": lambda rio: rio.readuntil(b"\r\n"),
    "readuntil with a limit": lambda rio: rio.readuntil(b"\r\n", 9),
}


@pytest.mark.parametrize("bufsize", [1, 4, 64])
@pytest.mark.parametrize("call", TOO_LONG.values(), ids=TOO_LONG)
def test_a_line_that_is_too_long_stays_in_the_buffer(pair, call, bufsize):
    rio = Rio(pair.near, bufsize=bufsize, max_line=9, timeout=REST)
    pair.feed(DATA)
    pair.end()
    for _ in range(3):
        with pytest.raises(LineTooLong) as caught:
            call(rio)
        assert caught.value.limit == 9
        assert 9 <= caught.value.buffered == rio.buffered
    assert rio.read() == DATA


def test_a_line_that_is_too_long_can_be_skipped_or_read_in_pieces(stream):
    rio = Rio(stream.near, bufsize=4, max_line=9, timeout=REST)
    stream.feed(b"0123456789abc\nshort\n0123456789abc\nend\n")
    stream.end()
    with pytest.raises(LineTooLong):
        rio.readline()
    assert rio.skipline() == 14
    assert rio.readline() == b"short\n"
    with pytest.raises(LineTooLong):
        rio.readline()
    assert rio.readline(8) == b"01234567"
    assert rio.readline() == b"89abc\n"
    assert list(rio) == [b"end\n"]


def test_lines_before_one_that_is_too_long_are_returned_first(stream):
    rio = Rio(stream.near, max_line=9, timeout=REST)
    stream.feed(b"one\ntwo\n0123456789\n")
    assert rio.readlines1() == [b"one\n", b"two\n"]
    with pytest.raises(LineTooLong):
        rio.readlines1()
    stream.feed(b"three\n")
    assert rio.skipline() == 11
    assert rio.readlines(5) == [b"three\n"]


def test_an_interrupted_skip_counts_the_bytes_that_it_has_discarded(stream):
    rio = Rio(stream.near, bufsize=4, max_line=9, timeout=0)
    for _ in range(10):
        stream.feed(b"x" * 7)
        with pytest.raises(BlockingIOError):
            rio.skipline()
    stream.feed(b"\nnext\n")
    assert rio.skipline() == 71
    assert rio.readline() == b"next\n"


def test_an_endless_line_is_skipped_in_bounded_memory(stream):
    rio = Rio(stream.near, max_line=100, timeout=0)
    chunk = b"x" * 50_000
    for _ in range(40):
        stream.feed(chunk)
        with pytest.raises(BlockingIOError):
            rio.skipline()
        assert rio.buffered <= 100 + 2 * 65536
    stream.feed(b"\nnext\n")
    assert rio.skipline() == 40 * len(chunk) + 1
    assert rio.readline() == b"next\n"


def test_reading_continues_after_eof_when_a_file_grows(wire):
    file = wire("file")
    rio = Rio(file.near)
    for line in (b"one\n", b"two\n"):
        assert rio.readline() == b""
        assert rio.read() == b""
        os.write(file.far, line)
        assert rio.readline() == line
