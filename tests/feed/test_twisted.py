"""Feed in a protocol of Twisted, as its LineReceiver, over a TCP connection."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import environment

PROGRAMS = Path(__file__).parents[1] / "support" / "twisted_programs.py"


def run(program, lines=0):
    if importlib.util.find_spec("twisted") is None:
        pytest.skip("Twisted is not installed")
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(PROGRAMS), program, str(lines)],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("messages", [1000, 30_000])
def test_a_twisted_protocol_receives_lines_and_bodies_in_any_pieces(messages):
    run("echo", messages)


@pytest.mark.slow
def test_a_twisted_protocol_refuses_a_line_that_is_too_long_and_holds_its_bytes():
    run("flood")
