"""Every fault at every call: system calls that fail or are short, and allocations that fail, exhaustively."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "support"


def run_child(script, **environment):
    done = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", HERE / script],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the shim is preloaded, and reads /proc")
def test_no_fault_at_any_system_call_loses_a_byte_or_a_descriptor(tmp_path):
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the shim with")
    shim = tmp_path / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, HERE / "faults.c", "-ldl"], check=True)
    # Behind what is preloaded already: a sanitizer's runtime has to come first.
    preload = f"{os.environ.get('LD_PRELOAD', '')} {shim}".strip()
    assert "a tied echo" in run_child("fault_scenarios.py", LD_PRELOAD=preload)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_failed_allocation_loses_a_byte_or_a_descriptor():
    pytest.importorskip("_testcapi", reason="this Python has no allocator that can be made to fail")
    assert "echo" in run_child("memory_scenarios.py")
