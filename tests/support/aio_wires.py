"""A Rio of asyncio over each kind of transport, and the other end of its connection, which the test holds.

The other end is not asyncio's: ``feed()`` and its like are plain calls, so that a test decides what comes in which turn
of the event loop.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import time

from rioecho.aio import wrap
from support.delivery import tcp_pair

KINDS = ("tcp", "unix", "pipe", "tls")
SECONDS = 30  # a test waits at most this long


class Far:
    """The other end of a connection, non-blocking. What is sent must fit in the kernel's buffers."""

    def __init__(self, end):
        self.end = end  # a socket, or the descriptor of a pipe
        self.fd = end if isinstance(end, int) else end.fileno()
        self.tls = None
        if isinstance(end, int):
            os.set_blocking(end, False)
        else:
            end.setblocking(False)

    async def begin_tls(self, context):
        """Do the handshake of a server."""
        loop = asyncio.get_running_loop()
        self.came, self.goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.came, self.goes, server_side=True)
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.push()
                self.came.write(await loop.sock_recv(self.end, 1 << 16))
            else:
                return self.push()

    def push(self):
        """Send what TLS has to send."""
        self.send(self.goes.read())

    def send(self, data):
        data = memoryview(data)
        while data:
            data = data[os.write(self.fd, data) :]

    def feed(self, data):
        """Send data."""
        if self.tls:
            self.tls.write(data)
            self.push()
        else:
            self.send(data)

    def flood(self):
        """Send as much as the kernel takes, and return it: lines of eight bytes, the last one not whole."""
        sent = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                data = b"1234567\n"[len(sent) % 8 :] + b"1234567\n" * 4000
                sent += data[: os.write(self.fd, data)]
        return sent

    def take(self, n=1 << 16):
        """Return what the Rio has sent; b"" for its end. Raises ``BlockingIOError`` if there is nothing."""
        return os.read(self.fd, n)

    def end_output(self):
        """End the Rio's input."""
        if self.tls:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.unwrap()
            self.push()
        if isinstance(self.end, socket.socket):
            self.end.shutdown(socket.SHUT_WR)
        else:
            self.close()

    def reset(self):
        """Close a TCP connection with a reset."""
        self.end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self):
        if self.end is None:
            return
        if isinstance(self.end, int):
            os.close(self.end)
        else:
            self.end.close()
        self.end = self.fd = None


@contextlib.asynccontextmanager
async def connected(kind="unix", contexts=None, **options):
    """Make a connection of a kind. Yields the Rio, and the other end.

    ``contexts``: those of a server and a client, for "tls". What is left of it is closed after the block.
    """
    if kind == "pipe":
        near, end = os.pipe()
    else:
        near, end = tcp_pair() if kind in ("tcp", "tls") else socket.socketpair()
    far = Far(end)
    rio = await wrap(near, **options)
    try:
        if kind == "tls":
            server, client = contexts
            await asyncio.gather(far.begin_tls(server), rio.start_tls(client, server_hostname="localhost"))
        yield rio, far
    finally:
        far.close()
        rio.abort()
        await rio.close()


async def turns(n=1):
    """Let the event loop run n times: what has come meanwhile is read, and who waits for it goes on."""
    for _ in range(n):
        await asyncio.sleep(0)


async def until(condition):
    """Let the event loop run until ``condition()`` is true."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "timed out waiting for a condition"
        await asyncio.sleep(0)
