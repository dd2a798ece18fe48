"""Writing on asyncio: what is sent when, back-pressure, time limits, and what a failed call has taken."""

import asyncio
import contextlib
import io
import os
import socket

import pytest

from rioecho import ConcurrentCall, aio, written
from support.aio import beside, by_kind, joined, needs_tcp_info, receive_all, segments_sent, turns, until

BIG = bytes(range(256)) * (1 << 12)  # 1 MiB, more than the kernel takes


# ---- when it is sent


@needs_tcp_info
async def test_what_one_turn_of_the_loop_writes_is_one_send():
    async with joined() as (rio, peer):
        before = segments_sent(rio)
        for _ in range(50):
            rio.write(b"word ")
        rio.writelines([b"and ", b"line\n"])
        assert segments_sent(rio) == before  # write() makes no system call
        await turns(3)
        assert segments_sent(rio) == before + 1
        assert await peer.readline() == b"word " * 50 + b"and line\n"


@needs_tcp_info
async def test_output_is_sent_before_a_read_waits():
    async with joined() as (rio, peer):
        before = segments_sent(rio)
        rio.write(b"question")
        rio.write(b"?\n")
        call = rio.readline()
        call.send(None)
        assert segments_sent(rio) == before + 1  # in the same turn
        call.close()
        assert await peer.readline() == b"question?\n"


@needs_tcp_info
async def test_answers_to_lines_that_came_together_are_one_send():
    async with joined() as (rio, peer):
        await rio.writen(b"line\n" * 30)
        before = segments_sent(peer)
        await peer.fill(150)
        for _ in range(30):
            peer.write(await peer.readline())
        waiting = asyncio.create_task(peer.readline())
        assert await rio.readexactly(150) == b"line\n" * 30
        assert segments_sent(peer) == before + 1
        waiting.cancel()


@by_kind
async def test_a_written_buffer_may_change_afterwards(kind):
    async with joined(kind) as (rio, peer):
        data = bytearray(b"first\n")
        assert rio.write(data) == 6
        data[:] = b"other\n"
        rio.writelines([memoryview(data)])
        data[:] = b"third\n"
        assert await peer.readline() == b"first\n"
        assert await peer.readline() == b"other\n"


async def test_writelines_buffers_nothing_if_an_item_is_wrong():
    def lines():
        yield b"one"
        raise KeyError

    async with joined() as (rio, peer):
        with pytest.raises(KeyError):
            rio.writelines(lines())
        with pytest.raises(TypeError):
            rio.writelines([b"two", "three"])
        with pytest.raises(TypeError):
            rio.writelines([b"two", 4])
        with pytest.raises(TypeError):
            rio.write("five")
        rio.writelines([b"", b"si", bytearray(b"x\n")])
        assert await peer.readline() == b"six\n"


@by_kind
async def test_writen_sends_what_was_written_before_it_first(kind):
    async with joined(kind) as (rio, peer):
        rio.write(b"one ")
        assert await rio.writen(b"two ") == 4
        rio.write(b"three\n")
        assert await rio.writen(b"") == 0
        assert await peer.readline() == b"one two three\n"


@by_kind
async def test_large_objects_arrive_whole(kind):
    async with joined(kind) as (rio, peer):
        rio.write(b"begin")
        reading = asyncio.create_task(peer.readexactly(5 + len(BIG) * 2 + 3))
        assert await rio.writen(memoryview(BIG)) == len(BIG)
        rio.write(BIG)
        rio.write(b"end")
        await rio.flush()
        assert await reading == b"begin" + BIG + BIG + b"end"


@by_kind
async def test_many_small_objects_arrive_in_order(kind):
    pieces = [b"%d\n" % n for n in range(100_000)]
    async with joined(kind) as (rio, peer):
        reading = asyncio.create_task(peer.readexactly(sum(map(len, pieces))))
        rio.writelines(pieces)
        await rio.flush()
        assert await reading == b"".join(pieces)


