"""Handlers for tests of LineServer that record what they are told, and short ways to serve and to call them."""

import contextlib
import queue

from rioecho import LineServer
from support.peers import SECONDS, dial, exchange, receive_all


class Recorder:
    """Echoes, and records. Each subclass has queues of its own: ``made`` of its objects, ``lost`` of their reasons."""

    def __init_subclass__(cls):
        cls.made, cls.lost = queue.Queue(), queue.Queue()

    def __init__(self):
        self.losses = 0  # the number of calls of connection_lost()
        self.received = []

    def connection_made(self, conn):
        self.conn = conn
        self.made.put(self)

    def lines_received(self, lines):
        self.received += lines
        return lines

    def data_received(self, data):
        self.received.append(data)
        return data

    def connection_lost(self, reason):
        self.losses += 1
        self.lost.put(reason)


def a_recorder():
    """Return a new subclass of Recorder."""
    return type("Fresh", (Recorder,), {})


def take(queue):
    """Return the next item of a queue; fail if there is none in time."""
    return queue.get(timeout=SECONDS)


@contextlib.contextmanager
def serving(handler, **options):
    """Run a LineServer on 127.0.0.1; yield it."""
    with LineServer(handler, host="127.0.0.1", **options) as server:
        yield server


class Life:
    """Records what a handler is told, in order; ``handler()`` is a class whose answer ``answer(conn, input)`` makes."""

    def __init__(self):
        self.events = queue.SimpleQueue()

    def handler(self, answer=lambda conn, lines: lines, *, made=lambda conn: None, lost=lambda conn, reason: None):
        life = self

        class Handler:
            def connection_made(self, conn):
                self.conn = conn
                life.events.put(("made", conn))
                made(conn)

            def lines_received(self, lines):
                life.events.put(("input", lines))
                return answer(self.conn, lines)

            data_received = lines_received

            def connection_lost(self, reason):
                life.events.put(("lost", reason))
                lost(self.conn, reason)

        return Handler

    def next(self, kind):
        """Return what the next event, which must be of this kind, came with."""
        event = self.events.get(timeout=SECONDS)
        assert event[0] == kind, event
        return event[1]

    def lost(self):
        """Return the reason of the next end; skip other events."""
        while True:
            kind, value = self.events.get(timeout=SECONDS)
            if kind == "lost":
                return value

    def silent(self):
        assert self.events.empty(), self.events.get()


def serve(handler, **options):
    return LineServer(handler, host=options.pop("host", "127.0.0.1"), **options)


def call(server, data):
    """Send data, half-close, and return all that comes back."""
    with dial(server.addresses[0]) as client:
        return exchange(client, data)


def still_serves(server, line=b"still there?\n", echo=b"still there?\n"):
    assert call(server, line) == echo


def ended(client):
    """Receive to the end, which may be a reset."""
    try:
        return receive_all(client)
    except ConnectionResetError:
        return None


def upper(lines):
    return [line.upper() for line in lines]


def nothing(conn, lines):
    return None


def raising(error):
    def fail(*_):
        raise error

    return fail


def stuff(conn, piece=b"x" * 10_000):
    """Write until BlockingIOError; return the number of bytes that were taken."""
    taken = 0
    for _ in range(100_000):
        try:
            taken += conn.write(piece)
        except BlockingIOError:
            return taken
    raise AssertionError("no limit")


def iter_events(life):
    while not life.events.empty():
        yield life.events.get()
