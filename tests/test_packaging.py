"""What is shipped: which module may import which, what the archives hold, what importing costs, the C-level interface.

The sources are looked at where they are there; an installed wheel is tested without them.
"""

import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import version
from importlib.util import resolve_name
from pathlib import Path

import pytest
from outside import compile_outside, compiler_environment, needs_compiler

import rioecho

ROOT = Path(__file__).parents[1]
PACKAGE = Path(rioecho.__file__).parent

needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the source tree is not here")
# From the descriptor to the user: a module may import only from those before it.
LAYERS = [
    "errors",
    "_posix",
    "_buffer",
    "_fdio",
    "_csapp",
    "_tls",
    "_channel",
    "_sizes",
    "_reader",
    "_lines",
    "rio",
    "sockets",
    "csapp",
    "_folderlock",
    "listeners",
    "udp",
    "_counts",
    "_echoloop",
    "_forkecho",
    "_poller",
    "_connection",
    "_eventloop",
    "engines",
    "acceptor",
    "server",
    "client",
    "_histogram",
    "_load",
    "_loadloop",
    "plan",
    "bench",
    "__init__",
    "cli",
]
# The buffer knows memory, not descriptors: all that it may have of POSIX.
MEMORY_FUNCTIONS = {"memmem", "memrchr", "memchr"}

IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<module>[\w.]+)[ \t]+c?import[ \t]+(?P<names>\([^)]*\)|[^\n]+)"
    r"|c?import[ \t]+(?P<modules>[\w., \t]+))",
    re.MULTILINE,
)


def imports(text: str, package: str = "rioecho") -> set[tuple[str, str]]:
    """Return (module, name) for all that a file of `package` takes from modules of rioecho, wherever it does so.

    One reading for Python, stubs and Cython, function bodies and type-checking blocks included. The name is "" where
    the module itself is imported.
    """
    text = re.sub(r"(\"\"\"|''').*?\1", "''", text, flags=re.DOTALL)
    text = re.sub(r"#.*", "", text).replace("\\\n", " ")
    found = set()
    for match in IMPORT.finditer(text):
        if match["modules"]:
            found |= {(module.split()[0], "") for module in match["modules"].split(",")}
        else:
            names = match["names"].strip("() \t").split(",")
            module = resolve_name(match["module"], package)
            found |= {(module, name.split()[0]) for name in names if name.strip()}
    own = set()
    for module, name in found:
        top, _, inner = module.partition(".")
        if top == "rioecho" and inner:
            own.add((inner.split(".")[0], name))
        elif top == "rioecho":
            own.add((name, "") if name in LAYERS else ("__init__", name))
    return own


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / "rioecho").with_suffix("").parts[0]


def source_files() -> list[Path]:
    if not (ROOT / "setup.py").is_file():
        return []
    return sorted(path for path in (ROOT / "rioecho").rglob("*") if path.suffix in {".py", ".pyx", ".pxd", ".pyi"})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from rioecho.rio import Rio", {("rio", "Rio")}),
        (
            "    from rioecho.rio cimport (\n    rio_t,  # the struct\n    rio_readn as r,\n)",
            {("rio", "rio_t"), ("rio", "rio_readn")},
        ),
        ("from .rio import Rio, _socket_file", {("rio", "Rio"), ("rio", "_socket_file")}),
        ("from . import rio", {("rio", "")}),
        ("from rioecho import rio, __version__", {("rio", ""), ("__init__", "__version__")}),
        ("import os, rioecho.server as s", {("server", "")}),
        ("cimport rioecho.rio", {("rio", "")}),
        ("from rioecho.cli.server import main", {("cli", "main")}),
        ("from rioecho.rio cimport rio_t, \\\n    rio_readn", {("rio", "rio_t"), ("rio", "rio_readn")}),
        ('"""\nfrom rioecho import EchoServer\n"""\n# from rioecho.server import EchoServer', set()),
        ("from socket import socket\nimport io", set()),
    ],
)
def test_the_import_finder_sees_every_form(line: str, expected: set[tuple[str, str]]) -> None:
    assert imports(line) == expected


def test_the_import_finder_counts_dots_from_the_file_s_package() -> None:
    assert imports("from ..server import EchoServer", "rioecho.cli") == {("server", "EchoServer")}
    assert imports("from . import Parser", "rioecho.cli") == {("cli", "Parser")}


