"""Reading: the values are those of a Rio and of a Feed, however the bytes come and over whatever they come."""

import asyncio

import pytest

from rioecho import ConcurrentCall, FrameTooLong, IncompleteRead, LineTooLong
from support.agreement import blocks_step
from support.aio_calls import ALL, AT_THE_END, METHODS
from support.aio_wires import KINDS, connected, turns, until
from support.delivery import WAYS, pieces
from support.oracle import Incomplete, Oracle, TooLong, WouldWait
from support.properties import given, st
from support.sequences import BLOCKS, READS, chunks, deterministic, step


@pytest.mark.long
@pytest.mark.parametrize("bufsize", [1, 4, 65536])
@pytest.mark.parametrize("way", WAYS[:-1])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_values_do_not_depend_on_the_delivery(kind, way, bufsize, tls_contexts):
    async with connected(kind, tls_contexts, bufsize=bufsize) as (rio, far):
        for method in METHODS.values():
            task = asyncio.create_task(method.call(rio))
            for piece in pieces(method.data, way, separators=(b"\n", b"\r\n", b"--")):
                far.feed(piece)
                await turns(2)
            assert await task == method.result
            assert rio.read_buffered() == method.left
    for method in AT_THE_END.values():
        async with connected(kind, tls_contexts, bufsize=bufsize) as (rio, far):
            task = asyncio.create_task(method.call(rio))
            for piece in pieces(method.data, way):
                far.feed(piece)
                await turns(2)
            far.end_output()
            assert await task == method.result
            assert await rio.read() == method.left
            assert await rio.readline() == await rio.read1() == await rio.peek() == b""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_lot_comes_whole(kind, tls_contexts):
    data = b"".join(b"%07d\n" % i for i in range(1 << 15))
    async with connected(kind, tls_contexts, bufsize=4096) as (rio, far):

        async def send():
            for i in range(0, len(data), 32768):
                far.feed(data[i : i + 32768])
                await until(lambda end=i + 32768: got == end)
            far.end_output()

        got = 0
        sending = asyncio.create_task(send())
        async for line in rio:
            assert line == data[got : got + 8]
            got += 8
        await sending
        assert got == len(data)


async def test_iteration_ends_with_the_unterminated_line():
    async with connected() as (rio, far):
        far.feed(b"a\n\nb")
        far.end_output()
        assert [line async for line in rio] == [b"a\n", b"\n", b"b"]
        assert [line async for line in rio] == []


@pytest.mark.parametrize(("method", "arguments"), [("readexactly", (3,)), ("readuntil", (b"\n",)), ("readframe", (1,))])
async def test_an_end_inside_is_incomplete(method, arguments):
    async with connected() as (rio, far):
        task = asyncio.create_task(getattr(rio, method)(*arguments))
        await turns(2)
        far.feed(b"\5a")
        await turns(2)
        far.end_output()
        with pytest.raises(IncompleteRead) as caught:
            await task
        assert caught.value.partial == b"\5a"
        assert await rio.readframe() is None


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("readline", ("x",), TypeError),
        ("readexactly", (-1,), ValueError),
        ("read", (1 << 70,), (ValueError, OverflowError)),
        ("readinto", (b"read-only",), TypeError),
        ("readinto1", (None,), TypeError),
        ("readframe", (9,), ValueError),
        ("skip", (-1,), ValueError),
        ("fill", (None,), TypeError),
        ("peek", ("x",), TypeError),
    ],
)
async def test_a_wrong_argument_is_refused_at_once_without_a_warning(method, arguments, error):
    async with connected() as (rio, far):
        with pytest.raises(error):
            getattr(rio, method)(*arguments)
        for timeout in ("x", -1, float("nan")):
            with pytest.raises((TypeError, ValueError)):
                getattr(rio, method)(*arguments, timeout=timeout)
        far.feed(b"line\n")
        assert await rio.readline() == b"line\n"


async def test_a_wrong_separator_is_refused_and_changes_nothing():
    async with connected() as (rio, far):
        far.feed(b"line\n")
        for sep in (b"", (), "x", (b"",)):
            with pytest.raises((TypeError, ValueError)):
                await rio.readuntil(sep)
        assert await rio.readuntil() == b"line\n"


