"""The rows about rioecho.aio, compared with asyncio's streams, on asyncio's event loop and on uvloop.

In the rows about reading, both sides run alternately in this process, and every line is held before it is read: the
cost is that of the calls, without the event loop, the kernel and the sender. It is processor time, as nothing waits.
"""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from measure import Measured, Meter, Row, Settings, Skipped
from processes import on_a_loop
from rows_server import traffic
from wire import LINE

from rioecho import aio

LINES = 1000
TURNS = 100  # in each run
PAIRS = 15
DATA = LINE * LINES
LIMIT = 1 << 20  # of a StreamReader, so that it holds DATA

Side = tuple[Any, Callable[[], Awaitable[Any]]]  # a reader, and what makes it hold DATA


async def by_readline(reader: Any) -> None:
    readline = reader.readline
    for _ in repeat(None, LINES):
        await readline()


async def by_iteration(reader: Any) -> None:
    count = 0
    async for _ in reader:
        count += 1
        if count == LINES:
            break


async def by_readlines1(reader: Any) -> None:
    count = 0
    while count < LINES:
        count += len(await reader.readlines1())


@asynccontextmanager
async def rio() -> AsyncIterator[Side]:
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * len(DATA))
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * len(DATA))
    with far:
        async with aio.wrap(near) as reader:

            async def hold() -> None:
                far.sendall(DATA)
                await reader.fill(len(DATA))

            yield reader, hold


@asynccontextmanager
async def stream(make: Callable[..., Any] = asyncio.StreamReader) -> AsyncIterator[Side]:
    reader = make(limit=LIMIT)

    async def hold() -> None:
        reader.feed_data(DATA)

    yield reader, hold


@asynccontextmanager
async def our_stream() -> AsyncIterator[Side]:
    from rioecho.aio import streams

    async with stream(streams.StreamReader) as side:
        yield side


async def by_awaiting(done: asyncio.Future[bytes]) -> None:
    for _ in repeat(None, LINES):
        await done


@asynccontextmanager
async def done_future() -> AsyncIterator[Side]:
    """What is awaited has its result, and nothing is read: what the interpreter and a loop's fastest awaitable need."""
    future = asyncio.get_running_loop().create_future()
    future.set_result(LINE)

    async def hold() -> None:
        pass

    yield future, hold


@dataclass
class Held:
    """A comparison of two ways to read lines that are held, on ``loop``."""

    loop: str
    ours: tuple[Callable[[], Any], Callable[[Any], Awaitable[None]]]
    peer: tuple[Callable[[], Any], Callable[[Any], Awaitable[None]]]

    def __call__(self, settings: Settings) -> Measured:
        factory = None
        if self.loop == "uvloop":
            if importlib.util.find_spec("uvloop") is None:
                raise Skipped("uvloop is not installed")
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(self.measure(settings.pairs or PAIRS))

    async def measure(self, pairs: int) -> Measured:
        runs = []
        async with self.ours[0]() as ours, self.peer[0]() as peer:
            sides = (ours, self.ours[1]), (peer, self.peer[1])
            await self.run(sides, 1)  # warm
            for _ in range(pairs):
                a, b = await self.run(sides, TURNS)
                runs.append((a.spent / (TURNS * LINES), b.spent / (TURNS * LINES)))
        return Measured.of_runs(runs, "cpu")

    async def run(self, sides: tuple, turns: int) -> tuple[Meter, Meter]:
        meters = Meter(), Meter()
        for _ in range(turns):
            for ((reader, hold), consume), meter in zip(sides, meters, strict=True):
                await hold()
                meter.start()
                await consume(reader)
                meter.stop()
        return meters


def rows() -> list[Row]:
    found = []
    for loop in ("asyncio", "uvloop"):
        readline = stream, by_readline
        for name, ours, how, peer, goal in (
            ("readline(), line held", "aio.Rio.readline", (rio, by_readline), readline, 0.20),
            ("async for line, held", "aio.Rio", (rio, by_iteration), readline, 0.20),
            ("async for line of both, held", "aio.Rio", (rio, by_iteration), (stream, by_iteration), None),
            ("readlines1(), per line, held", "aio.Rio.readlines1", (rio, by_readlines1), readline, 0.06),
            ("streams, readline(), line held", "aio.streams readline", (our_stream, by_readline), readline, 0.30),
            ("limit: await of a result that is there", "asyncio.Future", (done_future, by_awaiting), readline, None),
        ):
            measure = Held(loop, how, peer)
            found.append(
                Row(
                    f"aio, {loop}: {name}",
                    ours,
                    f"StreamReader{'' if peer[1] is by_iteration else '.readline'}",
                    "s",
                    measure,
                    goal,
                    of="cpu",
                )
            )
        found.append(
            traffic(
                f"aio, {loop}: echo handler, 50 clients x 32 lines",
                on_a_loop(loop, "rio"),
                on_a_loop(loop, "streams"),
                "rate",
                32,
                8.0,
            )
        )
    return found
