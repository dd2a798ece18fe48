"""The steps that a peer plays to each client."""

from __future__ import annotations

import math
import random
import re
import time

from rioecho._server.arguments import integer, limit
from rioecho.testing._conversation import LostError, StoppedError, UnmetError
from rioecho.testing._faults import check_seed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rioecho.testing._conversation import Conversation

#: The most bytes of each side that a message shows.
SHOWN = 80
#: A message gives the place of a difference from this byte on. Before it, what is shown makes it plain.
PLAIN = 20
#: The bytes of random data that are made at a time.
BLOCK = 1 << 16


class Step:
    """A step of a peer, made by ``send()``, ``expect()`` and the like. It may be used in any number of peers."""

    def __init__(
        self,
        shown: str,
        play: Callable[[Conversation], None],
        *,
        sends: bool = False,
        expects: str = "",
        ends: str = "",
    ) -> None:
        self._shown = shown
        self._play = play
        self._sends = sends
        self._expects = expects  # how a message names what is expected
        self._ends = ends  # what it ends: "sending", or "all"

    def __repr__(self) -> str:
        return self._shown


def send(data: bytes) -> Step:
    """Send the data."""
    data = _checked(data)
    return Step(f"send({shorten(data)})", lambda talk: talk.send(data), sends=True)


def drip(data: bytes, size: int = 1, every: float = 0.01) -> Step:
    """Send the data in pieces of ``size`` bytes, one every ``every`` seconds."""
    data = _checked(data)
    size = limit("size", integer("size", size), math.inf, minimum=1)
    limit("every", every, math.inf)

    def play(talk: Conversation) -> None:
        for start in range(0, len(data), size):
            if start:
                talk.sleep(every)
            talk.send(data[start : start + size])

    return Step(f"drip({shorten(data)}, {size}, {every:g})", play, sends=True)


def expect(data: bytes | re.Pattern[bytes], timeout: float = 5) -> Step:
    r"""Receive the data, which must come next and within ``timeout`` seconds.

    ``data`` may be a compiled pattern, such as ``re.compile(rb"GET (.*)\r\n")``. It is searched for in what comes, and
    everything through the end of the match is taken; ``\A`` at its beginning lets nothing come before it.

    If something else comes, or nothing in time, the conversation ends, and ``peer.errors`` says what was expected and
    what came. The same holds if the client ends the conversation before this step.
    """
    limit("timeout", timeout, math.inf)
    if isinstance(data, re.Pattern):
        pattern = data
        if not isinstance(pattern.pattern, bytes):
            raise TypeError(f"a pattern must be made of bytes: re.compile(rb...), not {pattern.pattern!r}")
        wanted = f"a match of {pattern.pattern!r}"
        shown = f"expect(re.compile({pattern.pattern!r}))"

        def end_of(held: bytearray, seen: int) -> int | None:
            found = pattern.search(held)
            return None if found is None else found.end()

    else:
        expected = _checked(data)
        if not expected:
            raise ValueError("expect() needs at least one byte")
        wanted = shorten(expected)
        shown = f"expect({wanted})"

        def end_of(held: bytearray, seen: int) -> int | None:
            came = bytes(held[seen : len(expected)])
            if not expected.startswith(came, seen):
                raise UnmetError(f"expected {wanted}, got {shorten(bytes(held))}{_difference(expected, held)}")
            return len(expected) if len(held) >= len(expected) else None

    def play(talk: Conversation) -> None:
        deadline = time.monotonic() + timeout
        seen = 0
        while (end := end_of(talk.held, seen)) is None:
            seen = len(talk.held)
            try:
                data = talk.receive(deadline)
                how = "" if data else "then the client closed the connection"
            except TimeoutError:
                how = f"in {timeout:g} s"
            except StoppedError:
                how = "until the peer was closed"
            except LostError as error:
                how = f"then {error}"
            else:
                talk.held += data
            if how:
                came = shorten(bytes(talk.held)) if talk.held else "nothing"
                comma = "," if how.startswith("then") else ""
                raise UnmetError(f"expected {wanted}, got {came}{comma} {how}")
        del talk.held[:end]

    return Step(shown, play, expects=wanted)


def stall(seconds: float) -> Step:
    """Neither send nor receive for some seconds."""
    limit("seconds", seconds, math.inf)
    return Step(f"stall({seconds:g})", lambda talk: talk.sleep(seconds))


def echo() -> Step:
    """Send back what comes until the client closes its sending side."""

    def play(talk: Conversation) -> None:
        data = bytes(talk.held)
        talk.held.clear()
        talk.send(data)
        while data := talk.receive():
            talk.send(data)

    return Step("echo()", play, sends=True)


def garbage(n: int, seed: int | str = 0) -> Step:
    """Send n random bytes, which depend on the seed only."""
    n = limit("n", integer("n", n), math.inf)
    check_seed(seed)

    def play(talk: Conversation) -> None:
        chance = random.Random(f"garbage {seed}")
        for start in range(0, n, BLOCK):
            talk.send(chance.randbytes(min(BLOCK, n - start)))

    return Step(f"garbage({n}, seed={seed!r})", play, sends=True)


def half_close() -> Step:
    """Close the sending side, over TLS by a close_notify: the client reads the end of the input, and may still send."""
    return Step("half_close()", lambda talk: talk.half_close(), ends="sending")


def reset() -> Step:
    """Reset the connection, once what was sent before has been acknowledged: the client gets ECONNRESET.

    A unix socket has no reset and is closed; there the client gets ECONNRESET if it has sent what was not received.
    Over TLS, clients on Python's ``ssl`` may read the end of the input instead.
    """
    return Step("reset()", lambda talk: talk.reset(), ends="all")


def close() -> Step:
    """Close the connection: the client reads the end of the input, and gets an error if it goes on sending."""
    return Step("close()", lambda talk: talk.close(), ends="all")


def shorten(data: bytes) -> str:
    """Return how a message shows the data: the beginning only, if it is long."""
    return repr(data) if len(data) <= SHOWN else f"{data[:SHOWN]!r}... ({len(data)} bytes)"


def check_order(steps: tuple[Step, ...]) -> None:
    """Raise TypeError for what is no step, ValueError for one that can never be played."""
    ended = None
    for step in steps:
        if not isinstance(step, Step):
            raise TypeError(f"a step is required, such as send(b'...'), not {step!r}")
        if ended is not None and (ended._ends == "all" or step._sends or step._ends == "sending"):
            raise ValueError(f"{step!r} cannot follow {ended!r}")
        if step._ends:
            ended = step


def _difference(expected: bytes, came: bytearray) -> str:
    """Say where the data differs, unless that is near its beginning."""
    at = next(n for n, (one, other) in enumerate(zip(expected, came, strict=False)) if one != other)
    if at < PLAIN:
        return ""
    part = slice(at, at + PLAIN)
    return f"; from byte {at} on it is {bytes(came[part])!r} instead of {expected[part]!r}"


def _checked(data: bytes) -> bytes:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"bytes are required, not {type(data).__name__}")
    return bytes(data)