@needs_sources
def test_every_module_has_its_place_in_the_layers() -> None:
    assert {layer_of(path) for path in source_files()} <= set(LAYERS)


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_those_before_it(path: Path) -> None:
    layer = layer_of(path)
    package = ".".join(path.relative_to(ROOT).parent.parts)
    later = set(LAYERS[LAYERS.index(layer) + 1 :])
    assert {(module, name) for module, name in imports(path.read_text(), package) if module in later} == set()


@needs_sources
def test_the_buffer_knows_no_descriptor() -> None:
    taken = imports((ROOT / "rioecho" / "_buffer.pxd").read_text())
    assert {module for module, _ in taken} <= {"_posix"}
    assert {name for _, name in taken} <= MEMORY_FUNCTIONS


def build(hook: str, tree: Path, out: Path) -> Path:
    """Call one of the build backend's functions in `tree`, as pip and build do, and return the archive."""
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
    """Return a copy of the sources as a clean checkout has them."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "*.egg-info", "*.so", "*.py[cod]"
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    for generated in [*copy.glob("rioecho/*.c"), *copy.glob("rioecho/*.html")]:
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


@needs_sources
def test_the_sdist_holds_the_sources_and_the_tests_and_nothing_generated(
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


@needs_sources
@needs_compiler
def test_the_wheel_holds_modules_stubs_and_pxd_files_and_no_sources(sdist: Path, tmp_path: Path) -> None:
    top = unpacked(sdist, tmp_path / "sdist")
    wheel = build("build_wheel", top, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    wanted = {"rioecho/_compat.h", "rioecho/py.typed"}
    for path in (top / "rioecho").rglob("*"):
        name = path.relative_to(top)
        if path.suffix in {".py", ".pyi", ".pxd"}:
            wanted.add(name.as_posix())
        elif path.suffix == ".pyx":
            wanted.add(name.with_suffix(EXTENSION_SUFFIXES[0]).as_posix())
    assert {name for name in held if ".dist-info/" not in name} == wanted
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)


@needs_sources
def test_every_public_extension_has_a_stub() -> None:
    public = {path for path in source_files() if path.suffix == ".pyx" and not path.name.startswith("_")}
    assert {path for path in public if not path.with_suffix(".pyi").is_file()} == set()


def test_the_version_is_that_of_the_distribution() -> None:
    assert rioecho.__version__ == version("rioecho")


def child(code: str) -> list[str]:
    # -P: the sources in the current folder are not what is installed.
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_rioecho_loads_nothing_heavy() -> None:
    # What was there before is the interpreter's, or that of a tool that watches it.
    loaded = child("import sys; before = set(sys.modules); import rioecho; print(*set(sys.modules) - before)")
    heavy = {"argparse", "asyncio", "concurrent", "dataclasses", "email", "http", "inspect", "logging", "ssl"}
    heavy |= {"subprocess", "tempfile", "typing", "unittest", "urllib"}
    assert "rioecho.rio" in loaded
    assert heavy.intersection(loaded) == set()


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_the_extensions_leave_the_gil_off() -> None:
    names = sorted(path.name.split(".")[0] for path in PACKAGE.iterdir() if path.name.endswith(EXTENSION_SUFFIXES[0]))
    imported = "; ".join(f"import rioecho.{name}" for name in names)
    assert child(f"import sys; {imported}; print(sys._is_gil_enabled())") == ["False"]


# ---- The C-level interface, from outside -----------------------------------------------------------------------------

OUTSIDE = """\
# cython: language_level=3, freethreading_compatible=True
import os

from libc.errno cimport errno
from rioecho.rio cimport rio_t, rio_readinitb, rio_readlineb, rio_readnb, rio_readn, rio_writen


cdef class Book:
    cdef rio_t rio

    def __init__(self, int fd):
        with nogil:
            rio_readinitb(&self.rio, fd)

    def readlineb(self, size_t maxlen):
        cdef bytearray room = bytearray(b"?" * maxlen)
        cdef char *p = room
        cdef ssize_t n
        cdef int err = 0
        with nogil:
            n = rio_readlineb(&self.rio, p, maxlen)
            if n < 0:
                err = errno
        return answer(n, err, room)

    def readnb(self, size_t size):
        cdef bytearray room = bytearray(size)
        cdef char *p = room
        cdef ssize_t n
        cdef int err = 0
        with nogil:
            n = rio_readnb(&self.rio, p, size)
            if n < 0:
                err = errno
        return answer(n, err, room)[:max(n, 0)]


