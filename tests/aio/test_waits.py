"""Waiting for input on asyncio: timeouts, back-pressure, the end of the connection, and the memory lent to the loop."""

import asyncio
import gc
import socket
import time
import weakref

import pytest

from rioecho.aio import connect
from rioecho.aio.rio import open_rio
from support.aio_wires import KINDS, connected, turns, until


@pytest.mark.long
async def test_the_timeout_is_for_the_whole_call_and_idle_for_a_silence():
    async with connected() as (rio, far):
        for options, message in [((0.15, None), "after 0.15"), ((None, 0.12), "idle"), ((5, 0.12), "idle")]:
            rio.timeout, rio.idle_timeout = options
            start = time.monotonic()
            task = asyncio.create_task(rio.readline())
            await asyncio.sleep(0.01)
            far.feed(b"x")
            await asyncio.sleep(0.01)
            far.feed(b"x")
            with pytest.raises(TimeoutError, match=message):
                await task
            assert time.monotonic() - start >= (0.15 if options[0] == 0.15 else 0.135)
            assert rio.read_buffered() == b"xx"


async def test_idle_is_counted_from_when_it_is_set_while_a_call_waits():
    async with connected() as (rio, _):
        task = asyncio.create_task(rio.readline())
        await asyncio.sleep(0.03)
        start = time.monotonic()  # not after it is set: this thread may be put off in between
        rio.idle_timeout = 0.02
        with pytest.raises(TimeoutError, match="idle"):
            await task
        assert time.monotonic() - start >= 0.018
        rio.idle_timeout = 5
        task = asyncio.create_task(rio.readline())
        await turns(2)
        rio.idle_timeout = None
        await turns(2)
        assert not task.done()
        task.cancel()


async def test_a_timeout_set_while_a_call_waits_is_that_of_the_next_call():
    async with connected() as (rio, far):
        task = asyncio.create_task(rio.readline())
        await turns(2)
        rio.timeout = 0.001
        await asyncio.sleep(0.02)
        assert not task.done()
        far.feed(b"line\n")
        assert await task == b"line\n"
        with pytest.raises(TimeoutError, match=r"0\.001"):
            await rio.readline()


async def test_a_shorter_timeout_after_a_longer_one_is_kept():
    async with connected() as (rio, far):
        for limit in (30, 0.01, 30, 0.005):
            start = time.monotonic()
            if limit == 30:
                far.feed(b"x\n")
                assert await rio.readline(timeout=limit) == b"x\n"
            else:
                with pytest.raises(TimeoutError):
                    await rio.readline(timeout=limit)
                assert limit * 0.9 <= time.monotonic() - start < 5


@pytest.mark.long
async def test_thousands_of_calls_with_a_timeout_leave_one_timer():
    loop = asyncio.get_running_loop()
    if not hasattr(loop, "_scheduled"):
        pytest.skip("uvloop does not show its timers")
    async with connected(timeout=60, idle_timeout=50) as (rio, far):
        for _ in range(2000):
            task = asyncio.create_task(rio.readline())
            await turns()
            far.feed(b"x\n")
            assert await task == b"x\n"
        assert len([each for each in loop._scheduled if not each.cancelled()]) <= 1
    assert not [each for each in loop._scheduled if not each.cancelled()]


async def test_a_timeout_of_zero_takes_what_is_held_and_never_waits():
    async with connected() as (rio, far):
        far.feed(b"a\nb")
        await rio.fill(3)
        call = rio.readline(timeout=0)
        with pytest.raises(StopIteration) as stop:
            call.send(None)
        assert stop.value.value == b"a\n"
        with pytest.raises(BlockingIOError):
            rio.readline(timeout=0).send(None)
        assert rio.read_buffered() == b"b"


# ---- back-pressure


