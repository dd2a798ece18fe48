"""Running the scripts of this directory that make each call or allocation fail, in a child process."""

import functools
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


#: Prints whether a nested ``def`` that fails for lack of memory leaves the reference count of its code unchanged.
MAKES_A_FUNCTION = """if True:
    import _testcapi, os, sys
    def outer(a):
        def inner():
            return a
        return inner
    (code,) = [each for each in outer.__code__.co_consts if hasattr(each, "co_code")]
    before = sys.getrefcount(code)
    for k in range(10):
        _testcapi.set_nomemory(k, k + 1)
        try:
            outer(1)
        except MemoryError:
            pass
        _testcapi.remove_mem_hooks()
    print(sys.getrefcount(code) == before, flush=True)
    os._exit(0)   # before the code object is freed twice
"""


@functools.cache
def frees_code_twice():
    """Report whether this CPython drops a reference too many where it has no memory for the function of a def.

    MAKE_FUNCTION of CPython 3.12.1 and 3.13.0 drops its code object, and leaves it on the stack, from which it is
    dropped again: a def in a function, a lambda or a generator expression that finds no memory frees its own code, and
    the next one crashes. Nothing that is written in Python can be swept then, unless it makes no function.
    """
    done = subprocess.run([sys.executable, "-c", MAKES_A_FUNCTION], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() == "False"


def require_failing_allocations():
    """Skip the test where allocations of code written in Python cannot be made to fail with ``_testcapi``."""
    pytest.importorskip("_testcapi", reason="this Python has no hook for failing allocations")
    if frees_code_twice():
        pytest.skip("this CPython frees a function's code twice where there is no memory for the function, and crashes")
