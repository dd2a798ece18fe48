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
    if ":" in str(library) or ";" in str(library):
        raise ValueError(f"LD_LIBRARY_PATH cannot name {folder}: choose another TMPDIR")
    # Some systems set _FORTIFY_SOURCE by default, which would define some of the functions in the headers.
    options = ["-O2", "-g", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-shared", "-fPIC"]
    command = [*compiler.split(), *options, "-o", library, *sorted(MODEL.glob("*.c")), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    # After the libraries that are preloaded already: a sanitizer's runtime must be the first. LD_PRELOAD cannot name a
    # path with a blank; a search path can.
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library.name}".strip()
    path = ":".join(filter(None, [os.fspath(library.parent), os.environ.get("LD_LIBRARY_PATH")]))
    return {**os.environ, "LD_PRELOAD": preload, "LD_LIBRARY_PATH": path, "RIOECHO_SIMULATION": "1"}
