"""Every fault at every system call of a load test: see support/load_fault_scenarios.py."""

import sys

import pytest

from support.sweep import preloaded, run_script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD and /proc")


def sweep(folder, step):
    done = run_script("load_fault_scenarios.py", step, timeout=600, LD_PRELOAD=preloaded("faults.c", folder))
    assert "one that reconnects: " in done.stdout


@pytest.mark.slow
def test_a_fault_at_any_system_call_is_survived_or_an_error_with_the_result_so_far(tmp_path):
    sweep(tmp_path, 1)
