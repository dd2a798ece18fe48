"""The rows about class Rio: time per line, per read and per round trip, beside socket.makefile and asyncio.

Both sides run in turn in this process, on sockets with the same options; the other end is a child process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from measure import Measured, Row, Settings

from rioecho import Rio

LINE = b"x" * 63 + b"\n"
BATCH = LINE * 1000
BYTES = 48_000_000
SOCKET_BUFFER = 1 << 20
PAIRS = 9

Run = Callable[[], tuple[float, float]]  # one run: seconds per operation, and this process's CPU seconds


@contextmanager
def child(work: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """Run `work` on the other end of a socket pair, in a process of its own: this end."""
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
    pid = os.fork()
    if pid == 0:
        near.close()
        try:
            work(far)
        finally:
            os._exit(0)
    far.close()
    try:
        yield near
    finally:
        near.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def per(self, count: int) -> tuple[float, float]:
        return (time.perf_counter() - self._wall) / count, (time.process_time() - self._cpu) / count


def send_lines(sock: socket.socket) -> None:
    for _ in range(BYTES // len(BATCH)):
        sock.sendall(BATCH)


def reading(make: Callable, consume: Callable) -> Run:
    """Time `consume` on the file that `make` gives, fed by a child, for whatever it counts."""

    def run() -> tuple[float, float]:
        with child(send_lines) as sock, make(sock) as file:
            clock = Clock()
            return clock.per(consume(file))

    return run


def by_readline(file) -> int:
    count = 0
    readline = file.readline
    while readline():
        count += 1
    return count


def by_iteration(file) -> int:
    count = 0
    for _ in file:
        count += 1
    return count


def by_readlines1(file) -> int:
    count = 0
    while lines := file.readlines1():
        count += len(lines)
    return count


def by_read(n: int) -> Callable:
    def consume(file) -> int:
        count = 0
        read = file.read
        while read(n):
            count += 1
        return count

    return consume


def rio(sock):
    return Rio(sock)


def stdlib(sock):
    return sock.makefile("rb")


def by_asyncio() -> tuple[float, float]:
    async def consume(sock: socket.socket) -> tuple[float, float]:
        reader, writer = await asyncio.open_connection(sock=sock)
        clock = Clock()
        count = 0
        while await reader.readline():
            count += 1
        took = clock.per(count)
        writer.close()
        await writer.wait_closed()
        return took

    with child(send_lines) as sock:
        return asyncio.run(consume(sock))


# ---- round trips beside a thread that computes

DEPTH, ROUNDS = 32, 150


def echo_lines(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def ping_pong(talk: Callable[[socket.socket], None]) -> Run:
    """Time pipelined round trips, with another thread of this process computing all the while."""

    def run() -> tuple[float, float]:
        over = threading.Event()

        def burn() -> None:
            while not over.is_set():
                sum(range(1000))

        with child(echo_lines) as sock:
            burner = threading.Thread(target=burn)
            burner.start()
            try:
                clock = Clock()
                talk(sock)
                return clock.per(DEPTH * ROUNDS)
            finally:
                over.set()
                burner.join()

    return run


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


def in_turn(ours: Run, peer: Run) -> Callable[[Settings], Measured]:
    def measure(settings: Settings) -> Measured:
        runs = [(ours(), peer()) for _ in range(settings.pairs or PAIRS)]
        cpu = statistics.median(a[1] / b[1] for a, b in runs)
        return Measured([(a[0], b[0]) for a, b in runs], f"cpu {cpu:.3f}", {"cpu_ratio": cpu})

    return measure


def row(name: str, ours: tuple[str, Run], peer: tuple[str, Run], goal: float | None) -> Row:
    return Row(name, ours[0], peer[0], "s", in_turn(ours[1], peer[1]), goal)


def rows() -> list[Row]:
    readline = "makefile.readline", reading(stdlib, by_readline)
    our_readline = "Rio.readline", reading(rio, by_readline)
    return [
        row("readline(), 64-byte lines", our_readline, readline, 0.55),
        row(
            "for line in file",
            ("for line in Rio", reading(rio, by_iteration)),
            ("for line in makefile", reading(stdlib, by_iteration)),
            0.60,
        ),
        row("readlines1(), per line", ("Rio.readlines1", reading(rio, by_readlines1)), readline, 0.30),
        *(
            row(
                f"read({n})",
                ("Rio.read", reading(rio, by_read(n))),
                ("makefile.read", reading(stdlib, by_read(n))),
                0.60 if n == 16 else 1.0,
            )
            for n in (16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
        ),
        row(
            "32 lines there and back, beside a busy thread",
            ("Rio.write, readline", ping_pong(talk_with_rio)),
            ("sendall, makefile.readline", ping_pong(talk_with_makefile)),
            0.20,
        ),
        row("readline() beside asyncio's", our_readline, ("asyncio StreamReader.readline", by_asyncio), None),
    ]
