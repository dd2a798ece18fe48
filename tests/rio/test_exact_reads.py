"""With bufsize=1 no byte behind what the caller wants is taken, as with the standard library's makefile("rb", 1)."""

import os
import random
import socket

import pytest

import rioecho
from rioecho import IncompleteRead, LineTooLong, Rio
from support.delivery import fileno

DATA = b"220 ready\r\n" + b"x" * 3000 + b"\nABABABC rest\n" + b"NEXT" * 30

# For each method, the length of what the caller wants of DATA.
CALLS = {
    "readline": (lambda rio: rio.readline(), 11),
    "readline(limit)": (lambda rio: rio.readline(5), 5),
    "readline(larger limit)": (lambda rio: rio.readline(5000), 11),
    "iteration": (lambda rio: next(rio), 11),
    "two lines": (lambda rio: rio.readline() + rio.readline(), 3012),
    "readlines(hint)": (lambda rio: rio.readlines(5), 11),
    "readlines1": (lambda rio: rio.readlines1(), 11),
    "read(1)": (lambda rio: rio.read(1), 1),
    "read(7)": (lambda rio: rio.read(7), 7),
    "read(3000)": (lambda rio: rio.read(3000), 3000),
    "a byte, then more": (lambda rio: rio.fill(2) and rio.read(1) + rio.read(20), 21),
    "readexactly": (lambda rio: rio.readexactly(20), 20),
    "readuntil": (lambda rio: rio.readuntil(b"ABABC"), 3012 + 7),
    "readuntil(newline)": (lambda rio: rio.readuntil(), 11),
    "read1(5)": (lambda rio: rio.read1(5), 5),
    "read1()": (lambda rio: rio.read1(), 1),
    "readinto": (lambda rio: rio.readinto(bytearray(30)), 30),
    "readinto1": (lambda rio: rio.readinto1(bytearray(30)), 30),
    "skipline": (lambda rio: rio.skipline(), 11),
    "fill": (lambda rio: rio.fill(30), 30),
    "peek": (lambda rio: rio.peek(), 1),
    "read(-1)": (lambda rio: rio.read(), len(DATA)),
    "readlines": (lambda rio: rio.readlines(), len(DATA)),
}


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "not blocking"])
@pytest.mark.parametrize("kind", ["pipe", "socketpair", "tcp", "pty", "file", "socket-like"])
@pytest.mark.parametrize("call", CALLS)
def test_what_the_caller_does_not_want_stays_in_the_kernel(wire, kind, call, blocking):
    method, wanted = CALLS[call]
    stream = wire(kind, blocking=blocking)
    stream.feed(DATA)
    if wanted == len(DATA) and kind != "file":
        stream.end()
    method(Rio(stream.near, bufsize=1, timeout=20))
    rest = b""
    while len(rest) < len(DATA) - wanted:
        rest += os.read(fileno(stream.near), 1 << 16)
    assert rest == DATA[wanted:]


@pytest.mark.parametrize("kind", ["pipe", "socketpair"])
def test_a_line_or_frame_that_is_too_long_takes_no_byte_of_the_next(wire, kind):
    stream = wire(kind)
    stream.feed(b"123456789\nNEXT")
    rio = Rio(stream.near, bufsize=1, timeout=20, max_line=4)
    for call in (rio.readline, rio.readuntil, rio.readlines1):
        with pytest.raises(LineTooLong):
            call()
    assert rio.readline(10) == b"123456789\n"
    assert os.read(fileno(stream.near), 10) == b"NEXT"


@pytest.mark.parametrize("kind", ["pipe", "socketpair"])
def test_the_bytes_of_a_line_that_times_out_are_held_and_the_next_call_goes_on(wire, kind):
    stream = wire(kind)
    rio = Rio(stream.near, bufsize=1, timeout=0.01)
    for part in (b"one", b"one and", b"one and two"):
        stream.feed(part[rio.buffered :])
        while rio.buffered < len(part):  # the time may be over between two reads
            with pytest.raises(TimeoutError):
                rio.readline()
        assert rio.peek() == part
    rio.timeout = 20
    stream.feed(b"\nNEXT")
    assert rio.readline() == b"one and two\n"
    assert os.read(fileno(stream.near), 10) == b"NEXT"


def test_a_long_line_costs_few_reads_from_a_socket(stream, background):
    line = b"x" * 1_000_000 + b"\n"
    thread = background(stream.feed, line + b"NEXT")
    assert Rio(stream.near, bufsize=1, timeout=20).readline() == line
    thread.join(20)
    assert stream.near.recv(10) == b"NEXT"


def test_a_line_before_a_reset_is_delivered_and_the_reset_is_raised_after_it(wire):
    stream = wire("tcp")
    stream.feed(b"one\ntw")
    rio = Rio(stream.near, bufsize=1, timeout=20)
    assert rio.fill(1) == 1
    stream.reset()
    assert rio.readline() == b"one\n"
    with pytest.raises(ConnectionResetError):
        rio.readline()
    assert rio.read_buffered() == b"tw"


def test_a_file_of_makefile_takes_what_the_standard_library_s_takes():
    chance = random.Random(5)
    data = b"".join(b"%s\n" % (b"x" * chance.randrange(60)) for _ in range(100)) + b"unterminated"
    calls = [chance.choice((("readline",), ("readline", 7), ("read", 9), ("read1", 4), ("peek",))) for _ in range(150)]
    results = []
    for make in (socket.socket.makefile, rioecho.makefile):
        near, far = socket.socketpair()
        with near, far:
            far.sendall(data)
            far.shutdown(socket.SHUT_WR)
            seen = []
            with make(near, "rb", 1) as file:
                for name, *arguments in calls:
                    result = getattr(file, name)(*arguments)
                    waiting = near.recv(1 << 16, socket.MSG_PEEK)
                    seen.append((name, result, len(waiting)))
            results.append(seen)
    assert results[0] == results[1]


def test_an_end_inside_a_frame_is_reported_as_ever(stream):
    stream.feed(b"no end")
    stream.end()
    rio = Rio(stream.near, bufsize=1, timeout=20)
    with pytest.raises(IncompleteRead) as caught:
        rio.readuntil(b"\r\n")
    assert caught.value.partial == b"no end"
