"""Ctrl-C while a command starts: it ends, without a traceback through what is being imported.

The package imports this module first. It does nothing in a process that is not one of the commands.
"""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130


def _exit_at_once(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)


def _command() -> str:
    """Return the name of the command, if this process was started as one by its script or by ``python -m``."""
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    if name == "-m":
        names = (argument.removeprefix("rioecho.cli.") for argument in sys.orig_argv if "rioecho.cli." in argument)
        return next(names, "")
    return name.removeprefix("rioecho-") if name.startswith("rioecho-") else ""


def end() -> None:
    """Let Ctrl-C raise KeyboardInterrupt from now on: the command handles it."""
    import signal

    if signal.getsignal(signal.SIGINT) is _exit_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _begin(command: str) -> None:
    import signal  # not at the top: it takes longer to import than this module, and programs need not have it

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL if command == "server" else _exit_at_once)


if (_name := _command()) in ("client", "bench", "server"):
    _begin(_name)