# ---- several tasks


@by_kind
async def test_write_beside_a_waiting_writen_is_appended(kind):
    async with joined(kind) as (rio, peer):
        writing = asyncio.create_task(rio.writen(BIG))
        await turns(3)
        rio.write(b"news\n")
        rio.writelines([b"more\n"])
        assert not writing.done()
        assert await peer.readexactly(len(BIG) + 10) == BIG + b"news\nmore\n"
        assert await writing == len(BIG)


@by_kind
async def test_a_second_call_that_writes_is_refused_and_disturbs_nothing(kind):
    async with joined(kind) as (rio, peer):
        writing = asyncio.create_task(rio.writen(BIG))
        await turns(3)
        for call in (rio.writen(b"other"), rio.flush(), rio.write_eof()):
            with pytest.raises(ConcurrentCall) as refused:
                await call
            assert written(refused.value) == 0
        assert await peer.readexactly(len(BIG)) == BIG
        assert await writing == len(BIG)
        await rio.writen(b"next\n")
        assert await peer.readline() == b"next\n"


@by_kind
async def test_flush_returns_although_another_task_goes_on_writing(kind):
    async with joined(kind) as (rio, peer):

        async def write_on():
            while True:
                rio.write(b"x" * 4096)
                await asyncio.sleep(0)

        async def read_on():
            while await peer.read1():
                pass

        others = [asyncio.create_task(write_on()), asyncio.create_task(read_on())]
        rio.write(BIG)
        async with asyncio.timeout(20):
            await rio.flush()
        for task in others:
            task.cancel()


# ---- back-pressure


@pytest.mark.long
@by_kind
async def test_an_echo_to_a_peer_that_never_reads_stays_bounded(kind):
    bufsize = 4096
    async with joined(kind, ours={"bufsize": bufsize}, theirs={"bufsize": bufsize}) as (rio, peer):
        taken = 0

        async def echo():
            nonlocal taken
            async for line in peer:
                taken += len(line)
                peer.write(line)

        echoing = asyncio.create_task(echo())
        with pytest.raises(TimeoutError):
            await rio.writen((b"z" * 63 + b"\n") * (1 << 17), timeout=0.3)
        # What was taken fits into the buffers of the kernel and those of the two Rios.
        assert taken < 1 << 20
        before = taken
        flushing = asyncio.create_task(rio.flush())
        assert await rio.read(1 << 20)
        await until(lambda: taken > before)  # it goes on when the peer reads
        flushing.cancel()
        echoing.cancel()


@by_kind
async def test_a_peer_is_read_from_again_when_the_output_was_sent(kind):
    async with joined(kind, theirs={"bufsize": 4096}) as (rio, peer):
        peer.write(BIG)
        await turns(5)
        await rio.writen(b"question\n")
        assert await rio.readexactly(len(BIG)) == BIG
        assert await peer.readline() == b"question\n"


# ---- time limits and cancellation


@by_kind
async def test_a_writen_that_is_out_of_time_goes_on_going_out(kind):
    async with joined(kind) as (rio, peer):
        with pytest.raises(TimeoutError, match=r"timed out after 0\.05 s") as error:
            await rio.writen(BIG, timeout=0.05)
        assert written(error.value) == error.value.characters_written == len(BIG)
        with pytest.raises(TimeoutError):
            await rio.flush(timeout=0.02)
        rio.write(b"end")
        assert await peer.readexactly(len(BIG) + 3) == BIG + b"end"


