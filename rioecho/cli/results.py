"""The files of a load test's results: checking that they can be written, writing them, and reading one again.

A function that writes returns an exit status. If it is not 0, the function has printed the reason on stderr.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat

from rioecho.cli import FAILED, complain, in_one_line, put_out, reason
from rioecho.cli.tables import LATENCIES, SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from rioecho.cli.tables import Run

#: The FILE that stands for stdout.
STDOUT = "-"
#: An upper bound of every figure of a run.
BEYOND = 2.0**64


def check_writable(path: str) -> None:
    """Raise the OSError that writing to ``path`` would most likely raise. Writes nothing."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        folder, name = os.path.split(path)
        if not name:
            raise
        os.stat(folder or os.curdir)
        allowed = os.access(folder or os.curdir, os.W_OK | os.X_OK)
    else:
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
        allowed = os.access(path, os.W_OK)
    if not allowed:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_all_writable(files: Mapping[str, str | None]) -> None:
    """Raise ValueError if one of the files of these options cannot be written, or if two of them are the same file."""
    seen: dict[str, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        if path == STDOUT:
            raise ValueError(f"{option} -: only --json writes to stdout; for a file of that name use ./-")
        try:
            check_writable(path)
        except OSError as error:
            raise ValueError(f"{option} {path}: {error.strerror}") from None
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option and os.path.realpath(path) != os.path.realpath(os.devnull):
            raise ValueError(f"{other} and {option} are the same file: {path}")


def write(prog: str, path: str, writer: Callable[[str], object]) -> int:
    """Call ``writer`` with the name of a file, and give that file the name ``path``; report an OSError.

    A regular file appears whole or not at all: if the writer fails, for example on a full disk, there is no empty or
    partial file, and a file that existed before is unchanged. Returns the exit status.
    """
    try:
        _replace(path, writer)
    except OSError as error:
        complain(prog, f"{path}: {reason(error)}")
        return FAILED
    return 0


def _replace(path: str, writer: Callable[[str], object]) -> None:
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        found = None
    if (found is not None and not _is_replaceable(target, found)) or not os.access(folder, os.W_OK | os.X_OK):
        writer(path)
        return
    suffix = os.path.splitext(path)[1]  # it may tell the writer the format
    temporary = os.path.join(folder, f".{os.urandom(6).hex()}{suffix if len(suffix) < 20 else ''}")
    try:
        # Created here, so that no link of that name is followed.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        writer(temporary)
        if found is not None:
            with contextlib.suppress(OSError):  # only root may give a file away
                os.chown(temporary, found.st_uid, found.st_gid)
            os.chmod(temporary, stat.S_IMODE(found.st_mode))
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _is_replaceable(target: str, found: os.stat_result) -> bool:
    """Report whether the file found may be replaced by another one of the name ``target``.

    A device or a pipe may not, nor may a file that is also an output of this process, or that has no name any more:
    ``/dev/stdout`` and ``/dev/fd/3`` may be any of these.
    """
    if not stat.S_ISREG(found.st_mode):
        return False
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), found):
                return False
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(target), found)
    return False


def put_json(prog: str, path: str, data: Mapping[str, Any]) -> int:
    """Write a result as JSON to ``path``, or to stdout; return the exit status."""
    text = json_text(data)
    return put_out(prog, text) if path == STDOUT else write(prog, path, lambda path: write_text(path, text))


def json_text(data: Mapping[str, Any]) -> str:
    """Return a result as JSON with a line for each field: a histogram is one long line."""
    fields = []
    for name, value in data.items():
        indent = None if name.startswith("histogram") else 2
        shown = json.dumps(value, indent=indent).replace("\n", "\n  ")
        fields.append(f"  {json.dumps(name)}: {shown}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def read(path: str) -> Run:
    """Read a result written by ``--json``. Raises OSError, or ValueError if the file is something else."""
    with open(path, "rb", buffering=0) as file:  # the lock of a buffer for which there is no memory is a RuntimeError
        text = file.read()
    try:
        run = json.loads(text.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(run, dict):
        raise ValueError("it is not an object")
    latency = run.get("latency_us")
    latency = latency if isinstance(latency, dict) else {}
    run = {"pipeline": 1, "rate_asked": None, **run}
    numbers = {name: run.get(name) for name in ("rate", "mb_per_s", "messages", *SETTINGS)}
    numbers |= {f"latency_us.{name}": latency.get(name) for name in LATENCIES}
    if run["rate_asked"] is None:
        del numbers["rate_asked"]
    for name, value in numbers.items():
        check_number(name, value)
    return run


def check_number(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a number that a figure of a run can be."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name} is not a number")
    if not 0 <= value < BEYOND:
        raise ValueError(f"{name} is out of range")


def names(paths: Sequence[str]) -> list[str]:
    """Return printable names of the files: without directory and ``.json`` if these are distinct, else the paths."""
    short = [os.path.basename(path).removesuffix(".json") for path in paths]
    return [in_one_line(name) for name in (short if len(set(short)) == len(short) else paths)]