@pytest.mark.parametrize("bufsize", [1, 100, 4096])
@pytest.mark.parametrize("kind", ["unix", "tcp", "pipe"])
async def test_a_peer_is_not_read_from_beyond_bufsize_and_everything_comes_after_that(kind, bufsize):
    async with connected(kind, bufsize=bufsize) as (rio, far):
        sent = far.flood()
        await turns(20)
        held = rio.buffered
        assert held <= 4 * bufsize + 64
        await turns(20)
        assert rio.buffered == held
        far.end_output()
        assert await rio.read() == sent
        assert await rio.read() == b""


async def test_reading_goes_on_when_little_is_held_although_no_call_waits():
    async with connected(bufsize=256) as (rio, far):
        sent = far.flood()
        await turns(10)
        got = b""
        for _ in range(200):
            while rio.has_line():
                got += await rio.readline(timeout=0)
            await until(rio.has_line)
        assert sent.startswith(got)
        assert len(got) > 200 * 8
        while rio.buffered:
            got += rio.read_buffered()
            await turns(3)
        assert got == sent


async def test_a_call_that_wants_more_than_bufsize_gets_it_and_gives_the_memory_back():
    async with connected(bufsize=512) as (rio, far):
        sent = b""
        task = asyncio.create_task(rio.readexactly(1_000_000))
        while len(sent) < 1_000_000:
            sent += far.flood()
            await turns()
        data = await task
        assert data == sent[:1_000_000]
        rest = sent[1_000_000:]
        assert await rio.read(len(rest)) == rest
        assert rio.buffered == 0


@pytest.mark.long
async def test_the_end_of_the_input_behind_a_pause_comes_over_tls(tls_contexts, background):
    """TLS asks for memory once at the end of its input: all that it has must fit."""
    listener = socket.create_server(("127.0.0.1", 0))
    data = b"0123456\n" * 300_000

    def serve():
        with listener, listener.accept()[0] as sock, tls_contexts[0].wrap_socket(sock, server_side=True) as tls:
            tls.sendall(data)

    background(serve)
    rio = await connect(
        *listener.getsockname(), ssl=tls_contexts[1], server_hostname="localhost", bufsize=1000, timeout=20
    )
    got = []
    for wait in (True, False):
        while line := await rio.readline():
            got.append(line)
            if wait and len(got) % 5000 == 0:
                await asyncio.sleep(0.001)
    assert b"".join(got) == data
    await rio.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_all_that_came_before_the_end_is_read_after_it(kind, tls_contexts):
    async with connected(kind, tls_contexts, bufsize=64) as (rio, far):
        for _ in range(8):
            far.feed(b"1234567\n" * 500)
            await turns(2)
        far.end_output()
        far.close()
        await turns(5)
        assert [line async for line in rio] == [b"1234567\n"] * 4000


# ---- the end by an error


async def test_a_reset_comes_after_the_held_lines_and_each_time():
    async with connected("tcp") as (rio, far):
        far.feed(b"a\nb\nrest")
        await rio.fill(8)
        far.reset()
        assert await rio.readline() == b"a\n"
        assert [await rio.readline(), rio.buffered] == [b"b\n", 4]
        errors = []
        for call in (rio.readline, rio.read, rio.readlines, lambda: rio.fill(5), lambda: rio.readexactly(5)):
            with pytest.raises(ConnectionResetError) as caught:
                await call()
            errors.append(caught.value)
            assert rio.buffered == 4
        assert len({id(error) for error in errors}) == len(errors)
        assert await rio.read(4) == b"rest"
        with pytest.raises(ConnectionResetError):
            await rio.read1()


async def test_a_waiting_call_gets_the_reset_and_keeps_what_came():
    async with connected("tcp") as (rio, far):
        task = asyncio.create_task(rio.readline())
        await turns(2)
        far.feed(b"half")
        await until(lambda: rio.buffered == 4)
        far.reset()
        with pytest.raises(ConnectionResetError):
            await task
        assert await rio.read1() == b"half"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_the_last_words_of_a_peer_are_read_when_a_write_fails(kind):
    async with connected(kind, bufsize=64) as (rio, far):
        words = b"7654321\n" * 1000
        for _ in range(4):
            far.feed(words)
        await turns(5)  # the Rio is not read from any more, and most is in the kernel
        assert rio.buffered < 2000
        far.close()
        await turns()
        with pytest.raises(OSError, match=r"."):
            for _ in range(50):
                await rio.writen(b"x" * 1000)
        got = []
        with pytest.raises((ConnectionError, BrokenPipeError)):
            while line := await rio.readline():
                got.append(line)
            raise BrokenPipeError  # an orderly end is right too
        assert b"".join(got) == words * 4