@by_kind
@pytest.mark.parametrize("how", ["timeout", "wait_for", "cancel"])
async def test_written_tells_of_a_writen_that_was_cancelled(kind, how):
    async with joined(kind) as (rio, peer):
        with pytest.raises((TimeoutError, asyncio.CancelledError)) as error:
            if how == "timeout":
                async with asyncio.timeout(0.02):
                    await rio.writen(BIG)
            elif how == "wait_for":
                await asyncio.wait_for(rio.writen(BIG), 0.02)
            else:
                task = asyncio.create_task(rio.writen(BIG))
                await turns(3)
                task.cancel()
                await task
        assert written(error.value) == len(BIG)
        reading = asyncio.create_task(peer.readexactly(len(BIG) + 3))
        await rio.writen(BIG[written(error.value) :] + b"end")
        assert await reading == BIG + b"end"


@by_kind
async def test_a_writen_cancelled_in_any_turn_has_taken_all_or_nothing(kind):
    async with joined(kind) as (rio, peer):
        expected = []
        for turn in range(12):
            data = b"%d " % turn * 20_000
            reading = asyncio.create_task(peer.read1(1))
            task = asyncio.create_task(rio.writen(data + BIG))
            await turns(turn)
            task.cancel()
            try:
                taken = await task
            except asyncio.CancelledError as error:
                taken = written(error)
            assert taken in (0, len(data) + len(BIG))
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                expected.append(bytes(await reading))
                peer.unread(expected.pop())
            whole = asyncio.create_task(peer.readexactly(taken + 3))
            await rio.writen(b"end")
            assert await whole == ((data + BIG)[:taken]) + b"end"


@by_kind
async def test_a_timeout_of_0_does_not_wait(kind):
    async with joined(kind) as (rio, peer):
        assert await rio.writen(b"small\n", timeout=0) == 6
        with pytest.raises(BlockingIOError) as error:
            await rio.writen(BIG, timeout=0)
        assert written(error.value) == len(BIG)
        with pytest.raises(BlockingIOError):
            await rio.flush(timeout=0)
        assert await peer.readexactly(6 + len(BIG)) == b"small\n" + BIG


async def test_a_wrong_timeout_takes_nothing():
    async with joined() as (rio, peer):
        with pytest.raises(ValueError, match="timeout"):
            await rio.writen(b"lost", timeout=-1)
        with pytest.raises(TypeError):
            await rio.flush(timeout="1")
        await rio.writen(b"kept\n")
        assert await peer.readline() == b"kept\n"


@pytest.mark.long
@by_kind
async def test_idle_output_is_a_timeout(kind):
    async with joined(kind, ours={"idle_timeout": 0.1}) as (rio, peer):
        with pytest.raises(TimeoutError, match="idle") as error:
            await rio.writen(BIG)
        assert written(error.value) == len(BIG)
        assert await peer.readexactly(len(BIG)) == BIG


