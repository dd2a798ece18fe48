"""The end of a connection on asyncio: close(), abort(), ``async with``, and a Rio that is dropped."""

import asyncio
import contextlib
import gc
import socket
import ssl
import threading
import time
import warnings

import pytest

from rioecho import aio
from support.aio import beside, by_kind, is_open, joined, receive_all, tls_contexts, turns, until
from support.peers import reset

BIG = bytes(range(256)) * (1 << 12)  # 1 MiB, more than the kernel takes


def descriptor_of(rio):
    return rio.get_extra_info("socket").fileno()


# ---- close()


@by_kind
async def test_close_sends_what_was_written_and_closes_the_descriptor(kind):
    async with joined(kind) as (rio, peer):
        fd = descriptor_of(rio)
        rio.write(BIG)
        rio.write(b"end")
        reading = asyncio.create_task(peer.read())
        await rio.close()
        assert not is_open(fd)
        assert rio.closed
        assert await reading == BIG + b"end"


async def test_repr_says_what_a_rio_is_over_and_what_it_holds_after_the_end():
    async with beside("tcp") as (rio, other):
        assert repr(rio).startswith("<rioecho.aio.Rio over <")
        await asyncio.get_running_loop().sock_sendall(other, b"left")
        await rio.fill(4)
        reset(other)
        await until(lambda: "lost" in repr(rio))
        assert repr(rio) == "<rioecho.aio.Rio holding 4 bytes, lost>"
    assert repr(rio) == "<rioecho.aio.Rio closed>"


@by_kind
async def test_close_again_does_nothing(kind):
    async with joined(kind) as (rio, peer):
        for _ in range(3):
            await rio.close()
        await rio.aclose()
        rio.abort()
        assert await peer.read() == b""


@by_kind
async def test_two_tasks_may_close(kind):
    async with joined(kind) as (rio, peer):
        fd = descriptor_of(rio)
        rio.write(BIG)
        closing = [asyncio.create_task(rio.close()) for _ in range(3)]
        assert await peer.read() == BIG
        await asyncio.gather(*closing)
        assert not is_open(fd)


@by_kind
async def test_close_waits_for_the_output_of_another_task(kind):
    async with joined(kind) as (rio, peer):
        writing = asyncio.create_task(rio.writen(BIG))
        await turns(2)
        closing = asyncio.create_task(rio.close())
        assert await peer.read() == BIG
        assert await writing == len(BIG)
        await closing


@by_kind
async def test_a_read_that_waits_is_ended_with_a_value_error(kind):
    for end in (aio.Rio.close, aio.Rio.abort):
        async with joined(kind) as (rio, _peer):
            waiting = [asyncio.create_task(rio.readline())]
            await turns(2)
            ended = end(rio)
            if ended is not None:
                await ended
            for call in waiting:
                with pytest.raises(ValueError, match="closed"):
                    await call


@by_kind
async def test_a_cancelled_close_has_aborted(kind):
    async with joined(kind) as (rio, peer):
        fd = descriptor_of(rio)
        rio.write(BIG)
        closing = asyncio.create_task(rio.close())
        await turns(5)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await until(lambda: not is_open(fd))
        with contextlib.suppress(ConnectionError):
            assert len(await peer.read()) < len(BIG)


@by_kind
async def test_a_close_cancelled_in_any_turn_leaves_nothing(kind):
    for turn in range(1, 9):
        async with joined(kind) as (rio, peer):
            fd = descriptor_of(rio)
            rio.write(b"x" * 100_000)
            reading = asyncio.create_task(peer.read())
            closing = asyncio.create_task(rio.close())
            await turns(turn)
            closing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await closing
            await until(lambda fd=fd: not is_open(fd))
            with contextlib.suppress(ConnectionError):
                await reading


@by_kind
async def test_a_close_out_of_time_has_aborted(kind):
    async with joined(kind) as (rio, _peer):
        fd = descriptor_of(rio)
        rio.write(BIG)
        with pytest.raises(TimeoutError):
            await rio.close(timeout=0.05)
        await rio.close()  # waits until the descriptor is closed
        assert not is_open(fd)


@pytest.mark.long
@by_kind
async def test_the_timeout_of_the_rio_is_that_of_close(kind):
    async with joined(kind, ours={"timeout": 0.5}) as (rio, _peer):
        rio.write(BIG)
        with pytest.raises(TimeoutError):
            await rio.close()


@by_kind
async def test_a_close_that_is_out_of_time_without_output_is_silent(kind):
    async with joined(kind) as (rio, _peer):
        fd = descriptor_of(rio)
        await rio.close(timeout=0)
        await until(lambda: not is_open(fd))


async def test_close_raises_if_accepted_output_is_lost():
    async with joined() as (rio, peer):
        peer.write(b"unread")
        rio.write(BIG)
        await turns(5)
        peer.abort()
        await until(rio._is_lost)
        with pytest.raises(ConnectionError):
            await rio.close()
        await rio.close()


async def test_close_is_silent_about_a_loss_that_a_write_has_told():
    async with joined() as (rio, peer):
        sending = asyncio.create_task(rio.writen(BIG))
        await turns(5)
        peer.abort()
        with pytest.raises(ConnectionError):
            await sending
        await rio.close()


@by_kind
async def test_close_is_silent_if_the_peer_has_ended_and_nothing_is_lost(kind):
    async with joined(kind) as (rio, peer):
        await rio.writen(b"question")
        assert await peer.read1() == b"question"
        await peer.close()
        assert await rio.read() == b""
        await rio.close()


