"""Feed: what a Rio returns, for bytes that come from elsewhere; ``None`` where a Rio would wait."""

import random
import threading

import pytest

import rioecho
from rioecho import ConcurrentCall, Feed, FrameTooLong, IncompleteRead, LineTooLong
from support.protocols import PROTOCOLS, Missing


def fed(data, *, end=False, **options):
    feed = Feed(**options)
    feed.feed(data)
    if end:
        feed.feed_eof()
    return feed


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_message_fed_byte_by_byte_is_read_whole(name):
    read, stream, messages = PROTOCOLS[name]
    feed, got = Feed(), []
    for byte in stream:
        held = feed.buffered
        with pytest.raises(Missing):
            got.append(read(feed))
        assert feed.buffered == held
        feed.feed(bytes([byte]))
        try:
            got.append(read(feed))
        except Missing:
            assert feed.buffered == held + 1
    assert got == messages


def test_a_frame_in_which_a_read_returned_none_is_held_again_however_it_ends():
    feed = fed(b"head\nbod")
    for _ in range(2):
        with feed.frame():
            assert feed.readline() == b"head\n"
            with feed.frame():
                assert feed.readexactly(4) is None
            assert feed.read(1) == b"b"
        assert feed.peek() == b"head\nbod"
    feed.feed(b"y")
    with feed.frame():
        assert (feed.readline(), feed.readexactly(4)) == (b"head\n", b"body")
    assert feed.peek() is None


CALLS = {
    "readline": (lambda feed: feed.readline(), b"line\n", b"line\n"),
    "readline with a limit": (lambda feed: feed.readline(3), b"lin", b"lin"),
    "read": (lambda feed: feed.read(4), b"four", b"four"),
    "readexactly": (lambda feed: feed.readexactly(4), b"four", b"four"),
    "readuntil": (lambda feed: feed.readuntil(b"--"), b"a-b--", b"a-b--"),
    "readuntil, several": (lambda feed: feed.readuntil((b"--", b"+")), b"a-b+", b"a-b+"),
    "readlines1": (lambda feed: feed.readlines1(), b"line\n", [b"line\n"]),
    "readframe": (lambda feed: feed.readframe(1), b"\3abc", b"abc"),
    "skip": (lambda feed: feed.skip(4), b"four", 4),
    "skipline": (lambda feed: feed.skipline(), b"line\n", 5),
    "peek": (lambda feed: feed.peek(), b"x", b"x"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_returns_none_until_its_bytes_are_there(name):
    call, data, result = CALLS[name]
    feed = Feed()
    for i in range(len(data)):
        assert call(feed) is None
        assert feed.buffered == i
        feed.feed(data[i : i + 1])
    assert call(feed) == result


AT_THE_END = {
    "readline": (lambda feed: feed.readline(), b"ab", b""),
    "read": (lambda feed: feed.read(4), b"ab", b""),
    "read to the end": (lambda feed: feed.read(), b"ab", b""),
    "readlines1": (lambda feed: feed.readlines1(), [b"ab"], []),
    "skip": (lambda feed: feed.skip(4), 2, 0),
    "skipline": (lambda feed: feed.skipline(), 2, 0),
}


@pytest.mark.parametrize("name", AT_THE_END)
def test_at_the_end_a_call_returns_what_is_left(name):
    call, first, then = AT_THE_END[name]
    feed = fed(b"ab", end=True)
    assert call(feed) == first
    assert call(feed) == then
    assert feed.peek() == b""


@pytest.mark.parametrize(("method", "argument"), [("readexactly", 3), ("readuntil", b"\n"), ("readframe", 1)])
def test_at_the_end_a_part_is_incomplete(method, argument):
    feed = fed(b"\5a", end=True)
    with pytest.raises(IncompleteRead) as caught:
        getattr(feed, method)(argument)
    assert caught.value.partial == b"\5a"
    assert feed.readframe() is None


def test_limits_raise_and_keep_the_bytes():
    feed = fed(b"too long a line\n", max_line=8)
    for call in (feed.readline, feed.readlines1, feed.readuntil):
        with pytest.raises(LineTooLong):
            call()
    with pytest.raises(FrameTooLong):
        feed.readframe(1)
    assert feed.has_line()
    assert feed.skipline() == 16
    assert feed.max_line == 8
    assert Feed(max_line=None).max_line is None


def test_feed_after_the_end_is_an_error():
    feed = fed(b"x", end=True)
    feed.feed_eof()
    with pytest.raises(ValueError, match="feed_eof"):
        feed.feed(b"y")
    assert feed.read_buffered() == b"x"


@pytest.mark.parametrize("data", [None, "text", 3])
def test_feed_takes_bytes_only(data):
    with pytest.raises(TypeError):
        Feed().feed(data)


def test_unread_goes_in_front():
    feed = fed(b"line\n")
    assert feed.unread(b"first ") == 6
    assert feed.readline() == b"first line\n"


def test_any_pieces_give_the_same_lines():
    rng = random.Random(7)
    data = b"".join(rng.randbytes(rng.randrange(200)).replace(b"\n", b"") + b"\n" for _ in range(3000))
    feed, got, at = Feed(), [], 0
    while at < len(data):
        n = rng.choice([1, 2, 30, 1000, 70000])
        feed.feed(memoryview(data)[at : at + n])
        at += n
        while (line := feed.readline()) is not None:
            got.append(line)
    assert b"".join(got) == data
    assert len(got) == 3000


def test_a_second_thread_is_refused_in_a_frame():
    feed = fed(b"abc")
    errors = []

    def read():
        for call in (feed.readline, feed.feed_eof, feed.has_line, lambda: feed.feed(b"x"), lambda: feed.unread(b"x")):
            try:
                call()
            except ConcurrentCall as error:
                errors.append(error)

    with feed.frame():
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert len(errors) == 5
    assert feed.read(3) == b"abc"


def test_feed_is_final_and_shows_what_it_holds():
    with pytest.raises(TypeError):
        type("Sub", (Feed,), {})
    assert repr(fed(b"abc", end=True)) == "<rioecho.Feed holding 3 bytes at the end>"
    assert "Feed" in dir(rioecho)