@pytest.mark.slow
@by_kind
async def test_bytes_that_go_renew_the_idle_timeout(kind):
    async with joined(kind, ours={"idle_timeout": 0.4}, theirs={"bufsize": 1024}) as (rio, peer):
        writing = asyncio.create_task(rio.writen(BIG * 2))
        for _ in range(8):
            await peer.readexactly(len(BIG) // 4)
            await asyncio.sleep(0.1)
        assert await writing == len(BIG) * 2


# ---- the end


@by_kind
async def test_after_the_connection_is_lost_write_raises_what_ended_it(kind):
    async with joined(kind) as (rio, peer):
        await peer.writen(b"last\nwords")
        await rio.fill(10)
        peer.abort()
        if kind == "tls":
            await until(lambda: rio._is_lost())
        with pytest.raises(ConnectionError) as error:
            async with asyncio.timeout(20):
                while True:
                    rio.write(b"x" * 1000)
                    await rio.flush()
        assert written(error.value) == 0
        for _ in range(2):
            with pytest.raises(ConnectionError) as again:
                rio.write(b"more")
            assert not hasattr(again.value, "characters_written")
        with pytest.raises(ConnectionError):
            await rio.writen(b"more")
        assert await rio.readline() == b"last\n"  # what is held is read all the same


async def test_an_error_of_the_connection_is_a_new_object_each_time():
    async with joined() as (rio, peer):
        peer.write(b"unread")
        rio.write(BIG)
        await turns(5)
        peer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.abort()
        with pytest.raises(ConnectionError) as first:
            await rio.writen(b"more")
        assert written(first.value) == 4
        with pytest.raises(ConnectionError) as second:
            rio.write(b"x")
        assert second.value is not first.value
        assert written(second.value) == 0


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_write_eof_ends_the_output_and_reading_goes_on(kind):
    async with joined(kind) as (rio, peer):
        rio.write(b"last\n")
        await rio.write_eof()
        await rio.write_eof()  # again, it does nothing
        assert await peer.read() == b"last\n"
        with pytest.raises(BrokenPipeError):
            rio.write(b"more")
        with pytest.raises(BrokenPipeError):
            await rio.writen(b"more")
        await peer.writen(b"answer\n")
        assert await rio.readline() == b"answer\n"


async def test_a_write_eof_whose_flush_fails_ends_nothing():
    async with joined() as (rio, peer):
        rio.write(BIG)
        with pytest.raises(TimeoutError):
            await rio.write_eof(timeout=0.02)
        rio.write(b"more\n")
        assert await peer.readexactly(len(BIG) + 5) == BIG + b"more\n"


async def test_write_eof_over_tls_is_unsupported():
    async with joined("tls") as (rio, peer):
        rio.write(b"still\n")
        with pytest.raises(io.UnsupportedOperation):
            await rio.write_eof()
        rio.write(b"open\n")
        assert await peer.readexactly(11) == b"still\nopen\n"


async def test_write_on_a_closed_rio_is_a_value_error():
    async with joined() as (rio, _peer):
        await rio.close()
        with pytest.raises(ValueError, match="closed"):
            rio.write(b"x")
        with pytest.raises(ValueError, match="closed"):
            rio.writelines([])
        for call in (rio.writen(b"x"), rio.flush(), rio.write_eof()):
            with pytest.raises(ValueError, match="closed"):
                await call


async def test_a_blocking_peer_reads_what_was_written_to_the_end():
    async with beside("tcp") as (rio, other):
        receiving = asyncio.create_task(receive_all(other))
        rio.write(BIG)
        await rio.write_eof()
        assert await receiving == BIG


async def test_a_pipe_is_written_and_read():
    reader, writer = os.pipe()
    async with aio.wrap(reader) as rio, aio.wrap(writer) as out:
        out.write(b"a line\n")
        assert await rio.readline() == b"a line\n"
        sending = asyncio.create_task(out.writen(BIG))
        assert await rio.readexactly(len(BIG)) == BIG
        assert await sending == len(BIG)
        with pytest.raises(io.UnsupportedOperation):
            await out.write_eof()
        out.write(b"the end")
        await out.close()
        assert await rio.read() == b"the end"


async def test_the_other_direction_of_a_pipe_is_unsupported():
    reader, writer = os.pipe()
    async with aio.wrap(reader) as rio, aio.wrap(writer) as out:
        with pytest.raises(io.UnsupportedOperation, match="reading only"):
            rio.write(b"x")
        with pytest.raises(io.UnsupportedOperation, match="writing only"):
            await out.readline()
        out.write(b"a line\n")
        assert await rio.readline() == b"a line\n"


async def test_a_pipe_without_a_reader_is_a_broken_pipe():
    reader, writer = os.pipe()
    async with aio.wrap(writer) as out:
        sending = asyncio.create_task(out.writen(BIG))
        await turns(3)
        os.close(reader)
        with pytest.raises(BrokenPipeError) as error:
            await sending
        assert written(error.value) == len(BIG)
        with pytest.raises(BrokenPipeError):
            out.write(b"x")


async def test_flush_after_write_eof_has_nothing_to_do():
    async with joined() as (rio, peer):
        rio.write(b"last")
        await rio.write_eof()
        await rio.flush()
        assert await peer.read() == b"last"
