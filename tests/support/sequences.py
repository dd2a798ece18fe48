"""Random calls of the reading methods, for properties: strategies, and the comparison with the oracle."""

import pytest

from rioecho import FrameTooLong, IncompleteRead, LineTooLong
from support.oracle import Incomplete, TooLong, WouldWait
from support.properties import EXAMPLES, HealthCheck, settings, st

deterministic = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
)

sizes = st.integers(0, 12) | st.sampled_from([40, 300])
chunks = st.text("ab\r\n;\x00\x01\x02", max_size=20).map(str.encode) | st.sampled_from(
    [b"x" * 50, b"\n" * 9, b"\r\n\r\n", b"aab" * 9]
)
separators = st.sampled_from([b"\n", b"\r\n", b";", b"aab", b"aa", b"\r\n\r\n"])

#: The reading methods whose result does not depend on the size of a read(2), and their arguments.
READS = {
    "readline": (),
    "readline limit": (sizes,),
    "read": (st.integers(-1, 12) | st.sampled_from([40, 300]),),
    "readexactly": (sizes,),
    "readuntil": (separators | st.lists(separators, min_size=1, max_size=3).map(tuple),),
    "readuntil limit": (separators, st.integers(1, 40)),
    "readframe": (st.integers(1, 2), st.sampled_from(["big", "little"])),
    "skip": (sizes,),
    "skipline": (),
    "unread": (chunks,),
}
#: The entering and leaving of frame(). "leave": the depth, modulo that of the open blocks, and whether it is undone.
BLOCKS = {"begin": (), "leave": (st.integers(-3, -1), st.booleans())}


class Interrupted(Exception):
    """What ends a block of frame()."""


def step(table):
    return st.one_of([st.tuples(st.just(name), *arguments) for name, arguments in table.items()])


def blocks_step(reader, oracle, blocks, name, arguments):
    """Enter a block of ``reader.frame()``, or leave one of the open ``blocks`` and with it those inside it."""
    if name == "begin":
        blocks.append(reader.frame())
        blocks[-1].__enter__()
        oracle.begin()
    elif blocks:
        depth = max(arguments[0], -len(blocks)) + len(blocks)
        undo = arguments[1]
        error = Interrupted() if undo else None
        blocks[depth].__exit__(type(error) if error else None, error, None)
        oracle.leave(depth, undo)
        for inner in blocks[depth + 1 :]:
            inner.__exit__(Interrupted, Interrupted(), None)
        del blocks[depth:]


def compare(oracle, call, ideal, would_wait):
    """Compare a call with what the oracle does; ``would_wait(call)`` checks one for which bytes are missing."""
    before = oracle.data, oracle.kept
    try:
        expected = ideal()
    except WouldWait:
        oracle.data, oracle.kept = before
        would_wait(call)
    except TooLong:
        oracle.data, oracle.kept = before
        with pytest.raises((LineTooLong, FrameTooLong)):
            call()
    except Incomplete as error:
        with pytest.raises(IncompleteRead) as caught:
            call()
        assert caught.value.partial == error.args[0]  # noqa: PT017, two errors are compared
    else:
        assert call() == expected
