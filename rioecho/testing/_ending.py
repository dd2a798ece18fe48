"""The end of a peer or a proxy, which ends every wait of its threads: they wait here only."""

from __future__ import annotations

import math
import os
import select
import threading
import time

#: The longest wait in seconds, whose milliseconds are an int of C: 23 days.
LONGEST = 2_000_000


class Ending:
    """A request to end. Its pipe is readable from the request on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reader, self._writer = os.pipe()
        self.requested = False

    def request(self) -> None:
        """End all waits, and let none begin. Requesting again does nothing."""
        with self._lock:
            if not self.requested:
                self.requested = True
                os.close(self._writer)

    def close(self) -> None:
        """Release the descriptors. Only for when no thread waits any more."""
        self.request()
        with self._lock:
            if self._reader >= 0:
                os.close(self._reader)
                self._reader = -1

    def poll(self, wanted: dict[int, int], seconds: float | None = None) -> dict[int, int]:
        """Wait for events of descriptors, ``{fd: events}``, for at most some seconds (None: no limit).

        Returns the pending events. Once the end has been requested it does not wait, so the result may be empty even
        without a limit.
        """
        poller = select.poll()
        for fd, events in wanted.items():
            poller.register(fd, events)
        poller.register(self._reader, select.POLLIN)
        if self.requested:
            seconds = 0
        milliseconds = None if seconds is None else math.ceil(min(max(seconds, 0), LONGEST) * 1000)
        found = dict(poller.poll(milliseconds))
        found.pop(self._reader, None)
        return found

    def sleep(self, seconds: float) -> bool:
        """Wait some seconds, and report whether they have passed: False if the end was requested first."""
        deadline = time.monotonic() + seconds
        while not self.requested and (left := deadline - time.monotonic()) > 0:
            self.poll({}, min(left, 3600))
        return not self.requested
