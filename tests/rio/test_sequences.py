"""Random sequences of calls on a connection whose peer is the test; every result must be the oracle's."""

import os
from contextlib import suppress

import pytest

from rioecho import Rio
from support import sequences
from support.agreement import Ends, check_partial, check_read, check_rio
from support.oracle import Oracle
from support.properties import given, st
from support.sequences import BLOCKS, chunks, deterministic, sizes, step

READS = {**sequences.READS, "iteration": (), "readlines": ()}
PARTIAL = {
    "read1": (st.integers(-1, 12),),
    "readinto": (sizes,),
    "readinto1": (sizes,),
    "readlines1": (),
    "peek": (),
    "fill": (sizes,),
    "has_line": (),
    "read_buffered": (),
}
WRITES = {"write": (chunks,), "writen": (chunks,), "writelines": (st.lists(chunks, max_size=3),), "flush": ()}

feeds = st.tuples(st.just("feed"), chunks)
reading_steps = st.lists(feeds | step(READS) | step(PARTIAL) | step(BLOCKS), max_size=30)
both_steps = st.lists(feeds | step(READS) | step(PARTIAL) | step(WRITES), max_size=30)


def write(rio, name, arguments):
    """Call a writing method and return the bytes that it accepted."""
    data = b"".join(arguments[0]) if name == "writelines" else b"".join(arguments)
    try:
        getattr(rio, name)(*arguments)
    except BlockingIOError as error:
        return data[: error.characters_written] if name != "flush" else b""
    return data


@pytest.mark.long
@deterministic
@given(
    reading_steps,
    reading_steps,
    st.sampled_from([1, 2, 7, 64, 65536]),
    st.sampled_from([10, 30, 1 << 20]),
    st.booleans(),
)
def test_any_sequence_of_reads_returns_what_the_oracle_returns(live, ended, bufsize, max_line, pipe):
    check_rio(live, ended, bufsize, max_line, pipe)


@pytest.mark.slow
@deterministic
@given(both_steps, st.sampled_from([1, 2, 7, 64, 65536]), st.booleans())
def test_any_sequence_of_reads_and_writes_loses_nothing_in_either_direction(steps, bufsize, slow):
    with Ends(pipe=False) as ends:
        rio = Rio(ends.near, bufsize=bufsize, max_line=30, timeout=0)
        oracle = Oracle(b"", ended=False, max_line=30)
        written, received = b"", b""
        for name, *arguments in steps:
            if name == "feed":
                os.write(ends.far, arguments[0])
                oracle.data += arguments[0]
            elif name in READS:
                check_read(rio, oracle, name, tuple(arguments))
            elif name in PARTIAL:
                check_partial(rio, oracle, name, tuple(arguments))
            else:
                if slow and name != "flush":  # more than fits in the socket buffer, while the peer does not read
                    arguments = [[*arguments[0]] * 50] if name == "writelines" else [arguments[0] * 200]
                written += write(rio, name, tuple(arguments))
                if not slow:
                    received += ends.received()
            assert len(written) - len(received) <= bufsize or slow
        while len(received) < len(written):
            received += ends.received()
            with suppress(BlockingIOError):
                rio.flush()
        assert received == written
