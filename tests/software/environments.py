"""Environments for software of the registry: a source archive, its requirements, and rioecho with its drop-in."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]

#: What pip says if it does not reach the registry. Of a wrong version it says which others there are.
UNREACHABLE = re.compile(r"connection broken by|Connection to \S+ timed out|Network is unreachable|from versions: none")


class RegistryError(Exception):
    """The registry cannot be reached."""


class PipError(Exception):
    """A command of pip failed."""


class Environment:
    """A virtual environment in ``folder``. Its interpreters run startup/rioecho_drop_in.py when they start."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.packages = Path(subprocess.check_output([str(self.python), "-c", code], text=True).strip())
        shutil.copytree(FOLDER / "startup", self.packages, dirs_exist_ok=True)

    def pip(self, *arguments: str | Path) -> None:
        done = subprocess.run(
            [*find_pip(), "--python", self.python, "--disable-pip-version-check", "--no-input", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            if UNREACHABLE.search(done.stdout):
                raise RegistryError("the registry cannot be reached")
            lines = [line for line in done.stdout.splitlines() if re.match("ERROR|error", line.strip())]
            raise PipError("\n".join(lines or done.stdout.splitlines()[-20:]))

    def install(self, *requirements: str | Path) -> None:
        self.pip("install", "--quiet", "--prefer-binary", *requirements)

    def download(self, name: str, version: str, folder: Path) -> Path:
        """Unpack the source archive of a version in ``folder``, which is made, and return the path of the sources."""
        archives = folder / "archives"
        self.pip(
            *("download", "--quiet", "--no-deps", "--no-binary", name, "--dest", archives),
            f"{name}=={version}",
        )
        (archive,) = archives.iterdir()
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        (sources,) = (path for path in folder.iterdir() if path != archives and path.is_dir())
        return sources


@functools.cache
def find_pip() -> tuple[str, ...]:
    """Return the command of a pip: that of this interpreter, or of ``python3``."""
    for python in (sys.executable, "python3"):
        command = (python, "-m", "pip")
        if not subprocess.run([*command, "--version"], capture_output=True).returncode:
            return command
    raise PipError(f"neither {sys.executable} nor python3 has pip")


def build_wheel(folder: Path) -> Path:
    """Build a wheel of this checkout, uncommitted changes included, in ``folder`` and return its path."""
    (folder / "tree").mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    generated = shutil.ignore_patterns("__pycache__", "*.so", "*.c", "*.html")
    shutil.copytree(ROOT / "rioecho", folder / "tree" / "rioecho", ignore=generated)
    environment = Environment(folder / "environment")
    environment.pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "wheel", folder / "tree")
    (wheel,) = (folder / "wheel").iterdir()
    return wheel
