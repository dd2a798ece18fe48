"""Connected descriptors of each kind for a Rio and a test, and ways to deliver bytes over them."""

import os
import random
import select
import socket
import struct
import tempfile
import time
import tty

from rioecho import ConcurrentCall

SECONDS = 30  # timeout; expires only if something is broken
KINDS = ("pipe", "socketpair", "tcp", "pty", "file", "socket-like")
WAYS = ("whole", "one by one", "halves", "inside the separators", "with pauses", "under signals")


def tcp_pair():
    """Return two connected TCP sockets on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname(), timeout=10)
        near, _ = listener.accept()
    for end in (near, far):
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # keep the kernel from growing the buffers to megabytes
            end.setsockopt(socket.SOL_SOCKET, size, 1 << 16)
    return near, far


def fill(fd):
    """Send as much as the kernel takes. Returns the number of bytes."""
    sent = 0
    os.set_blocking(fd, False)
    for size in (1 << 16, 1):
        while True:
            try:
                sent += os.write(fd, b"\0" * size)
            except BlockingIOError:
                break
    os.set_blocking(fd, True)
    return sent


class SocketLike(socket.socket):
    """A socket whose methods are overridden, so that a Rio must use them."""

    def recv_into(self, *args):
        return super().recv_into(*args)

    def send(self, *args):
        return super().send(*args)


class Wire:
    """Two connected ends: ``near`` for the Rio, ``far`` for the test. ``output``: the Rio writes and the test reads."""

    def __init__(self, kind, *, blocking=True, output=False):
        self.kind = kind
        if kind == "pipe":
            self.near, self.far = os.pipe()[:: -1 if output else 1]
        elif kind == "socketpair":
            self.near, self.far = socket.socketpair()
        elif kind == "tcp":
            self.near, self.far = tcp_pair()
        elif kind == "socket-like":
            near, self.far = socket.socketpair()
            self.near = SocketLike(fileno=near.detach())
        elif kind == "pty":
            # The master side reads all data written to the slave side before it sees the close of the slave side.
            self.near, self.far = os.openpty()
            tty.setraw(self.far)
        else:
            self.near, name = tempfile.mkstemp()
            self.far = os.open(name, os.O_RDWR)
            os.unlink(name)
        if not blocking:
            os.set_blocking(fileno(self.near), False)

    def feed(self, data):
        """Send data, which must fit in the kernel's buffers."""
        data = memoryview(data)
        while data:
            data = data[os.write(fileno(self.far), data) :]

    def take(self, n=1 << 16):
        """Receive up to n bytes from the Rio; b"" at the end."""
        return os.read(fileno(self.far), n)

    def take_exactly(self, n):
        """Receive exactly n bytes from the Rio."""
        parts = []
        while n:
            parts.append(self.take(n))
            assert parts[-1], "unexpected end of input"
            n -= len(parts[-1])
        return b"".join(parts)

    def readable(self, seconds=0):
        """Report whether the Rio has sent data or closed within this many seconds."""
        return bool(select.select([self.far], [], [], seconds)[0])

    def drained(self):
        """Report whether the Rio has read all data that was sent."""
        return not select.select([self.near], [], [], 0)[0]

    def end(self):
        """End the Rio's input."""
        if isinstance(self.far, socket.socket):
            self.far.shutdown(socket.SHUT_WR)
        else:
            self.close_far()

    def reset(self):
        """Close the TCP connection with a reset."""
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_far()

    def close_far(self):
        """Close the test's end."""
        close(self.far)
        self.far = None

    def close(self):
        """Close both ends, if they are still open."""
        for end in (self.near, self.far):
            close(end)


def fileno(end):
    """Return the file descriptor of an end."""
    return end if isinstance(end, int) else end.fileno()


def close(end):
    """Close an end, if it is open."""
    if isinstance(end, socket.socket):
        end.close()
    elif end is not None:
        try:
            os.close(end)
        except OSError as error:
            if error.errno != 9:  # EBADF: the Rio owned the descriptor and has closed it
                raise


def pieces(data, way, separators=(b"\n",), seed=0):
    """Cut the data into the pieces of one of the WAYS of delivery."""
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
    """Send the parts, each after the Rio has read the previous one, and end the input. The event ``stop`` gives up."""
    for part in parts:
        while not wire.drained() and not stop.is_set():
            os.sched_yield()
        if stop.wait(pause) if pause else stop.is_set():
            break
        wire.feed(part)
    wire.end()


def wait_for_reader(rio):
    """Wait until another thread is reading."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            rio.has_line()
        except ConcurrentCall:
            return
        os.sched_yield()
    raise AssertionError("timed out waiting for the other thread")
