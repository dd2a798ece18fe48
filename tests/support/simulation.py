"""Compiling the model of the kernel (tests/simulation/model), and the environment that a process needs to run in it."""

import os
import shutil
import subprocess
from pathlib import Path

MODEL = Path(__file__).parents[1] / "simulation" / "model"


def environment(folder):
    """Compile the model into ``folder`` and return the environment that preloads it; None if there is no compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = Path(folder) / "simulation.so"
    # Some systems set _FORTIFY_SOURCE by default, which would define some of the functions in the headers.
    options = ["-O2", "-g", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-shared", "-fPIC"]
    command = [*compiler.split(), *options, "-o", library, *sorted(MODEL.glob("*.c")), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    # After the libraries that are preloaded already: a sanitizer's runtime must be the first.
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
    return {**os.environ, "LD_PRELOAD": preload, "RIOECHO_SIMULATION": "1"}
