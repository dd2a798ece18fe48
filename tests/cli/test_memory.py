"""rioecho-client and rioecho-bench while allocations fail, one after the other; see support/memory_commands.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.sweep import require_failing_allocations

SCRIPT = Path(__file__).parents[1] / "support" / "memory_commands.py"
NAMES = [
    *("client", "client, a wrong echo"),
    *("bench", "bench, a wrong echo", "bench, reconnecting", "bench, merging", "bench, comparing"),
]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def swept(name, stride, folder):
    require_failing_allocations()
    # CPython itself leaks small objects if it has no memory for a call.
    environment = os.environ | {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}
    command = [sys.executable, "-P", SCRIPT, name, str(stride), folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, env=environment)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}{done.stderr[-3000:]}"
    assert done.stdout.startswith(f"{name}: ")


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMES)
def test_some_failed_allocations_are_one_line_or_harmless(name, tmp_path):
    swept(name, 29, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_failed_allocation_is_one_line_or_harmless(name, tmp_path):
    swept(name, 1, tmp_path)
