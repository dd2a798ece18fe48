"""The event loop in a model of the kernel, in histories that a seed chooses (run.py)."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.simulation import environment

RUN = Path(__file__).with_name("run.py")

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the model is that of Linux, with the prototypes of glibc"
)


@pytest.fixture(scope="module")
def simulate(tmp_path_factory):
    """Return a function that runs histories in a child process and returns its status and its output."""
    with_model = environment(tmp_path_factory.mktemp("model"))
    if with_model is None:
        pytest.skip("no C compiler is installed")

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-P", "-X", "faulthandler", "-W", "error", RUN, *map(str, arguments)],
            env=with_model,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        return done.returncode, done.stdout

    return run


def held(result):
    """Check that every rule held, and return the totals of the histories."""
    status, output = result
    assert status == 0, output[-8000:]
    totals = re.search(r"^\d+ histories: (.+)$", output, re.MULTILINE)
    assert totals, output[-8000:]
    return {name: int(n) for name, n in (total.split() for total in totals[1].split(", "))}


def test_every_rule_holds_in_every_history(simulate):
    totals = held(simulate("--seed", 0, "--count", 600))
    assert all(n for name, n in totals.items() if name != "unsure"), "something never happened"


@pytest.mark.parametrize(
    "seed",
    [
        20970,  # the peer takes bytes between two sends that fail, and is not idle
        # A handler's part of a line, whose input has ended, waits for memory a little longer than it is short.
        pytest.param(41733, marks=pytest.mark.long),
        80949,  # at the stop, handlers wait for the rest of more lines than there is memory for
        # A part of a line for which there was no memory is sent when there is, and the peer takes a little at a time.
        pytest.param(82480, marks=pytest.mark.long),
        pytest.param(116700, marks=pytest.mark.long),
    ],
)
def test_every_rule_holds_in_a_history_that_broke_one(simulate, seed):
    held(simulate("--seed", seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 21_000, 5000))
def test_every_rule_holds_in_thousands_of_histories(simulate, first):
    held(simulate("--seed", first, "--count", 5000 if "RIOECHO_BUILD" not in os.environ else 500))


@pytest.mark.long
def test_a_seed_repeats_its_history(simulate):
    hashes = {re.search(r"hash (\w+)", simulate("--seed", 300, "--count", 40)[1])[1] for _ in range(3)}
    assert len(hashes) == 1
    assert hashes != {re.search(r"hash (\w+)", simulate("--seed", 301, "--count", 40)[1])[1]}


def test_a_broken_rule_is_reported_with_the_command_that_repeats_the_history(simulate):
    status, output = simulate("--seed", 0, "--count", 40, "--corrupt")
    assert status == 3
    seed, text = re.search(r"seed (\d+): (client \d+ is sent wrong bytes, .*)", output).groups()
    assert f"run.py --seed {seed} --trace" in output
    status, again = simulate("--seed", seed, "--corrupt", "--trace")
    assert status == 3
    assert text in again
    assert len(again) >= len(output)
