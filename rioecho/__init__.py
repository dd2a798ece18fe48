"""The robust I/O (RIO) package of Computer Systems: A Programmer's Perspective, as a Python library.

    from rioecho import Rio, connect      the reader and writer (rio.pyx), and one with its connection (sockets.py)
    from rioecho import makefile, echo    socket.makefile's better half; the book's echo()
    from rioecho.csapp import *           the book's names, lower and capital
    from rioecho import EchoServer        the echo server (server.py)

The folders, from the descriptor to the user: _core, what everything shares; _rio, _server and _load, the parts of the
three; these modules; cli, the commands. Each file says in its first lines what it holds.
"""

from __future__ import annotations

try:
    from rioecho.rio import Rio
except ModuleNotFoundError as _error:
    if _error.name != "rioecho.rio":
        raise
    raise ImportError(
        "this is the source tree of rioecho, and it is not built: start Python in another folder to use what is "
        "installed, or build it here with: pip install -e ."
    ) from None
from rioecho.csapp import (
    open_clientfd,
    open_listenfd,
    rio_readinitb,
    rio_readlineb,
    rio_readn,
    rio_readnb,
    rio_writen,
)
from rioecho.errors import ConcurrentCall, IncompleteRead, LineTooLong
from rioecho.sockets import connect, makefile

TYPE_CHECKING = False  # not typing's, which takes long to import
if TYPE_CHECKING:
    from rioecho._server.blocking import echo
    from rioecho.server import EchoServer

__version__ = "0.1.0"

__all__ = [
    "ConcurrentCall",
    "EchoServer",
    "IncompleteRead",
    "LineTooLong",
    "Rio",
    "connect",
    "echo",
    "makefile",
    "open_clientfd",
    "open_listenfd",
    "rio_readinitb",
    "rio_readlineb",
    "rio_readn",
    "rio_readnb",
    "rio_writen",
]


if not TYPE_CHECKING:  # a type checker would take it for a module that has every name

    def __getattr__(name: str) -> object:
        """Import what serves when it is asked for: with logging and its friends it costs more than all the rest."""
        if name == "EchoServer":
            from rioecho.server import EchoServer

            return EchoServer
        if name == "echo":
            from rioecho._server.blocking import echo

            return echo
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
