"""Servers on asyncio: what becomes of a connection when its handler returns, raises or is cancelled."""

import asyncio
import gc
import os
import socket
import ssl
import sys

import pytest

import rioecho.aio.serving
from rioecho import aio
from support.aio import tls_contexts, turns, until

BIG = bytes(range(256)) * (1 << 14)


def options(kind):
    """Return the options of a server and of a client."""
    server, client = tls_contexts()
    return ({"ssl": server}, {"ssl": client, "server_hostname": "localhost"}) if kind == "tls" else ({}, {})


class Served:
    """A server, and a function that connects to it."""

    def __init__(self, handler, kind="tcp", **more):
        self.theirs, self.ours = options(kind)
        self.opening = aio.start_server(handler, "127.0.0.1", 0, **self.theirs, **more)

    async def __aenter__(self):
        self.server = await self.opening
        self.address = self.server.sockets[0].getsockname()
        return self

    def connect(self):
        return aio.connect(*self.address, **self.ours)

    async def __aexit__(self, *exc):
        self.server.close()
        await self.server.wait_closed()


async def echo(rio):
    async for line in rio:
        rio.write(line)


def collect(loop):
    """Return a list that what goes to the loop's exception handler is added to."""
    came = []
    loop.set_exception_handler(lambda loop, context: came.append(context))
    return came


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_what_a_handler_wrote_is_flushed_when_it_returns(kind):
    async def handler(rio):
        rio.write(BIG)

    async with Served(handler, kind) as served, served.connect() as rio:
        assert await rio.read() == BIG


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_handler_that_raises_aborts_its_connection_and_is_reported(kind):
    async def handler(rio):
        rio.write(BIG)
        raise KeyError("of the handler")

    came = collect(asyncio.get_running_loop())
    async with Served(handler, kind) as served, served.connect() as rio:
        with_or_without_reset = (await asyncio.gather(rio.read(), return_exceptions=True))[0]
        assert isinstance(with_or_without_reset, OSError) or len(with_or_without_reset) < len(BIG)
    (context,) = came
    assert isinstance(context["exception"], KeyError)
    assert "handler" in context["message"]


async def test_a_handler_whose_own_connection_is_lost_is_silent():
    over = asyncio.Event()

    async def handler(rio):
        try:
            while True:
                await rio.writen(b"x" * 1000)
        finally:
            over.set()

    came = collect(asyncio.get_running_loop())
    async with Served(handler) as served:
        rio = await served.connect()
        await rio.read1()
        rio.abort()
        await over.wait()
    assert came == []


async def test_a_connection_error_of_something_else_is_reported():
    async def handler(rio):
        raise ConnectionRefusedError("of a database")

    came = collect(asyncio.get_running_loop())
    async with Served(handler) as served, served.connect() as rio:
        assert await rio.read() == b""
    assert [type(context["exception"]) for context in came] == [ConnectionRefusedError]


async def test_a_cancelled_handler_is_silent_and_aborts():
    began = asyncio.get_running_loop().create_future()

    async def handler(rio):
        began.set_result(asyncio.current_task())
        await rio.readline()

    came = collect(asyncio.get_running_loop())
    async with Served(handler) as served, served.connect() as rio:
        (await began).cancel()
        assert await rio.read() == b""
    assert came == []


async def test_a_handler_may_close_its_rio():
    async def handler(rio):
        rio.write(b"bye")
        await rio.close()

    came = collect(asyncio.get_running_loop())
    async with Served(handler) as served, served.connect() as rio:
        assert await rio.read() == b"bye"
    assert came == []


async def test_a_handler_that_is_no_coroutine_function_is_reported():
    came = collect(asyncio.get_running_loop())
    async with Served(lambda rio: None) as served, served.connect() as rio:
        assert await rio.read() == b""
    assert [type(context["exception"]) for context in came] == [TypeError]


async def test_a_handler_is_kept_while_it_waits_for_something_else():
    began, ended = asyncio.Event(), []

    class Waiting:
        def __await__(self):
            began.set()
            yield from asyncio.get_running_loop().create_future()

        def __del__(self):
            ended.append(True)

    async def handler(rio):
        await Waiting()

    async with Served(handler) as served, served.connect():
        await began.wait()
        gc.collect()
        await turns(3)
        assert ended == []
        for task in list(rioecho.aio.serving._running):
            task.cancel()


async def test_a_client_whose_handshake_fails_does_not_reach_the_handler():
    called = []

    async def handler(rio):
        called.append(rio)

    came = collect(asyncio.get_running_loop())
    async with Served(handler, "tls") as served:
        for words in (b"GET / HTTP/1.0\r\n\r\n", b"", b"\x16\x03\x01"):
            async with aio.connect(*served.address) as rio:
                rio.write(words)
                await rio.write_eof()
                with_or_without_reset = await asyncio.gather(rio.read(), return_exceptions=True)
                assert b"\n" not in (with_or_without_reset[0] if words else b"")
        with pytest.raises(ssl.SSLError):
            await aio.connect(*served.address, ssl=ssl.create_default_context())
        async with served.connect() as rio:  # it still serves
            assert await rio.read() == b""
    assert len(called) == 1
    assert came == []


