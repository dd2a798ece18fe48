"""Sequences of calls on a Rio and on a Feed, each compared with what the oracle does.

A sequence is a list of steps ``(name, *arguments)``. The names are those of the methods, with a word behind them where
there are several kinds of arguments; "feed" lets bytes arrive, "begin" and "leave" enter and leave a block of frame().
Hypothesis makes such sequences (support/sequences.py), and so does the fuzzer (fuzz/targets.py).
"""

import os
import socket

from rioecho import Feed, FrameTooLong, IncompleteRead, LineTooLong, Rio
from support.oracle import Incomplete, Oracle, Starved, TooLong, WouldWait

#: The reading methods whose result does not depend on the size of a read(2).
READS = {"readline", "readline limit", "read", "readexactly", "readuntil", "readuntil limit", "readframe"}
READS |= {"skip", "skipline", "unread"}
#: Those that only a Rio has.
RIO_READS = READS | {"iteration", "readlines"}
#: The entering and leaving of frame(). "leave": the depth, negative from the innermost, and whether it is undone.
BLOCKS = {"begin", "leave"}


class Interrupted(Exception):
    """What ends a block of frame()."""


def error_of(call, *errors):
    """Make a call that must raise one of the errors, and return the error."""
    try:
        got = call()
    except errors as error:
        return error
    raise AssertionError(f"returned {got!r} instead of raising {' or '.join(error.__name__ for error in errors)}")


def blocks_step(reader, oracle, blocks, name, arguments):
    """Enter a block of ``reader.frame()``, or leave one of the open ``blocks`` and with it those inside it."""
    if name == "begin":
        blocks.append(reader.frame())
        blocks[-1].__enter__()
        oracle.begin()
    elif blocks:
        depth = max(arguments[0], -len(blocks)) + len(blocks)
        undo = arguments[1]
        error = Interrupted() if undo else None
        blocks[depth].__exit__(type(error) if error else None, error, None)
        oracle.leave(depth, undo)
        for inner in blocks[depth + 1 :]:
            inner.__exit__(Interrupted, Interrupted(), None)
        del blocks[depth:]


def compare(oracle, call, ideal, would_wait):
    """Compare a call with what the oracle does; ``would_wait(call)`` checks one for which bytes are missing."""
    before = oracle.data, oracle.kept
    try:
        expected = ideal()
    except WouldWait:
        oracle.data, oracle.kept = before
        would_wait(call)
    except TooLong:
        oracle.data, oracle.kept = before
        error_of(call, LineTooLong, FrameTooLong)
    except Incomplete as error:
        same(error_of(call, IncompleteRead).partial, error.args[0])
    else:
        same(call(), expected)


def same(got, expected):
    assert got == expected, f"{got!r} instead of {expected!r}"


# ---- a Rio


def read(rio, name, arguments):
    """Call a reading method of a Rio whose timeout is 0."""
    if name == "iteration":
        return next(rio, b"")
    return getattr(rio, name.split()[0])(*arguments)


def blocks(call):
    error_of(call, BlockingIOError)


def check_read(rio, oracle, name, arguments):
    method = getattr(oracle, "readline" if name == "iteration" else name.split()[0])
    compare(oracle, lambda: read(rio, name, arguments), lambda: method(*arguments), blocks)


def check_partial(rio, oracle, name, arguments):
    """Check a method whose result depends on the size of one read: some of the available bytes, at least one."""
    data, ended = oracle.data, oracle.ended
    held = rio.buffered
    try:
        if name == "read1":
            got = rio.read1(*arguments)
            assert got or not data or arguments == (0,)
        elif name in ("readinto", "readinto1"):
            buffer = bytearray(arguments[0])
            got = bytes(buffer[: getattr(rio, name)(buffer)])
            assert len(got) == min(len(buffer), len(data)) if name == "readinto" else got or not data or not buffer
        elif name == "readlines1":
            lines = rio.readlines1()
            assert lines or not data
            assert lines == [oracle.readline() for _ in lines]
            return
        elif name == "peek":
            got = rio.peek()
            assert data.startswith(got)
            assert got or not data
            return
        elif name == "fill":
            assert min(arguments[0], len(data)) <= rio.fill(*arguments) == rio.buffered <= len(data)
            return
        elif name == "has_line":
            assert rio.has_line() == (b"\n" in data[:held])
            return
        else:
            got = rio.read_buffered()
            assert len(got) == held
    except BlockingIOError:
        assert not ended
        if name == "readlines1":
            assert b"\n" not in data
        elif name in ("readinto", "fill"):
            assert len(data) < arguments[0]
        else:
            assert not data
        return
    except LineTooLong:
        error_of(oracle.readline, TooLong)
        return
    assert oracle.take(len(got)) == got


