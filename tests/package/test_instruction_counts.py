"""The hot paths take as many machine instructions as recorded: what a busy machine's clock cannot tell.

After a change that is meant to alter them: `python tests/support/instruction_counts.py --record`, on each Python.
"""

import os
import shutil

import pytest

from support import instruction_counts

MARGIN = 0.10  # another compiler's choices, another C library's memchr

RECORDED = instruction_counts.recorded()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="there is no valgrind here"),
    pytest.mark.skipif(RECORDED is None, reason=f"nothing is recorded for {instruction_counts.PLATFORM}"),
    pytest.mark.skipif(os.environ.get("RIOECHO_BUILD", "release") != "release", reason="not what is shipped"),
]


@pytest.fixture(scope="module")
def counted():
    return instruction_counts.count()


@pytest.mark.parametrize("name", RECORDED or [])
def test_an_operation_takes_as_many_instructions_as_recorded(counted, name):
    now, then = counted[name], RECORDED[name]
    assert now <= then * (1 + MARGIN), "slower: mend it, or record it and say why"
    assert now >= then * (1 - MARGIN), "faster: record it, so that it stays so"


def test_what_is_counted_is_what_is_recorded(counted):
    assert counted.keys() == RECORDED.keys()
