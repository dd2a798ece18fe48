"""Invalid arguments, and calls on a closed Rio: a clear ValueError or TypeError, with nothing changed."""

import array
import enum
import inspect
import io
import math
import os
import socket
import sys
from fractions import Fraction

import pytest

import rioecho
from rioecho import Rio

HUGE = sys.maxsize + 1


def short_repr(value):
    """Return a short name for a value, without an address."""
    return type(value).__name__ if " at 0x" in repr(value) else f"{value!r:.24}"


# For each method, a call and the arguments that it must reject.
SIZES = {
    "readline": (lambda rio, n: rio.readline(n), [1.0, "1", b"1", [], HUGE]),
    "readlines": (lambda rio, n: rio.readlines(n), [1.0, "1", HUGE]),
    "read": (lambda rio, n: rio.read(n), [1.0, "1", b"1", object(), HUGE, 10**30]),
    "read1": (lambda rio, n: rio.read1(n), [1.0, "1", HUGE]),
    "peek": (lambda rio, n: rio.peek(n), [1.0, "1", HUGE]),
    "readexactly": (lambda rio, n: rio.readexactly(n), [-1, -(10**30), None, 1.0, "1", HUGE]),
    "fill": (lambda rio, n: rio.fill(n), [-1, -(10**30), None, 1.0, "1", HUGE]),
    "readuntil, limit": (lambda rio, n: rio.readuntil(b"\n", n), [1.0, "1", HUGE]),
    "readuntil, sep": (lambda rio, sep: rio.readuntil(sep), ["\n", b"", bytearray(), None, 10, [b"\n"]]),
    "readuntil, seps": (lambda rio, seps: rio.readuntil(seps), [(), (b"\n", "\r"), (b"",), (b"\n", None)]),
    "readinto": (lambda rio, b: rio.readinto(b), [b"fixed", "text", None, 4, memoryview(b"fixed"), [0]]),
    "readinto1": (lambda rio, b: rio.readinto1(b), [b"fixed", "text", None, 4, memoryview(bytearray(8))[::2]]),
    "write": (lambda rio, data: rio.write(data), ["text", None, 4, [b"x"]]),
    "writen": (lambda rio, data: rio.writen(data), ["text", None, 4, memoryview(b"abcd")[::2]]),
    "writelines": (lambda rio, lines: rio.writelines(lines), [["text"], None, 4, [4]]),
}
BAD_SIZES = [
    pytest.param(call, value, id=f"{name}({short_repr(value)})")
    for name, (call, values) in SIZES.items()
    for value in values
]

TIMED = {
    "readline": lambda rio, **timeout: rio.readline(**timeout),
    "read": lambda rio, **timeout: rio.read(1, **timeout),
    "read, large": lambda rio, **timeout: rio.read(100, **timeout),
    "readexactly": lambda rio, **timeout: rio.readexactly(1, **timeout),
    "readuntil": lambda rio, **timeout: rio.readuntil(**timeout),
    "readlines1": lambda rio, **timeout: rio.readlines1(**timeout),
    "fill": lambda rio, **timeout: rio.fill(1, **timeout),
    "skipline": lambda rio, **timeout: rio.skipline(**timeout),
    "skip": lambda rio, **timeout: rio.skip(1, **timeout),
    "readframe": lambda rio, **timeout: rio.readframe(1, **timeout),
    "peek": lambda rio, **timeout: rio.peek(**timeout),
    "read1": lambda rio, **timeout: rio.read1(**timeout),
    "readinto": lambda rio, **timeout: rio.readinto(bytearray(4), **timeout),
    "readlines": lambda rio, **timeout: rio.readlines(1, **timeout),
    "writen": lambda rio, **timeout: rio.writen(b"data", **timeout),
    "write_eof": lambda rio, **timeout: rio.write_eof(**timeout),
    "flush": lambda rio, **timeout: rio.flush(**timeout),
}
BAD_TIMEOUTS = [-1, -0.001, math.nan, -math.inf, "1", b"1", [], object(), 1j]


