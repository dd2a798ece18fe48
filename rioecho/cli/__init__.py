"""The commands: arguments, exit statuses, printing. Nothing else in the package prints.

An invalid argument or a failed call is one line on stderr with the reason. The exit status is 2 for a usage error and 1
for a system error.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import re
import resource
import select
import signal
import sys

from rioecho._core import startup
from rioecho._core.limits import OWN_DESCRIPTORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from _typeshed import SupportsWrite

FAILED, USAGE_ERROR = 1, 2
#: Seconds to wait for the reader of a non-blocking stdout.
PATIENCE = 5.0
#: What an argument begins with that is a value, and not an option: a negative number, with a unit or without.
NEGATIVE = re.compile(r"-\.?[0-9]")

#: The errors of a failed allocation: CPython sometimes loses a MemoryError and raises SystemError instead.
NO_MEMORY = (MemoryError, SystemError)
#: The error of using stdin or stdout, by descriptor, if it is closed or open for the opposite direction.
UNOPENED = ("not open for reading", "not open for writing")

#: The line printed if there is no memory to format another one.
OUT_OF_MEMORY = b"out of memory\n"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and whose help may be a fixed text, ``help_text``.

    It exits by ``leave()``. A help text or version that cannot be written is an error, as is any other output.
    """

    help_text = ""
    _undelivered = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # By default "-1" is a value, whose type says what is wrong with it, but "-1k" an option without its value.
        self._negative_number_matcher = NEGATIVE

    def format_help(self) -> str:
        return self.help_text or super().format_help()

    def error(self, message: str) -> NoReturn:
        self.refuse(f"{message} (try {self.prog} --help)")

    def refuse(self, message: str) -> NoReturn:
        """Exit with a usage error that the help says nothing about, such as that of a file."""
        complain(self.prog, message)
        self.exit(USAGE_ERROR)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if message:
            self._print_message(message, sys.stderr)
        leave(status or self._undelivered)

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        # The one method through which argparse prints.
        if message and file is sys.stdout:
            self._undelivered = put_out(self.prog, message, optional=True)
        else:
            super()._print_message(message, file)


def complain(prog: str, error: BaseException | str) -> None:
    """Print an error on stderr in one line. An error in writing it is ignored."""
    if sys.stderr is None:  # print() would use stdout
        return
    # The exit status still reports the error.
    with contextlib.suppress(OSError):
        try:
            print(f"{prog}: {in_one_line(reason(error))}\n", end="", file=sys.stderr)
        except NO_MEMORY:
            os.write(2, OUT_OF_MEMORY)


def reason(error: BaseException | str) -> str:
    """Return the message of an error, without its errno."""
    if isinstance(error, NO_MEMORY):
        return "out of memory"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def put_out(prog: str, text: str, *, optional: bool = False) -> int:
    """Write text to stdout; return the exit status: all of it is written, or an error is reported.

    That nobody reads an ``optional`` text is not an error: stdout is closed, or the reader has closed the pipe
    (``--help | head``).
    """
    if sys.stdout is None:
        return 0 if optional else _report_loss(prog, f"stdout: {UNOPENED[1]}")
    try:
        try:
            fd = sys.stdout.fileno()
        except (OSError, ValueError):  # replaced by the caller of main(), or closed
            fd = -1
        if fd < 0:
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            sys.stdout.flush()
            _write_all(fd, text.encode(sys.stdout.encoding, sys.stdout.errors or "strict"))
    except OSError as error:
        if optional and isinstance(error, BrokenPipeError):
            return 0
        return _report_loss(prog, f"stdout: {reason(error)}")
    return 0


def _report_loss(prog: str, why: str) -> int:
    complain(prog, why)
    return FAILED


def _write_all(fd: int, data: bytes) -> None:
    """Write all data. Python's stdout loses what a short write or a full non-blocking pipe leaves over.

    Raises TimeoutError if a non-blocking descriptor accepts nothing for PATIENCE seconds; a blocking one is waited for.
    """
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            if not poller.poll(PATIENCE * 1000):
                raise TimeoutError(errno.ETIMEDOUT, f"nobody has read from the pipe for {PATIENCE:g} s") from None


def in_one_line(text: str) -> str:
    """Escape all characters that are not printable, so that the text is one line and cannot control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def open_standard_streams() -> None:
    """Open the descriptors 0, 1 and 2 if they are closed, so that no socket gets one of these numbers.

    They are opened for the opposite direction, so that using them fails, as using a closed descriptor does.
    """
    for fd, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # the lowest free number is this one


def check_standard_streams() -> None:
    """Raise ``OSError`` if stdin cannot be read from or stdout cannot be written to. For commands that use both."""
    for fd, (name, opposite) in enumerate((("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY))):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == opposite:
            raise OSError(errno.EBADF, f"{name}: {UNOPENED[fd]}")


def allow_descriptors(connections: int) -> None:
    """Raise the soft limit of descriptors for this many connections (0: without limit), as far as the system allows."""
    infinity = resource.RLIM_INFINITY
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if connections == 0 or (most != infinity and connections + OWN_DESCRIPTORS > most):
        wanted = most
    else:
        wanted = connections + OWN_DESCRIPTORS
    if allowed != infinity and (wanted == infinity or wanted > allowed):
        with contextlib.suppress(OSError, ValueError):  # macOS allows less than it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def finish(prog: str, command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with the status that it returns.

    Out of memory is one line and status 1. Ctrl-C that the command does not handle is status 130 without a traceback.
    """
    status = FAILED
    try:
        try:
            startup.end()
            open_standard_streams()
            status = command()
        except NO_MEMORY as error:
            complain(prog, error)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is already exiting
            status = startup.INTERRUPTED
        leave(status)
    except NO_MEMORY:
        os._exit(status)


def leave(status: int) -> NoReturn:
    """Exit with this status. Every command exits here.

    Data still in the buffers of stdout and stderr could not be written, which was reported then. Without this function
    Python would try again at exit, fail again, print a traceback, and exit with status 120.
    """
    try:
        for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):  # ValueError: closed by the caller of main()
                with contextlib.suppress(OSError):
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, fd)
                    os.close(null)
        sys.exit(status)
    except NO_MEMORY:
        os._exit(status)
