"""The client and the load test as commands while allocations fail, each in its turn; see support/memory_commands.py."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "memory_commands.py"
NAMES = ["client", "client, a wrong echo", "bench", "bench, a wrong echo"]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(
        sys.version_info >= (3, 12), reason="CPython itself crashes where it has no memory for a frame of Python code"
    ),
]


def swept(name, stride):
    pytest.importorskip("_testcapi", reason="this Python has no allocator that can be made to fail")
    done = subprocess.run(
        [sys.executable, "-P", SCRIPT, name, str(stride)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}{done.stderr[-3000:]}"
    assert done.stdout.startswith(f"{name}: ")


@pytest.mark.parametrize("name", NAMES)
def test_some_failed_allocations_are_one_line_or_do_no_harm(name):
    swept(name, 29)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_failed_allocation_is_one_line_or_does_no_harm(name):
    swept(name, 1)
