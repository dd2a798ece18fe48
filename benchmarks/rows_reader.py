"""The rows about Rio and Feed: time per line, read and round trip, compared with socket.makefile and asyncio.

Both sides run alternately in this process, on socket pairs with the same options.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, repeat

from measure import Measured, Meter, Row, Settings
from wire import HELD, LINE, child, echo, flood, pair

from rioecho import Feed, Rio

IN_A_RUN = 1 << 25  # bytes read in a run
PAIRS = 15


# ---- reading

LINES = 1000

# A few objects of the size of a line. Without them, and that is chance, a line can be the only object of its size. Then
# CPython gives a page of its allocator back with each line and takes it again for the next one: 8 ns more on each side.
OTHER_LINES = [LINE[:n].ljust(len(LINE)) for n in range(8)]


def by_readline(file) -> None:
    readline = file.readline
    for _ in repeat(None, LINES):
        readline()


def by_iteration(file) -> None:
    for _ in islice(file, LINES):
        pass


def by_readlines1(file) -> None:
    count = 0
    while count < LINES:
        count += len(file.readlines1())


def by_read(n: int, times: int) -> Callable:
    def consume(file) -> None:
        read = file.read
        for _ in repeat(None, times):
            read(n)

    return consume


def rio(sock):
    return Rio(sock)


def stdlib(sock):
    return sock.makefile("rb")


@dataclass
class Reading:
    """A comparison of two ways to read the same data.

    ``ours`` and ``peer`` are pairs of a function that opens a file and one that reads from it. A turn is ``operations``
    operations, ``size`` bytes in all. Small data is in the socket before the turn, so that the time excludes the sender
    and any wait; large data comes from a child process during the turn. The two sides alternate at short intervals, so
    that the load on the machine affects both alike.
    """

    ours: tuple[Callable, Callable]
    peer: tuple[Callable, Callable]
    operations: int = LINES
    size: int = len(LINE) * LINES

    def __call__(self, settings: Settings) -> Measured:
        turns = max(4, IN_A_RUN // self.size)
        with ExitStack() as stack:
            sides = [self.side(stack, *how) for how in (self.ours, self.peer)]
            for side in sides:
                self.turn(*side, Meter())  # warm
            runs = []
            for _ in range(settings.pairs or PAIRS):
                meters = Meter(), Meter()
                for _ in range(turns):
                    for side, meter in zip(sides, meters, strict=True):
                        self.turn(*side, meter)
                ours, peer = (meter.spent / (turns * self.operations) for meter in meters)
                runs.append((ours, peer))
        return Measured.of_runs(runs, "time")

    def side(self, stack: ExitStack, make: Callable, consume: Callable) -> tuple:
        if self.size > HELD:
            near, far = stack.enter_context(child(flood)), None
        else:
            near, far = map(stack.enter_context, pair())
        return stack.enter_context(make(near)), consume, far

    def turn(self, file, consume: Callable, far: socket.socket | None, meter: Meter) -> None:
        if far is not None:
            far.sendall((LINE * (self.size // len(LINE) + 1))[: self.size])
        meter.start()
        consume(file)
        meter.stop()


def reading_n(n: int) -> Reading:
    times = max(1, HELD // n)
    return Reading((rio, by_read(n, times)), (stdlib, by_read(n, times)), times, n * times)


async def by_asyncio(sock: socket.socket) -> float:
    reader, writer = await asyncio.open_connection(sock=sock)
    begun = time.perf_counter()
    for _ in repeat(None, 100 * LINES):
        await reader.readline()
    took = time.perf_counter() - begun
    writer.close()
    await writer.wait_closed()
    return took / (100 * LINES)


def beside_asyncio(settings: Settings) -> Measured:
    pairs = []
    for _ in range(settings.pairs or 9):
        with child(flood) as sock, Rio(sock) as file:
            begun = time.perf_counter()
            for _ in repeat(None, 100):
                by_readline(file)
            took = (time.perf_counter() - begun) / (100 * LINES)
        with child(flood) as sock:
            pairs.append((took, asyncio.run(by_asyncio(sock))))
    return Measured(pairs)


# ---- messages of two reads, and bytes that come from elsewhere

MESSAGES = LINES // 2


def messages(file) -> None:
    """Read messages of a line and a body of the same size."""
    for _ in repeat(None, MESSAGES):
        file.readline()
        file.read(len(LINE))


def messages_in_frames(file) -> None:
    for _ in repeat(None, MESSAGES):
        with file.frame():
            file.readline()
            file.read(len(LINE))


class ByHand:
    """What protocols have instead of a Feed: a bytearray that is searched and cut."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self.buffer += data

    def readline(self) -> bytes | None:
        end = self.buffer.find(b"\n") + 1
        if not end:
            return None
        line = bytes(self.buffer[:end])
        del self.buffer[:end]
        return line


