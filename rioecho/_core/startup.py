"""Ctrl-C while a command starts: it exits with status 130, instead of a traceback through what is being imported.

The package imports this module first. It does nothing in a process that is not one of the commands.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130


def _exit_at_once(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)


def _is_command() -> bool:
    """Report whether this process was started as one of the commands, by its script or by ``python -m``."""
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    if name == "-m":
        return any(argument.startswith("rioecho.cli.") for argument in sys.orig_argv)
    return name in ("rioecho-server", "rioecho-client", "rioecho-bench")


def end() -> None:
    """Let Ctrl-C raise KeyboardInterrupt from now on: the command handles it."""
    if signal.getsignal(signal.SIGINT) is _exit_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _exit_at_once)
