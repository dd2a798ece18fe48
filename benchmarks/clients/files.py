"""Reading from a file of ``makefile`` what a child process sends, over a socket pair or TLS.

Each function is a context manager that yields a function: it runs the operation a number of times.
"""

from __future__ import annotations

import io
import pickle
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat

from measure import Meter
from wire import HELD, LINE, child, echo, flood, pair

Run = Callable[[int], None]


@contextmanager
def body(meter: Meter, size: int, head: str = "head\n", tcp: bool = False) -> Iterator[Run]:
    """Read a line and the ``size`` bytes after it; without ``head``, only those."""

    def send(sock: socket.socket) -> None:
        # Made in the child process: how the allocator treats a size depends on what it was asked for before.
        flood(sock, head.encode() + bytes(size))

    with child(send, tcp) as sock, sock.makefile("rb") as file:

        def run(times: int) -> None:
            for _ in repeat(None, times):
                if head:
                    file.readline()
                if len(file.read(size)) != size:
                    raise EOFError

        yield run


@contextmanager
def round_trip(meter: Meter, mode: str, tls: tuple[str, str] | None = None) -> Iterator[Run]:
    """Send a line, by the file where it can write or else by ``sendall``, and read it back."""
    with connected(echo, tls) as sock, sock.makefile(mode) as file:

        def run_with_sendall(times: int) -> None:
            for _ in repeat(None, times):
                sock.sendall(LINE)
                if file.readline() != LINE:
                    raise EOFError

        def run_with_file(times: int) -> None:
            for _ in repeat(None, times):
                file.write(LINE)
                file.flush()
                if file.readline() != LINE:
                    raise EOFError

        yield run_with_file if "w" in mode else run_with_sendall


@contextmanager
def read_over_tls(meter: Meter, size: int, tls: tuple[str, str]) -> Iterator[Run]:
    with connected(flood, tls) as sock, sock.makefile("rb") as file:

        def run(times: int) -> None:
            for _ in repeat(None, times):
                if len(file.read(size)) != size:
                    raise EOFError

        yield run


@contextmanager
def close(meter: Meter, line: bool) -> Iterator[Run]:
    """Open a file and close it, with ``line`` after reading a line that is there."""
    near, far = pair()
    with near, far:

        def run(times: int) -> None:
            for _ in repeat(None, times):
                near.makefile("rb").close()

        def run_with_line(times: int) -> None:
            for _ in repeat(None, times):
                far.send(LINE)
                file = near.makefile("rb")
                file.readline()
                file.close()

        yield run_with_line if line else run


def held(meter: Meter, mode: str, one: bytes, consume: Callable, **options: str) -> Iterator[Run]:
    """Read copies of ``one`` that are in the socket before; the meter excludes putting them there."""
    near, far = pair()
    most = HELD // len(one)
    with near, far, near.makefile(mode, **options) as file:

        def run(times: int) -> None:
            meter.stop()
            while times:
                many = min(times, most)
                far.sendall(one * many)
                meter.start()
                consume(file, many)
                meter.stop()
                times -= many
            meter.start()

        yield run


@contextmanager
def unpickle(meter: Meter) -> Iterator[Run]:
    one = pickle.dumps({"id": 17, "name": "a small object", "tags": ["x", "y"], "at": 1.5})

    def consume(file: io.BufferedIOBase, times: int) -> None:
        for _ in repeat(None, times):
            pickle.load(file)  # noqa: S301, written by this function

    yield from held(meter, "rb", one, consume)


@contextmanager
def text(meter: Meter, line: str, by: str) -> Iterator[Run]:
    """Read lines of text by ``readline`` or by iteration."""

    def by_readline(file: io.TextIOBase, times: int) -> None:
        readline = file.readline
        for _ in repeat(None, times):
            readline()

    def by_iteration(file: io.TextIOBase, times: int) -> None:
        for count, _ in enumerate(file, 1):
            if count == times:
                break

    consume = {"readline": by_readline, "iteration": by_iteration}[by]
    yield from held(meter, "r", line.encode(), consume, encoding="utf-8")


@contextmanager
def connected(work: Callable[[socket.socket], None], tls: tuple[str, str] | None) -> Iterator[socket.socket]:
    """Run ``work`` in a child process and yield a connection to it; ``tls`` is the certificate's file and its key's."""
    if tls is None:
        with child(work) as sock:
            yield sock
        return
    certificate, key = tls

    def work_over_tls(sock: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        work(context.wrap_socket(sock, server_side=True))

    context = ssl.create_default_context(cafile=certificate)
    with child(work_over_tls) as sock, context.wrap_socket(sock, server_hostname="localhost") as secured:
        yield secured