def feeding(make: Callable, meter: Meter) -> None:
    """Pass lines in pieces of 4000 bytes and take each line."""
    data = LINE * LINES
    pieces = [data[at : at + 4000] for at in range(0, len(data), 4000)]
    reader = make()
    meter.start()
    for piece in pieces:
        reader.feed(piece)
        while reader.readline() is not None:
            pass
    meter.stop()


def beside_a_bytearray(settings: Settings) -> Measured:
    runs = []
    for _ in range(settings.pairs or PAIRS):
        meters = Meter(), Meter()
        for _ in range(100):
            feeding(Feed, meters[0])
            feeding(ByHand, meters[1])
        ours, peer = (meter.spent / (100 * LINES) for meter in meters)
        runs.append((ours, peer))
    return Measured.of_runs(runs, "time")


# ---- round trips beside a thread that computes

DEPTH, ROUNDS = 32, 150
ROUND_TRIP_PAIRS = 9


def ping_pong(talk: Callable[[socket.socket], None]) -> float:
    """Return the seconds per line of pipelined round trips while another thread of this process computes."""
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(1000))

    with child(echo) as sock:
        burner = threading.Thread(target=burn)
        burner.start()
        try:
            begun = time.perf_counter()
            talk(sock)
            return (time.perf_counter() - begun) / (DEPTH * ROUNDS)
        finally:
            over.set()
            burner.join()


def beside_a_busy_thread(settings: Settings) -> Measured:
    return Measured(
        [(ping_pong(talk_with_rio), ping_pong(talk_with_makefile)) for _ in range(settings.pairs or ROUND_TRIP_PAIRS)]
    )


def talk_with_rio(sock: socket.socket) -> None:
    file = Rio(sock)
    for _ in range(ROUNDS):
        for _ in range(DEPTH):
            file.write(LINE)
        for _ in range(DEPTH):
            assert file.readline() == LINE


def talk_with_makefile(sock: socket.socket) -> None:
    with sock.makefile("rb") as file:
        for _ in range(ROUNDS):
            for _ in range(DEPTH):
                sock.sendall(LINE)
            for _ in range(DEPTH):
                assert file.readline() == LINE


# ---- the rows


def rows() -> list[Row]:
    readline = stdlib, by_readline
    return [
        Row(
            "readline(), 64-byte lines",
            "Rio.readline",
            "makefile.readline",
            "s",
            Reading((rio, by_readline), readline),
            0.42,
        ),
        Row("for line in file", "Rio", "makefile", "s", Reading((rio, by_iteration), (stdlib, by_iteration)), 0.48),
        Row(
            "readlines1(), per line",
            "Rio.readlines1",
            "makefile.readline",
            "s",
            Reading((rio, by_readlines1), readline),
            0.30,
        ),
        *(
            Row(f"read({n})", "Rio.read", "makefile.read", "s", reading_n(n), 0.45 if n == 16 else 1.0)
            for n in (16, 64, 256, 1024, 4096, 16384, 65536)
        ),
        Row(
            "32 lines there and back, beside a busy thread",
            "Rio.write, readline",
            "sendall, makefile.readline",
            "s",
            beside_a_busy_thread,
            0.20,
        ),
        Row(
            "a line and a body in a frame()",
            "Rio.frame",
            "Rio without a frame",
            "s",
            Reading((rio, messages_in_frames), (rio, messages), MESSAGES),
        ),
        Row("readline() of pieces, 64-byte lines", "Feed.readline", "a bytearray", "s", beside_a_bytearray),
        Row("readline() beside asyncio's", "Rio.readline", "StreamReader.readline", "s", beside_asyncio),
    ]
