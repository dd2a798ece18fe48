"""Clients that come and go all the time, for tests of a server that stops or is replaced meanwhile."""

import threading
import time

from support.peers import Running, ask, dial
from support.procfs import until


class Visitors:
    """Threads that connect, exchange a line and close, all the time, until they are refused or ``end()``.

    Leaving the block ends them too. ``visits`` has the time at which each visit began, and "served" or the error that
    ended it.
    """

    def __init__(self, address, n):
        self.address = address
        self.visits = []
        self.ended = threading.Event()
        self.running = [Running(self.visit) for _ in range(n)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ended.set()

    def visit(self):
        refused = False
        while not (self.ended.is_set() or refused):
            began, outcome = time.monotonic(), "served"
            try:
                with dial(self.address) as sock:
                    ask(sock, b"a line\n")
            except (OSError, AssertionError) as error:
                refused = isinstance(error, ConnectionRefusedError)
                outcome = repr(error)
            self.visits.append((began, outcome))

    def wait_for(self, n):
        """Wait until this many more visits have ended."""
        wanted = len(self.visits) + n
        until(lambda: len(self.visits) >= wanted, f"{n} visits")

    def end(self):
        self.ended.set()
        for each in self.running:
            each.result()
