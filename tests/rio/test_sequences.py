"""Random sequences of calls on a connection whose peer is the test; every result must be the oracle's."""

import os
import socket
from contextlib import suppress

import pytest

from rioecho import LineTooLong, Rio
from support import sequences
from support.oracle import Oracle, TooLong
from support.properties import given, st
from support.sequences import BLOCKS, blocks_step, chunks, compare, deterministic, sizes, step

READS = {**sequences.READS, "iteration": (), "readlines": ()}
PARTIAL = {
    "read1": (st.integers(-1, 12),),
    "readinto": (sizes,),
    "readinto1": (sizes,),
    "readlines1": (),
    "peek": (),
    "fill": (sizes,),
    "has_line": (),
    "read_buffered": (),
}
WRITES = {"write": (chunks,), "writen": (chunks,), "writelines": (st.lists(chunks, max_size=3),), "flush": ()}

feeds = st.tuples(st.just("feed"), chunks)
reading_steps = st.lists(feeds | step(READS) | step(PARTIAL) | step(BLOCKS), max_size=30)
both_steps = st.lists(feeds | step(READS) | step(PARTIAL) | step(WRITES), max_size=30)


def read(rio, name, arguments):
    """Call a reading method of a Rio whose timeout is 0."""
    if name == "iteration":
        return next(rio, b"")
    return getattr(rio, name.split()[0])(*arguments)


def ideal(oracle, name, arguments):
    return getattr(oracle, "readline" if name == "iteration" else name.split()[0])(*arguments)


def blocks(call):
    with pytest.raises(BlockingIOError):
        call()


def check_read(rio, oracle, name, arguments):
    compare(oracle, lambda: read(rio, name, arguments), lambda: ideal(oracle, name, arguments), blocks)


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
        with pytest.raises(TooLong):
            oracle.readline()
        return
    assert oracle.take(len(got)) == got


def write(rio, name, arguments):
    """Call a writing method and return the bytes that it accepted."""
    data = b"".join(arguments[0]) if name == "writelines" else b"".join(arguments)
    try:
        getattr(rio, name)(*arguments)
    except BlockingIOError as error:
        return data[: error.characters_written] if name != "flush" else b""
    return data


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


@deterministic
@given(
    reading_steps,
    reading_steps,
    st.sampled_from([1, 2, 7, 64, 65536]),
    st.sampled_from([10, 30, 1 << 20]),
    st.booleans(),
)
def test_any_sequence_of_reads_returns_what_the_oracle_returns(live, ended, bufsize, max_line, pipe):
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
                        os.write(ends.far, arguments[0])
                        oracle.data += arguments[0]
                elif name in READS:
                    check_read(rio, oracle, name, tuple(arguments))
                else:
                    check_partial(rio, oracle, name, tuple(arguments))
            if not oracle.ended:
                ends.end()
                oracle.ended = True
        assert rio.read() == oracle.data


@pytest.mark.slow
@deterministic
@given(both_steps, st.sampled_from([1, 2, 7, 64, 65536]), st.booleans())
def test_any_sequence_of_reads_and_writes_loses_nothing_in_either_direction(steps, bufsize, slow):
    with Ends(pipe=False) as ends:
        rio = Rio(ends.near, bufsize=bufsize, max_line=30, timeout=0)
        oracle = Oracle(b"", ended=False, max_line=30)
        written, received = b"", b""
        for name, *arguments in steps:
            if name == "feed":
                os.write(ends.far, arguments[0])
                oracle.data += arguments[0]
            elif name in READS:
                check_read(rio, oracle, name, tuple(arguments))
            elif name in PARTIAL:
                check_partial(rio, oracle, name, tuple(arguments))
            else:
                if slow and name != "flush":  # more than fits in the socket buffer, while the peer does not read
                    arguments = [[*arguments[0]] * 50] if name == "writelines" else [arguments[0] * 200]
                written += write(rio, name, tuple(arguments))
                if not slow:
                    received += ends.received()
            assert len(written) - len(received) <= bufsize or slow
        while len(received) < len(written):
            received += ends.received()
            with suppress(BlockingIOError):
                rio.flush()
        assert received == written
