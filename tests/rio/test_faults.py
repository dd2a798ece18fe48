"""Every fault at every call: system calls that fail or transfer one byte, and allocations that fail."""

import sys

import pytest

from support.sweep import preloaded, run_script


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD and /proc")
def test_no_fault_at_any_system_call_loses_a_byte_or_a_descriptor(tmp_path):
    done = run_script("fault_scenarios.py", timeout=600, LD_PRELOAD=preloaded("faults.c", tmp_path))
    assert "a tied echo" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD and /proc")
def test_a_system_call_that_is_interrupted_or_transfers_one_byte_is_no_error_of_the_call(tmp_path):
    done = run_script("fault_scenarios.py", "passing", LD_PRELOAD=preloaded("faults.c", tmp_path))
    assert "a tied echo" in done.stdout


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_no_failed_allocation_loses_a_byte_or_a_descriptor():
    pytest.importorskip("_testcapi", reason="this Python has no _testcapi module")
    assert "echo" in run_script("memory_scenarios.py").stdout
