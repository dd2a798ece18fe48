"""Wires to put a Rio on, and ways to deliver bytes over them."""

import os
import random
import select
import socket
import struct
import tempfile
import tty

KINDS = ("pipe", "socketpair", "tcp", "pty", "file")
WAYS = ("whole", "one by one", "halves", "inside the separators", "with pauses", "under signals")


def tcp_pair():
    """Two connected TCP sockets on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname(), timeout=10)
        near, _ = listener.accept()
    for end in (near, far):
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # or the kernel lets them grow to megabytes
            end.setsockopt(socket.SOL_SOCKET, size, 1 << 16)
    return near, far


class Wire:
    """Two connected ends: `near` is for the Rio, `far` is the test's. With `output`, the Rio writes and we read."""

    def __init__(self, kind, *, blocking=True, output=False):
        self.kind = kind
        if kind == "pipe":
            self.near, self.far = os.pipe()[:: -1 if output else 1]
        elif kind == "socketpair":
            self.near, self.far = socket.socketpair()
        elif kind == "tcp":
            self.near, self.far = tcp_pair()
        elif kind == "pty":
            # The master side gets all that was written before it sees that the slave side has been closed.
            self.near, self.far = os.openpty()
            tty.setraw(self.far)
        else:
            self.near, name = tempfile.mkstemp()
            self.far = os.open(name, os.O_RDWR)
            os.unlink(name)
        if not blocking:
            os.set_blocking(fileno(self.near), False)

    def feed(self, data):
        """Deliver data; it must fit."""
        data = memoryview(data)
        while data:
            data = data[os.write(fileno(self.far), data) :]

    def take(self, n=1 << 16):
        """Up to n bytes that the Rio has sent; b"" at the end."""
        return os.read(fileno(self.far), n)

    def take_exactly(self, n):
        """N bytes that the Rio has sent."""
        parts = []
        while n:
            parts.append(self.take(n))
            assert parts[-1], "the end came too soon"
            n -= len(parts[-1])
        return b"".join(parts)

    def readable(self, seconds=0):
        """Has the Rio sent something, or closed?"""
        return bool(select.select([self.far], [], [], seconds)[0])

    def drained(self):
        """Has the Rio taken all that has been delivered?"""
        return not select.select([self.near], [], [], 0)[0]

    def end(self):
        """The end of the Rio's input."""
        if isinstance(self.far, socket.socket):
            self.far.shutdown(socket.SHUT_WR)
        else:
            self.close_far()

    def reset(self):
        """Close a TCP connection with a reset instead of an end."""
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_far()

    def close_far(self):
        """Close the test's end."""
        close(self.far)
        self.far = None

    def close(self):
        """Close what is still open."""
        for end in (self.near, self.far):
            close(end)


def fileno(end):
    """The number of an end."""
    return end if isinstance(end, int) else end.fileno()


def close(end):
    """Close an end, if it is open."""
    if isinstance(end, socket.socket):
        end.close()
    elif end is not None:
        try:
            os.close(end)
        except OSError as error:
            if error.errno != 9:  # EBADF: the Rio owned it and has closed it
                raise


def pieces(data, way, separators=(b"\n",), seed=0):
    """The data, cut for a way of delivery."""
    cuts = set()
    if way == "one by one":
        cuts.update(range(len(data)))
    elif way == "halves":
        cuts.add(len(data) // 2)
    elif way == "inside the separators":
        for separator in separators:
            at = data.find(separator)
            while at >= 0:
                cuts.update((at + 1, at + len(separator) - 1))
                at = data.find(separator, at + 1)
    elif way in ("with pauses", "under signals"):
        cuts.update(random.Random(seed).sample(range(len(data) + 1), min(len(data), 6)))
    ends = sorted((cuts | {len(data)}) - {0})
    return [data[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def deliver(wire, parts, stop, pause=0.0):
    """Deliver the parts and then the end, each part once the Rio has taken the one before. `stop` gives up."""
    for part in parts:
        while not wire.drained() and not stop.is_set():
            os.sched_yield()
        if stop.wait(pause) if pause else stop.is_set():
            break
        wire.feed(part)
    wire.end()