async def test_a_handshake_that_never_comes_is_given_up():
    async with Served(echo, "tls", ssl_handshake_timeout=0.1) as served, aio.connect(*served.address) as rio:
        assert await rio.read() == b""


# ---- where it listens


async def test_it_listens_on_a_path(tmp_path):
    path = tmp_path / "socket"
    for place in (path, str(path), bytes(path)):
        async with aio.start_server(echo, place), aio.connect(path) as rio:
            await rio.writen(b"line\n")
            assert await rio.readline() == b"line\n"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_it_listens_on_a_socket(tmp_path, family):
    sock = socket.socket(family)
    sock.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket"))
    where = sock.getsockname()
    async with aio.start_server(echo, sock=sock), aio.connect(where) as rio:
        await rio.writen(b"line\n")
        assert await rio.readline() == b"line\n"


async def test_it_returns_the_server_of_the_loop():
    server = await aio.start_server(echo, "127.0.0.1", 0, backlog=7)
    other = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    other.close()
    await other.wait_closed()
    assert type(server) is type(other)
    assert server.is_serving()
    async with aio.connect(*server.sockets[0].getsockname()) as rio:
        await rio.write_eof()
        assert await rio.read() == b""
    server.close()
    await server.wait_closed()


async def test_options_are_those_of_the_rio():
    async def handler(rio):
        assert rio.timeout == 7
        assert rio.idle_timeout == 9
        rio.write(b"%d" % (await rio.readline() == b"y\n"))

    async with Served(handler, timeout=7, idle_timeout=9, bufsize=100, max_line=50) as served, served.connect() as rio:
        rio.write(b"y\n")
        assert await rio.read() == b"1"


async def test_wrong_arguments_are_refused():
    for arguments, more in [
        ((None, "127.0.0.1", 0), {}),
        ((echo,), {}),
        ((echo, "127.0.0.1", 0), {"ssl": True}),
        ((echo, "127.0.0.1", 0), {"wake_fd": 1}),
        ((echo, "127.0.0.1", 0), {"bufsize": "1"}),
    ]:
        with pytest.raises(TypeError):
            await aio.start_server(*arguments, **more)
    with socket.socket() as sock, pytest.raises(ValueError, match="sock=s"):
        await aio.start_server(echo, "127.0.0.1", 0, sock=sock)


async def test_it_is_a_coroutine():
    server = await asyncio.create_task(aio.start_server(echo, "127.0.0.1", 0))
    rio = await asyncio.wait_for(aio.connect(*server.sockets[0].getsockname()), 20)
    await rio.close()
    server.close()
    await server.wait_closed()
    opening = aio.start_server(echo, "127.0.0.1", 0)
    opening.close()


# ---- what is left


async def serve_many(number, kind, at_once=50):
    """Make connections; return the number of objects of each type that there are more of afterwards."""
    async with Served(echo, kind) as served:

        async def visit(n):
            async with served.connect() as rio:
                rio.write(b"line %d\n" % n)
                assert await rio.readline() == b"line %d\n" % n
                if n % 5 == 0:
                    rio.abort()

        async def visit_some(count):
            for first in range(0, count, at_once):
                await asyncio.gather(*(visit(n) for n in range(first, min(first + at_once, count))))
            await until(lambda: not rioecho.aio.serving._running)
            await turns(10)
            gc.collect()

        await visit_some(100)
        before = count_objects()
        await visit_some(number)
        after = count_objects()
    return {name: after[name] - before.get(name, 0) for name in after if after[name] > before.get(name, 0) + 10}


def count_objects():
    counts = {"descriptors": len(os.listdir("/dev/fd")), "tasks": len(asyncio.all_tasks())}
    for each in gc.get_objects():
        counts[type(each).__name__] = counts.get(type(each).__name__, 0) + 1
    counts["blocks"] = sys.getallocatedblocks() // 100
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_nothing_is_left_of_many_connections(run, kind):
    number = int(os.environ.get("RIOECHO_CONNECTIONS", "2000"))
    assert run(serve_many(number if kind == "tcp" else number // 10, kind), debug=False) == {}


async def test_a_block_left_by_an_exception_does_not_wait_for_clients():
    release = asyncio.Event()

    async def handler(rio):
        rio.write(b"hello\n")
        await rio.flush()
        await release.wait()

    with pytest.raises(KeyError):
        async with aio.start_server(handler, "127.0.0.1", 0) as server:
            client = await aio.connect(*server.sockets[0].getsockname())
            assert await client.readline() == b"hello\n"
            raise KeyError
    assert not server.is_serving()
    release.set()
    assert await client.readline() == b""
    await client.close()
