"""The first import of a command: Ctrl-C while the others are imported ends it without a traceback.

A module, because it must run before the other imports. It changes nothing in a program that imports a command.
"""

from __future__ import annotations

import os
import signal
import sys

#: The names of the commands as scripts and as modules (python -m).
COMMANDS = ("rioecho-server", "rioecho.cli.server")


def _running() -> str:
    """Return the name of the script or module that this process runs."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return spec.name if spec else os.path.basename(getattr(main, "__file__", None) or "")


if _running() in COMMANDS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
