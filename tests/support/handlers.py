"""A handler class for tests of LineServer, which records the life of each of its objects."""

import contextlib
import queue

from rioecho import LineServer
from support.peers import SECONDS


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
