"""Nothing is lost by cancellation: every method, every byte position of its input, every await point."""

import asyncio
import contextlib

import pytest

from rioecho import ConcurrentCall, FrameTooLong, LineTooLong
from support.aio_calls import ALL, AT_THE_END, FIRST, METHODS
from support.aio_wires import connected, turns, until

TAIL = b"what follows"
WHEN = range(6)  # in which turn of the loop after the last bytes came the call is interrupted; in the last it is over


class Stopped(Exception):
    """What is thrown into a call."""


async def awaiting(call):
    return await call


async def nested(call):
    return await awaiting(awaiting(call))


async def within(call, limits):
    async with asyncio.timeout(30) as limit:
        limits.append(limit)
        return await call


def start(how, call, limits):
    """Begin a task that awaits the call in one of the ways of HOW."""
    if how == "task":
        return asyncio.create_task(call)
    if how == "wait_for":
        return asyncio.create_task(asyncio.wait_for(call, 30))
    if how == "nested":
        return asyncio.create_task(nested(call))
    if how == "timeout()":
        return asyncio.create_task(within(call, limits))
    # What gather() waits for is a task of its own, whose result is there although the one that waits is cancelled.
    task = asyncio.create_task(call)
    task.around = asyncio.gather(task)
    return task


HOW = ("task", "wait_for", "nested", "timeout()", "gather")


def interrupt(task, limits):
    if limits and not task.done():
        limits[0].reschedule(asyncio.get_running_loop().time())
    else:
        getattr(task, "around", task).cancel()


async def outcome(task):
    """Return (whether the call returned, its result)."""
    try:
        if hasattr(task, "around"):
            await asyncio.wait([task.around])
            if not task.around.cancelled():
                task.around.exception()
        return True, await task
    except (asyncio.CancelledError, TimeoutError):
        return False, None


async def held(rio, n):
    await until(lambda: rio.buffered >= n)
    assert rio.buffered == n


async def one_case(rio, far, method, at, how, when, drip):
    """Interrupt a call when ``at`` bytes of its input had come, ``when`` turns after the others came."""
    limits = []
    task = start(how, method.call(rio), limits)
    await turns(3)
    for piece in [method.data[i : i + 1] for i in range(at)] if drip else [method.data[:at]]:
        far.feed(piece)
        await turns(2)
    rest = method.data[at:] + TAIL
    if when is not None:
        far.feed(rest)
        await turns(when)
    interrupt(task, limits)
    returned, result = await outcome(task)
    if when is None:
        assert not returned
        assert rio.buffered == at
        far.feed(rest)
    if not returned:
        result = await method.call(rio)
    assert result == method.result
    await held(rio, len(method.left + TAIL))
    assert rio.read_buffered() == method.left + TAIL
    return not returned


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", METHODS)
async def test_a_cancelled_call_has_consumed_nothing(name, how, cancellations):
    method = METHODS[name]
    async with connected() as (rio, far):
        for at in range(len(method.data)):
            for when in (None, *WHEN):
                for drip in (False, True):
                    cancellations.append(await one_case(rio, far, method, at, how, when, drip))
    assert cancellations.count(True) >= 4 * len(method.data)


@pytest.fixture(scope="module")
def total():
    """Print how many calls the tests have interrupted, and how many of them were cancelled before they returned."""
    counted = []
    yield counted
    print(f"\n{len(counted)} calls interrupted, {counted.count(True)} cancelled, nothing lost")


@pytest.fixture
def cancellations(total):
    """A list to which a test appends, for each call that it interrupts, whether the call was cancelled."""
    mine = []
    yield mine
    total.extend(mine)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", FIRST)
