"""Frames: several reads in a ``frame()`` are one, and ``readframe()``, ``skip()`` and ``unread()`` beside it."""

import os
import random
import signal
import socket
import threading

import pytest

from rioecho import ConcurrentCall, FrameTooLong, IncompleteRead, LineTooLong, Rio
from support.delivery import tcp_pair
from support.protocols import PROTOCOLS

SECONDS = 20


class Interrupted(Exception):
    """Raised by the signal handler of a test."""


@pytest.fixture(params=PROTOCOLS)
def protocol(request):
    return PROTOCOLS[request.param]


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    with near, far:
        yield Rio(near, timeout=0), far


# ---- all or nothing


@pytest.mark.parametrize("bufsize", [1, 2, 7, 64, 65536])
def test_a_message_interrupted_at_every_byte_is_read_whole_by_the_same_code(protocol, bufsize):
    read, stream, messages = protocol
    near, far = socket.socketpair()
    with near, far:
        rio = Rio(near, bufsize=bufsize, timeout=0)
        got, held = [], 0
        for byte in stream:
            with pytest.raises(BlockingIOError):
                got.append(read(rio))
            assert rio.buffered == held
            far.sendall(bytes([byte]))
            held += 1
            if bufsize == 1:
                held = held if rio.fill(held) == held else -1
            try:
                got.append(read(rio))
                held = rio.buffered
            except BlockingIOError:
                pass
            assert rio.buffered == held
        assert got == messages
        assert rio.buffered == 0


def test_a_message_is_the_same_whatever_piece_arrives_with_a_timeout_between(protocol):
    read, stream, messages = protocol
    for first in range(len(stream)):
        near, far = socket.socketpair()
        with near, far:
            rio = Rio(near, bufsize=8, timeout=0)
            got = []
            for piece in (stream[:first], stream[first:]):
                far.sendall(piece)
                while len(got) < len(messages):
                    try:
                        got.append(read(rio))
                    except BlockingIOError:
                        break
            assert got == messages


def test_a_signal_handler_that_raises_in_a_frame_leaves_it_unread():
    near, far = socket.socketpair()

    def handler(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with near, far:
            rio = Rio(near, timeout=SECONDS)
            far.sendall(b"$5\r\nhel")
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):
                PROTOCOLS["redis"][0](rio)
            assert rio.peek() == b"$5\r\nhel"
            far.sendall(b"lo\r\n")
            assert PROTOCOLS["redis"][0](rio) == b"hello"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_frame_that_ends_without_an_exception_is_consumed(pair):
    rio, far = pair
    far.sendall(b"0123456789")
    with rio.frame() as entered:
        assert entered is rio
        assert rio.read(4) == b"0123"
    assert rio.read(6) == b"456789"


def test_every_reading_method_in_a_frame_is_undone(pair):
    rio, far = pair
    data = b"line\nmore\nabc;defgh\nlast\n\0\2hi"
    calls = [
        lambda: rio.readline(),
        lambda: rio.readline(2),
        lambda: next(rio),
        lambda: rio.read(3),
        lambda: rio.readexactly(5),
        lambda: rio.read1(4),
        lambda: rio.readinto(bytearray(6)),
        lambda: rio.readinto1(bytearray(6)),
        lambda: rio.readlines1(),
        lambda: rio.readlines(5),
        lambda: rio.readuntil(b";"),
        lambda: rio.readuntil((b"x", b";")),
        lambda: rio.skip(7),
        lambda: rio.skipline(),
        lambda: rio.read_buffered(),
        lambda: (rio.skip(25), rio.readframe(2)),
        lambda: (rio.peek(), rio.fill(3), rio.has_line(), rio.buffered),
    ]
    far.sendall(data)
    for call in calls:
        with pytest.raises(Interrupted), rio.frame():
            call()
            raise Interrupted
        assert rio.peek() == data
        again = call()
        rio.unread(data[: len(data) - rio.buffered])
        assert rio.read_buffered() == data
        rio.unread(data)
        assert call() == again
        rio.unread(data[: len(data) - rio.buffered])


