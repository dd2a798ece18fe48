"""The faults of a proxy: what one direction of a connection passes on, when, and in what pieces. No I/O.

What the seed decides is decided by the position of a byte alone.
"""

from __future__ import annotations

import math
import random

from rioecho._server.arguments import integer, limit
from rioecho.testing._service import CHUNK

#: The largest piece under a bandwidth, in seconds of sending: the bytes flow and do not come in bursts.
BURST = 0.05


class Faults:
    """The arguments of a proxy. Raises ``ValueError`` for one that makes no sense."""

    def __init__(
        self,
        seed: int | str,
        cut: int | None,
        delay: float | None,
        bandwidth: float | None,
        reset_after: int | None,
        corrupt: float,
    ) -> None:
        self.seed = check_seed(seed)
        self.cut = None if cut is None else limit("cut", integer("cut", cut), math.inf, minimum=1)
        self.delay = 0.0 if delay is None else limit("delay", delay, math.inf)
        self.bandwidth = None if bandwidth is None else limit("bandwidth", bandwidth, math.inf)
        if bandwidth == 0:
            raise ValueError("bandwidth must be more than 0; for a pause use delay")
        self.reset_after = reset_after
        if reset_after is not None:
            self.reset_after = limit("reset_after", integer("reset_after", reset_after), math.inf)
        self.corrupt = limit("corrupt", corrupt, 1)  # a probability

    def __str__(self) -> str:
        names = [name for name in ("cut", "delay", "bandwidth", "reset_after", "corrupt") if getattr(self, name)]
        if self.reset_after == 0:
            names.append("reset_after")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in ["seed", *names])

    def flow(self, client: int, direction: str) -> Flow:
        """Return the flow of a client, counted from 1, in a direction."""
        return Flow(self, f"{self.seed} {client} {direction}")


def check_seed(seed: int | str) -> int | str:
    """Return a seed, or raise ``TypeError``: others have no text that is the same in every run."""
    if isinstance(seed, bool) or not isinstance(seed, int | str):
        raise TypeError(f"seed must be an int or a str, not {type(seed).__name__}")
    return seed


class Flow:
    """What is on its way in one direction."""

    def __init__(self, faults: Faults, seed: str) -> None:
        self._faults = faults
        self._cuts = random.Random(f"cut {seed}")
        self._changes = random.Random(f"corrupt {seed}")
        self.held = bytearray()
        self._taken = self._passed = 0
        self._left = self._next_cut()  # bytes of the current piece
        self._change = self._next_change(-1)  # the position of the next byte that is changed
        self._size = 0  # bytes to be passed on at _due
        self._due: float | None = None
        self._free = -math.inf  # when the last piece had been sent at the bandwidth
        self.has_ended = False  # nothing more is read
        self.torn = False  # by a reset
        self.finished = False  # the end has been passed on too

    @property
    def room(self) -> int:
        """The number of bytes to read at most."""
        return CHUNK - len(self.held)

    @property
    def has_room(self) -> bool:
        return not self.has_ended and self.room > 0

    @property
    def resets(self) -> bool:
        """Whether the connection is to be reset: as many bytes have been passed on as asked for."""
        return self._faults.reset_after is not None and self._passed >= self._faults.reset_after

    def take(self, data: bytes) -> None:
        """Take what was read; b"" is the end."""
        if not data:
            self.has_ended = True
            return
        changed = bytearray(data)
        while self._change < self._taken + len(data):
            changed[int(self._change) - self._taken] ^= self._changes.randrange(1, 256)
            self._change = self._next_change(self._change)
        self._taken += len(data)
        self.held += changed

    def due(self, now: float) -> float | None:
        """Return when the next bytes are to be passed on; None if there are none."""
        if not self.held:
            return None
        if self._due is None:
            faults = self._faults
            self._size = min(self._left, len(self.held), CHUNK)
            if faults.reset_after is not None:
                self._size = min(self._size, faults.reset_after - self._passed)
            self._due = now + faults.delay
            if faults.bandwidth is not None:
                self._size = min(self._size, max(1, int(faults.bandwidth * BURST)))
                self._free = max(self._free, now) + self._size / faults.bandwidth
                self._due = max(self._due, self._free)
        return self._due

    def piece(self, now: float) -> bytes:
        """Return the bytes to be passed on now."""
        due = self.due(now)
        return bytes(self.held[: self._size]) if due is not None and due <= now else b""

    def given(self, n: int) -> None:
        """Take note that the first n bytes of the piece have been passed on."""
        del self.held[:n]
        self._passed += n
        self._left -= n
        self._size -= n
        if not self._left:
            self._left = self._next_cut()
        if not self._size:  # the rest of a piece that the kernel had no room for is due at once
            self._due = None

    def _next_cut(self) -> int:
        return CHUNK if self._faults.cut is None else self._cuts.randint(1, self._faults.cut)

    def _next_change(self, last: float) -> float:
        chance = self._faults.corrupt
        if not chance:
            return math.inf
        # The gaps between changed bytes are geometrically distributed.
        gap = 1 if chance == 1 else 1 + math.log(1 - self._changes.random()) // math.log1p(-chance)
        return last + gap
