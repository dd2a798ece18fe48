"""Random sequences of calls on a Feed; every result must be the oracle's, and None where it depends on more bytes."""

import pytest

from support.agreement import check_feed
from support.properties import given, st
from support.sequences import BLOCKS, READS, chunks, deterministic, step

feeds = st.tuples(st.just("feed"), chunks)
looks = step({"peek": (), "buffered": (), "has_line": (), "read_buffered": (), "readlines1": ()})
steps = st.lists(feeds | step(READS) | looks | step(BLOCKS), max_size=40)


@pytest.mark.long
@deterministic
@given(steps, steps, st.sampled_from([10, 30, 1 << 20]))
def test_any_sequence_of_calls_returns_what_the_oracle_returns(live, ended, max_line):
    check_feed(live, ended, max_line)