def test_blocks_nest_and_an_inner_one_is_undone_alone(pair):
    rio, far = pair
    far.sendall(b"abcdef")
    with rio.frame():
        assert rio.read(1) == b"a"
        with pytest.raises(Interrupted), rio.frame():
            assert rio.read(2) == b"bc"
            raise Interrupted
        with rio.frame():
            assert rio.read(2) == b"bc"
        assert rio.read(1) == b"d"
    assert rio.read(2) == b"ef"


def test_an_outer_block_undoes_what_inner_ones_have_read(pair):
    rio, far = pair
    far.sendall(b"abcdef")
    with pytest.raises(Interrupted), rio.frame():
        with rio.frame():
            rio.read(2)
            with rio.frame():
                rio.read(2)
        raise Interrupted
    assert rio.read(6) == b"abcdef"


def test_leaving_an_outer_block_ends_the_inner_one(pair):
    rio, far = pair
    far.sendall(b"abcdef")
    outer, inner = rio.frame(), rio.frame()
    outer.__enter__()
    rio.read(1)
    inner.__enter__()
    rio.read(1)
    outer.__exit__(None, None, None)
    rio.read(1)
    assert inner.__exit__(Interrupted, Interrupted(), None) is False
    assert rio.read(3) == b"def"


def test_a_frame_object_is_for_one_block(pair):
    rio, _ = pair
    frame = rio.frame()
    with frame:
        pass
    with pytest.raises(ValueError, match="frame\\(\\)"):
        frame.__enter__()
    with rio.frame():
        pass


def test_a_dropped_frame_that_was_not_left_is_undone(pair):
    """As if a signal handler had raised between ``__enter__()`` and the block."""
    rio, far = pair
    far.sendall(b"abc")
    frame = rio.frame()
    frame.__enter__()
    rio.read(2)
    del frame
    assert rio.read(3) == b"abc"
    assert read_elsewhere(rio) is BlockingIOError


def test_a_frame_larger_than_the_buffer_keeps_all_and_gives_the_memory_back():
    near, far = tcp_pair()
    data = random.Random(1).randbytes(3_000_000)
    with near, far:
        rio = Rio(near, bufsize=4096, timeout=SECONDS)
        sender = threading.Thread(target=far.sendall, args=(data,))
        sender.start()
        with pytest.raises(Interrupted), rio.frame():
            assert rio.read(1_000_000) == data[:1_000_000]
            buffer = bytearray(1_000_000)
            assert rio.readinto(buffer) == 1_000_000
            assert buffer == data[1_000_000:2_000_000]
            raise Interrupted
        assert rio.read(3_000_000) == data
        sender.join()


# ---- beside other threads and processes


def read_elsewhere(rio, call=lambda rio: rio.read(1, timeout=0)):
    """Call in another thread; return the class of the exception, or the result."""
    results = []

    def run():
        try:
            results.append(call(rio))
        except Exception as error:
            results.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def test_another_thread_is_refused_in_a_frame_and_served_after_it(pair):
    rio, far = pair
    far.sendall(b"abc")
    with rio.frame():
        for _ in range(3):
            assert read_elsewhere(rio) is ConcurrentCall
            assert read_elsewhere(rio, lambda rio: rio.frame().__enter__()) is ConcurrentCall
            assert read_elsewhere(rio, Rio.close) is ConcurrentCall
            assert rio.read(1)
    far.sendall(b"d")
    assert read_elsewhere(rio) == b"d"


def test_another_thread_writes_during_a_frame(pair):
    rio, far = pair
    with rio.frame():
        assert read_elsewhere(rio, lambda rio: rio.writen(b"x")) == 1
    assert far.recv(9) == b"x"