async def test_close_over_tls_does_not_wait_for_the_peers_close_notify(background):
    server, client = tls_contexts()
    listener = socket.create_server(("127.0.0.1", 0))
    shaken, over = threading.Event(), threading.Event()
    came = []

    def serve():
        with listener, listener.accept()[0] as sock, server.wrap_socket(sock, server_side=True) as peer:
            shaken.set()
            over.wait(20)
            peer.settimeout(20)
            came.append(peer.read())
            with contextlib.suppress(ssl.SSLError):  # what it says is the end that close_notify tells of
                came.append(peer.read())

    background(serve)
    rio = await aio.connect(*listener.getsockname(), ssl=client, server_hostname="localhost")
    fd = descriptor_of(rio)
    await asyncio.to_thread(shaken.wait, 20)
    rio.write(b"last")
    began = time.monotonic()
    await rio.close()
    assert time.monotonic() - began < 10  # asyncio waits for 30 seconds
    assert not is_open(fd)
    over.set()
    await asyncio.to_thread(lambda: [None for _ in iter(lambda: len(came) < 2, False)])
    assert came == [b"last", b""]


# ---- abort()


@by_kind
async def test_abort_ends_a_writen_that_waits(kind):
    async with joined(kind) as (rio, _peer):
        fd = descriptor_of(rio)
        sending = asyncio.create_task(rio.writen(BIG))
        await turns(5)
        rio.abort()
        with pytest.raises(ConnectionAbortedError):
            await sending
        await rio.close()
        assert not is_open(fd)
        with pytest.raises(ValueError, match="closed"):
            await rio.read()


# ---- async with


@by_kind
async def test_async_with_closes(kind):
    async with joined(kind) as (rio, peer):
        reading = asyncio.create_task(peer.read())
        async with rio as same:
            assert same is rio
            rio.write(BIG)
        assert rio.closed
        assert await reading == BIG
        with pytest.raises(ValueError, match="closed"):
            async with rio:
                pass


@by_kind
async def test_async_with_left_by_an_exception_aborts(kind):
    async with joined(kind) as (rio, _peer):
        fd = descriptor_of(rio)
        with pytest.raises(KeyError):
            async with rio:
                rio.write(BIG)
                raise KeyError
        assert not is_open(fd)


# ---- a Rio that is dropped


async def test_a_rio_without_an_owner_warns_and_closes():
    mine, other = socket.socketpair()
    other.setblocking(False)
    with other:
        rio = await aio.wrap(mine)
        fd = mine.fileno()
        rio.write(BIG)
        with pytest.warns(ResourceWarning, match="unclosed <rioecho"):  # noqa: PT031
            del rio
            gc.collect()
        await until(lambda: not is_open(fd))
        assert await receive_all(other) == b""


async def test_a_rio_may_be_dropped_in_another_thread():
    mine, other = socket.socketpair()
    other.setblocking(False)
    with other:
        rios = [await aio.wrap(mine)]
        with pytest.warns(ResourceWarning, match="unclosed <rioecho"):  # noqa: PT031
            await asyncio.to_thread(rios.clear)
            gc.collect()
        assert await receive_all(other) == b""


def test_a_rio_may_outlive_its_loop(loop_factory):
    mine, other = socket.socketpair()
    with other, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # the loops' own destructors do not end what they do if a warning is an error
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            rio = runner.run(open_one(mine))
        del rio, runner, mine
        gc.collect()
        messages = [str(caught.pop().message) for _ in range(len(caught))]  # a warning refers to its source
        gc.collect()
        assert "unclosed <rioecho" in str(messages)
        other.settimeout(20)
        assert other.recv(1) == b""


async def open_one(sock):
    return await aio.wrap(sock)


async def test_a_rio_is_kept_while_a_call_waits():
    mine, other = socket.socketpair()
    other.setblocking(False)
    with other:
        call = (await aio.wrap(mine)).readline()
        waiting = asyncio.ensure_future(call)
        del call
        await turns(2)
        gc.collect()
        other.send(b"line\n")
        with pytest.warns(ResourceWarning, match="unclosed <rioecho"):  # noqa: PT031
            assert await waiting == b"line\n"
            del waiting
            await turns(3)  # the loop drops the handle of the task's last step
            gc.collect()
        await turns(3)


async def test_information_about_a_connection_is_there_after_its_end():
    async with beside("tcp") as (rio, _):
        name = rio.get_extra_info("peername")
        await rio.close()
        assert rio.get_extra_info("peername") == name
        assert rio.get_extra_info("nothing", 5) == 5


async def test_information_that_is_asked_for_only_after_the_end_is_that_or_the_default(tmp_path):
    answers = asyncio.get_running_loop().create_future()

    async def handler(rio):
        rio.abort()
        await rio.close()
        try:
            answers.set_result(rio.get_extra_info("peername", "the default"))
        except Exception as error:
            answers.set_exception(error)

    async with aio.start_server(handler, tmp_path / "socket"), aio.connect(tmp_path / "socket") as rio:
        assert await answers in ("", "the default")
        assert await rio.read() == b""


async def test_a_dropped_rio_sends_nothing_though_the_recorded_warning_keeps_it():
    mine, other = socket.socketpair()
    with other:
        rio = await aio.wrap(mine)
        rio.write(b"not flushed")
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always")
            del rio
            gc.collect()
            await until(lambda: mine.fileno() < 0)
        assert other.recv(100) == b""
        assert [warning.category for warning in recorded] == [ResourceWarning]
