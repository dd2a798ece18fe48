"""The row about the time that `import rioecho` takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from measure import Measured, Row, Settings

import rioecho

PAIRS = 21


def took(code: str) -> float:
    """The seconds that a Python takes which runs this."""
    path = str(Path(rioecho.__file__).parents[1])
    # As usual it keeps what it has compiled, which the environment of a build may forbid.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", code], check=True, env=environment | {"PYTHONPATH": path})
    return time.perf_counter() - begun


def measure(settings: Settings) -> Measured:
    took("import rioecho")  # from now on the files are in memory
    return Measured([(took("import rioecho"), took("pass")) for _ in range(settings.pairs or PAIRS)])


def rows() -> list[Row]:
    return [Row("import rioecho", "import rioecho", "pass", "s", measure, 0.015, difference=True)]
