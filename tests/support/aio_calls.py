"""The reading methods of a Rio of asyncio: a call of each, an input for it, and what it takes of that."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """A call; an input that is just enough for it; its result; how many bytes it consumes."""

    call: Any  # f(rio, **timeout) -> a coroutine
    data: bytes
    result: Any
    consumed: int | None = None  # None: all

    @property
    def left(self):
        """What it leaves of its input."""
        return b"" if self.consumed is None else self.data[self.consumed :]


async def into(rio, name, size, **timeout):
    buffer = bytearray(size)
    n = await getattr(rio, name)(buffer, **timeout)
    return bytes(buffer[:n])


async def filled(rio, n, **timeout):
    """Call ``fill()``, whose result also counts what has come too much."""
    return min(n, await rio.fill(n, **timeout))


#: The methods whose result does not depend on how the bytes come.
METHODS = {
    "readline": Method(lambda rio, **t: rio.readline(**t), b"a line\n", b"a line\n"),
    "readline limit": Method(lambda rio, **t: rio.readline(4, **t), b"line", b"line"),
    "iteration": Method(lambda rio, **t: rio.readline(**t) if t else rio.__anext__(), b"next\n", b"next\n"),
    "read": Method(lambda rio, **t: rio.read(6, **t), b"six\n\r\n", b"six\n\r\n"),
    "readexactly": Method(lambda rio, **t: rio.readexactly(6, **t), b"exact\n", b"exact\n"),
    "readuntil": Method(lambda rio, **t: rio.readuntil(b"\r\n", **t), b"\r\r\na"[:3], b"\r\r\n"),
    "readuntil several": Method(lambda rio, **t: rio.readuntil((b"--", b";", b"xyz"), **t), b"-xy-xyz", b"-xy-xyz"),
    "readlines hint": Method(lambda rio, **t: rio.readlines(3, **t), b"a\n\nbc\n", [b"a\n", b"\n", b"bc\n"]),
    "readframe": Method(lambda rio, **t: rio.readframe(2, "little", **t), b"\4\0load", b"load"),
    "readinto": Method(lambda rio, **t: into(rio, "readinto", 5, **t), b"inthe", b"inthe"),
    "fill": Method(lambda rio, **t: filled(rio, 4, **t), b"fill", 4, 0),
    "skip": Method(lambda rio, **t: rio.skip(5, **t), b"skip\n", 5),
    "skipline": Method(lambda rio, **t: rio.skipline(**t), b"skipped\n", 8),
}

#: Those that return what the first bytes bring.
FIRST = {
    "read1": Method(lambda rio, **t: rio.read1(**t), b"x", b"x"),
    "readinto1": Method(lambda rio, **t: into(rio, "readinto1", 9, **t), b"x", b"x"),
    "peek": Method(lambda rio, **t: rio.peek(**t), b"x", b"x", 0),
    "readlines1": Method(lambda rio, **t: rio.readlines1(**t), b"x\n", [b"x\n"]),
}

#: Those whose result is complete at the end of the input only.
AT_THE_END = {
    "read all": Method(lambda rio, **t: rio.read(**t), b"all\nof it", b"all\nof it"),
    "readlines": Method(lambda rio, **t: rio.readlines(**t), b"l\n\nrest", [b"l\n", b"\n", b"rest"]),
    "readline, unterminated": Method(lambda rio, **t: rio.readline(**t), b"rest", b"rest"),
    "readlines1, unterminated": Method(lambda rio, **t: rio.readlines1(**t), b"rest", [b"rest"]),
    "short read": Method(lambda rio, **t: rio.read(99, **t), b"short", b"short"),
    "short fill": Method(lambda rio, **t: rio.fill(99, **t), b"few", 3, 0),
    "short skip": Method(lambda rio, **t: rio.skip(99, **t), b"short", 5),
    "short skipline": Method(lambda rio, **t: rio.skipline(**t), b"short", 5),
    "short readinto": Method(lambda rio, **t: into(rio, "readinto", 99, **t), b"short", b"short"),
}

ALL = METHODS | FIRST | AT_THE_END
