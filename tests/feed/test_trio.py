"""Feed in a client on trio, whose receive_some() is cancelled at random: no byte is lost or read twice."""

import random
import socket
import threading

import pytest

from rioecho import Feed
from support.protocols import PROTOCOLS, Missing

SECONDS = 100


@pytest.fixture
def trio():
    return pytest.importorskip("trio", reason="trio is not installed")


class Client:
    """A reader on a trio stream. Each of its coroutines can be cancelled at any point and called again."""

    def __init__(self, stream):
        self.stream = stream
        self.feed = Feed()
        self.sizes = random.Random(0)

    async def more(self):
        """Wait for bytes, few at a time, and pass them to the feed, or the end."""
        data = await self.stream.receive_some(self.sizes.choice([1, 10, 300]))
        if data:
            self.feed.feed(data)
        else:
            self.feed.feed_eof()

    async def readline(self):
        while (line := self.feed.readline()) is None:
            await self.more()
        return line

    async def message(self, read):
        """Read a message with a function of support/protocols.py."""
        while True:
            try:
                return read(self.feed)
            except Missing:
                await self.more()


def sent(data, seed):
    """Send the data in random pieces over a TCP connection, in a thread, and return the port and the thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(SECONDS)

    def send():
        pieces = random.Random(seed)
        at = 0
        with listener, listener.accept()[0] as far:
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while at < len(data):
                size = pieces.choice([1, 7, 100, 5000])
                far.sendall(data[at : at + size])
                at += size

    thread = threading.Thread(target=send)
    thread.start()
    return listener.getsockname()[1], thread


def through_cancellations(trio, data, call, times):
    """Await ``call(client)`` until it has returned so often, cancelled at random points.

    Returns the results, the bytes that are left at the end, and the number of cancellations.
    """
    port, thread = sent(data, seed=1)
    chance = random.Random(2)
    results, rest = [], []
    cancelled = 0

    async def receive():
        nonlocal cancelled
        with trio.fail_after(SECONDS):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                client = Client(stream)
                while len(results) < times:
                    with trio.move_on_after(chance.choice([0, 1e-5, 1e-4, SECONDS])) as scope:
                        if chance.random() < 0.1:
                            scope.cancel()  # at the next point where it waits
                        results.append(await call(client))
                    cancelled += scope.cancelled_caught
                while client.feed.read() is None:
                    rest.append(client.feed.read_buffered())
                    await client.more()

    trio.run(receive)
    thread.join()
    return results, b"".join(rest), cancelled


@pytest.mark.parametrize("lines", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_trio_client_reads_all_lines_through_cancellations(trio, lines):
    data = b"".join(b"%d %s\n" % (i, b"x" * (i % 40)) for i in range(lines))
    got, rest, cancelled = through_cancellations(trio, data + b"the rest", Client.readline, lines)
    assert got == data.splitlines(keepends=True)
    assert rest == b"the rest"
    assert cancelled > 20


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_trio_client_reads_all_messages_of_a_protocol_through_cancellations(trio, name):
    read, stream, messages = PROTOCOLS[name]
    messages = messages * 100

    async def call(client):
        return await client.message(read)

    got, rest, cancelled = through_cancellations(trio, stream * 100 + b"the rest", call, len(messages))
    assert got == messages
    assert rest == b"the rest"
    assert cancelled > 5


def test_two_trio_tasks_that_take_turns_share_a_feed(trio):
    data = b"".join(b"%d\n" % i for i in range(2000))
    port, thread = sent(data, seed=3)
    got = []

    async def receive():
        with trio.fail_after(SECONDS):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:
                client = Client(stream)
                turn = trio.Lock()

                async def lines():
                    while True:
                        async with turn:
                            line = await client.readline()
                        if not line:
                            return
                        got.append(line)

                nursery.start_soon(lines)
                nursery.start_soon(lines)

    trio.run(receive)
    thread.join()
    assert sorted(got, key=int) == data.splitlines(keepends=True)
