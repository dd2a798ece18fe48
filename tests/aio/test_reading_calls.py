"""A call that reads is a coroutine: everything that takes one takes it, and it keeps nothing."""

import asyncio
import collections.abc
import gc
import inspect
import os
import resource
import sys
import warnings

import pytest

from support.aio_calls import METHODS
from support.aio_wires import connected, turns, until


@pytest.mark.parametrize("name", METHODS)
async def test_it_is_taken_wherever_a_coroutine_is(name):
    method = METHODS[name]

    async def grouped(call):
        async with asyncio.TaskGroup() as group:
            return group.create_task(call)

    ways = [
        lambda call: call,
        asyncio.create_task,
        lambda call: asyncio.wait_for(call, 10),
        asyncio.ensure_future,
        asyncio.shield,
        lambda call: asyncio.gather(call),
        grouped,
    ]
    if sys.version_info >= (3, 12):
        loop = asyncio.get_running_loop()
        ways.append(lambda call: asyncio.eager_task_factory(loop, call))
    async with connected() as (rio, far):
        for way in ways:
            for early in (True, False):
                if early:
                    far.feed(method.data)
                    await until(lambda: rio.buffered == len(method.data))
                else:
                    asyncio.get_running_loop().call_later(0.001, far.feed, method.data)
                result = await way(method.call(rio))
                while isinstance(result, (asyncio.Task, list)) and result != method.result:
                    result = result.result() if isinstance(result, asyncio.Task) else result[0]
                assert result == method.result
                assert rio.read_buffered() == method.left


async def test_it_looks_like_one():
    async with connected() as (rio, far):
        call = rio.readline()
        assert isinstance(call, collections.abc.Coroutine)
        assert asyncio.iscoroutine(call)
        assert inspect.isawaitable(call)
        assert (call.__name__, call.__qualname__) == ("readline", "Rio.readline")
        assert "Rio.readline" in repr(call)
        assert not call.cr_running
        task = asyncio.create_task(call, name="reader")
        await turns(2)
        assert "Rio.readline" in repr(task)
        assert call.cr_await is not None
        assert call.cr_suspended
        assert task.get_stack() == []
        far.feed(b"x\n")
        assert await task == b"x\n"
        assert call.cr_await is None
        assert not call.cr_suspended


@pytest.mark.parametrize(
    "step", [next, lambda call: call.__next__(), lambda call: call.send(None)], ids=["next", "__next__", "send"]
)
async def test_each_way_to_go_on_gives_the_future_and_then_the_result(step):
    async with connected() as (rio, far):
        call = rio.readline()
        future = step(call)
        assert not future.done()
        far.feed(b"line\n")
        await until(future.done)
        with pytest.raises(StopIteration) as stop:
            step(call)
        assert stop.value.value == b"line\n"
        with pytest.raises(RuntimeError, match="cannot reuse"):
            step(call)