def test_close_in_a_frame_closes_and_leaving_has_no_effect():
    near, far = socket.socketpair()
    with near, far:
        rio = Rio(near, timeout=0)
        far.sendall(b"abc")
        with rio.frame():
            rio.read(1)
            rio.close()
        assert rio.closed
        with pytest.raises(Interrupted), Rio(near, timeout=0) as rio, rio.frame():
            rio.close()
            raise Interrupted


def test_detach_in_a_frame_leaves_what_follows_what_was_read(pair):
    rio, far = pair
    far.sendall(b"abcdef")
    with rio.frame():
        assert rio.read(2) == b"ab"
        _, rest = rio.detach()
    assert rest == b"cdef"


@pytest.mark.parametrize("in_a_call", [False, True])
def test_a_fork_leaves_the_frame_of_another_thread(in_a_call):
    near, far = socket.socketpair()
    with near, far:
        rio = Rio(near, timeout=SECONDS)
        far.sendall(b"abc")
        begun, ended = threading.Event(), threading.Event()

        def hold():
            with rio.frame():
                rio.read(2)
                begun.set()
                if in_a_call:
                    rio.read(5)
                else:
                    ended.wait(SECONDS)

        thread = threading.Thread(target=hold)
        thread.start()
        begun.wait(SECONDS)
        if (child := os.fork()) == 0:
            status = 1
            try:
                status = 0 if rio.read(3) == b"abc" and read_elsewhere(rio) is BlockingIOError else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        ended.set()
        far.sendall(b"1234567")
        thread.join()


def test_a_fork_in_a_frame_goes_on_in_the_child(pair):
    rio, far = pair
    far.sendall(b"abcdef")
    with rio.frame():
        rio.read(2)
        if (child := os.fork()) == 0:
            status = 1
            try:
                status = 0 if rio.read(2) == b"cd" else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_write_to_a_file_open_for_both_is_refused_in_a_frame(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"line1\nline2\n")
    with open(path, "r+b", buffering=0) as file:
        rio = Rio(file)
        with rio.frame():
            rio.readline()
            with pytest.raises(ConcurrentCall):
                rio.writen(b"x")
        rio.writen(b"LINE2\n")
    assert path.read_bytes() == b"line1\nLINE2\n"


def test_a_write_to_a_file_in_a_child_leaves_the_frame_of_another_thread(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"line1\nline2\n")
    with open(path, "r+b", buffering=0) as file:
        rio = Rio(file)
        begun, ended = threading.Event(), threading.Event()

        def hold():
            with rio.frame():
                rio.readline()
                begun.set()
                ended.wait(SECONDS)

        thread = threading.Thread(target=hold)
        thread.start()
        begun.wait(SECONDS)
        if (child := os.fork()) == 0:
            status = 1
            try:
                signal.alarm(SECONDS)
                status = 0 if rio.writen(b"LINE1\n") == 6 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        ended.set()
        thread.join()
    assert path.read_bytes() == b"LINE1\nline2\n"


# ---- readframe


@pytest.mark.parametrize("byteorder", ["big", "little"])
@pytest.mark.parametrize("width", range(1, 9))
def test_readframe_returns_payloads_and_none_at_the_end(pair, width, byteorder):
    rio, far = pair
    payloads = [b"", b"x", b"y" * 200]
    far.sendall(b"".join(len(data).to_bytes(width, byteorder) + data for data in payloads))
    far.close()
    assert [rio.readframe(width, byteorder) for _ in payloads] == payloads
    assert rio.readframe(width, byteorder) is None
    assert rio.readframe(width, byteorder) is None


def test_readframe_refuses_a_payload_over_the_limit_and_keeps_it(pair):
    rio, far = pair
    far.sendall(b"\0\0\0\5hello")
    with pytest.raises(FrameTooLong) as caught:
        rio.readframe(limit=4)
    assert (caught.value.limit, caught.value.size) == (4, 5)
    assert rio.readframe(limit=5) == b"hello"
    far.sendall(b"\xff" * 8)
    with pytest.raises(FrameTooLong):
        rio.readframe(8, limit=None)
    assert rio.peek() == b"\xff" * 8


