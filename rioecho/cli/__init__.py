"""The commands: arguments, exit statuses, printing. Nothing else in the package prints.

Each refused argument or failed call is one line on stderr that says what was wrong; exit status 2 for a wrong command
line, 1 for what the system refuses.
"""

from __future__ import annotations

import argparse
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {message} (try {self.prog} --help)\n")


def complain(prog: str, error: BaseException | str) -> None:
    """Say on stderr, in one line, what went wrong."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    print(f"{prog}: {text}", file=sys.stderr)


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


def leave(status: int) -> NoReturn:
    """Exit when stdout may be gone: what cannot be delivered any more must not turn into a traceback at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(status)
