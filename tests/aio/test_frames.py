"""frame() on asyncio: several reads are one, whatever ends the block; a frame is a task's."""

import asyncio
import gc

import pytest

from rioecho import ConcurrentCall, IncompleteRead
from support.aio_protocols import READERS
from support.aio_wires import connected, turns, until
from support.protocols import PROTOCOLS


@pytest.mark.parametrize("how", ["cancel", "timeout", "timeout()", "wait_for", "after the next byte"])
@pytest.mark.parametrize("name", READERS)
async def test_a_message_interrupted_at_every_byte_is_read_whole(name, how):
    read, (_, stream, messages) = READERS[name], PROTOCOLS[name]
    got = []
    async with connected() as (rio, far):
        if how == "timeout":
            rio.timeout = 0.0005
        for byte in stream:
            held = rio.buffered
            if how == "timeout":
                with pytest.raises(TimeoutError):
                    got.append(await read(rio))
            elif how == "timeout()":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.0005):
                        got.append(await read(rio))
            elif how == "wait_for":
                with pytest.raises(TimeoutError):
                    got.append(await asyncio.wait_for(read(rio), 0.0005))
            else:
                task = asyncio.create_task(read(rio))
                await turns(2)
                if how != "cancel":
                    far.feed(bytes([byte]))
                    await turns(2 if byte % 2 else 1)  # in the turn in which the byte comes, or the next
                task.cancel()
                try:
                    got.append(await task)
                    assert how != "cancel"
                    continue
                except asyncio.CancelledError:
                    pass
            if how != "after the next byte":
                assert rio.buffered == held
                far.feed(bytes([byte]))
            await until(lambda n=held + 1: rio.buffered == n)
            try:
                rio.timeout = 0
                got.append(await read(rio))
            except BlockingIOError:
                assert rio.buffered == held + 1
            finally:
                rio.timeout = 0.0005 if how == "timeout" else None
    assert got == messages


async def head_and_body(rio):
    with rio.frame():
        return await rio.readline(), await rio.readexactly(4)


@pytest.mark.parametrize("first", ["head\n", "he", "head\nbo"])
async def test_any_exception_holds_again_what_was_read_and_what_has_come(first):
    async with connected() as (rio, far):
        far.feed(first.encode())
        for error in (KeyError, IncompleteRead, GeneratorExit):
            with pytest.raises(error), rio.frame():
                await rio.fill(2)
                await rio.read(2)
                raise error(b"", 1) if error is IncompleteRead else error()
        task = asyncio.create_task(head_and_body(rio))
        await turns(2)
        far.feed(b"head\nbody"[len(first) :])
        assert await task == (b"head\n", b"body")


async def test_calls_in_a_frame_may_run_in_tasks_of_their_own():
    async with connected() as (rio, far):
        far.feed(b"a\nb\nc\nd\nintoline")
        with rio.frame():
            assert await asyncio.wait_for(rio.readline(), 5) == b"a\n"
            assert await asyncio.gather(rio.readline()) == [b"b\n"]
            async with asyncio.TaskGroup() as group:
                task = group.create_task(rio.readline())
            assert task.result() == b"c\n"
            assert await asyncio.shield(rio.readline()) == b"d\n"
            buffer = bytearray(4)
            assert await asyncio.wait_for(rio.readinto(buffer), 5) == 4
            with rio.frame():
                assert await asyncio.create_task(rio.read(4)) == b"line"
        assert rio.buffered == 0


async def test_another_task_is_refused_until_the_frame_ends():
    async def other():
        for call in (rio.readline, rio.fill, rio.peek, lambda: rio.readinto(bytearray(1))):
            with pytest.raises(ConcurrentCall):
                await call()
        with pytest.raises(ConcurrentCall):
            rio.read_buffered()
        with pytest.raises(ConcurrentCall):
            rio.unread(b"x")
        with pytest.raises(ConcurrentCall), rio.frame():
            pass
        with pytest.raises(ConcurrentCall):
            async for _ in rio:
                pass

    async with connected() as (rio, far):
        far.feed(b"a\nb\n")
        await rio.fill(4)
        with rio.frame():
            assert await rio.readline() == b"a\n"
            await asyncio.create_task(other())
            with rio.frame():
                await asyncio.create_task(other())
        assert await asyncio.create_task(rio.readline()) == b"b\n"


async def test_a_frame_that_ends_while_a_call_of_it_waits_wakes_the_call():
    async with connected() as (rio, far):
        far.feed(b"a\nb")
        for method in (rio.readline, lambda: rio.readlines(1)):
            with pytest.raises(KeyError), rio.frame():
                assert await rio.readline() == b"a\n"
                task = asyncio.create_task(method())
                await turns(2)
                assert not task.done()
                raise KeyError
            assert await task in (b"a\n", [b"a\n"])
            assert rio.unread(b"a\n") == 2
        assert await rio.read(3) == b"a\nb"


async def test_a_frame_of_a_closed_rio_ends_without_effect():
    async with connected() as (rio, far):
        far.feed(b"a\n")
        with rio.frame():
            await rio.readline()
            await rio.close()
        assert rio.closed


async def test_a_frame_in_a_generator_that_is_closed_is_undone():
    async def lines():
        with rio.frame():
            while True:
                yield await rio.readline()

    async with connected() as (rio, far):
        far.feed(b"a\nb\n")
        generator = lines()
        assert await anext(generator) == b"a\n"
        assert await anext(generator) == b"b\n"
        await generator.aclose()
        assert await asyncio.create_task(rio.read(4)) == b"a\nb\n"


async def test_a_dropped_frame_is_undone_and_keeps_no_other_task_out():
    async def enter():
        frame = rio.frame()
        frame.__enter__()
        assert await rio.readline() == b"a\n"

    async with connected() as (rio, far):
        far.feed(b"a\nb\n")
        await asyncio.create_task(enter())
        gc.collect()
        assert await rio.read(4) == b"a\nb\n"


async def test_a_task_whose_frame_has_ended_is_not_kept():
    class Marked:
        pass

    async def enter(mark):
        with rio.frame():
            await rio.fill(1)

    async with connected() as (rio, far):
        far.feed(b"a")
        task = asyncio.create_task(enter(Marked()))
        await task
        del task
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, Marked)]


async def test_what_comes_in_a_frame_follows_what_is_held_again():
    async with connected(bufsize=4) as (rio, far):
        with pytest.raises(KeyError), rio.frame():
            task = asyncio.create_task(rio.readexactly(300))
            for _ in range(10):
                far.feed(b"0123456789" * 3)
                await turns(2)
            assert await task == b"0123456789" * 30
            far.feed(b"after")
            await rio.fill(5)
            raise KeyError
        assert await rio.read(305) == b"0123456789" * 30 + b"after"
