"""The streams of aio.streams over real connections: sockets, unix sockets, TLS, pipes, and back-pressure."""

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import sys
import warnings

import pytest

from rioecho.aio import streams
from support import certificates

BIG = bytes(range(256)) * 40_000  # 10 MB


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    return certificates.contexts(*certificates.make(tmp_path_factory.mktemp("certificate")))


@contextlib.asynccontextmanager
async def connected(handler, kind="tcp", contexts=None, limit=2**16, path=None):
    """Serve ``handler`` on a kind of socket, and give the streams of a connection to it."""
    server_tls, client_tls = contexts or (None, None)
    if kind == "unix":
        server = await streams.start_unix_server(handler, path, limit=limit, ssl=server_tls)
        name = "localhost" if client_tls else None
        opening = streams.open_unix_connection(path, limit=limit, ssl=client_tls, server_hostname=name)
    else:
        server = await streams.start_server(handler, "127.0.0.1", 0, limit=limit, ssl=server_tls)
        opening = streams.open_connection(*server.sockets[0].getsockname(), limit=limit, ssl=client_tls)
    try:
        reader, writer = await opening
        try:
            yield reader, writer
        finally:
            await close(writer)
    finally:
        server.close()
        await server.wait_closed()


async def close(writer):
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


async def echo(reader, writer):
    async for line in reader:
        writer.write(line)
        await writer.drain()
    await close(writer)


async def settle(condition):
    """Let the loop run until a condition holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


KINDS = [("tcp", False), ("tcp", True), ("unix", False), ("unix", True)]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "tls"), KINDS, ids=["tcp", "tcp-tls", "unix", "unix-tls"])
async def test_lines_and_large_data_go_both_ways(kind, tls, contexts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a short path
    async with connected(echo, kind, contexts if tls else None, path="socket") as (reader, writer):
        assert type(reader) is streams.StreamReader
        assert type(writer) is streams.StreamWriter
        writer.write(b"one\ntwo\n")
        assert await reader.readuntil(b"two") == b"one\ntwo"
        assert await reader.read(100) == b"\n"
        data = BIG[:2_000_000] + b"\n"
        sending = asyncio.create_task(send(writer, data))
        half = len(data) // 2
        assert await reader.readexactly(half) == data[:half]
        assert await reader.readexactly(len(data) - half) == data[half:]
        await sending
        if not tls:
            writer.write(b"unfinished")
            writer.write_eof()
            assert await reader.read() == b"unfinished"
            assert reader.at_eof()
            assert await reader.readline() == b""


async def send(writer, data):
    """Send data while the peer's echo of it is read."""
    for start in range(0, len(data), 60_000):
        writer.write(data[start : start + 60_000])
        await writer.drain()


async def test_what_comes_goes_into_the_readers_memory_with_asyncio():
    calls = []

    async def handler(reader, writer):
        writer.write(b"x" * 1000)
        await close(writer)

    async with connected(handler) as (reader, writer):
        protocol = writer.transport.get_protocol()
        assert isinstance(protocol, streams.StreamReaderProtocol)
        assert protocol is writer._protocol
        sys.setprofile(lambda frame, event, arg: calls.append(frame.f_code.co_name))
        try:
            assert await reader.read() == b"x" * 1000
        finally:
            sys.setprofile(None)
    uses_bytes = type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    assert ("data_received" in calls) is uses_bytes


class Counting(streams.StreamReader):
    fed = 0

    def feed_data(self, data):
        assert type(data) is bytes
        self.fed += len(data)
        super().feed_data(data)