async def test_close_ends_a_waiting_call_by_an_error():
    for end in ("close", "abort"):
        async with connected() as (rio, far):
            task = asyncio.create_task(rio.readline())
            await turns(2)
            far.feed(b"half")
            await turns()
            result = getattr(rio, end)()
            if result is not None:
                await result
            with pytest.raises(ValueError, match="closed"):
                await task
            with pytest.raises(ValueError, match="closed"):
                await rio.readline()


# ---- the memory that is lent to the loop


def unconnected(bufsize):
    """Return a Rio without a connection, and the protocol that the loop would call."""
    return open_rio(asyncio.get_running_loop(), bufsize=bufsize)


async def test_a_loop_that_keeps_its_views_reads_memory_that_exists():
    rio, protocol = unconnected(16)
    views, sent = [], b""
    for i in range(200):
        view = protocol.get_buffer(-1)
        views.append(view)
        data = b"%03d;" % i
        data = data[: len(view)]
        view[: len(data)] = data
        protocol.buffer_updated(len(data))
        sent += data
        if i % 7 == 0:
            n = rio.buffered // 2
            assert await rio.read(n) == sent[:n]
            sent = sent[n:]
        if i % 11 == 0:
            rio.unread(b"front")
            sent = b"front" + sent
    for view in views:
        bytes(view)
        with pytest.raises(BufferError):
            memoryview(view.obj)
    rio.abort()
    del views, view
    gc.collect()


@pytest.mark.parametrize("meanwhile", ["read", "unread", "both", "frame", "nothing", "grow", "again"])
async def test_what_python_code_does_while_the_loop_stores_bytes_does_not_harm_them(meanwhile):
    for held in (0, 1, 5, 40):
        rio, protocol = unconnected(8)
        front = bytes(range(65, 65 + held))
        protocol.data_received(front)
        view = protocol.get_buffer(-1)
        n = min(len(view), 6)
        view[:n] = b"comes!"[:n]
        expected = front
        if meanwhile in ("read", "both"):
            assert rio.read_buffered() == front
            expected = b""
        if meanwhile in ("unread", "both"):
            rio.unread(b"xyz")
            expected = b"xyz" + expected
        if meanwhile == "frame":
            with rio.frame():
                assert await rio.read(held) == front
            expected = b""
        if meanwhile == "grow":
            rio.unread(b"-" * 5000)
            expected = b"-" * 5000 + expected
        if meanwhile == "again":
            rio.unread(b"1")
            rio.read_buffered()
            rio.unread(b"2345678")
            expected = b"2345678"
        protocol.buffer_updated(n)
        del view
        assert rio.read_buffered() == expected + b"comes!"[:n]
        rio.abort()


async def test_a_view_in_a_cycle_is_collected():
    made = []
    for _ in range(50):
        rio, protocol = unconnected(64)
        made.append(weakref.ref(rio))
        view = protocol.get_buffer(-1)
        cycle = [view, view.obj, rio, protocol]
        cycle.append(cycle)
        rio.abort()
        del rio, protocol, view, cycle
    gc.collect()
    assert not any(rio() for rio in made)


async def test_bytes_that_come_after_close_are_dropped():
    rio, protocol = unconnected(64)
    rio.abort()
    view = protocol.get_buffer(-1)
    view[:3] = b"abc"
    protocol.buffer_updated(3)
    protocol.data_received(b"abc")
    with pytest.raises(ValueError, match="closed"):
        rio.read_buffered()
