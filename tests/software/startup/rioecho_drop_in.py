"""Start-up code of every interpreter of an environment of run.py: it puts a drop-in of rioecho in place.

A ``.pth`` file beside it imports this module, so that the child processes of a test suite have the drop-in too. The
environment variable RIOECHO_DROP_IN says which one: "makefile", for ``socket.socket.makefile``, or "streams", for the
streams of asyncio. RIOECHO_FILES says whose are used, "stock" or "rioecho"; without it nothing happens. Both import the
same modules, so that they differ in the assignments alone.
"""

import functools
import os

FILES = os.environ.get("RIOECHO_FILES")
DROP_IN = os.environ.get("RIOECHO_DROP_IN", "makefile")


def _counted(function, path):
    """Wrap a function to append one byte to the file at ``path`` per call. Processes and threads may share the file."""
    open_file, write, close = os.open, os.write, os.close  # a test may replace those of os
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT

    @functools.wraps(function)
    def count_and_call(self, *arguments, **options):
        try:
            fd = open_file(path, flags)
            write(fd, b".")
            close(fd)
        except OSError:  # a test may leave no descriptor; its own call must still behave as stock's
            pass
        return function(self, *arguments, **options)

    return count_and_call


if FILES and DROP_IN == "makefile":
    import socket

    import rioecho

    if FILES == "rioecho":
        socket.socket.makefile = rioecho.makefile
    else:
        socket.socket.makefile = _counted(socket.socket.makefile, os.environ["RIOECHO_COUNT"])

if FILES and DROP_IN == "streams":
    import asyncio

    from rioecho.aio import streams

    if FILES == "rioecho":
        for module in (asyncio, asyncio.streams):
            for name in streams.__all__:
                setattr(module, name, getattr(streams, name))
    else:
        # Not __init__: a warning of it names the caller by the depth of the stack.
        made = _counted(lambda cls, *arguments, **options: object.__new__(cls), os.environ["RIOECHO_COUNT"])
        asyncio.StreamReader.__new__ = staticmethod(made)