def readn(int fd, size_t size):
    cdef bytearray room = bytearray(size)
    cdef char *p = room
    cdef ssize_t n
    cdef int err = 0
    with nogil:
        n = rio_readn(fd, p, size)
        if n < 0:
            err = errno
    return answer(n, err, room)[:max(n, 0)]


def writen(int fd, bytearray data):
    cdef char *p = data
    cdef size_t size = len(data)
    cdef ssize_t n
    cdef int err = 0
    with nogil:
        n = rio_writen(fd, p, size)
        if n < 0:
            err = errno
    answer(n, err, None)
    return n


cdef answer(ssize_t n, int err, room):
    if n == -1:
        raise OSError(err, os.strerror(err))
    assert n >= 0
    # With the NUL that rio_readlineb puts behind a line: the tests want to see it.
    return bytes(room[:n + 1]) if n and room is not None else b""
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory):
    """Return a module that knows of rioecho only what is installed."""
    return compile_outside(OUTSIDE, tmp_path_factory.mktemp("outside"))


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@needs_compiler
def test_an_outside_module_reads_lines_with_the_book_s_functions(outside, pair) -> None:
    ours, theirs = pair
    book = outside.Book(ours.fileno())
    theirs.sendall(b"one\ntwo\n\nrest")
    theirs.shutdown(socket.SHUT_WR)
    assert book.readlineb(100) == b"one\n\0"
    assert book.readlineb(100) == b"two\n\0"
    assert book.readlineb(100) == b"\n\0"
    assert book.readlineb(100) == b"rest\0"
    assert book.readlineb(100) == b""
    assert book.readlineb(100) == b""


@needs_compiler
def test_a_line_longer_than_maxlen_is_cut_and_the_next_call_has_the_rest(outside, pair) -> None:
    ours, theirs = pair
    book = outside.Book(ours.fileno())
    theirs.sendall(b"abcdefghij\nk\n")
    assert book.readlineb(5) == b"abcd\0"
    assert book.readlineb(5) == b"efgh\0"
    assert book.readlineb(5) == b"ij\n\0"
    assert book.readlineb(5) == b"k\n\0"


@needs_compiler
def test_lines_and_counted_bytes_can_be_mixed_at_c_level(outside, pair) -> None:
    ours, theirs = pair
    book = outside.Book(ours.fileno())
    body = bytes(range(256)) * 100  # more than RIO_BUFSIZE, and more than one fill
    theirs.sendall(b"25600\n" + body + b"end")
    theirs.shutdown(socket.SHUT_WR)
    assert book.readlineb(64) == b"25600\n\0"
    assert book.readnb(25600) == body
    assert book.readnb(10) == b"end"
    assert book.readnb(10) == b""


@needs_compiler
def test_the_unbuffered_functions_move_exactly_what_is_asked(outside, pair) -> None:
    ours, theirs = pair
    assert outside.writen(ours.fileno(), bytearray(b"ping pong")) == 9
    assert outside.readn(theirs.fileno(), 4) == b"ping"
    ours.shutdown(socket.SHUT_WR)
    assert outside.readn(theirs.fileno(), 100) == b" pong"
    assert outside.readn(theirs.fileno(), 100) == b""


@needs_compiler
@pytest.mark.parametrize("call", ["readn", "writen", "readnb", "readlineb"])
def test_an_error_at_c_level_is_minus_one_and_errno(outside, call: str) -> None:
    bad = -1
    calls = {
        "readn": lambda: outside.readn(bad, 1),
        "writen": lambda: outside.writen(bad, bytearray(b"x")),
        "readnb": lambda: outside.Book(bad).readnb(1),
        "readlineb": lambda: outside.Book(bad).readlineb(10),
    }
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls[call]()


@needs_compiler
def test_writing_to_a_peer_that_is_gone_is_epipe_at_c_level(outside, pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError):
        outside.writen(ours.fileno(), bytearray(b"x"))


def test_an_unbuilt_source_tree_says_what_to_do(tmp_path: Path) -> None:
    if not (ROOT / "setup.py").is_file():
        pytest.skip("the source tree is not here")
    shutil.copytree(ROOT / "rioecho", tmp_path / "rioecho", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # -S: an editable install's import hook would find the built extensions for this copy too.
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
