"""The README's examples run as written and print what their comments say."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="the source tree is not available")
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if README.is_file() else []


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_prints_what_its_comments_say(child, number):
    example = EXAMPLES[number]
    expected = [comment.split(": ")[0] for comment in re.findall(r"print\(.*\)  # (.*)", example)]
    assert expected
    assert child(example).splitlines() == expected


def test_the_readme_has_examples():
    assert len(EXAMPLES) >= 3
