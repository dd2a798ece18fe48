"""The package: the contents of the archives, the cost of importing, the errors of an unbuilt tree and another Python.

Tests that read the sources are skipped for an installed wheel.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import version
from pathlib import Path

import pytest

import rioecho
from support.outside import compiler_environment, needs_compiler
from support.programs import run

ROOT = Path(__file__).parents[2]
PACKAGE = Path(rioecho.__file__).parent

needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the source tree is not available")


def build(hook: str, tree: Path, out: Path) -> Path:
    """Call a function of the build backend in ``tree``, as pip and build do, and return the archive."""
    out.mkdir()
    command = f"import sys; from setuptools.build_meta import {hook}; print({hook}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", command, str(out)], cwd=tree, env=compiler_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = out.iterdir()
    return archive


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources as in a clean checkout."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "*.egg-info", "*.so", "*.py[cod]"
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    for generated in [*copy.glob("rioecho/**/*.c"), *copy.glob("rioecho/**/*.html")]:
        generated.unlink()
    return copy


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_sdist", tree, tmp_path_factory.mktemp("sdist") / "out")


def unpacked(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)  # noqa: S202 - made by this test
    (top,) = folder.iterdir()
    return top


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
@needs_sources
def test_the_sdist_contains_the_sources_and_the_tests_and_nothing_generated(
    tree: Path, sdist: Path, tmp_path: Path
) -> None:
    wanted = {
        name
        for name in files(tree)
        if name.split("/")[0] in {"rioecho", "tests", "examples", "benchmarks", "docs"}
        or name in {"setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"}
    }
    held = {name for name in files(unpacked(sdist, tmp_path)) if not name.startswith("rioecho.egg-info/")}
    assert held - {"PKG-INFO", "setup.cfg"} == wanted


@pytest.mark.slow
@needs_sources
@needs_compiler
def test_the_wheel_contains_modules_stubs_and_pxd_files_and_no_sources(sdist: Path, tmp_path: Path) -> None:
    top = unpacked(sdist, tmp_path / "sdist")
    wheel = build("build_wheel", top, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    wanted = {"rioecho/py.typed"}
    for path in (top / "rioecho").rglob("*"):
        name = path.relative_to(top)
        if path.suffix in {".py", ".pyi", ".pxd", ".h"}:
            wanted.add(name.as_posix())
        elif path.suffix == ".pyx":
            wanted.add(name.with_suffix(EXTENSION_SUFFIXES[0]).as_posix())
    assert {name for name in held if ".dist-info/" not in name} == wanted
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)


def test_the_version_is_that_of_the_distribution() -> None:
    assert rioecho.__version__ == version("rioecho")


@pytest.mark.parametrize("name", ["server", "client", "bench"])
def test_a_command_prints_the_version_of_the_package(name: str) -> None:
    status, out, _ = run([sys.executable, "-P", "-m", f"rioecho.cli.{name}", "--version"])
    assert (status, out.decode()) == (0, f"rioecho-{name} {rioecho.__version__}\n")


@needs_sources
def test_pyproject_and_the_newest_release_of_the_changelog_have_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == rioecho.__version__
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    newest = next(heading for heading in headings if heading != "Unreleased")
    assert re.fullmatch(re.escape(rioecho.__version__) + r" - \d{4}-\d\d-\d\d", newest)


def child(code: str) -> list[str]:
    # -P: the sources in the current directory are not the installed package.
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_rioecho_loads_nothing_heavy() -> None:
    # Modules loaded before belong to the interpreter, or to a tool that watches it.
    loaded = child("import sys; before = set(sys.modules); import rioecho; print(*set(sys.modules) - before)")
    heavy = {"argparse", "asyncio", "concurrent", "dataclasses", "email", "http", "inspect", "logging", "ssl"}
    heavy |= {"subprocess", "tempfile", "typing", "unittest", "urllib"}
    assert "rioecho.rio" in loaded
    assert heavy.intersection(loaded) == set()


@pytest.mark.long
def test_aio_is_an_attribute_of_the_package_and_loads_asyncio_when_it_is_asked_for() -> None:
    code = "import sys, rioecho; print('asyncio' in sys.modules, rioecho.aio.Rio.__name__, 'asyncio' in sys.modules)"
    assert child(code) == ["False", "Rio", "True"]


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_the_extensions_leave_the_gil_off() -> None:
    paths = [path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob(f"*{EXTENSION_SUFFIXES[0]}")]
    names = sorted(".".join([*path.parts[:-1], path.name.split(".")[0]]) for path in paths)
    imported = "; ".join(f"import {name}" for name in names)
    assert child(f"import sys; {imported}; print(sys._is_gil_enabled())") == ["False"]


@needs_sources
def test_the_error_of_an_unbuilt_source_tree_names_the_remedy(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "rioecho", tmp_path / "rioecho", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # -S: the import hook of an editable install would find the built extensions for this copy too.
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import rioecho"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ""},
    )
    assert done.returncode == 1
    assert "ImportError: this is the source tree of rioecho, and it is not built" in done.stderr
    assert "pip install -e ." in done.stderr


@pytest.mark.long
@needs_sources
def test_the_build_refuses_another_implementation_of_python_in_one_line() -> None:
    pretended = "import runpy, sys; sys.implementation.name = 'pypy'; runpy.run_path('setup.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", pretended], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("rioecho needs CPython")


@pytest.mark.long
@needs_sources
def test_the_build_refuses_an_unknown_variant_and_names_the_known_ones() -> None:
    environment = os.environ | {"RIOECHO_BUILD": "fast"}
    done = subprocess.run([sys.executable, "setup.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("RIOECHO_BUILD must be one of release, debug, ")
    assert line.endswith("not 'fast'")


def test_the_sockets_passed_by_systemd_are_public() -> None:
    from rioecho.server import passed_sockets

    assert passed_sockets({}) == []
