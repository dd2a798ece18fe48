"""Start-up code of every interpreter of an environment of run.py: it puts rioecho.makefile in place.

A ``.pth`` file beside it imports this module, so that the child processes of a test suite have the drop-in too. The
environment variable RIOECHO_FILES says whose files ``socket.socket.makefile`` returns, "stock" or "rioecho"; without it
nothing happens. Both import the same modules, so that they differ in the one assignment alone.
"""

import functools
import os

FILES = os.environ.get("RIOECHO_FILES")


def _counted(makefile, path):
    """Wrap makefile to append one byte to the file at ``path`` per call. Processes and threads may share the file."""
    open_file, write, close = os.open, os.write, os.close  # a test may replace those of os
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT

    @functools.wraps(makefile)
    def count_and_call(self, *arguments, **options):
        try:
            fd = open_file(path, flags)
            write(fd, b".")
            close(fd)
        except OSError:  # a test may leave no descriptor; its own call must still behave as stock's
            pass
        return makefile(self, *arguments, **options)

    return count_and_call


if FILES:
    import socket

    import rioecho

    if FILES == "rioecho":
        socket.socket.makefile = rioecho.makefile
    else:
        socket.socket.makefile = _counted(socket.socket.makefile, os.environ["RIOECHO_COUNT"])
