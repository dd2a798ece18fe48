"""The first import of the package: Ctrl-C while a command of it is being imported ends it without a traceback.

It changes nothing in any other program that imports the package.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal itself imports enum, which takes longer
import sys

#: The commands that are content with that until their main() is called: scripts, and modules for python -m.
COMMANDS = {"rioecho-server": "rioecho.cli.server"}


def runs_command(argv: list[str], original: list[str]) -> bool:
    """Report whether the process runs one of COMMANDS, from sys.argv and sys.orig_argv."""
    name = argv[0] if argv else ""
    if name == "-m":  # the module is still being looked for
        return any(module in original for module in COMMANDS.values())
    return name.rpartition("/")[2] in COMMANDS


if runs_command(sys.argv, sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
