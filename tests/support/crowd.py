"""A crowd of clients in one thread: hundreds of connections at once, and every byte that comes back is checked."""

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

#: How a client ends. It half-closes and reads to the end; closes when all has come back; keeps the connection when all
#: has come back; sends on until the server ends it; resets, or just closes, when it has sent `cut` bytes.
FINISH, LEAVE, STAY, TOLD, RESET, VANISH = "finish", "leave", "stay", "told", "reset", "vanish"


@functools.cache
def _stream():
    return binary(1 << 23)


def stretch(n, at=0):
    """N random bytes, newlines among them; `at` says which."""
    at = at * 7919 % (len(_stream()) - n)
    return _stream()[at : at + n]


def sizes(n, seed=0):
    """N sizes, of one byte to hundreds of kilobytes, and each of SIZES among them."""
    chance = random.Random(f"sizes {seed}")
    more = [int(2 ** chance.uniform(0, 17)) + chance.choice([-1, 0, 1]) for _ in range(n - len(SIZES))]
    chosen = [*SIZES, *more][:n]
    chance.shuffle(chosen)
    return chosen


class Client:
    """One of a crowd. It sends `data`, and fails where anything else comes back.

    `piece`: bytes sent at once, at most; `gulp`: read at once; `pauses`: how often and how long it does nothing, as
    (chance, most seconds); `room`: of its receive buffer.
    """

    def __init__(
        self, address, data, end=FINISH, *, cut=None, piece=1 << 17, gulp=1 << 16, pauses=(0, 0), room=None, seed=0
    ):
        self.data, self.end, self.cut = data, end, len(data) if cut is None else cut
        self.sent = self.received = 0
        self.connected = self.ended = self.over = False
        self.error = None  # the number of what the connection ended with
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
        """The events it waits for; 0 where nothing is to be done any more."""
        if self.over:
            return 0
        if not self.connected or self._may_send():
            return BOTH
        return selectors.EVENT_READ

    def move(self, events):
        """Do what can be done; the seconds that it takes a rest afterwards."""
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
                raise AssertionError(f"{error} of {self}") from error
            self.error = error.errno
            self.close()
        often, longest = self._pauses
        return self._chance.uniform(0, longest) if often and self._chance.random() < often else 0

    def promised(self):
        """How many of its bytes the server's kernel has acknowledged."""
        if self.over or not self.connected or sys.platform != "linux":
            return 0
        return self.sent - struct.unpack("i", fcntl.ioctl(self.sock, termios.TIOCOUTQ, b"\0" * 4))[0]

    def hush(self):
        """Send nothing more."""
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
        assert self.data.startswith(part, self.received), f"other bytes than were sent, to {self}"
        self.received += len(part)
        assert self.received <= self.sent, f"more than was sent, to {self}"
        if not part:
            whole = self.end == FINISH and self.received == len(self.data)
            assert whole or self.end == TOLD, f"the end too soon: {self}"
            self.ended = True
            self.close()

    def _end(self):
        """Having sent all, or got all back: end it."""
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
        """Is there nothing more to come?"""
        return self.over or (self.end == STAY and self.connected and self.received == len(self.data))


class Crowd:
    """Clients, all at once; leaving the block closes what is left of them."""

    def __init__(self):
        self._selector = selectors.DefaultSelector()
        self._resting = []  # (when it goes on, a number, the client)
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
        """Close a client's connection, if it is still there, and know it no more."""
        client.close()
        self.clients.remove(client)
        self.unsettled.discard(client)

    def turn(self, longest=SECONDS):
        """Let each client that can do something do it; how many did."""
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
        """Watch a socket no longer. Before it is closed: a child just forked may hold it too, and epoll watches on."""
        with contextlib.suppress(KeyError):  # its client takes a rest
            self._selector.unregister(sock)

    def run(self, until=None):
        """Go on until it is so, or until every client is settled; fails where nothing moves for long."""
        until = until or (lambda: not self.unsettled)
        moved = time.monotonic()
        while not until():
            if self.turn(1.0):
                moved = time.monotonic()
            assert time.monotonic() - moved < SECONDS, f"nothing moves any more: {list(self.unsettled)[:5]}"

    def run_for(self, turns):
        """Go on for so many turns, as long as there is something to do at once."""
        for _ in range(turns):
            if not self.turn(0.01):
                return


def crowd_of(addresses, data, end=FINISH, **options):
    """A crowd with one client for each of the data, and the addresses in turn."""
    crowd = Crowd()
    try:
        for i, each in enumerate(data):
            crowd.add(Client(addresses[i % len(addresses)], each, end, seed=i, **options))
    except BaseException:
        crowd.__exit__()
        raise
    return crowd
