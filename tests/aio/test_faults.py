"""Every fault at every system call: see support/aio_fault_scenarios.py."""

import importlib.util
import sys

import pytest

from support.sweep import preloaded, run_script


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD and /proc")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_no_fault_at_any_system_call_loses_a_byte_or_hangs_or_leaves_anything(loop, tmp_path):
    if loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    preload = preloaded("faults.c", tmp_path)
    done = run_script("aio_fault_scenarios.py", loop, timeout=600, LD_PRELOAD=preload)
    assert "a server and a client that connects: " in done.stdout
