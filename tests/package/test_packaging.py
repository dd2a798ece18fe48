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

import rioecho
from support.outside import compile_outside, compiler_environment, needs_compiler

ROOT = Path(__file__).parents[2]
PACKAGE = Path(rioecho.__file__).parent

needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the source tree is not here")
# The folders, from the descriptor to the user: an edge points to a line above, and between the three in the middle
# there is none.
FOLDERS = [
    ("_core",),
    ("_rio", "_server", "_load"),
    ("public",),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(FOLDERS) for name in names}
# Within a folder: a file imports only from those before it.
FILES = {
    "_core": ["posix", "buffer", "fdio", "poller", "counts", "convert", "budget", "addresses"],
    "_rio": ["capi", "tls", "channel", "reader", "lines"],
    "_server": [
        "echo",
        "blocking",
        "child",
        "loop",
        "connection",
        "turns",
        "eventloop",
        "engines",
        "acceptor",
        "folderlock",
        "listeners",
        "udp",
    ],
    "_load": ["histogram", "connection", "loop", "plan"],
    "public": ["errors", "rio", "sockets", "csapp", "server", "client", "bench", "__init__"],
}
# What everything may import, although it is public: the classes of errors.
ERRORS = ("public", "errors")
# The buffer knows memory, not descriptors: all that it may have of POSIX.
MEMORY_FUNCTIONS = {
    *("memmem", "memrchr", "memchr", "rio_assert"),
    *("RIO_MAPPED", "rio_pages_get", "rio_pages_give", "rio_pages_resize"),
}

IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<module>[\w.]+)[ \t]+c?import[ \t]+(?P<names>\([^)]*\)|[^\n]+)"
    r"|c?import[ \t]+(?P<modules>[\w., \t]+))",
    re.MULTILINE,
)


def imports(text: str, package: str = "rioecho") -> set[tuple[str, str, str]]:
    """Return (folder, file, name) for all that a file of `package` takes from modules of rioecho, wherever it does so.

    One reading for Python, stubs and Cython, function bodies and type-checking blocks included. The name is "" where
    the file itself is imported.
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
    return {place for module, name in found for place in places(module, name)}


def places(module: str, name: str) -> set[tuple[str, str, str]]:
    """Where in the house something is taken from: the folder, the file, the name; empty for what is not ours."""
    top, _, inner = module.partition(".")
    if top != "rioecho":
        return set()
    if not inner and name in {*FILES["public"], *RANK}:
        inner, name = name, ""
    folder, _, file = inner.partition(".")
    if folder in RANK:
        return {(folder, file, name)} if file else {(folder, name, "")}
    return {("public", folder or "__init__", name)}


def place_of(path: Path) -> tuple[str, str]:
    """The folder and the file of a source."""
    *folders, file = path.relative_to(ROOT / "rioecho").with_suffix("").parts
    return folders[0] if folders else "public", file


def source_files() -> list[Path]:
    if not (ROOT / "setup.py").is_file():
        return []
    return sorted(path for path in (ROOT / "rioecho").rglob("*") if path.suffix in {".py", ".pyx", ".pxd", ".pyi"})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from rioecho.rio import Rio", {("public", "rio", "Rio")}),
        (
            "    from rioecho.rio cimport (\n    rio_t,  # the struct\n    rio_readn as r,\n)",
            {("public", "rio", "rio_t"), ("public", "rio", "rio_readn")},
        ),
        ("from .rio import Rio, _socket_file", {("public", "rio", "Rio"), ("public", "rio", "_socket_file")}),
        ("from . import rio", {("public", "rio", "")}),
        ("from rioecho import rio, __version__", {("public", "rio", ""), ("public", "__init__", "__version__")}),
        ("import os, rioecho.server as s", {("public", "server", "")}),
        ("cimport rioecho.rio", {("public", "rio", "")}),
        ("from rioecho.cli.server import main", {("cli", "server", "main")}),
        ("from rioecho._core.buffer cimport rio_buffer", {("_core", "buffer", "rio_buffer")}),
        ("from rioecho._core import counts", {("_core", "counts", "")}),
        ("import rioecho._core.counts", {("_core", "counts", "")}),
        (
            "from rioecho.rio cimport rio_t, \\\n  rio_readn",
            {("public", "rio", "rio_t"), ("public", "rio", "rio_readn")},
        ),
        ('"""\nfrom rioecho import EchoServer\n"""\n# from rioecho.server import EchoServer', set()),
        ("from socket import socket\nimport io", set()),
    ],
)
def test_the_import_finder_sees_every_form(line: str, expected: set[tuple[str, str, str]]) -> None:
    assert imports(line) == expected


def test_the_import_finder_counts_dots_from_the_file_s_package() -> None:
    assert imports("from ..server import EchoServer", "rioecho.cli") == {("public", "server", "EchoServer")}
    assert imports("from . import Parser", "rioecho.cli") == {("cli", "Parser", "")}


@needs_sources
def test_every_file_has_its_place_in_the_house() -> None:
    for path in source_files():
        folder, file = place_of(path)
        assert folder in RANK, path
        assert folder == "cli" or file == "__init__" or file in FILES[folder], path


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_below(path: Path) -> None:
    folder, file = place_of(path)
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for theirs, their_file, name in imports(path.read_text(), package):
        if (theirs, their_file) == ERRORS or folder == theirs == "cli":
            continue
        if theirs != folder:
            assert RANK[theirs] < RANK[folder], f"{theirs}/{their_file}: {name}"
        elif file != "__init__":
            own = FILES[folder]
            assert own.index(their_file) <= own.index(file), f"{theirs}/{their_file}: {name}"


@needs_sources
def test_the_buffer_knows_no_descriptor() -> None:
    taken = imports((ROOT / "rioecho" / "_core" / "buffer.pxd").read_text())
    assert {(folder, file) for folder, file, _ in taken} <= {("_core", "posix")}
    assert {name for _, _, name in taken} <= MEMORY_FUNCTIONS


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
    wanted = {"rioecho/_core/compat.h", "rioecho/py.typed"}
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
    public = {path for path in source_files() if path.suffix == ".pyx" and place_of(path)[0] == "public"}
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
    paths = [path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob(f"*{EXTENSION_SUFFIXES[0]}")]
    names = sorted(".".join([*path.parts[:-1], path.name.split(".")[0]]) for path in paths)
    imported = "; ".join(f"import {name}" for name in names)
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