async def test_a_call_that_waits_for_the_first_bytes_is_cancelled(name, how, cancellations):
    method = FIRST[name]
    async with connected() as (rio, far):
        for when in (None, *WHEN):
            limits = []
            task = start(how, method.call(rio), limits)
            await turns(3)
            if when is not None:
                far.feed(method.data)
                await turns(when)
            interrupt(task, limits)
            returned, result = await outcome(task)
            cancellations.append(not returned)
            if when is None:
                assert not returned
                far.feed(method.data)
            assert (result if returned else await method.call(rio)) == method.result
            assert rio.read_buffered() == method.left


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", AT_THE_END)
async def test_a_call_that_the_end_of_the_input_completes_is_cancelled(name, how, cancellations):
    method = AT_THE_END[name]
    for at in range(len(method.data) + 1):
        for when in (None, *WHEN):
            async with connected() as (rio, far):
                limits = []
                task = start(how, method.call(rio), limits)
                await turns(3)
                far.feed(method.data[:at])
                await turns(2)
                if "read1" not in name or at == 0:
                    assert not task.done()
                if when is not None:
                    far.feed(method.data[at:])
                    far.end_output()
                    await turns(when)
                interrupt(task, limits)
                returned, result = await outcome(task)
                cancellations.append(not returned)
                if when is None:
                    assert not returned
                    far.feed(method.data[at:])
                    far.end_output()
                assert (result if returned else await method.call(rio)) == method.result
                assert await rio.read() == method.left


@pytest.mark.parametrize("limit", [0, 0.001])
@pytest.mark.parametrize("name", ALL)
async def test_a_timeout_consumes_nothing(name, limit):
    method = ALL[name]
    positions = 1 if name in FIRST else len(method.data)
    for at in range(positions):
        async with connected() as (rio, far):
            far.feed(method.data[:at])
            await held(rio, at)
            for _ in range(2):
                with pytest.raises(BlockingIOError if limit == 0 else TimeoutError):
                    await method.call(rio, timeout=limit)
                assert rio.buffered == at
            far.feed(method.data[at:])
            if name in AT_THE_END:
                far.end_output()
            assert await method.call(rio, timeout=10) == method.result
            assert rio.read_buffered() == method.left


@pytest.mark.parametrize("end", ["throw", "close"])
@pytest.mark.parametrize("name", METHODS)
async def test_a_call_that_is_thrown_into_or_closed_consumes_nothing(name, end):
    method = METHODS[name]
    async with connected() as (rio, far):
        for at in range(len(method.data)):
            far.feed(method.data[:at])
            await held(rio, at)
            for turn in range(2):  # before the first attempt, and while it waits
                call = method.call(rio)
                if turn:
                    future = call.send(None)
                    assert not future.done()
                with pytest.raises(Stopped) if end == "throw" else contextlib.nullcontext():
                    call.throw(Stopped()) if end == "throw" else call.close()
                with pytest.raises(RuntimeError, match="reuse"):
                    call.send(None)
            far.feed(method.data[at:] + TAIL)
            assert await method.call(rio) == method.result
            await held(rio, len(method.left + TAIL))
            assert rio.read_buffered() == method.left + TAIL


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("method", ["readline", "readuntil", "readlines1", "readlines", "readframe"])
async def test_what_is_too_long_stays_held(method, when):
    line = b"\x00\x10" + b"x" * 16 + b"\n"
    argument = (2,) if method == "readframe" else ()
    async with connected(max_line=8) as (rio, far):
        for at in range(1, len(line)):
            task = asyncio.create_task(getattr(rio, method)(*argument))
            await turns(2)
            far.feed(line[:at])
            await turns(2)
            far.feed(line[at:])
            await turns(when)
            task.cancel()
            with pytest.raises((LineTooLong, FrameTooLong, asyncio.CancelledError)):
                await task
            await held(rio, len(line))
            with pytest.raises((LineTooLong, FrameTooLong)):
                await getattr(rio, method)(*argument)
            assert await rio.skipline() == len(line)
            assert rio.buffered == 0


async def test_a_refused_second_reader_that_is_cancelled_disturbs_nothing():
    async with connected() as (rio, far):
        first = asyncio.create_task(rio.readline())
        await turns(2)
        second = asyncio.create_task(rio.readline())
        await turns()
        second.cancel()
        with pytest.raises((ConcurrentCall, asyncio.CancelledError)):
            await second
        far.feed(b"line\n")
        assert await first == b"line\n"