class Tee(streams.StreamReaderProtocol):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.copy = b""

    def data_received(self, data):
        assert type(data) is bytes
        self.copy += data
        super().data_received(data)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_subclass_sees_all_bytes_in_its_feed_data_or_data_received(tls, contexts):
    data = BIG[:300_000]

    async def handler(reader, writer):
        writer.write(data)
        await close(writer)

    server_tls, client_tls = contexts if tls else (None, None)
    server = await streams.start_server(handler, "127.0.0.1", 0, ssl=server_tls)
    loop = asyncio.get_running_loop()
    for reader_class, protocol_class in [
        (Counting, streams.StreamReaderProtocol),
        (streams.StreamReader, Tee),
        (Counting, Tee),
    ]:
        reader = reader_class()
        protocol = protocol_class(reader)
        address = server.sockets[0].getsockname()
        name = "localhost" if tls else None
        transport, _ = await loop.create_connection(
            lambda p=protocol: p, *address, ssl=client_tls, server_hostname=name
        )
        assert await reader.read() == data
        assert getattr(reader, "fed", len(data)) == len(data)
        assert getattr(protocol, "copy", data) == data
        await close(streams.StreamWriter(transport, protocol, reader, loop))
    server.close()
    await server.wait_closed()


async def test_a_feed_data_that_is_set_on_one_reader_sees_its_bytes():
    async with connected(echo) as (reader, writer):
        fed, feed_data = [], reader.feed_data
        reader.feed_data = lambda data: (fed.append(data), feed_data(data))
        writer.write(b"line\n")
        assert await reader.readline() == b"line\n"
        assert fed == [b"line\n"]


# ---- back-pressure


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_peer_is_not_read_from_while_nobody_wants_more_and_loses_nothing(tls, contexts):
    limit = 100_000

    async def handler(reader, writer):
        writer.write(BIG)
        await writer.drain()
        await close(writer)

    async with connected(handler, contexts=contexts if tls else None, limit=limit) as (reader, _):
        await settle(lambda: reader._paused)
        assert 2 * limit < len(reader._buffer) <= 2 * limit + 2**18
        held = len(reader._buffer)
        await asyncio.sleep(0.01)
        assert len(reader._buffer) == held
        assert await reader.readexactly(len(BIG)) == BIG
        assert not reader._paused


async def test_readexactly_and_read_go_far_beyond_the_limit():
    async def handler(reader, writer):
        writer.write(BIG + BIG)
        await close(writer)

    async with connected(handler, limit=10) as (reader, _):
        assert await reader.readexactly(len(BIG)) == BIG
        assert await reader.read() == BIG


async def test_drain_waits_until_the_peer_reads():
    go_on = asyncio.Event()
    got = []

    async def handler(reader, writer):
        await go_on.wait()
        got.append(await reader.read())
        await close(writer)

    async with connected(handler) as (reader, writer):
        writer.write(BIG)
        draining = asyncio.create_task(writer.drain())
        _, pending = await asyncio.wait([draining], timeout=0.05)
        assert pending
        go_on.set()
        await draining
        writer.write_eof()
        assert await reader.read() == b""
    assert got == [BIG]


# ---- start_tls


@pytest.mark.long
async def test_start_tls_of_both_sides_keeps_reader_and_writer(contexts):
    server_tls, client_tls = contexts

    async def handler(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(server_tls)
        await echo(reader, writer)

    async with connected(handler) as (reader, writer):
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(client_tls, server_hostname="localhost")
        assert writer.get_extra_info("cipher")
        writer.write(b"secret\n")
        assert await reader.readline() == b"secret\n"
        data = b"".join(b"%d\n" % number for number in range(10_000))
        sending = asyncio.create_task(send(writer, data))
        assert await reader.readexactly(len(data)) == data
        await sending


# ---- the end of a connection


async def test_a_reset_is_raised_by_the_call_that_waits_and_by_those_after_it():
    async def handler(reader, writer):
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await reader.readline()
        writer.transport.abort()

    async with connected(handler) as (reader, writer):
        waiting = asyncio.create_task(reader.readline())
        await asyncio.sleep(0)
        writer.write(b"now\n")
        with pytest.raises(ConnectionResetError):
            await waiting
        assert isinstance(reader.exception(), ConnectionResetError)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)


async def test_a_handler_that_is_no_coroutine_function_is_called():
    served = asyncio.get_running_loop().create_future()
    async with connected(lambda reader, writer: served.set_result((reader, writer))) as (reader, writer):
        server_reader, server_writer = await served
        assert type(server_reader) is streams.StreamReader
        writer.write(b"x\n")
        assert await server_reader.readline() == b"x\n"
        server_writer.close()
        await server_writer.wait_closed()
        assert await reader.read() == b""