class Ends:
    """The two descriptors of a connection. The test reads and writes the far one."""

    def __init__(self, pipe):
        if pipe:
            self.near, self.far = os.pipe()
        else:
            sockets = socket.socketpair()
            sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as little as the kernel allows
            self.near, self.far = (end.detach() for end in sockets)
        os.set_blocking(self.far, False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.near)
        if self.far is not None:
            os.close(self.far)

    def send(self, data):
        """Send some of the data, as much as the kernel takes, and return it."""
        try:
            return data[: os.write(self.far, data)]
        except BlockingIOError:
            return b""

    def end(self):
        os.close(self.far)
        self.far = None

    def received(self):
        got = b""
        while True:
            try:
                got += os.read(self.far, 1 << 16)
            except BlockingIOError:
                return got


def check_rio(live, ended, bufsize, max_line, pipe):
    """Play two sequences of reads on a connection whose peer is the test. The input ends between them."""
    with Ends(pipe) as ends:
        rio = Rio(ends.near, bufsize=bufsize, max_line=max_line, timeout=0)
        oracle = Oracle(b"", ended=False, max_line=max_line)
        frames = []
        for steps in (live, ended):
            for name, *arguments in steps:
                if name in BLOCKS:
                    blocks_step(rio, oracle, frames, name, arguments)
                elif name == "feed":
                    if not oracle.ended:
                        oracle.data += ends.send(arguments[0])
                elif name in RIO_READS:
                    check_read(rio, oracle, name, tuple(arguments))
                else:
                    check_partial(rio, oracle, name, tuple(arguments))
            if not oracle.ended:
                ends.end()
                oracle.ended = True
        assert rio.read() == oracle.data


# ---- a Feed


def look(feed, oracle, name):
    """Check a method of a Feed that shows what is held, or takes what there is of it."""
    data = oracle.data
    if name == "buffered":
        assert feed.buffered == len(data)
    elif name == "has_line":
        assert feed.has_line() == (b"\n" in data)
    elif name == "read_buffered":
        assert feed.read_buffered() == oracle.take(len(data))
    elif name == "peek":
        if data or oracle.ended:
            assert feed.peek() == data
        else:
            oracle.none(feed.peek)
    else:
        compare(oracle, feed.readlines1, lambda: whole_lines(oracle), oracle.none)


def whole_lines(oracle):
    """Return what readlines1() returns: all complete lines within the limit, or the unterminated last one."""
    first = oracle.readline()
    got = [first] if first else []
    while b"\n" in oracle.data[: oracle.max_line]:
        got.append(oracle.readline())
    return got


def check_feed(live, ended, max_line):
    """Play two sequences of calls on a Feed. The input ends between them."""
    feed = Feed(max_line=max_line)
    oracle = Starved(ended=False, max_line=max_line)
    frames = []
    for steps in (live, ended):
        for name, *arguments in steps:
            if name == "feed":
                if not oracle.ended:
                    feed.feed(arguments[0])
                    oracle.data += arguments[0]
            elif name in BLOCKS:
                blocks_step(feed, oracle, frames, name, arguments)
            elif name in READS:
                method = name.split()[0]
                compare(
                    oracle,
                    lambda method=method, arguments=arguments: getattr(feed, method)(*arguments),
                    lambda method=method, arguments=arguments: getattr(oracle, method)(*arguments),
                    oracle.none,
                )
            else:
                look(feed, oracle, name)
            assert feed.buffered == len(oracle.data)
        feed.feed_eof()
        oracle.ended = True
    assert feed.read() == oracle.data
