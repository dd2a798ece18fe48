"""Class Rio beside socket.makefile: time per line, per read and per round trip, as ratios of paired runs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

from rioecho import Rio, __version__

LINE = b"x" * 63 + b"\n"
BATCH = LINE * 1000
BYTES = 48_000_000
SOCKET_BUFFER = 1 << 20

Run = Callable[[], float]  # one run: seconds per operation


@contextmanager
def child(work: Callable[[socket.socket], None]):
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


def send_lines(sock: socket.socket) -> None:
    for _ in range(BYTES // len(BATCH)):
        sock.sendall(BATCH)


def reading(make: Callable, consume: Callable) -> Run:
    """Time `consume` on the file that `make` gives, fed by a child: seconds per whatever it counts."""

    def run() -> float:
        with child(send_lines) as sock, make(sock) as file:
            start = time.perf_counter()
            count = consume(file)
            return (time.perf_counter() - start) / count

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


def echo_lines(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


DEPTH, ROUNDS = 32, 150


def ping_pong(talk: Callable[[socket.socket], None]) -> Run:
    """Time pipelined round trips, with another thread of this process computing all the while: seconds per line."""

    def run() -> float:
        over = threading.Event()

        def burn() -> None:
            while not over.is_set():
                sum(range(1000))

        with child(echo_lines) as sock:
            burner = threading.Thread(target=burn)
            burner.start()
            try:
                start = time.perf_counter()
                talk(sock)
                return (time.perf_counter() - start) / (DEPTH * ROUNDS)
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


def serving(serve: Callable[[socket.socket], None]) -> Run:
    """Time a thread per client that serves 8 of them, each with 32 lines in flight: seconds per line."""
    clients, messages = 8, 200

    def load(socks: list[socket.socket]) -> None:
        for sock in socks:
            sock.sendall(LINE * DEPTH)
        for _ in range(messages):
            for sock in socks:
                left = len(LINE) * DEPTH
                while left:
                    left -= len(sock.recv(left))
                sock.sendall(LINE * DEPTH)
        for sock in socks:
            sock.shutdown(socket.SHUT_WR)

    def run() -> float:
        pairs = [socket.socketpair() for _ in range(clients)]
        pid = os.fork()
        if pid == 0:
            for near, _ in pairs:
                near.close()
            try:
                load([far for _, far in pairs])
            finally:
                os._exit(0)
        for _, far in pairs:
            far.close()
        threads = [threading.Thread(target=serve, args=(near,)) for near, _ in pairs]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - start
        os.waitpid(pid, 0)
        for near, _ in pairs:
            near.close()
        return took / (clients * messages * DEPTH)

    return run


def serve_with_rio(sock: socket.socket) -> None:
    file = Rio(sock)
    try:
        for line in file:
            file.write(line)
        file.flush()
    except OSError:
        pass  # the load has gone


def serve_with_makefile(sock: socket.socket) -> None:
    with sock.makefile("rb") as file:
        try:
            for line in iter(file.readline, b""):
                sock.sendall(line)
        except OSError:
            pass


#: name: (rioecho, its peer, the goal for the ratio of the times)
ROWS: dict[str, tuple[Run, Run, float]] = {
    "readline, 64-byte lines": (reading(rio, by_readline), reading(stdlib, by_readline), 0.55),
    "for line in file": (reading(rio, by_iteration), reading(stdlib, by_iteration), 0.60),
    "readlines1, per line, beside readline": (reading(rio, by_readlines1), reading(stdlib, by_readline), 0.30),
    **{
        f"read({n})": (reading(rio, by_read(n)), reading(stdlib, by_read(n)), 0.60 if n == 16 else 1.0)
        for n in (16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
    },
    "ping-pong beside a busy thread": (ping_pong(talk_with_rio), ping_pong(talk_with_makefile), 0.20),
    "for line in rio: rio.write(line), 8 threads": (serving(serve_with_rio), serving(serve_with_makefile), 1 / 6),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("word", nargs="?", default="", help="run only the rows whose name contains this")
    p.add_argument("--pairs", type=int, default=9, help="paired runs per row (default: 9)")
    p.add_argument("--json", metavar="FILE", help="write the results there, too")
    options = p.parse_args()
    rows = {name: row for name, row in ROWS.items() if options.word in name}
    if not rows:
        p.error(f"no row contains {options.word!r}")
    print(f"rioecho {__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")
    print(f"{'':45} {'rioecho':>9} {'peer':>9} {'ratio':>6} {'goal':>6}")
    results = {}
    for name, (ours, peers, goal) in rows.items():
        pairs = [(ours(), peers()) for _ in range(options.pairs)]
        ratio = statistics.median(a / b for a, b in pairs)
        best = [min(times) * 1e9 for times in zip(*pairs, strict=True)]
        mark = "" if ratio <= goal else "  missed"
        print(f"{name:45} {best[0]:6.0f} ns {best[1]:6.0f} ns {ratio:6.2f} {goal:6.2f}{mark}", flush=True)
        results[name] = {"rioecho_ns": best[0], "peer_ns": best[1], "ratio": ratio, "goal": goal}
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"python": sys.version, "rows": results}, file, indent=2)


if __name__ == "__main__":
    main()
