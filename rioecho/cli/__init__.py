"""The commands: arguments, exit statuses, printing. Nothing else in the package prints.

Each refused argument or failed call is one line on stderr that says what was wrong; exit status 2 for a wrong command
line, 1 for what the system refuses.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

USAGE_ERROR = 2

#: Descriptors that are no connections: the standard streams, listeners, pipes, and what Python opens now and then.
OWN_DESCRIPTORS = 64


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; its help may be a text written by hand."""

    help_text = ""

    def format_help(self) -> str:
        return self.help_text or super().format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {in_one_line(message)} (try {self.prog} --help)\n")


def complain(prog: str, error: BaseException | str) -> None:
    """Say on stderr, in one line, what went wrong."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if sys.stderr is not None:  # or print() would take stdout
        with contextlib.suppress(OSError):  # nobody can be told; what was done and the exit status stay
            print(f"{prog}: {in_one_line(text)}", file=sys.stderr)


def in_one_line(text: str) -> str:
    """Escape what is not to be seen, and what would do something to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def open_standard_streams() -> None:
    """Take the descriptors 0, 1 and 2 where they are closed, or a socket would get the number.

    They are opened the wrong way round, so that using them fails as using a closed one does.
    """
    for fd, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # the lowest free number is this one


def allow_descriptors(connections: int) -> None:
    """Have the system allow as many descriptors as there may be connections (0: no limit), as far as it will."""
    infinity = resource.RLIM_INFINITY
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if connections == 0 or (most != infinity and connections + OWN_DESCRIPTORS > most):
        wanted = most
    else:
        wanted = connections + OWN_DESCRIPTORS
    if allowed != infinity and (wanted == infinity or wanted > allowed):
        with contextlib.suppress(OSError, ValueError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def port(text: str) -> int:
    """Read a port number for argparse."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: use a number from 0 to 65535")
    return int(text)


def count(text: str) -> int:
    """Read a number of things for argparse; 0 is one."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def seconds(text: str) -> float:
    """Read a time for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds of 0 or more")
    return value


def interval(text: str) -> float:
    """Read a time between two things for argparse: never 0."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        if value := seconds(text):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def leave(status: int) -> NoReturn:
    """Exit when stdout may be gone: what cannot be delivered any more must not turn into a traceback at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(status)
