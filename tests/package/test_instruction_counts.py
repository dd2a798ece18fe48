"""The hot paths execute as many machine instructions as recorded. Unlike time, this does not depend on the load.

After an intended change run ``python tests/support/instruction_counts.py --record`` on each Python.
"""

import os
import shutil

import pytest

from support import instruction_counts

MARGIN = 0.10  # for differences between compilers and between the memchr of C libraries

RECORDED = instruction_counts.recorded()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed"),
    pytest.mark.skipif(RECORDED is None, reason=f"nothing is recorded for {instruction_counts.PLATFORM}"),
    pytest.mark.skipif(os.environ.get("RIOECHO_BUILD", "release") != "release", reason="only the release build counts"),
]


@pytest.fixture(scope="module")
def counted():
    return instruction_counts.count()


@pytest.mark.parametrize("name", RECORDED or [])
def test_an_operation_executes_as_many_instructions_as_recorded(counted, name):
    now, then = counted[name], RECORDED[name]
    assert now <= then * (1 + MARGIN), "slower: fix it, or record it and give the reason in the commit"
    assert now >= then * (1 - MARGIN), "faster: record it, to keep the improvement"


def test_the_counted_operations_are_those_recorded(counted):
    assert counted.keys() == RECORDED.keys()
