"""Running the scripts of this directory that make each call or allocation fail, in a child process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_script(name, *arguments, timeout=100, **environment):
    """Run a script of this directory in a child process and return the completed process. Its status must be 0."""
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
    """Compile a shim of this directory into ``folder`` and return a value of LD_PRELOAD that loads it."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    shim = folder / Path(source).with_suffix(".so")
    subprocess.run([*compiler.split(), "-shared", "-fPIC", "-o", shim, HERE / source, "-ldl"], check=True)
    # After the libraries that are preloaded already: a sanitizer's runtime must be the first.
    return f"{os.environ.get('LD_PRELOAD', '')} {shim}".strip()
