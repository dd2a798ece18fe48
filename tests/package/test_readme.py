"""The README: its examples run as written, its links lead somewhere, and it stays short."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="the source tree is not available")
TEXT = README.read_text() if README.is_file() else ""
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
RELATIVE = re.compile(r"\]\((?!https?:|#)([^)]*)\)")

# Installed from the sdist, the tests have the README, but not all that it names.
of_the_tree = pytest.mark.skipif(
    not all((ROOT / name).exists() for name in ("setup.py", ".github")), reason="the source tree is not available"
)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_prints_what_its_comments_say(child, number):
    example = EXAMPLES[number]
    expected = [comment.split(": ")[0] for comment in re.findall(r"print\(.*\)  # (.*)", example)]
    assert expected
    assert child(example).splitlines() == expected


def test_the_readme_has_examples():
    assert len(EXAMPLES) >= 2


def test_the_readme_is_short():
    assert TEXT.count("\n") < 150


@of_the_tree
def test_each_link_leads_to_a_file():
    paths = RELATIVE.findall(TEXT)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_each_page_of_the_documentation_is_linked():
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.rst")} - {"docs/index.rst"}
    assert pages - set(RELATIVE.findall(TEXT)) == set()


def description(tree):
    """Return the description that a build of this tree gives to the package index."""
    setup = [sys.executable, "setup.py", "--quiet", "--long-description"]
    return subprocess.run(setup, cwd=tree, capture_output=True, text=True, check=True, timeout=100).stdout


@pytest.fixture
def tree(tmp_path):
    """Return a folder with what the description is made of."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


@of_the_tree
@pytest.mark.slow
def test_the_description_has_no_relative_link(tree):
    assert "MIT licence (`LICENSE`)" in " ".join(description(tree).split())
    assert RELATIVE.findall(description(tree)) == []


@of_the_tree
@pytest.mark.slow
def test_links_and_pictures_of_the_description_lead_to_the_source_if_it_has_a_url(tree):
    project = tree / "pyproject.toml"
    before, _, after = project.read_text().partition("\n[project.urls]\n")
    project.write_text(f'{before}\n[project.urls]\nSource = "https://example.org/rioecho"\n{after}')
    said = description(tree)
    assert RELATIVE.findall(said) == []
    assert "](https://example.org/rioecho/raw/HEAD/docs/data.svg)" in said
    assert "](https://example.org/rioecho/blob/HEAD/docs/rio.rst)" in said
