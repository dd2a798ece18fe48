"""The extension modules and how they are compiled, and the description; everything else is in pyproject.toml.

RIOECHO_BUILD chooses the variant:

    release    what is shipped (the default)
    debug      assertions and bounds checks on, symbols kept
    sanitize   AddressSanitizer and UndefinedBehaviorSanitizer, assertions and bounds checks on
    race       ThreadSanitizer, assertions and bounds checks on
    coverage   line tracing for Cython's coverage plugin

Build each variant from a clean copy of the tree: build_ext compares file times, not flags.
"""

import os
import re
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup

if sys.implementation.name != "cpython":
    # It would compile on PyPy and then abort: it truncates bytes objects in place, as CPython lays them out.
    raise SystemExit(f"rioecho needs CPython: it depends on the memory layout of its objects ({sys.executable})")

WARNINGS = ["-Wall", "-Wextra", "-Werror=implicit-function-declaration"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
RACES = "-fsanitize=thread"

# All compiler directives. A directive in the header of a module would override that of the variant.
DIRECTIVES = {
    "language_level": 3,
    "freethreading_compatible": True,
    "binding": False,
    "auto_pickle": False,
    "autotestdict": False,
    "embedsignature": True,
    "embedsignature.format": "clinic",
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,  # C's division in every variant: no code divides by zero or divides a negative number
}
CHECKS = {"boundscheck": True, "initializedcheck": True, "nonecheck": True}
ASSERTIONS = [("RIOECHO_ASSERT", "1")]  # rio_assert() in _core/compat.h

# For each variant: compiler flags, linker flags, C macros, additional directives.
VARIANTS = {
    "release": (["-O3", "-g0"], [], [], {}),
    "debug": (["-O1", "-g", "-UNDEBUG"], [], ASSERTIONS, CHECKS),
    "sanitize": (
        ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer", *SANITIZERS],
        SANITIZERS,
        ASSERTIONS,
        CHECKS,
    ),
    "race": (["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer", RACES], [RACES], ASSERTIONS, CHECKS),
    "coverage": (
        ["-O0", "-g0"],
        [],
        # The monitoring API of Python 3.13 and newer does not report .pyx lines to the plugin.
        [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")],
        {"linetrace": True},
    ),
}

variant = os.environ.get("RIOECHO_BUILD", "release")
if variant not in VARIANTS:
    raise SystemExit(f"RIOECHO_BUILD must be one of {', '.join(VARIANTS)}, not {variant!r}")
cflags, ldflags, macros, further = VARIANTS[variant]

SOURCES = Path("rioecho")
# A change in one of these files rebuilds all modules.
HEADERS = sorted(str(path) for pattern in ("*.pxd", "*.h") for path in SOURCES.rglob(pattern))


def extension(path):
    return Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        depends=HEADERS,
        include_dirs=["."],
        define_macros=macros,
        extra_compile_args=[*cflags, *WARNINGS],
        extra_link_args=ldflags,
    )


def description():
    """Return the README for the project's page at the package index, where a relative link leads nowhere.

    With a URL ``Source`` in pyproject.toml, links and pictures lead there. Without one, a link is its text and its
    path, and a picture is its alternative text.
    """
    source = tomllib.loads(Path("pyproject.toml").read_text())["project"].get("urls", {}).get("Source")

    def absolute(link):
        picture, text, path = link.groups()
        if source:
            return f"{picture}[{text}]({source}/{'raw' if picture else 'blob'}/HEAD/{path})"
        return text if picture else f"{text} (`{path}`)"

    return re.sub(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)]*)\)", absolute, Path("README.md").read_text(encoding="utf-8"))


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    ext_modules=[extension(path) for path in sorted(SOURCES.rglob("*.pyx"))],
    options={
        "build_ext": {
            # The coverage plugin needs the .c file next to the .so file; other builds do not leave it there.
            "cython_c_in_temp": variant != "coverage",
            "cython_line_directives": further is CHECKS,
            "cython_directives": DIRECTIVES | further,
            "force": variant != "release",
        }
    },
)
