"""A crowd of clients in one thread: hundreds of concurrent connections, with every received byte checked."""

import contextlib
import errno
import fcntl
import functools
import heapq
import itertools
import random
import selectors
import socket
import struct
import sys
import termios
import time

from support.peers import SECONDS, SIZES, binary, reset

BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE

#: How a client ends. FINISH half-closes and reads to the end; LEAVE closes after all echoes; STAY keeps the connection
#: open after all echoes; TOLD sends until the server closes; RESET resets and VANISH closes after sending `cut` bytes.
FINISH, LEAVE, STAY, TOLD, RESET, VANISH = "finish", "leave", "stay", "told", "reset", "vanish"


@functools.cache
def _stream():
    return binary(1 << 23)


def stretch(n, at=0):
    """Return n random bytes, including newlines; ``at`` selects them."""
    at = at * 7919 % (len(_stream()) - n)
    return _stream()[at : at + n]


def sizes(n, seed=0):
    """Return n sizes from one byte to hundreds of kilobytes, including all SIZES."""
    chance = random.Random(f"sizes {seed}")
    more = [int(2 ** chance.uniform(0, 17)) + chance.choice([-1, 0, 1]) for _ in range(n - len(SIZES))]
    chosen = [*SIZES, *more][:n]
    chance.shuffle(chosen)
    return chosen


class Client:
    """A client that sends ``data`` and raises AssertionError if it receives anything else.

    ``piece`` and ``gulp`` are the maximum numbers of bytes per send and per receive; ``pauses`` is the probability and
    the maximum length in seconds of a pause; ``room`` is the size of the receive buffer in bytes.
    """

    def __init__(
        self, address, data, end=FINISH, *, cut=None, piece=1 << 17, gulp=1 << 16, pauses=(0, 0), room=None, seed=0
    ):
        self.data, self.end, self.cut = data, end, len(data) if cut is None else cut
        self.sent = self.received = 0
        self.connected = self.ended = self.over = False
        self.error = None  # the errno with which the connection ended
        self._piece, self._gulp, self._pauses = piece, gulp, pauses
        self._chance = random.Random(seed)
        self._half_closed = False
        self.before_closing = None  # called with the socket
        self.sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self.sock.setblocking(False)
        if room:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        number = self.sock.connect_ex(address[:2])
        assert number in (0, errno.EINPROGRESS), errno.errorcode[number]

    def __repr__(self):
        return f"<{self.end} after {self.sent} sent and {self.received} received of {len(self.data)}>"

    def wants(self):
        """Return the events to wait for, or 0 if the client is done."""
        if self.over:
            return 0
        if not self.connected or self._may_send():
            return BOTH
        return selectors.EVENT_READ

    def move(self, events):
        """Send and receive as the events allow. Returns the number of seconds to pause."""
        try:
            if events & selectors.EVENT_WRITE:
                self._send()
            if events & selectors.EVENT_READ and not self.over:
                self._receive()
            self._end()
        except BlockingIOError:
            pass
        except OSError as error:
            if self.end != TOLD:
                raise AssertionError(f"{error} in {self}") from error
            self.error = error.errno
            self.close()
        often, longest = self._pauses
        return self._chance.uniform(0, longest) if often and self._chance.random() < often else 0

    def promised(self):
        """Return the number of bytes that the server's kernel has acknowledged."""
        if self.over or not self.connected or sys.platform != "linux":
            return 0
        return self.sent - struct.unpack("i", fcntl.ioctl(self.sock, termios.TIOCOUTQ, b"\0" * 4))[0]

    def hush(self):
        """Stop sending."""
        self.cut = self.sent

    def close(self, how=socket.socket.close):
        if not self.over:
            self.over = True
            if self.before_closing:
                self.before_closing(self.sock)
            how(self.sock)

    def _may_send(self):
        return self.sent < self.cut

    def _send(self):
        if not self.connected:
            number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, "not connected")
            self.connected = True
        if self._may_send():
            upto = min(self.cut, self.sent + self._chance.randint(1, self._piece))
            self.sent += self.sock.send(memoryview(self.data)[self.sent : upto])

    def _receive(self):
        part = self.sock.recv(self._gulp)
        assert self.data.startswith(part, self.received), f"wrong echo in {self}"
        self.received += len(part)
        assert self.received <= self.sent, f"received more than was sent in {self}"
        if not part:
            whole = self.end == FINISH and self.received == len(self.data)
            assert whole or self.end == TOLD, f"unexpected end of input in {self}"
            self.ended = True
            self.close()

    def _end(self):
        """Close, half-close or reset the connection if the client has sent or received all data."""
        if self.over or self.sent < self.cut:
            return
        if self.end == FINISH and not self._half_closed:
            self.sock.shutdown(socket.SHUT_WR)
            self._half_closed = True
        elif self.end == RESET:
            self.close(reset)
        elif self.end == VANISH or (self.end == LEAVE and self.received == len(self.data)):
            self.close()

    @property
    def settled(self):
        """Whether the client has received all it waits for."""
        return self.over or (self.end == STAY and self.connected and self.received == len(self.data))