async def test_bytes_for_a_reader_that_was_dropped_are_received_and_discarded():
    served = asyncio.Event()

    async def handler(reader, writer):
        writer.write(BIG)
        await writer.drain()
        assert await reader.read() == b"done"
        await close(writer)
        served.set()

    server = await streams.start_server(handler, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    reader = streams.StreamReader()
    protocol = streams.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(lambda: protocol, *server.sockets[0].getsockname())
    del reader
    await settle(lambda: protocol._stream_reader is None)
    transport.write(b"done")
    transport.write_eof()
    await asyncio.wait_for(served.wait(), 60)
    transport.close()
    await protocol._get_close_waiter(None)
    server.close()
    await server.wait_closed()


async def test_many_connections_leave_no_reader_behind():
    gc.collect()
    before = sum(isinstance(each, streams.StreamReader) for each in gc.get_objects())
    server = await streams.start_server(echo, "127.0.0.1", 0)
    for _ in range(30):
        reader, writer = await streams.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x\n")
        assert await reader.readline() == b"x\n"
        await close(writer)
    server.close()
    await server.wait_closed()
    del reader, writer
    await settle(lambda: not gc.collect() and len(asyncio.all_tasks()) == 1)
    gc.collect()
    assert sum(isinstance(each, streams.StreamReader) for each in gc.get_objects()) == before


# ---- pipes


async def test_a_pipe_is_read_although_its_transport_only_calls_data_received():
    receiving, sending = os.pipe()
    reader = streams.StreamReader(limit=1000)
    loop = asyncio.get_running_loop()
    with open(receiving, "rb", 0) as pipe:
        transport, _ = await loop.connect_read_pipe(lambda: streams.StreamReaderProtocol(reader), pipe)
        os.write(sending, b"one\ntwo\n" + b"x" * 10_000)
        assert await reader.readline() == b"one\n"
        assert await reader.readline() == b"two\n"
        os.close(sending)
        assert await reader.read() == b"x" * 10_000
        transport.close()
        await asyncio.sleep(0)


async def test_cancelled_calls_on_a_connection_that_drips_lose_nothing():
    data = b"".join(b"%d\n" % number for number in range(300))

    async def handler(reader, writer):
        for start in range(0, len(data), 7):
            writer.write(data[start : start + 7])
            await asyncio.sleep(0)
        await close(writer)

    calls = [
        lambda reader: reader.readline(),
        lambda reader: reader.readuntil(b"7"),
        lambda reader: reader.readexactly(5),
        lambda reader: reader.read(3),
        lambda reader: reader.read(),
    ]
    async with connected(handler) as (reader, _):
        got, turn, cancelled = b"", 0, 0
        while not reader.at_eof():
            task = asyncio.ensure_future(taken(calls[turn % 5](reader)))
            turn += 1
            for _ in range(1 + turn % 3):
                await asyncio.sleep(0)
            task.cancel()
            try:
                got += await task
            except asyncio.CancelledError:
                cancelled += 1
        assert got == data
        assert cancelled


async def taken(awaitable):
    """Return what a call takes, that at the end included."""
    try:
        return await awaitable
    except asyncio.IncompleteReadError as error:
        return error.partial


async def test_an_unclosed_writer_warns_as_asyncios_does():
    if sys.version_info < (3, 12) and not hasattr(asyncio.StreamWriter, "__del__"):
        pytest.skip("asyncio's writer warns from 3.11.5 on")

    async def handler(reader, writer):
        await reader.read()
        await close(writer)

    server = await streams.start_server(handler, "127.0.0.1", 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reader, writer = await streams.open_connection(*server.sockets[0].getsockname())
        del reader, writer
        await settle(lambda: gc.collect() == 0 and len(asyncio.all_tasks()) == 1)
    assert any("unclosed <StreamWriter" in str(each.message) for each in caught)
    server.close()
    await server.wait_closed()
