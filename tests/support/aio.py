"""Pairs of Rios of asyncio that are connected to each other, and what tests look at in them."""

import asyncio
import contextlib
import functools
import os
import socket
import struct
import sys
import tempfile
from pathlib import Path

import pytest

from rioecho import aio
from support import certificates

SECONDS = 20  # after which a call that must not wait for ever has failed
KERNEL = 1 << 15  # size of each buffer of the kernel, in which it may hold twice as much
KINDS = ["tcp", "unix", "tls"]

by_kind = pytest.mark.parametrize("kind", KINDS)
needs_tcp_info = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's TCP_INFO")


@functools.cache
def tls_contexts():
    """Return the context of a server and that of a client that trusts it; its name is localhost."""
    with tempfile.TemporaryDirectory() as folder:
        return certificates.contexts(*certificates.make(Path(folder)))


@contextlib.asynccontextmanager
async def joined(kind="tcp", *, ours=None, theirs=None):
    """Connect two Rios, ``(rio, peer)``. ``peer`` is that of a server's handler. Options of each may be passed."""
    ours, theirs = dict(ours or {}), dict(theirs or {})
    came = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def handler(peer):
        came.set_result(peer)
        await over.wait()
        peer.abort()

    if kind == "tls":
        theirs["ssl"], ours["ssl"] = tls_contexts()
        ours["server_hostname"] = "localhost"
    with tempfile.TemporaryDirectory() as folder:
        place = (os.path.join(folder, "socket"),) if kind == "unix" else ("127.0.0.1", 0)
        async with aio.start_server(handler, *place, **theirs) as server:
            if kind != "unix":
                place = server.sockets[0].getsockname()
            rio = await aio.connect(*place, **ours)
            try:
                peer = await came
                for each in (rio, peer):  # so that little output is more than the kernel takes
                    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                        each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, KERNEL)
                yield rio, peer
            finally:
                over.set()
                rio.abort()
                await rio.close()


@contextlib.asynccontextmanager
async def beside(kind="socketpair", **options):
    """Yield a Rio and the socket at its other end, which does not wait."""
    if kind == "socketpair":
        mine, other = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            mine = socket.create_connection(listener.getsockname())
            other, _ = listener.accept()
            mine.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    other.setblocking(False)
    rio = await aio.wrap(mine, **options)
    try:
        with other:
            yield rio, other
    finally:
        rio.abort()
        await rio.close()


def segments_sent(rio):
    """Return the number of segments with data that a TCP connection has sent."""
    info = rio.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return struct.unpack_from("I", info, 156)[0]


async def receive_all(sock):
    """Return everything that comes on a non-blocking socket up to its end."""
    loop = asyncio.get_running_loop()
    pieces = []
    while piece := await loop.sock_recv(sock, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


async def turns(n):
    """Let the loop run some turns."""
    for _ in range(n):
        await asyncio.sleep(0)


async def until(condition):
    """Wait until a condition is true, one turn of the loop at a time."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


def is_open(fd):
    """Report whether a number is that of an open descriptor."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
