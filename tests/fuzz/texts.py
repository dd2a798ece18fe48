"""The fuzz target of the text layer: what makefile() returns for a text, compared with io.TextIOWrapper."""

import io
import re
import socket

import rioecho
from fuzz.choices import Choices

ENCODINGS = ("utf-8", "latin-1", "ascii")
HANDLERS = ("replace", "ignore", "backslashreplace", "surrogateescape", "strict")
NEWLINES = (None, "", "\n", "\r", "\r\n")
METHODS = ("readline", "read", "readline size", "iteration", "readlines")


def calls(choices):
    """Return calls: the name of a method and its arguments."""
    plan = []
    for _ in range(choices.below(12)):
        name = choices.of(METHODS)
        sized = name in ("read", "readline size", "readlines")
        plan.append((name, (choices.below(20),) if sized else ()))
    return plan


def text(raw):
    """A text file reads what io.TextIOWrapper reads, in whatever pieces the bytes arrive."""
    choices = Choices(raw)
    encoding, errors, newline = choices.of(ENCODINGS), choices.of(HANDLERS), choices.of(NEWLINES)
    lengths = [1 + choices.below(64) for _ in range(2)]
    plan = calls(choices)
    data = choices.rest()[:4096]
    if errors == "ignore" and split_newline(data, encoding):
        return
    pieces, at = [], 0
    while at < len(data):
        pieces.append(data[at : at + lengths[len(pieces) % 2]])
        at += len(pieces[-1])
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far, rioecho.makefile(near, "r", encoding=encoding, errors=errors, newline=newline) as file:
        if errors == "strict" and undecodable(data, encoding):
            check_failing(file, plan, far, pieces, data, encoding, newline)
        else:
            theirs = io.TextIOWrapper(io.BytesIO(data), encoding, errors, newline)
            for name, arguments in plan:
                expected = call(theirs, name, arguments)
                got = in_pieces(file, name, arguments, far, pieces)
                assert got == expected, f"{name}{arguments}: {got!r} instead of {expected!r}"
            assert in_pieces(file, "read", (), far, pieces) == theirs.read()
            assert file.newlines == theirs.newlines


def check_failing(file, plan, far, pieces, data, encoding, newline):
    """Check a file whose data cannot be decoded as a whole: no byte is lost, and what was read is right."""
    texts = []
    for name, arguments in [*plan, ("read", ())]:
        try:
            got = in_pieces(file, name, arguments, far, pieces)
        except UnicodeDecodeError:
            try:
                call(file, name, arguments)
            except (UnicodeDecodeError, BlockingIOError):
                break
            raise AssertionError(f"{name}{arguments} was decoded at the second attempt") from None
        texts.extend(got if isinstance(got, list) else [got])
    while pieces:
        far.sendall(pieces.pop(0))
    far.shutdown(socket.SHUT_WR)
    rest = file.buffer.read()
    assert data.endswith(rest)
    taken = data[: len(data) - len(rest)].decode(encoding)
    if newline is None:
        taken = taken.replace("\r\n", "\n").replace("\r", "\n")
    assert "".join(texts) == taken, f"{texts} instead of {taken!r}"


def split_newline(data, encoding):
    """Report whether ignored bytes stand between a CR and an LF: a text file then sees two newlines, not one."""
    between = re.findall(rb"\r([\x80-\xff]+)(?=\n)", data)
    return any(bad.decode(encoding, "ignore") == "" for bad in between)


def undecodable(data, encoding):
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return True
    return False


def call(file, name, arguments):
    if name == "iteration":
        return next(file, "")
    return getattr(file, name.split()[0])(*arguments)


def in_pieces(file, name, arguments, far, pieces):
    """Make a call, again after each piece that was missing, and then after the end."""
    while True:
        try:
            return call(file, name, arguments)
        except BlockingIOError:
            if pieces:
                far.sendall(pieces.pop(0))
            else:
                far.shutdown(socket.SHUT_WR)