def test_the_limit_of_readframe_is_max_line_by_default():
    near, far = socket.socketpair()
    with near, far:
        rio = Rio(near, timeout=0, max_line=5)
        far.sendall(b"\5hello\6")
        assert rio.readframe(1) == b"hello"
        with pytest.raises(FrameTooLong):
            rio.readframe(1)


@pytest.mark.parametrize("sent", [b"\0", b"\0\0\0\5", b"\0\0\0\5hell"])
def test_the_end_inside_a_frame_is_incomplete(pair, sent):
    rio, far = pair
    far.sendall(sent)
    far.close()
    with pytest.raises(IncompleteRead) as caught:
        rio.readframe()
    assert caught.value.partial == sent
    assert rio.readframe() is None


@pytest.mark.parametrize("arguments", [(0,), (9,), (-1,), (4, "middle"), (None,), ("4",), (4, None)])
def test_readframe_refuses_wrong_arguments(pair, arguments):
    with pytest.raises((ValueError, TypeError)):
        pair[0].readframe(*arguments)


# ---- skip


def test_skip_drops_bytes_and_tells_how_many(pair):
    rio, far = pair
    far.sendall(b"0123456789")
    assert rio.skip(0) == 0
    assert rio.skip(3) == 3
    assert rio.read(1) == b"3"
    far.close()
    assert rio.skip(100) == 6
    assert rio.skip(100) == 0


def test_an_interrupted_skip_loses_nothing(pair):
    rio, far = pair
    far.sendall(b"0123456789")
    with pytest.raises(BlockingIOError):
        rio.skip(11)
    assert rio.peek() == b"0123456789"
    far.sendall(b"ab")
    assert rio.skip(11) == 11
    assert rio.read(1) == b"b"


def test_skip_of_many_bytes_takes_little_memory_and_counts_over_interruptions():
    near, far = tcp_pair()
    with near, far:
        rio = Rio(near, timeout=SECONDS, bufsize=4096)
        total, sent = 10_000_000, 0
        while sent < total:
            part = min(50_000, total - sent)
            far.sendall(b"x" * part)
            sent += part
            if sent < total:
                with pytest.raises(BlockingIOError):
                    rio.skip(total, timeout=0)
                assert rio.unread(b"") == 0
            assert rio.buffered <= 70_000 + 65536
        assert rio.skip(total) == total
        assert rio.buffered == 0


# ---- unread


@pytest.mark.parametrize("bufsize", [1, 4, 64])
def test_unread_puts_bytes_in_front(bufsize):
    near, far = socket.socketpair()
    with near, far:
        rio = Rio(near, bufsize=bufsize, timeout=0)
        assert rio.unread(b"") == 0
        assert rio.unread(b"with an end\n") == 12
        far.sendall(b"line\n")
        assert rio.readline() == b"with an end\n"
        assert rio.readline() == b"line\n"
        far.sendall(b"abc")
        assert rio.fill(3) == 3
        assert rio.unread(bytearray(b"x" * 1000)) == 1000
        assert rio.unread(memoryview(b"\n")) == 1
        assert rio.readline() == b"\n"
        assert rio.read(1003) == b"x" * 1000 + b"abc"


def test_unread_after_scans_finds_the_new_separator():
    near, far = socket.socketpair()
    with near, far:
        rio = Rio(near, timeout=0, max_line=10)
        far.sendall(b"abcdef")
        for _ in range(2):
            with pytest.raises(BlockingIOError):
                rio.readline()
            with pytest.raises(BlockingIOError):
                rio.readuntil(b"--")
        rio.unread(b"-\n-")
        assert rio.readline() == b"-\n"
        rio.unread(b"-")
        assert rio.readuntil(b"--") == b"--"
        rio.unread(b"12345")
        with pytest.raises(LineTooLong):
            rio.readline()


