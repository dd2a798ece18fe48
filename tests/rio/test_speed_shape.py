"""The running time grows linearly with the number of bytes, however they arrive; measured as a ratio."""

import time
from contextlib import suppress

import pytest

from rioecho import Rio


def cost(work, size):
    """Return the minimum CPU time of a few runs."""
    return min(work(size) for _ in range(3))


BUFFER = bytearray(32 << 20)

BYTEWISE = {
    "readline": lambda rio: rio.readline(timeout=0),
    "readline with a limit": lambda rio: rio.readline(10**9, timeout=0),
    "readuntil, one byte": lambda rio: rio.readuntil(b";", 10**9, timeout=0),
    "readuntil, two bytes": lambda rio: rio.readuntil(b"\r\n", 10**9, timeout=0),
    "readlines1": lambda rio: rio.readlines1(timeout=0),
    "fill": lambda rio: rio.fill(10**9, timeout=0),
    "read": lambda rio: rio.read(10**9, timeout=0),
    "read to the end": lambda rio: rio.read(timeout=0),
    "readinto": lambda rio: rio.readinto(BUFFER, timeout=0),
    "skipline": lambda rio: rio.skipline(timeout=0),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("call", BYTEWISE.values(), ids=BYTEWISE)
def test_the_cost_per_byte_does_not_depend_on_the_length_of_the_line(stream, background, call):
    def work(size):
        rio = Rio(stream.near, max_line=None, timeout=20)
        filling = background(stream.far.sendall, b"x" * size)
        rio.fill(size)
        filling.join(20)
        with pytest.raises(BlockingIOError):
            call(rio)
        start = time.thread_time()
        for _ in range(500):
            stream.far.send(b"x")
            with suppress(BlockingIOError):
                call(rio)
        taken = time.thread_time() - start
        assert rio.buffered == size + 500
        return taken

    assert cost(work, 16 << 20) < 16 * cost(work, 1 << 16)  # scanning all of it again costs hundreds of times as much


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "drain",
    [
        lambda rio: sum(1 for _ in rio),
        lambda rio: len(rio.readlines()),
        lambda rio: len(rio.read()),
        lambda rio: sum(map(len, iter(rio.readlines1, []))),
        lambda rio: sum(1 for _ in iter(rio.skipline, 0)),
        lambda rio: sum(1 for _ in iter(lambda: rio.read(1), b"")),
        lambda rio: sum(1 for _ in iter(lambda: rio.readline(1), b"")),
    ],
    ids=["iteration", "readlines", "read", "readlines1", "skipline", "read(1)", "readline(1)"],
)
@pytest.mark.parametrize("bufsize", [64, 65536])
def test_a_million_one_byte_lines_take_linear_time(wire, drain, bufsize):
    def work(size):
        file = wire("file")
        file.feed(b"\n" * size)
        rio = Rio(file.near, bufsize=bufsize)
        start = time.thread_time()
        assert drain(rio) == size
        taken = time.thread_time() - start
        file.close()
        return taken

    ratio = cost(work, 1_000_000) / cost(work, 125_000)
    assert ratio < 24, f"eight times the lines took {ratio:.0f} times as long"  # quadratic time: 64


@pytest.mark.slow
def test_the_cost_of_a_line_does_not_depend_on_how_many_are_held(wire):
    def work(size):
        file = wire("file")
        file.feed((b"x" * 63 + b"\n") * (size // 64))
        rio = Rio(file.near)
        assert rio.fill(size) == size
        rio.skip(size // 2)  # what is held now has less than half of the memory
        start = time.thread_time()
        for _ in range(1 << 14):
            rio.readline()
        taken = time.thread_time() - start
        file.close()
        return taken

    assert cost(work, 32 << 20) < 8 * cost(work, 1 << 20)  # moving them for every 32 KiB costs twenty times as much