def assert_rejected(rio, stream, call):
    """Check that a call raises ValueError or TypeError with a message and transfers no byte in either direction."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert not isinstance(caught.value, io.UnsupportedOperation)
    assert str(caught.value)
    assert not stream.readable()
    rio.timeout = 5
    assert rio.readline() == b"one\n"
    assert rio.writen(b"ping") == 4
    assert stream.take_exactly(4) == b"ping"


@pytest.mark.parametrize("held", [False, True], ids=["empty buffer", "line buffered"])
@pytest.mark.parametrize(("call", "value"), BAD_SIZES)
def test_an_invalid_argument_is_rejected_and_changes_nothing(stream, call, value, held):
    rio = Rio(stream.near, bufsize=16)
    stream.feed(b"one\ntwo\n")
    if held:
        rio.fill(8)
    assert_rejected(rio, stream, lambda: call(rio, value))
    assert rio.read(4) == b"two\n"


@pytest.mark.parametrize("held", [False, True], ids=["empty buffer", "line buffered"])
@pytest.mark.parametrize("timeout", BAD_TIMEOUTS, ids=short_repr)
@pytest.mark.parametrize("call", TIMED.values(), ids=TIMED)
def test_an_invalid_timeout_is_rejected_and_changes_nothing(stream, call, timeout, held):
    rio = Rio(stream.near, bufsize=16)
    stream.feed(b"one\n")
    if held:
        rio.fill(4)
    assert_rejected(rio, stream, lambda: call(rio, timeout=timeout))


@pytest.mark.parametrize(
    "timeout", [None, 5, 5.0, Fraction(5), True, math.inf, 1e300, sys.maxsize, 10**400], ids=short_repr
)
@pytest.mark.parametrize("call", TIMED.values(), ids=TIMED)
def test_any_other_number_of_seconds_is_a_timeout(call, timeout):
    results = []
    for options in {}, {"timeout": timeout}:
        near, far = socket.socketpair()
        with near, far:
            far.sendall(b"one\n" * 30)
            far.shutdown(socket.SHUT_WR)
            results.append(call(Rio(near), **options))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "options",
    [
        {"bufsize": 0},
        {"bufsize": -1},
        {"bufsize": 1.5},
        {"bufsize": None},
        {"bufsize": "8192"},
        {"bufsize": HUGE},
        {"max_line": 0},
        {"max_line": -1},
        {"max_line": 1.5},
        {"max_line": HUGE},
        {"timeout": -1},
        {"timeout": "1"},
        {"timeout": math.nan},
        {"buffer_size": 1},
    ],
    ids=repr,
)
def test_an_invalid_option_is_rejected(stream, options):
    with pytest.raises((ValueError, TypeError)):
        Rio(stream.near, **options)


@pytest.mark.parametrize("fd", [-1, 1.5, "0", None, object(), b"0"], ids=short_repr)
def test_an_invalid_descriptor_is_rejected(fd):
    with pytest.raises((ValueError, TypeError)):
        Rio(fd)


@pytest.mark.parametrize("make", [Rio, rioecho.echo], ids=["Rio", "echo"])
@pytest.mark.parametrize("address", [("localhost", 1), ("::1", 1, 0, 0), "localhost:1", "/path", b"path"], ids=repr)
def test_an_address_instead_of_a_descriptor_is_rejected_with_the_function_that_connects(make, address):
    with pytest.raises(TypeError, match=rf"not a {type(address).__name__}: to connect use connect\(host, port\)"):
        make(address)


def test_a_tuple_with_a_descriptor_is_no_address(stream):
    class Pair(tuple):
        def fileno(self):
            return stream.near.fileno()

    stream.far.sendall(b"one\n")
    assert Rio(Pair((1, 2)), timeout=5).readline() == b"one\n"


def test_options_are_keyword_only(stream):
    with pytest.raises(TypeError):
        Rio(stream.near, 8192)
    with pytest.raises(TypeError):
        Rio(stream.near).readline(1, 2)


def test_a_descriptor_that_is_not_open_raises_oserror():
    with pytest.raises(OSError, match="Bad file descriptor"):
        Rio(100_000)


def test_a_subclass_of_int_is_a_descriptor(wire):
    pipe = wire("pipe")
    numbers = enum.IntEnum("numbers", {"STDIN": pipe.near})
    pipe.feed(b"line\n")
    assert Rio(numbers.STDIN, timeout=5).readline() == b"line\n"


def test_objects_with_an_index_method_are_sizes(stream):
    class Four:
        def __index__(self):
            return 4

    rio = Rio(stream.near, timeout=5)
    stream.feed(b"abcdefgh")
    assert rio.read(Four()) == b"abcd"
    assert rio.readexactly(n=4) == b"efgh"


@pytest.mark.parametrize("digits", [15, 29, 30, 31, 59, 60, 61])  # an int has digits of 15 or 30 bits
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_size_of_any_number_of_digits_is_the_number_of_bytes(stream, digits, more):
    rio = Rio(stream.near, timeout=5)
    stream.feed(b"line\nrest")
    stream.end()
    assert rio.readline(2**digits + more) == b"line\n"
    assert rio.read(2**digits + more) == b"rest"


@pytest.mark.parametrize("n", [-1, -2, -(2**15), -(2**30) + 1, -(2**30), -(2**60), -(2**63), -(10**30)])
def test_any_negative_size_is_no_limit(stream, n):
    rio = Rio(stream.near, timeout=5)
    stream.feed(b"line\nrest")
    stream.end()
    assert rio.readline(n) == b"line\n"
    assert rio.read(n) == b"rest"


@pytest.mark.parametrize(
    "data", [b"abc", bytearray(b"abc"), memoryview(b"xabcx")[1:4], array.array("B", b"abc")], ids=short_repr
)
def test_any_bytes_like_object_can_be_written_and_be_a_separator(stream, data):
    rio = Rio(stream.near, timeout=5)
    assert (rio.write(data), rio.writen(data)) == (3, 3)
    rio.writelines([data, data])
    rio.flush()
    assert stream.take_exactly(12) == b"abc" * 4
    stream.feed(b"--abc--")
    assert rio.readuntil(data) == b"--abc"
    stream.feed(b"==abc==")
    assert rio.readuntil((b"?", data)) == b"--==abc"


@pytest.mark.parametrize("make", [bytearray, lambda n: memoryview(bytearray(n))], ids=["bytearray", "memoryview"])
def test_readinto_accepts_any_writable_buffer_and_counts_bytes(stream, make):
    rio = Rio(stream.near, bufsize=4, timeout=5)
    stream.feed(b"0123456789")
    stream.end()
    buffer = make(8)
    assert rio.readinto(buffer) == 8
    assert bytes(buffer) == b"01234567"
    assert rio.readinto(buffer) == 2
    assert bytes(buffer) == b"89234567"
    assert rio.readinto(buffer) == 0
    assert rio.readinto(bytearray()) == 0


OPEN_ONLY = {
    **{f"{name} with a timeout": call for name, call in TIMED.items()},
    **{
        name: (lambda rio, name=name: getattr(rio, name)())
        for name in (
            "read readline readlines readlines1 read1 readuntil peek fill skipline has_line read_buffered "
            "fileno detach readable writable seekable isatty flush __enter__ __iter__ __next__"
        ).split()
    },
    "buffered": lambda rio: rio.buffered,
    "readexactly": lambda rio: rio.readexactly(1),
    "readinto": lambda rio: rio.readinto(bytearray(1)),
    "readinto1": lambda rio: rio.readinto1(bytearray(1)),
    "read(0)": lambda rio: rio.read(0),
    "write": lambda rio: rio.write(b"x"),
    "write nothing": lambda rio: rio.write(b""),
    "writen": lambda rio: rio.writen(b"x"),
    "writelines": lambda rio: rio.writelines([b"x"]),
}


@pytest.mark.parametrize("closing", [Rio.close, Rio.detach], ids=["closed", "detached"])
@pytest.mark.parametrize("call", OPEN_ONLY.values(), ids=OPEN_ONLY)
def test_every_method_of_a_closed_rio_raises_value_error(stream, call, closing):
    rio = Rio(stream.near)
    stream.feed(b"line\n")
    rio.peek()
    closing(rio)
    with pytest.raises(ValueError, match=r"closed|detached") as caught:
        call(rio)
    assert not isinstance(caught.value, io.UnsupportedOperation)
    assert rio.closed


@pytest.mark.parametrize("call", ["seek", "truncate"])
def test_a_stream_cannot_seek(stream, call):
    rio = Rio(stream.near)
    with pytest.raises(io.UnsupportedOperation):
        getattr(rio, call)(0)
    with pytest.raises(io.UnsupportedOperation):
        rio.tell()
    assert rio.seekable() is False


def test_using_the_wrong_direction_is_an_unsupported_operation(wire):
    out, into = wire("pipe", output=True), wire("pipe")
    writer, reader = Rio(out.near), Rio(into.near)
    assert (writer.readable(), writer.writable(), reader.readable(), reader.writable()) == (False, True, True, False)
    for call in (writer.read, writer.readline, writer.peek, writer.fill, lambda: reader.writen(b"x")):
        with pytest.raises(io.UnsupportedOperation):
            call()
    with pytest.raises(io.UnsupportedOperation):
        reader.write(b"x")
    os.write(into.far, b"line\n")
    assert reader.readline(timeout=5) == b"line\n"


def test_the_signatures_can_be_inspected():
    options = "bufsize=65536, timeout=Ellipsis, idle_timeout=None, max_line=1048576, wake_fd=None, closefd=False"
    assert str(inspect.signature(Rio)) == f"(fd, *, {options})"
    assert set(rioecho.__all__) <= set(dir(rioecho))
    for name in rioecho.__all__:
        if name != "ConcurrentCall":  # RuntimeError has no signature
            assert inspect.signature(getattr(rioecho, name))
    for name, method in vars(Rio).items():
        if not name.startswith("_") and callable(method):
            assert inspect.signature(method)