class Crowd:
    """A set of concurrent clients; leaving the block closes those that are left."""

    def __init__(self):
        self._selector = selectors.DefaultSelector()
        self._resting = []  # (time at which it resumes, sequence number, client)
        self._numbers = itertools.count()
        self.clients = []
        self.unsettled = set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for client in self.clients:
            client.close()
        self._selector.close()

    def add(self, client):
        self.clients.append(client)
        self.unsettled.add(client)
        client.before_closing = self._forget
        self._selector.register(client.sock, client.wants(), client)
        return client

    def dismiss(self, client):
        """Close a client's connection if it is open, and remove the client."""
        client.close()
        self.clients.remove(client)
        self.unsettled.discard(client)

    def turn(self, longest=SECONDS):
        """Wait up to ``longest`` seconds for events and handle them. Returns the number of clients with events."""
        now = time.monotonic()
        while self._resting and self._resting[0][0] <= now:
            client = heapq.heappop(self._resting)[2]
            if not client.over:
                self._selector.register(client.sock, client.wants(), client)
        if self._resting:
            longest = min(longest, self._resting[0][0] - now)
        ready = self._selector.select(longest)
        for key, events in ready:
            client = key.data
            rest = client.move(events)
            wanted = client.wants()
            if rest and wanted:
                self._selector.unregister(client.sock)
                heapq.heappush(self._resting, (time.monotonic() + rest, next(self._numbers), client))
            elif wanted and wanted != key.events:
                self._selector.modify(client.sock, wanted, client)
            if client.settled:
                self.unsettled.discard(client)
        return len(ready)

    def _forget(self, sock):
        """Unregister a socket. Must precede the close: epoll keeps a socket that a forked child still has open."""
        with contextlib.suppress(KeyError):  # its client is pausing
            self._selector.unregister(sock)

    def run(self, until=None):
        """Run until ``until()`` is true, by default until all clients are settled. Fails if there is no progress."""
        until = until or (lambda: not self.unsettled)
        moved = time.monotonic()
        while not until():
            if self.turn(1.0):
                moved = time.monotonic()
            assert time.monotonic() - moved < SECONDS, f"no progress: {list(self.unsettled)[:5]}"

    def run_for(self, turns):
        """Run for up to this many turns, while there are events."""
        for _ in range(turns):
            if not self.turn(0.01):
                return


def crowd_of(addresses, data, end=FINISH, **options):
    """Return a crowd with one client for each item of ``data``, spread over the addresses."""
    crowd = Crowd()
    try:
        for i, each in enumerate(data):
            crowd.add(Client(addresses[i % len(addresses)], each, end, seed=i, **options))
    except BaseException:
        crowd.__exit__()
        raise
    return crowd
