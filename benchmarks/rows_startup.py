"""The row about the time of ``import rioecho``."""

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
    """Return the seconds that a new Python process takes to run ``code``."""
    path = str(Path(rioecho.__file__).parents[1])
    # Let Python write .pyc files, as it does by default; the environment of a build may forbid it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", code], check=True, env=environment | {"PYTHONPATH": path})
    return time.perf_counter() - begun


def measure(settings: Settings) -> Measured:
    took("import rioecho")  # fill the page cache
    return Measured([(took("import rioecho"), took("pass")) for _ in range(settings.pairs or PAIRS)])


def rows() -> list[Row]:
    return [Row("import rioecho", "import rioecho", "pass", "s", measure, 0.010, difference=True)]
