"""Lives of socket files, for a comparison of rioecho.makefile with socket.socket.makefile.

Each function of LIVES gets the function that makes files, and returns what a program sees: results, and errors by their
class, under a label each.
"""

import gc
import io
import itertools
import operator
import socket
import struct
import threading
import warnings

from support.delivery import tcp_pair
from support.file_calls import error_name, unraisable

LIVES = {}
BINARY = ("rb", "wb", "rwb")
SHORT = 0.02  # timeout in seconds, meant to expire


def life(function):
    LIVES[function.__name__.replace("_", " ")] = function
    return function


def seen(call, *arguments):
    """Make a call and describe its result or error."""
    try:
        result = call(*arguments)
    except Exception as error:
        return error_name(error)
    if result is None or isinstance(result, (bool, int, bytes, str, list, tuple)):
        return repr(result)
    return "an object"


def pair(timeout=5.0):
    near, far = socket.socketpair()
    near.settimeout(timeout)
    far.settimeout(5)
    return near, far


def use(file):
    """Make the usual calls, and close the file."""
    calls = {
        "readline": (),
        "read": (5,),
        "readinto": (bytearray(5),),
        "__next__": (),
        "write": (b"data",),
        "flush": (),
        "fileno": (),
        "isatty": (),
        "readable": (),
        "writable": (),
        "close": (),
    }
    return {name: seen(getattr(file, name), *arguments) for name, arguments in calls.items()} | {
        "closed": seen(lambda: file.closed)
    }


def ended(sock):
    """Report whether the peer of a socket has closed, and what it sent before that."""
    received = b""
    sock.settimeout(0)
    try:
        while data := sock.recv(1 << 16):
            received += data
    except BlockingIOError:
        return received, "open"
    except ConnectionResetError:
        return received, "reset"
    return received, "closed"


def in_each_mode(function):
    """Make a life of one that is lived in each binary mode."""

    def lives(makefile):
        found = {}
        for mode in BINARY:
            found |= {f"{mode}: {label}": value for label, value in function(makefile, mode).items()}
        return found

    lives.__name__ = function.__name__
    return life(lives)


# ---- sockets of every state


@in_each_mode
def of_a_closed_socket(makefile, mode):
    near, far = pair()
    near.close()
    file = makefile(near, mode)
    number = seen(file.fileno) if mode != "rwb" else None
    result = use(file) | {"descriptor": number, "peer": ended(far), "socket": near.fileno()}
    far.close()
    return result


@in_each_mode
def of_a_detached_socket(makefile, mode):
    near, far = pair()
    with socket.socket(fileno=near.detach()), far:
        return use(makefile(near, mode)) | {"peer": ended(far)}


@in_each_mode
def of_an_unconnected_socket(makefile, mode):
    with socket.socket() as sock:
        sock.settimeout(5)
        result = use(makefile(sock, mode))
        return result | {"fileno": result["fileno"] if mode == "rwb" else result["fileno"] == str(sock.fileno())}


@in_each_mode
def of_a_listening_socket(makefile, mode):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(SHORT)
        result = use(makefile(sock, mode))
        return result | {"fileno": result["fileno"] if mode == "rwb" else result["fileno"] == str(sock.fileno())}


@in_each_mode
def of_a_connection_that_was_reset(makefile, mode):
    near, far = tcp_pair()
    near.settimeout(5)
    far.sendall(b"line\npart")
    file = makefile(near, mode)
    first = seen(file.readline)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    calls = {"first": first, "read": seen(file.read, 100), "read again": seen(file.read, 100)}
    if "w" in mode:
        calls |= {"write": seen(file.write, b"x"), "flush": seen(file.flush)}
    calls |= {"close": seen(file.close), "close again": seen(file.close), "closed": file.closed}
    near.close()
    return calls


# ---- arguments


MODES = (
    "",
    "b",
    "r",
    "rb",
    "br",
    "w",
    "wb",
    "rw",
    "rwb",
    "bwr",
    "rr",
    "rrb",
    "x",
    "a",
    "r+",
    "rt",
    "U",
    "B",
    " r",
    None,
    5,
)
SIZES = {
    "None": None, "-1": -1, "-2": -2, "0": 0, "1": 1, "2": 2, "8192": 8192, "1<<70": 1 << 70, "-1<<70": -1 << 70,
    "True": True, "False": False, "'1'": "1", "1.5": 1.5, "[]": [],
}  # fmt: skip


@life
def arguments(makefile):
    near, far = pair()
    found = {}
    kinds = {"raw": io.RawIOBase, "buffered": io.BufferedIOBase, "text": io.TextIOBase}
    with near, far:
        for mode, (name, size) in itertools.product(MODES, SIZES.items()):
            try:
                file = makefile(near, mode, size)
            except Exception as error:
                found[f"{mode!r}, {name}"] = error_name(error)
                continue
            with file:
                kind = [kind for kind, base in kinds.items() if isinstance(file, base)]
                found[f"{mode!r}, {name}"] = kind, file.readable(), file.writable(), seen(lambda: file.mode)  # noqa: B023
    return found