def test_leftover_of_a_detached_rio_goes_on_in_another(pair):
    rio, far = pair
    far.sendall(b"one\ntwo\nthr")
    assert rio.readline() == b"one\n"
    sock, rest = rio.detach()
    other = Rio(sock, timeout=0)
    assert other.unread(rest) == len(rest)
    far.sendall(b"ee\n")
    assert [other.readline(), other.readline()] == [b"two\n", b"three\n"]


@pytest.mark.parametrize("data", [None, "text", 5])
def test_unread_refuses_what_is_not_bytes(pair, data):
    with pytest.raises(TypeError):
        pair[0].unread(data)


def test_unread_in_a_frame_makes_bytes_just_read_unread(pair):
    rio, far = pair
    far.sendall(b"abcdef")
    with pytest.raises(Interrupted), rio.frame():
        assert rio.read(4) == b"abcd"
        rio.unread(b"cd")
        assert rio.read(3) == b"cde"
        raise Interrupted
    assert rio.read(6) == b"abcdef"
    assert rio.buffered == 0


def test_foreign_bytes_unread_in_a_frame_are_not_lost(pair):
    rio, far = pair
    far.sendall(b"abcdef")
    with rio.frame():
        assert rio.read(2) == b"ab"
        rio.unread(b"XY")
        assert rio.read(3) == b"XYc"
    assert rio.read(3) == b"def"


# ---- several separators


@pytest.mark.parametrize("bufsize", [1, 3, 64])
def test_readuntil_stops_at_the_separator_that_ends_first(bufsize):
    near, far = socket.socketpair()
    with near, far:
        rio = Rio(near, bufsize=bufsize, timeout=0)
        far.sendall(b"a\rb\r\nc\nabcab")
        seps = (b"\r\n", b"\n", b"\r")
        assert [rio.readuntil(seps) for _ in range(4)] == [b"a\r", b"b\r", b"\n", b"c\n"]
        assert rio.readuntil((b"abc", b"b")) == b"ab"
        with pytest.raises(BlockingIOError):
            rio.readuntil((b"xx", b"yy"))
        far.sendall(b"x")
        with pytest.raises(BlockingIOError):
            rio.readuntil((b"xx", b"yy"))
        far.sendall(b"yyx")
        assert rio.readuntil((b"xx", b"yy")) == b"cabxyy"


def test_readuntil_with_limit_bytes_held_at_the_end_is_incomplete(pair):
    rio, far = pair
    far.sendall(b"abcd")
    far.close()
    with pytest.raises(LineTooLong):
        rio.readuntil(b"\n", 3)
    with pytest.raises(IncompleteRead) as caught:
        rio.readuntil(b"\n", 4)
    assert caught.value.partial == b"abcd"
    with pytest.raises(IncompleteRead):
        rio.readuntil(b"\n", -2)


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("sep", [b"\n", b"ab", (b"\n", b"ab"), (b"!!!!!", b"\r\n")])
@pytest.mark.parametrize("limit", [1, 5, 12])
def test_the_limit_of_readuntil_is_the_same_before_and_at_the_end(pair, sep, limit, extra):
    rio, far = pair
    held = b"x" * (limit + extra)
    far.sendall(held)
    for error in (BlockingIOError, IncompleteRead):
        with pytest.raises(error if extra <= 0 else LineTooLong):
            rio.readuntil(sep, limit)
        if error is BlockingIOError:
            assert rio.buffered == len(held)
            far.shutdown(socket.SHUT_WR)
    assert rio.read() == (b"" if extra <= 0 else held)


def test_unread_after_the_end_is_read_before_it(pair):
    rio, far = pair
    far.sendall(b"ab")
    far.shutdown(socket.SHUT_WR)
    assert (rio.read(), rio.readline()) == (b"ab", b"")
    assert rio.unread(b"x\ny") == 3
    assert [rio.readline(), rio.readline(), rio.readline()] == [b"x\n", b"y", b""]


def test_a_byteorder_that_is_not_a_string_is_a_type_error(pair):
    with pytest.raises(TypeError, match="byteorder must be a str, not int"):
        pair[0].readframe(4, 1)