@pytest.mark.parametrize("second", [*ALL, "read_buffered", "unread", "frame"])
async def test_a_second_reader_is_refused_and_disturbs_nothing(second):
    for first in METHODS.values():
        async with connected() as (rio, far):
            task = asyncio.create_task(first.call(rio))
            far.feed(first.data[:1])
            await turns(3)
            for _ in range(2):
                with pytest.raises(ConcurrentCall):
                    if second in ALL:
                        await ALL[second].call(rio)
                    elif second == "frame":
                        with rio.frame():
                            pass
                    else:
                        getattr(rio, second)(*[b"x"] * (second == "unread"))
            assert rio.buffered == 1
            far.feed(first.data[1:])
            assert await task == first.result
            assert rio.read_buffered() == first.left


async def test_readinto_holds_the_memory_until_it_ends():
    async with connected() as (rio, far):
        buffer = bytearray(4)
        task = asyncio.create_task(rio.readinto(buffer))
        await turns(2)
        with pytest.raises(BufferError):
            buffer.clear()
        far.feed(b"fourand")
        assert await task == 4
        assert buffer == b"four"
        buffer.clear()
        part = memoryview(bytearray(8))[2:6]
        assert await rio.readinto1(part) == 3
        assert part.obj == b"\0\0and\0\0\0"
        part = memoryview(bytearray(8))[::2]
        with pytest.raises(TypeError):
            rio.readinto(part)


async def test_held_bytes_are_seen_and_taken_at_once():
    async with connected() as (rio, far):
        far.feed(b"a\nb")
        await rio.fill(3)
        assert (rio.buffered, rio.has_line()) == (3, True)
        assert rio.unread(b"x") == 1
        assert await rio.peek() == b"xa\nb"
        assert await rio.readline() == b"xa\n"
        assert not rio.has_line()
        assert rio.read_buffered() == b"b"
        assert rio.buffered == 0


# ---- random sequences

looks = step({"peek": (), "buffered": (), "has_line": (), "read_buffered": ()})
steps = st.lists(st.tuples(st.just("feed"), chunks) | step(READS) | looks | step(BLOCKS), max_size=25)


async def compare(rio, oracle, name, arguments):
    method = getattr(rio, name)
    before = oracle.data, oracle.kept
    try:
        expected = getattr(oracle, name)(*arguments)
    except WouldWait:
        oracle.data, oracle.kept = before
        with pytest.raises(BlockingIOError):
            await method(*arguments, timeout=0)
        task = asyncio.create_task(method(*arguments))
        await turns(2)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    except TooLong:
        oracle.data, oracle.kept = before
        with pytest.raises((LineTooLong, FrameTooLong)):
            await method(*arguments)
    except Incomplete as error:
        with pytest.raises(IncompleteRead) as caught:
            await method(*arguments)
        assert caught.value.partial == error.args[0]  # noqa: PT017, two errors are compared
    else:
        result = method(*arguments)
        assert (result if name == "unread" else await result) == expected


async def look(rio, oracle, name):
    if name == "buffered":
        assert rio.buffered == len(oracle.data)
    elif name == "has_line":
        assert rio.has_line() == (b"\n" in oracle.data)
    elif name == "read_buffered":
        assert rio.read_buffered() == oracle.take(len(oracle.data))
    elif oracle.data or oracle.ended:
        assert await rio.peek() == oracle.data


async def sequence(live, ended, max_line):
    oracle = Oracle(ended=False, max_line=max_line)
    blocks = []
    async with connected(max_line=max_line) as (rio, far):
        for part in (live, ended):
            for name, *arguments in part:
                if name == "feed":
                    if not oracle.ended:
                        far.feed(arguments[0])
                        oracle.data += arguments[0]
                        await until(lambda: rio.buffered == len(oracle.data))
                elif name in BLOCKS:
                    blocks_step(rio, oracle, blocks, name, arguments)
                elif name in READS:
                    await compare(rio, oracle, name.split()[0], arguments)
                else:
                    await look(rio, oracle, name)
                assert rio.buffered == len(oracle.data)
            far.end_output()
            oracle.ended = True
            await rio.fill(1 << 30)
        assert await rio.read() == oracle.data
        for block in reversed(blocks):
            block.__exit__(None, None, None)


@pytest.mark.long
@deterministic
@given(steps, steps, st.sampled_from([10, 30, 1 << 20]))
def test_any_sequence_of_calls_returns_what_the_oracle_returns(run, live, ended, max_line):
    # Without the debug mode, which would take most of the time.
    run(sequence(live, ended, max_line), debug=False)
