"""Calls and states of socket files, for a comparison of rioecho.makefile with socket.socket.makefile.

``observe(makefile, mode, state, call)`` makes a file of a new socket pair, brings it into a state and reports what the
call does, in words that are equal for two files if a program cannot tell them apart.
"""

import array
import contextlib
import copy
import http.client
import io
import json
import operator
import pickle
import shutil
import socket
import sys

TEXT = b"one\ntwo\nthree\nthe rest"  # what the peer sends before it ends its side
HUGE = 1 << 70


class Scene:
    """A socket pair, ``near`` and ``far``, and a file of the near end."""

    def __init__(self, makefile, mode, buffering):
        self.near, self.far = socket.socketpair()
        self.near.settimeout(5)
        self.far.settimeout(5)
        self.far.sendall(TEXT)
        self.far.shutdown(socket.SHUT_WR)
        self.number = self.near.fileno()
        self.makefile = makefile
        self.file = makefile(self.near, mode, buffering)
        self.others = []

    def end(self):
        self.far.close()
        for each in (self.file, *self.others, self.near):
            with contextlib.suppress(OSError, ValueError):
                each.close()


# ---- states


def detach_socket(scene):
    """Detach the near end; its descriptor stays open until the end of the scene."""
    number = scene.near.detach()
    if number >= 0:
        scene.others.append(socket.socket(fileno=number))
    return number


def detach_file(scene):
    result = scene.file.detach()
    scene.others.append(result[0] if isinstance(result, tuple) else result)


def leave_peer(scene):
    scene.far.close()


def read_ahead(scene):
    scene.file.readline()


STATES = {
    "open": lambda scene: None,
    "closed": lambda scene: scene.file.close(),
    "closed twice": lambda scene: (scene.file.close(), scene.file.close()),
    "detached": detach_file,
    "socket closed": lambda scene: scene.near.close(),
    "socket closed, then the file": lambda scene: (scene.near.close(), scene.file.close()),
    "file closed, then the socket": lambda scene: (scene.file.close(), scene.near.close()),
    "socket detached": detach_socket,
    "socket shut down": lambda scene: scene.near.shutdown(socket.SHUT_RDWR),
    "peer gone": leave_peer,
    "raw closed": lambda scene: scene.file.raw.close(),
    "with-block left": lambda scene: scene.file.__exit__(None, None, None),
}
READ_STATES = {
    "one line read": read_ahead,
    "one line read, socket closed": lambda scene: (scene.file.readline(), scene.near.close()),
    "one line read, closed": lambda scene: (scene.file.readline(), scene.file.close()),
    "one line read, socket detached": lambda scene: (scene.file.readline(), detach_socket(scene)),
    "at the end": lambda scene: scene.file.read(),
}
WRITE_STATES = {
    "written": lambda scene: scene.file.write(b"out"),
    "written, socket closed": lambda scene: (scene.file.write(b"out"), scene.near.close()),
    "written, peer gone": lambda scene: (scene.file.write(b"out"), scene.far.close()),
    "written, closed": lambda scene: (scene.file.write(b"out"), scene.file.close()),
    "written, peer gone, closing failed": lambda scene: (scene.file.write(b"out"), scene.far.close(), fail(scene)),
}


def fail(scene):
    with contextlib.suppress(BrokenPipeError):
        scene.file.close()


def states(mode):
    """Return the names and functions of the states that a file of this mode can be in."""
    known = dict(STATES)
    if mode in ("rb", "rwb"):
        known |= READ_STATES
    if mode in ("wb", "rwb"):
        known |= WRITE_STATES
    if mode == "rwb":
        del known["raw closed"], known["detached"]  # the standard library's file has no raw, and cannot be detached
    return known


# ---- calls


class Wrong:
    """An object of a wrong type for every argument."""


class Index:
    def __index__(self):
        return 5


def into(method, buffer):
    """Call a method that fills a buffer; return the count and the contents."""
    count = method(buffer)
    return count, bytes(buffer)


def failing():
    yield b"before"
    raise KeyError


def copied(scene):
    target = io.BytesIO()
    shutil.copyfileobj(scene.file, target)
    return target.getvalue()


def parsed(scene):
    """Return what http.client makes of a file, whose bytes are no HTTP response."""

    class Sock:
        def makefile(self, mode):
            return scene.file

    response = http.client.HTTPResponse(Sock())
    response.begin()
    return response.status


def wrapped(scene):
    text = io.TextIOWrapper(scene.file, encoding="ascii", newline="")
    try:
        return text.readline()
    finally:
        text.detach()


