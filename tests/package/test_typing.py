"""The types: the stubs match the package, and type checkers find the mistakes in users' programs."""

import importlib.util
import os
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest

import rioecho

HERE = Path(__file__).parents[1] / "support"
README = Path(__file__).parents[2] / "README.md"
EXAMPLES = HERE / "typing_examples.py"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")


def run(module, folder, *arguments):
    """Run a module of mypy on the rioecho under test; return its output and exit status."""
    root = str(Path(rioecho.__file__).parents[1])
    environment = {**os.environ, "MYPY_CACHE_DIR": str(folder)}
    if root not in site.getsitepackages():  # mypy finds those on its own, and rejects a path to them
        environment |= {"MYPYPATH": root, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout + done.stderr, done.returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a directory without any configuration, for the cache of the type checkers."""
    return tmp_path_factory.mktemp("types")


def test_mypy_accepts_the_examples_and_finds_every_mistake_in_them(folder):
    said, status = run("mypy", folder, "--strict", EXAMPLES)
    assert status == 0, said


@pytest.mark.skipif(not README.is_file(), reason="the source tree is not available")
def test_mypy_accepts_the_programs_of_the_readme(folder):
    programs = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(programs) >= 2
    for number, text in enumerate(programs):
        program = folder / f"readme{number}.py"
        program.write_text(text)
        said, status = run("mypy", folder, "--strict", program)
        assert status == 0, text + said


def test_mypy_finds_a_wrong_example(folder):
    wrong = folder / "wrong.py"
    wrong.write_text("import rioecho\nrioecho.Rio(0).readline().encode()\nrioecho.Rio(0)  # type: ignore[arg-type]\n")
    said, status = run("mypy", folder, "--strict", wrong)
    assert status == 1
    assert '"bytes" has no attribute "encode"' in said
    assert 'Unused "type: ignore"' in said


def test_the_examples_use_every_public_name():
    text = EXAMPLES.read_text()
    missing = [name for name in (*rioecho.__all__, *dir(rioecho.Rio)) if not name.startswith("_") and name not in text]
    assert [name for name in missing if name not in ("seek", "tell", "truncate")] == []
    assert [name for name in dir(rioecho.aio.Rio) if not name.startswith("_") and f"rio.{name}" not in text] == []


@pytest.mark.slow
def test_stubtest_finds_no_difference_between_stubs_and_package(folder):
    config = folder / "without-the-extras.ini"
    config.write_text("[mypy]\n[mypy-rich.*,matplotlib.*]\nignore_missing_imports = true\n")
    allowed = ("--allowlist", HERE / "stubtest_allowlist.txt")
    said, status = run("mypy.stubtest", folder, "--mypy-config-file", config, *allowed, "rioecho")
    assert status == 0, said
