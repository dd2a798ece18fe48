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

setup(
    name="outside",
    py_modules=[],
    ext_modules=[Extension("outside", ["outside.pyx"], **OPTIONS)],
    options={"build_ext": {"cython_directives": DIRECTIVES}},
)
"""

# As in setup.py, which is not there where an installed package is tested.
VARIANT = os.environ.get("RIOECHO_BUILD", "release")
SANITIZERS = {
    "sanitize": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "race": ["-fsanitize=thread"],
}
COUNTS = ["--coverage", "-fprofile-update=atomic"]
CHECKS = {"boundscheck": True, "initializedcheck": True, "nonecheck": True}


def compiler_environment() -> dict[str, str]:
    # Without the sanitizer preloaded for the tests, which would report leaks in the compiler.
    return {name: value for name, value in os.environ.items() if name not in {"LD_PRELOAD", "RIOECHO_BUILD"}}


def compile_outside(source: str, folder: Path, *, inner: bool = False):
    """Compile and import a module. ``inner``: it may cimport private modules and has the package's build options."""
    options = {"extra_compile_args": ["-O0"]}  # compiles sooner
    directives = {}
    if inner:
        options["include_dirs"] = [str(PACKAGE.parent)]
        if VARIANT in ("debug", *SANITIZERS):
            options["define_macros"] = [("RIOECHO_ASSERT", "1")]
            directives = CHECKS
        if VARIANT in SANITIZERS:
            flags = SANITIZERS[VARIANT]
            options |= {"extra_compile_args": ["-g", "-O1", *flags], "extra_link_args": flags}
        if VARIANT == "coverage":
            options |= {"extra_compile_args": ["-O0", "-g0", *COUNTS], "extra_link_args": COUNTS}
    (folder / "outside.pyx").write_text(source)
    (folder / "setup.py").write_text(SETUP.replace("OPTIONS", repr(options)).replace("DIRECTIVES", repr(directives)))
    # Cython searches for .pxd files along sys.path, on which the package may not be: an import hook may find it.
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
