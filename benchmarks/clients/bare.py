"""The least that a large read can cost: a file that does nothing but receive.

It makes the system calls of ``socket.makefile`` and nothing else: no object for the result, no buffer, no lock.
"""

from __future__ import annotations

import socket

HEAD = len(b"head\n")


class BareFile:
    """Receives a line of known length, then as many bytes as asked for, always into the same memory."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.view = memoryview(b"")

    def __enter__(self) -> BareFile:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def readline(self) -> bytes:
        return self.sock.recv(HEAD, socket.MSG_WAITALL)

    def read(self, n: int) -> memoryview:
        if len(self.view) != n:
            self.view = memoryview(bytearray(n))
        left = n
        while left:
            got = self.sock.recv_into(self.view[n - left :])
            if not got:
                raise EOFError
            left -= got
        return self.view


def makefile(sock: socket.socket, mode: str) -> BareFile:
    return BareFile(sock)
