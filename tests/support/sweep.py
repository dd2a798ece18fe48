"""Scripts of this folder that make calls or allocations fail, one after the other, in a process of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_script(name, *arguments, timeout=100, **environment):
    """Run a script of this folder; return what it printed, and what is on stderr if it says nothing wrong."""
    done = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", HERE / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}{done.stderr[-3000:]}"
    return done


def preloaded(source, folder):
    """Compile a shim of this folder; return the value of LD_PRELOAD that has it."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the shim with")
    shim = folder / Path(source).with_suffix(".so")
    subprocess.run([*compiler.split(), "-shared", "-fPIC", "-o", shim, HERE / source, "-ldl"], check=True)
    # Behind what is preloaded already: a sanitizer's runtime has to come first.
    return f"{os.environ.get('LD_PRELOAD', '')} {shim}".strip()