def wrapped_writing(scene):
    text = io.TextIOWrapper(scene.file, encoding="ascii", newline="")
    try:
        text.write("text")
        text.flush()
    finally:
        text.detach()
    return scene.far.recv(100)


def sent(scene, call):
    """Return a call's result, and what has arrived after a flush."""
    result = call(scene.file)
    scene.file.flush()
    scene.far.setblocking(False)
    try:
        return result, scene.far.recv(1 << 16)
    except BlockingIOError:
        return result, None


def raw_of(scene):
    raw = scene.file.raw
    return type(raw), raw.mode, raw.closed, raw.readable() if not raw.closed else None, raw is scene.file.raw


def sock_of(scene):
    return scene.file.raw._sock is scene.near


def nested(scene):
    with scene.file as outer, scene.file as inner, scene.near:
        same = outer is inner is scene.file
    return same, scene.file.closed, scene.near.fileno()


def second_file(scene):
    """Close one of two files; the other one still reads."""
    other = scene.makefile(scene.near, "rb")
    scene.others.append(other)
    scene.near.close()
    scene.file.close()
    try:
        return other.readline(), other.close(), scene.near.fileno()
    finally:
        other.close()


def finalized(scene):
    return scene.file.__del__(), scene.file.closed, scene.near.fileno() == scene.number


ABCS = (io.IOBase, io.RawIOBase, io.BufferedIOBase, io.TextIOBase)

SIZES = {
    "-1": -1, "0": 0, "1": 1, "5": 5, "100": 100, "None": None, "-2": -2, "-HUGE": -HUGE, "HUGE": HUGE, "True": True,
    "'x'": "x", "1.5": 1.5, "b''": b"", "an object": Wrong(), "an index": Index(),
}  # fmt: skip
BUFFERS = {
    "bytearray": lambda: bytearray(5),
    "empty": lambda: bytearray(0),
    "large": lambda: bytearray(100),
    "bytes": lambda: b"12345",
    "array": lambda: array.array("b", bytes(6)),
    "read-only view": lambda: memoryview(b"12345"),
    "strided view": lambda: memoryview(bytearray(10))[::2],
    "str": lambda: "12345",
    "None": lambda: None,
}
DATA = {
    "bytes": lambda: b"data",
    "empty": lambda: b"",
    "bytearray": lambda: bytearray(b"data"),
    "memoryview": lambda: memoryview(b"data"),
    "array of ints": lambda: array.array("i", [1, 2]),
    "strided view": lambda: memoryview(b"0123456789")[::2],
    "large": lambda: b"x" * 30_000,
    "str": lambda: "data",
    "int": lambda: 5,
    "None": lambda: None,
    "list": lambda: [1],
}

CALLS = {}
SIMPLE = (
    "close detach flush fileno isatty readable writable seekable tell truncate seek __iter__ __next__ __enter__"
).split()
for method in (
    *SIMPLE,
    *"__exit__ __del__ __len__ read read1 readline readlines peek readinto write writelines".split(),
):
    CALLS[f"{method}()"] = lambda scene, method=method: getattr(scene.file, method)()
for method in SIMPLE:
    CALLS[f"{method}(5)"] = lambda scene, method=method: getattr(scene.file, method)(5)
for method in ("read", "read1", "readline", "readlines", "peek"):
    for name, size in SIZES.items():
        CALLS[f"{method}({name})"] = lambda scene, method=method, size=size: getattr(scene.file, method)(size)
    CALLS[f"{method}(5, 5)"] = lambda scene, method=method: getattr(scene.file, method)(5, 5)
for method in ("readinto", "readinto1"):
    for name, make in BUFFERS.items():
        CALLS[f"{method}({name})"] = lambda scene, method=method, make=make: into(getattr(scene.file, method), make())
for name, make in DATA.items():
    CALLS[f"write({name})"] = lambda scene, make=make: sent(scene, lambda file: file.write(make()))
    CALLS[f"writelines([{name}])"] = lambda scene, make=make: sent(scene, lambda file: file.writelines([b"0", make()]))