@life
def keywords(makefile):
    near, far = pair()
    found = {}
    with near, far:
        for keywords in (
            {"encoding": "utf-8"},
            {"encoding": "no such"},
            {"encoding": 5},
            {"errors": "no such"},
            {"newline": "\r\n"},
            {"newline": "x"},
            {"mode": "rb", "buffering": 5},
            {"mode": "rb", "encoding": "no such", "errors": 5, "newline": "x"},
            {"closefd": False},
        ):
            try:
                makefile(near, **keywords).close()
            except Exception as error:
                found[str(keywords)] = error_name(error)
            else:
                found[str(keywords)] = "made"
        found["positional"] = seen(lambda: makefile(near, "r", None, "utf-8"))
    return found


# ---- the end of a life


@in_each_mode
def dropped_before_the_socket(makefile, mode):
    near, far = pair()
    file = makefile(near, mode)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        del file
        result = {"peer": ended(far), "socket": near.fileno() >= 0}
        near.close()
        result |= {"peer, socket closed": ended(far), "warnings": len(warned)}
    far.close()
    return result


@in_each_mode
def dropped_after_the_socket_was_closed(makefile, mode):
    near, far = pair()
    file = makefile(near, mode)
    if "w" in mode:
        file.write(b"out")
    near.close()
    result = {"peer, socket closed": ended(far)}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        del file
        result |= {"peer": ended(far), "socket": near.fileno(), "warnings": len(warned)}
    far.close()
    return result


@in_each_mode
def dropped_after_an_unclosed_socket(makefile, mode):
    near, far = pair()
    file = makefile(near, mode)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        del near
        result = {"alive": ended(far), "warnings before": len(warned)}
        del file
        result |= {"peer": ended(far), "warnings": [each.category.__name__ for each in warned]}
    far.close()
    return result


@in_each_mode
def dropped_in_a_cycle(makefile, mode):
    near, far = pair()
    cycle = [makefile(near, mode)]
    cycle.append(cycle)
    near.close()
    del cycle
    result = {"peer before": ended(far)}
    gc.collect()
    result |= {"peer": ended(far), "socket": near.fileno()}
    far.close()
    return result


@in_each_mode
def dropped_when_nobody_can_be_sent_to(makefile, mode):
    near, far = pair()
    file = makefile(near, mode)
    if "w" in mode:
        file.write(b"out")
    near.close()
    far.close()
    with unraisable() as errors:
        del file
    return {"socket": near.fileno(), "errors": errors}


@life
def files_of_one_socket(makefile):
    near, far = pair()
    reader, writer, both = makefile(near, "rb"), makefile(near, "wb"), makefile(near, "rwb", 0)
    far.sendall(b"question\n")
    result = {"references": near._io_refs, "read": seen(reader.readline), "write": seen(writer.write, b"answer")}
    near.close()
    result |= {"flush": seen(writer.flush), "peer": ended(far), "socket": near.fileno() >= 0}
    for name, file in {"reader": reader, "writer": writer, "both": both}.items():
        result |= {f"close {name}": seen(file.close), f"after {name}": (ended(far), near._io_refs, near._closed)}
        seen(file.close)
    far.close()
    return result


@life
def one_file_after_another(makefile):
    near, far = pair()
    result = {}
    for number in range(3):
        with makefile(near, "rwb") as file:
            far.sendall(b"question\n")
            result |= {f"read {number}": seen(file.readline), f"write {number}": seen(file.write, b"answer")}
        result |= {f"peer {number}": ended(far), f"references {number}": near._io_refs}
    near.close()
    result["end"] = ended(far)
    far.close()
    return result


@life
def with_blocks(makefile):
    near, far = pair()
    result = {}
    with near, makefile(near, "wb") as file:
        file.write(b"out")
        near.close()
        result["socket closed in the block"] = ended(far)
    result |= {"after": ended(far), "socket": near.fileno(), "again": seen(file.__enter__)}
    far.close()
    near, far = pair()
    try:
        with near, makefile(near, "wb") as file:
            file.write(b"out")
            raise KeyError
    except KeyError:
        result["error in the block"] = file.closed, ended(far)
    far.close()
    near, far = pair()
    try:
        with near, makefile(near, "wb") as file:
            file.write(b"out")
            far.close()
    except BrokenPipeError:
        result["error at the end of the block"] = file.closed, near.fileno()
    return result


