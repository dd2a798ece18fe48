"""The default run takes a few cases of a test, but every value of each parameter occurs in it."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from support.sampling import covering

TESTS = Path(__file__).parents[1]

EXAMPLE = """
import pytest

@pytest.fixture(params=["pipe", "tcp", "pty"])
def kind(request):
    return request.param

@pytest.mark.parametrize("size", [1, 7, 64, 4096])
@pytest.mark.parametrize(("text", "length"), [("a", 1), ("b", 1), ("ab", 2)])
def test_of_several_parameters(kind, size, text, length):
    pass

@pytest.mark.parametrize("size", [1, 7, 64, 4096])
def test_of_one_parameter(size):
    pass

@pytest.mark.sampled(2)
@pytest.mark.parametrize("size", [1, 7, 64, 4096])
def test_with_long_cases(size):
    pass

@pytest.mark.slow
def test_that_is_long():
    pass
"""


def test_each_value_occurs_in_as_few_cases_as_the_longest_parameter_has_values():
    cases = [{("kind", kind), ("size", size)} for kind, size in itertools.product("abcde", range(7))]
    chosen = covering(cases)
    assert set().union(*(cases[i] for i in chosen)) == set().union(*cases)
    assert len(chosen) == 7
    assert covering([{("kind", "a")}]) == [0]


@pytest.fixture
def collected(tmp_path):
    """Return a function that collects the example as pytest collects the tests, and returns the names of its cases."""
    (tmp_path / "test_example.py").write_text(EXAMPLE)
    (tmp_path / "conftest.py").write_text(
        "import pytest\nfrom support.sampling import mark_the_rest_slow\n"
        "@pytest.hookimpl(tryfirst=True)\ndef pytest_collection_modifyitems(items):\n    mark_the_rest_slow(items)\n"
    )
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {TESTS}\nmarkers =\n    slow\n    sampled\n")

    def collect(expression):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "-m", expression],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]

    return collect


@pytest.mark.slow
def test_the_default_run_takes_few_combinations_but_all_values_of_one_parameter(collected):
    everything, default = collected(""), collected("not slow")
    assert len(everything) == 36 + 4 + 4 + 1
    several = [name for name in default if name.startswith("test_of_several")]
    assert len(several) == 4
    for value in ("pipe", "tcp", "pty", "-1-", "-7-", "-64-", "-4096", "a-1", "b-1", "ab-2"):
        assert any(value in f"{name[:-1]}-" for name in several), value
    assert sum(name.startswith("test_of_one") for name in default) == 4
    assert sum(name.startswith("test_with_long_cases") for name in default) == 2
    assert "test_that_is_long" not in default