CALLS |= {
    "write(b'', b'')": lambda scene: scene.file.write(b"", b""),
    "writelines(bytes)": lambda scene: scene.file.writelines(b"data"),
    "writelines(str)": lambda scene: scene.file.writelines("data"),
    "writelines(int)": lambda scene: scene.file.writelines(5),
    "writelines(None)": lambda scene: scene.file.writelines(None),
    "writelines(failing generator)": lambda scene: scene.file.writelines(failing()),
    "writelines(empty)": lambda scene: scene.file.writelines([]),
    "seek(0, 9)": lambda scene: scene.file.seek(0, 9),
    "seek('x')": lambda scene: scene.file.seek("x"),
    "closed": lambda scene: scene.file.closed,
    "mode": lambda scene: scene.file.mode,
    "name": lambda scene: scene.file.name,
    "raw": raw_of,
    "raw._sock": sock_of,
    "raw.fileno()": lambda scene: scene.file.raw.fileno(),
    "raw.read()": lambda scene: scene.file.raw.read(5),
    "raw.name": lambda scene: scene.file.raw.name,
    "bool": lambda scene: bool(scene.file),
    "hash": lambda scene: hash(scene.file) is not None,
    "equality": lambda scene: (scene.file == scene.file, scene.file == 5),
    "iter": lambda scene: iter(scene.file) is scene.file,
    "list": lambda scene: list(scene.file),
    "next, then read": lambda scene: (next(scene.file), scene.file.read(3), next(scene.file), scene.file.readline()),
    "len": lambda scene: len(scene.file),
    "index": lambda scene: scene.file[0],
    "int": lambda scene: operator.index(scene.file),
    "copy": lambda scene: copy.copy(scene.file),
    "deepcopy": lambda scene: copy.deepcopy(scene.file),
    "pickle": lambda scene: pickle.dumps(scene.file),
    "pickle, protocol 0": lambda scene: pickle.dumps(scene.file, 0),
    "json": lambda scene: json.load(scene.file),
    "pickle.load": lambda scene: pickle.load(scene.file),  # noqa: S301, data of this test
    "base classes": lambda scene: [isinstance(scene.file, each) for each in ABCS],
    "set mode": lambda scene: setattr(scene.file, "mode", "x"),
    "set name": lambda scene: setattr(scene.file, "name", "x"),
    "set raw": lambda scene: setattr(scene.file, "raw", None),
    "set closed": lambda scene: setattr(scene.file, "closed", True),
    "set another attribute": lambda scene: setattr(scene.file, "another", True),
    "vars": lambda scene: vars(scene.file),
    "with": lambda scene: nested(scene),
    "a second file": second_file,
    "drop": finalized,
    "copyfileobj": copied,
    "http.client": parsed,
    "TextIOWrapper": wrapped,
    "TextIOWrapper, writing": wrapped_writing,
    "close, socket open": lambda scene: (scene.file.close(), scene.near.fileno() == scene.number),
    "close both": lambda scene: (scene.file.close(), scene.near.close(), scene.near.fileno()),
    "close the socket, then both": lambda scene: (scene.near.close(), scene.near.fileno() == scene.number,
                                                 scene.file.close(), scene.near.fileno()),
    "socket.detach": detach_socket,
    "close, socket.detach": lambda scene: (scene.file.close(), detach_socket(scene)),
    "read(size=5)": lambda scene: scene.file.read(size=5),
}  # fmt: skip


# ---- observations


def shown(scene, value):
    """Describe a result: values by repr, objects by their role or type."""
    if value is scene.file:
        return "the file"
    if type(value) is int and value == scene.number:
        return "the descriptor"
    if value is None or isinstance(value, (bool, int, bytes, str, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(shown(scene, each) for each in value) + "]"
    if isinstance(value, type):
        return value.__name__
    return f"a {type(value).__name__}"


def error_name(error):
    """Return the name of an error's class, or of its first base class of the standard library, and the errno."""
    known = next(each for each in type(error).__mro__ if not each.__module__.startswith("rioecho"))
    return known.__name__ + (f", errno {error.errno}" if isinstance(error, OSError) and error.errno else "")


def told(scene, call):
    """Return what a call does: its result or the class of its error."""
    try:
        value = call(scene)
    except Exception as error:
        return error_name(error)
    return shown(scene, value)


@contextlib.contextmanager
def unraisable():
    """Collect the errors of finalizers, in place of reporting them."""
    errors = []
    before, sys.unraisablehook = sys.unraisablehook, lambda met: errors.append(error_name(met.exc_value))
    try:
        yield errors
    finally:
        sys.unraisablehook = before


def observe(makefile, mode, state, call, buffering=-1):
    scene = Scene(makefile, mode, buffering)
    try:
        states(mode)[state](scene)
        return told(scene, CALLS[call])
    finally:
        scene.end()
