"""The inputs that the fuzzer has found, on every build: no target fails on them."""

from pathlib import Path

import pytest

from fuzz import calls
from fuzz.targets import TARGETS
from support import agreement

CORPUS = Path(__file__).parent / "corpus"


def inputs(target):
    return sorted((CORPUS / target).iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_no_target_fails_on_an_input_of_its_corpus(target):
    for path in inputs(target):
        try:
            TARGETS[target](path.read_bytes())
        except Exception as error:
            error.add_note(f"PYTHONPATH=tests python -P -m fuzz.targets {target} {path}")
            raise


def test_the_corpus_is_small():
    sizes = [path.stat().st_size for target in TARGETS for path in inputs(target)]
    assert len(sizes) < 200
    assert sum(sizes) < 100_000


def test_the_fuzzer_makes_every_call_that_is_compared_with_the_oracle():
    assert agreement.RIO_READS | agreement.BLOCKS | {"feed"} <= set(calls.RIO)
    assert agreement.READS | agreement.BLOCKS | {"feed"} <= set(calls.FEED)
