"""The tests that the page about robustness names exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "robustness.rst"
LITERAL = re.compile(r"``([a-z]+/test_\w+\.py|test_\w+)``")

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the source tree is not available")


def names_of(page):
    """Return the pairs of a file and a test that a page names: the file, then one or more of its tests."""
    pairs = []
    for name in LITERAL.findall(page):
        if "/" in name:
            file = name
        else:
            pairs.append((file, name))
    return pairs


def test_each_test_that_is_named_exists():
    pairs = names_of(PAGE.read_text())
    assert len(pairs) > 50
    for file, name in pairs:
        assert re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE), f"{file}::{name}"