async def test_one_that_is_never_awaited_warns_and_one_that_is_closed_does_not():
    async with connected() as (rio, _):
        with pytest.warns(RuntimeWarning, match=r"coroutine 'Rio.readline' was never awaited"):
            rio.readline()
        with pytest.warns(RuntimeWarning, match=r"coroutine 'Rio.readinto' was never awaited"):
            rio.readinto(bytearray(3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rio.readline().close()
            with pytest.raises(KeyError):
                rio.readline().throw(KeyError)


async def test_it_can_be_awaited_once():
    async with connected() as (rio, far):
        call = rio.readline()
        task = asyncio.create_task(call)
        await turns(2)
        with pytest.raises(RuntimeError, match="being awaited already"):
            await call
        far.feed(b"x\ny\n")
        assert await task == b"x\n"
        for use in (call.__await__, lambda: call):
            with pytest.raises(RuntimeError, match="cannot reuse"):
                use().send(None)
        with pytest.raises(RuntimeError, match="cannot reuse"):
            call.throw(KeyError)
        with pytest.raises(RuntimeError, match="cannot reuse"):
            await call
        assert await rio.readline() == b"y\n"


async def test_send_and_throw_take_what_those_of_a_coroutine_take():
    async with connected() as (rio, _):
        call = rio.readline()
        with pytest.raises(TypeError, match="just-started"):
            call.send(1)
        call.close()
        for arguments in ((KeyError,), (KeyError, "x"), (KeyError, KeyError("x")), (KeyError("x"),)):
            call = rio.readline()
            call.send(None)
            with pytest.raises(KeyError):
                call.throw(*arguments)
        call = rio.readline()
        for wrong in (3, int, "x"):
            with pytest.raises(TypeError):
                call.throw(wrong)
        call.close()
        call.close()


async def test_the_exception_that_carries_a_result_may_be_kept():
    """On 3.12 and newer the interpreter gets a result as a StopIteration, one for all calls."""
    async with connected() as (rio, far):
        far.feed(b"".join(b"%d\n" % i for i in range(20)))
        await rio.fill(50)
        kept = []
        for i in range(10):
            with pytest.raises(StopIteration) as stop:
                next(rio.readline())
            assert stop.value.value == b"%d\n" % i
            stop.value.note = i
            if i % 2:
                kept.append((i, stop.value))
        assert [error.value for _, error in kept] == [b"%d\n" % i for i, _ in kept]
        assert await rio.readlines(1) == [b"10\n"]
        seen = []

        def trace(frame, event, argument):
            if event == "exception":
                seen.append(argument)
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:

            async def lines():
                return [await rio.readline() for _ in range(3)]

            assert await lines() == [b"11\n", b"12\n", b"13\n"]
        finally:
            sys.settrace(before)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_result_is_not_kept_after_its_call(waits):
    async with connected() as (rio, far):
        call = rio.readlines1()
        if waits:
            asyncio.get_running_loop().call_soon(far.feed, b"a\nb\n")
        else:
            far.feed(b"a\nb\n")
            await until(rio.has_line)
        lines = await call
        del call  # from CPython 3.12 on its StopIteration has the result
        assert lines == [b"a\n", b"b\n"]
        nobody_elses = [b"a\n", b"b\n"]
        assert sys.getrefcount(lines) == sys.getrefcount(nobody_elses)  # neither the call nor the await has it


@pytest.mark.long
async def test_reading_leaves_no_reference_behind():
    async def round_trips(n):
        for _ in range(n):
            for method in METHODS.values():
                task = asyncio.create_task(method.call(rio))
                await turns(2)
                task.cancel()
                await asyncio.wait([task])
                far.feed(method.data)
                assert await method.call(rio, timeout=30) == method.result
                rio.read_buffered()
                with rio.frame():
                    pass

    async with connected() as (rio, far):
        await round_trips(5)
        gc.collect()
        before = len(gc.get_objects())
        await round_trips(20)
        gc.collect()
        assert len(gc.get_objects()) - before < 30


@pytest.mark.slow
def test_a_hundred_thousand_calls_and_ten_thousand_connections_leave_nothing(run):
    async def main():
        async with connected() as (rio, far):
            for _ in range(1000):
                far.feed(b"x\n" * 100)
                for _ in range(100):
                    assert await rio.readline() == b"x\n"
        before = None
        for i in range(10_000):
            async with connected(timeout=5) as (rio, far):
                task = asyncio.create_task(rio.readline())
                await turns()
                far.feed(b"x\ny")
                assert await task == b"x\n"
            if i in (500, 9999):
                del rio, far, task
                gc.collect()
                counts = len(gc.get_objects())
                if before is None:
                    before = counts
        assert counts - before < 50
        assert len(asyncio.all_tasks()) == 1

    run(main(), debug=False)


NO_MEMORY = """
import asyncio, os, resource, socket, sys
import rioecho.aio

async def main():
    near, far = socket.socketpair()
    far.setblocking(False)
    rio = await rioecho.aio.wrap(near, max_line=None)
    line = b"x" * (1 << 20)
    reading = asyncio.create_task(rio.readline())
    sent = 0
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))
    while not reading.done() and sent < 256 << 20:
        try:
            sent += far.send(line)
        except BlockingIOError:
            pass
        await asyncio.sleep(0)
    try:
        await reading
    except MemoryError:
        pass
    else:
        raise SystemExit("no MemoryError")
    for _ in range(3):
        try:
            await rio.readline(timeout=0)
        except (MemoryError, BlockingIOError):
            pass
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    reading = asyncio.create_task(rio.readline())
    await asyncio.sleep(0)
    while True:
        try:
            far.send(b"end" + bytes([10]))
            break
        except BlockingIOError:
            await asyncio.sleep(0)
    got = await reading
    assert len(got) == sent + 4, (len(got), sent)
    assert got[:-4].count(b"x") == sent
    await rio.close()
    far.close()

asyncio.run(main())
"""


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="without memory the sanitizer aborts")
@pytest.mark.skipif(bool(resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY), reason="limited already")
def test_without_memory_the_call_raises_and_the_bytes_are_read_later(child):
    child(NO_MEMORY)
