"""Compile Cython modules against the installed package, as a user of its .pxd files does."""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

import rioecho

PACKAGE = Path(rioecho.__file__).parent

needs_compiler = pytest.mark.skipif(
    shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is None,
    reason="the C compiler that this Python was built with is not installed",
)

SETUP = """\
from setuptools import Extension, setup

setup(name="outside", py_modules=[], ext_modules=[Extension("outside", ["outside.pyx"], **OPTIONS)])
"""

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def compiler_environment() -> dict[str, str]:
    # Without the sanitizer preloaded for the tests, which would report leaks in the compiler.
    return {name: value for name, value in os.environ.items() if name not in {"LD_PRELOAD", "RIOECHO_BUILD"}}


def compile_outside(source: str, folder: Path, *, inner: bool = False):
    """Compile and import a module. ``inner``: it may cimport private modules and has the package's build options."""
    options = {}
    if inner:
        options["include_dirs"] = [str(PACKAGE.parent)]
        if os.environ.get("RIOECHO_BUILD") == "sanitize":
            options |= {"extra_compile_args": ["-g", "-O1", *SANITIZERS], "extra_link_args": SANITIZERS}
    (folder / "outside.pyx").write_text(source)
    (folder / "setup.py").write_text(SETUP.replace("OPTIONS", repr(options)))
    # Cython searches for .pxd files along sys.path, which does not contain an editable install.
    environment = compiler_environment() | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    spec = spec_from_file_location("outside", folder / f"outside{EXTENSION_SUFFIXES[0]}")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