@life
def of_a_subclass_of_socket(makefile):
    calls = []

    class Socket(socket.socket):
        def _decref_socketios(self):
            calls.append("_decref_socketios")
            super()._decref_socketios()

        def _real_close(self, *arguments):
            calls.append("_real_close")
            super()._real_close(*arguments)

        def close(self):
            calls.append("close")
            super().close()

    result = {}
    for mode in BINARY:
        near, far = pair()
        sock = Socket(fileno=near.detach())
        sock.settimeout(5)
        with far, makefile(sock, mode) as file:
            far.sendall(b"line\n")
            result |= {
                f"{mode}: read": seen(file.readline),
                f"{mode}: closing": seen(sock.close),
                f"{mode}: calls": [*calls],
            }
        result |= {
            f"{mode}: calls at the end": [*calls],
            f"{mode}: again": seen(file.close),
            f"{mode}: socket": sock.fileno(),
        }
        calls.clear()
    return result


@life
def of_a_subclass_that_cannot_close(makefile):
    class Socket(socket.socket):
        def _decref_socketios(self):
            super()._decref_socketios()
            raise KeyError

    near, far = pair()
    sock = Socket(fileno=near.detach())
    file = makefile(sock, "rb")
    sock.close()
    result = {"close": seen(file.close), "closed": file.closed, "again": seen(file.close), "peer": ended(far)}
    far.close()
    return result


# ---- timeouts and signals of the other end


def error_of(call, *arguments):
    """Return all that a program sees of the error of a call."""
    try:
        return repr(call(*arguments))
    except OSError as error:
        return type(error).__name__, str(error), error.args, error.errno, repr(error)


@life
def timeouts(makefile):
    calls = {
        "readline": lambda file: file.readline(),
        "read": lambda file: file.read(10),
        "read all": lambda file: file.read(),
        "read1": lambda file: file.read1(10),
        "readinto": lambda file: file.readinto(bytearray(10)),
        "large read": lambda file: file.read(1 << 20),
        "iteration": lambda file: next(file),
        "readlines": lambda file: file.readlines(),
        "peek": lambda file: file.peek(),
        "write": lambda file: file.write(bytes(1 << 22)),
        "writelines": lambda file: file.writelines([bytes(1 << 22)]),
        "write, flush": lambda file: (file.write(b"x"), file.flush()),
    }
    result = {}
    for name, call in calls.items():
        near, far = pair(SHORT)
        with near, far:
            if name == "write, flush":
                near.settimeout(0)
                with_room = True
                while with_room:
                    with_room = seen(near.send, bytes(1 << 16)).isdecimal()
                near.settimeout(SHORT)
            file = makefile(near, "wb" if "write" in name else "rb")
            result[name] = error_of(call, file)
            far.close()
            seen(file.close)
    return result


@life
def settimeout_while_the_file_is_open(makefile):
    near, far = pair(None)
    result = {"none": near.gettimeout()}
    with near, far, makefile(near, "rb") as file:
        far.sendall(b"line\n")
        result["without"] = seen(file.readline)
        near.settimeout(SHORT)
        result["with"] = seen(file.read, 1)
    return result


@life
def without_blocking(makefile):
    near, far = pair(0)
    result = {}
    with near, far:
        far.sendall(b"one\ntwo")
        reader = makefile(near, "rb")
        result |= {"line": seen(reader.readline), "rest": seen(reader.readline), "nothing": seen(reader.readline)}
        result |= {f"{name}()": seen(operator.methodcaller(name), reader) for name in ("read", "read1", "peek")}
        result |= {"read(5)": seen(reader.read, 5), "readinto": seen(reader.readinto, bytearray(5))}
        writer = makefile(near, "wb", 100)
        result |= {"write": seen(writer.write, b"x" * 50), "flush": seen(writer.flush), "peer": ended(far)}
        try:
            while True:
                writer.write(bytes(1 << 16))
        except BlockingIOError as error:
            result["full"] = error.errno, 0 <= error.characters_written < 1 << 16
        far.close()
        result["close"] = seen(writer.close)
        reader.close()
    return result


@life
def half_closed(makefile):
    near, far = pair()
    with near, far, makefile(near, "rb") as reader, makefile(near, "wb") as writer:
        far.sendall(b"the end")
        far.shutdown(socket.SHUT_WR)
        return {
            "line": seen(reader.readline),
            "end": [seen(reader.readline), seen(reader.read), seen(reader.read, 5), seen(list, reader)],
            "write": [seen(writer.write, b"still"), seen(writer.flush), ended(far)],
        }


@life
def used_by_another_thread(makefile):
    near, far = pair()
    with near, far, makefile(near, "rwb") as file:
        found = []
        thread = threading.Thread(target=lambda: found.append(file.readline()))
        thread.start()
        file.write(b"question\n")
        file.flush()
        question = far.recv(100)
        far.sendall(b"answer\n")
        thread.join()
        return {"question": question, "answer": found}
