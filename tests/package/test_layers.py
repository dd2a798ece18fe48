"""The allowed imports: folders and files have one order, from the descriptor to the user.

The tests read the sources; they are skipped for an installed wheel.
"""

import re
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the source tree is not available")
# The folders, from the descriptor to the user: a file may import only from a line above, and not from another folder of
# its own line.
FOLDERS = [
    ("_core",),
    ("_rio", "_server", "_load"),
    ("public",),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(FOLDERS) for name in names}
# Within a folder a file imports only from files before it.
FILES = {
    "_core": [
        "version",
        "constructor",
        "startup",
        "posix",
        "forks",
        "buffer",
        "utf8",
        "characters",
        "fdio",
        "flag",
        "ready",
        "pollset",
        "kqueue",
        "poller",
        "counts",
        "convert",
        "budget",
        "addresses",
        "limits",
        "options",
        "sources",
    ],
    "_rio": [
        "capi",
        "registry",
        "handlers",
        "input",
        "framing",
        "fed",
        "transport",
        "tlsturns",
        "tls",
        "socketlike",
        "pyopenssl",
        "channel",
        "limits",
        "source",
        "output",
        "receiver",
        "result",
        "reader",
        "lines",
        "sender",
        "writer",
        "decoding",
        "textreader",
        "textwriter",
    ],
    "_server": [
        "notify",
        "tasks",
        "loopcall",
        "hosts",
        "proxy",
        "accepted",
        "echo",
        "blockingloop",
        "blocking",
        "childside",
        "child",
        "children",
        "loop",
        "kept",
        "bulk",
        "connection",
        "handled",
        "receiving",
        "turns",
        "engine",
        "lineconnection",
        "handling",
        "reports",
        "eventloop",
        "threadengine",
        "processengine",
        "eventengine",
        "engines",
        "acceptor",
        "lifecycle",
        "folderlock",
        "passed",
        "listeners",
        "udp",
        "endpoints",
        "metrics",
        "arguments",
        "service",
    ],
    "_load": ["histogram", "connection", "turns", "loop", "plan", "connector", "result", "runner"],
    # A folder of the public interface: its files have its name in front; its __init__ is the name alone.
    "public": [
        "errors",
        "rio",
        "feed",
        "text",
        "sockets",
        "aio._call",
        "aio._room",
        "aio._protocol",
        "aio._arrival",
        "aio._input",
        "aio._output",
        "aio._tls",
        "aio._connection",
        "aio.rio",
        "aio.opening",
        "aio.connecting",
        "aio.serving",
        "aio._descriptor",
        "aio.wrapping",
        "aio._held",
        "aio._stream",
        "aio.streams",
        "aio",
        "csapp._calls",
        "csapp._constants",
        "csapp._rio",
        "csapp._sockets",
        "csapp._files",
        "csapp._processes",
        "csapp._threads",
        "csapp",
        "server",
        "client",
        "bench",
        "testing._ending",
        "testing._service",
        "testing._tls",
        "testing._faults",
        "testing._conversation",
        "testing._steps",
        "testing._peer",
        "testing._proxy",
        "testing._fixtures",
        "testing",
        "__init__",
    ],
}
# Every file may import the classes of errors, although they are public.
ERRORS = ("public", "errors")
# The functions of _core/posix that the buffer may use: those of memory, not of descriptors.
MEMORY_FUNCTIONS = {
    "memmem",
    "rio_memrchr",
    "memchr",
    "rio_assert",
    "RIO_MAPPED",
    "rio_pages_get",
    "rio_pages_give",
    "rio_pages_resize",
}

IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<module>[\w.]+)[ \t]+c?import[ \t]+(?P<names>\([^)]*\)|[^\n]+)"
    r"|c?import[ \t]+(?P<modules>[\w., \t]+))",
    re.MULTILINE,
)


def imports(text: str, package: str = "rioecho") -> set[tuple[str, str, str]]:
    """Return (folder, file, name) for everything that a file of ``package`` imports from modules of rioecho.

    The text is Python, a stub or Cython; imports in functions and type-checking blocks count too. The name is "" if the
    file itself is imported.
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
    """Return (folder, file, name) of an imported name; an empty set if it is not of rioecho."""
    top, _, inner = module.partition(".")
    if top != "rioecho":
        return set()
    file_of_public = f"{inner}.{name}" if inner else name
    if file_of_public in FILES["public"] or (not inner and name in RANK):
        inner, name = file_of_public, ""
    folder, _, file = inner.partition(".")
    if folder in RANK:
        return {(folder, file, name)} if file else {(folder, name, "")}
    return {("public", inner or "__init__", name)}


def place_of(path: Path) -> tuple[str, str]:
    """Return the folder and the file of a source."""
    *folders, file = path.relative_to(ROOT / "rioecho").with_suffix("").parts
    if folders and folders[0] in RANK:
        return folders[0], file
    return "public", ".".join(folders if folders and file == "__init__" else [*folders, file])


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
        ("from rioecho.csapp._calls import raises", {("public", "csapp._calls", "raises")}),
        ("from rioecho.aio._call cimport Call", {("public", "aio._call", "Call")}),
        ("from rioecho.csapp import _calls, Read", {("public", "csapp._calls", ""), ("public", "csapp", "Read")}),
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
def test_every_file_has_a_place_in_the_order() -> None:
    for path in source_files():
        folder, file = place_of(path)
        assert folder in RANK, path
        assert folder == "cli" or file == "__init__" or file in FILES[folder], path


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_files_before_it(path: Path) -> None:
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
def test_the_buffer_uses_only_functions_of_memory() -> None:
    taken = imports((ROOT / "rioecho" / "_core" / "buffer.pxd").read_text())
    assert {(folder, file) for folder, file, _ in taken} <= {("_core", "posix")}
    assert {name for _, _, name in taken} <= MEMORY_FUNCTIONS


@needs_sources
def test_every_public_extension_has_a_stub() -> None:
    extensions = {path for path in source_files() if path.suffix == ".pyx" and not path.stem.startswith("_")}
    public = {path for path in extensions if place_of(path)[0] == "public"}
    assert {path for path in public if not path.with_suffix(".pyi").is_file()} == set()


@pytest.mark.parametrize(
    "path",
    [path for path in source_files() if path.suffix in {".pyx", ".pxd"}],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_file_overrides_the_compiler_directives_of_the_build(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^#\s*(?:cython|distutils):.*", text, re.MULTILINE) == []
    assert re.findall(r"(?:boundscheck|wraparound|initializedcheck|nonecheck|cdivision)\(.*", text) == []
