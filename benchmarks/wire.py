"""Socket pairs and the child processes at their other end, which send, answer or echo."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE = b"x" * 63 + b"\n"
SOCKET_BUFFER = 1 << 20
HELD = 1 << 16  # bytes that the socket buffer certainly holds


def pair(tcp: bool = False) -> tuple[socket.socket, socket.socket]:
    """Return a pair of connected sockets, of the Unix family unless ``tcp``."""
    if tcp:  # with the buffers that the kernel chooses
        with socket.create_server(("127.0.0.1", 0)) as server:
            return socket.create_connection(server.getsockname()), server.accept()[0]
    ends = socket.socketpair()
    for sock in ends:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
    return ends


@contextmanager
def child(work: Callable[[socket.socket], None], tcp: bool = False) -> Iterator[socket.socket]:
    """Run ``work`` with one end of a socket pair in a child process; yield the other end."""
    near, far = pair(tcp)
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


def flood(sock: socket.socket, data: bytes = LINE * (1 << 14)) -> None:
    while True:
        sock.sendall(data)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)
