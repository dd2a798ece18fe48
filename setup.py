"""The extension modules and how they are compiled; everything else is in pyproject.toml.

RIOECHO_BUILD chooses the variant:

    release    what is shipped (the default)
    debug      assertions and bounds checks on, symbols kept
    sanitize   AddressSanitizer and UndefinedBehaviorSanitizer
    coverage   line tracing for Cython's coverage plugin

Build each variant from a clean copy of the tree: build_ext compares file times, not flags.
"""

import os

from setuptools import Extension, setup

WARNINGS = ["-Wall", "-Wextra", "-Werror=implicit-function-declaration"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

# Per variant: compiler flags, linker flags, C macros, Cython directives.
VARIANTS = {
    "release": (["-O3", "-g0"], [], [], {}),
    "debug": (
        ["-O1", "-g", "-UNDEBUG"],
        [],
        [("CYTHON_REFNANNY", "0")],
        {"boundscheck": True, "initializedcheck": True, "nonecheck": True},
    ),
    "sanitize": (
        ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer", *SANITIZERS],
        SANITIZERS,
        [],
        {},
    ),
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
    raise SystemExit(f"RIOECHO_BUILD={variant!r}: use one of {', '.join(VARIANTS)}")
cflags, ldflags, macros, directives = VARIANTS[variant]

# The C headers-in-Cython that every module is built from: a change in one rebuilds all.
HEADERS = [
    "rioecho/_compat.h",
    "rioecho/_posix.pxd",
    "rioecho/_buffer.pxd",
    "rioecho/_fdio.pxd",
    "rioecho/_csapp.pxd",
    "rioecho/_tls.pxd",
    "rioecho/_channel.pxd",
    "rioecho/_sizes.pxd",
    "rioecho/_reader.pxd",
    "rioecho/_lines.pxd",
    "rioecho/rio.pxd",
    "rioecho/_counts.pxd",
    "rioecho/_echoloop.pxd",
    "rioecho/_poller.pxd",
    "rioecho/_connection.pxd",
    "rioecho/_histogram.pxd",
    "rioecho/_load.pxd",
]

MODULES = [
    "_csapp",
    "_tls",
    "_channel",
    "_reader",
    "_lines",
    "rio",
    "_folderlock",
    "_counts",
    "_echoloop",
    "_forkecho",
    "_eventloop",
    "_histogram",
    "_loadloop",
]


def extension(name):
    return Extension(
        f"rioecho.{name}",
        [f"rioecho/{name}.pyx"],
        depends=HEADERS,
        include_dirs=["rioecho"],
        define_macros=macros,
        extra_compile_args=[*cflags, *WARNINGS],
        extra_link_args=ldflags,
    )


setup(
    ext_modules=[extension(name) for name in MODULES],
    options={
        "build_ext": {
            # The coverage plugin wants the .c beside the .so; no other build leaves it there.
            "cython_c_in_temp": variant != "coverage",
            "cython_line_directives": variant == "sanitize",
            "cython_directives": directives,
            "force": variant != "release",
        }
    },
)
