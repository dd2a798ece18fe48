"""The robust I/O (RIO) package of Computer Systems: A Programmer's Perspective, as a Python library.

    from rioecho import Rio, connect      the buffered reader and writer (rio.pyx); connecting one (sockets.py)
    from rioecho import makefile, echo    the drop-in for socket.makefile; the book's echo()
    from rioecho.csapp import *           the book's names, lower case and capitalised
    from rioecho import EchoServer        the echo server (server.py)

Layers, bottom up: _core is shared by all; _rio, _server and _load implement Rio, the servers and the load test; the
modules in this folder are the public interface; cli holds the commands. Each file begins with a summary of its content.
"""

from __future__ import annotations

from rioecho._core import startup as _startup  # noqa: F401, first: it acts when it is imported

try:
    from rioecho.rio import Rio
except ModuleNotFoundError as _error:
    if _error.name != "rioecho.rio":
        raise
    raise ImportError(
        "this is the source tree of rioecho, and it is not built: start Python in another folder to use what is "
        "installed, or build it here with: pip install -e ."
    ) from None
from rioecho._core.version import __version__ as __version__
from rioecho.errors import ConcurrentCall, IncompleteRead, LineTooLong
from rioecho.sockets import connect, makefile, open_clientfd, open_listenfd

TYPE_CHECKING = False  # importing typing is slow
if TYPE_CHECKING:
    from rioecho._server.blocking import echo
    from rioecho.csapp import rio_readinitb, rio_readlineb, rio_readn, rio_readnb, rio_writen
    from rioecho.server import EchoServer

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


if not TYPE_CHECKING:  # with a __getattr__, a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Import the server and the book's names on first use: they take longer to import than the rest."""
        if name == "EchoServer":
            from rioecho.server import EchoServer

            return EchoServer
        if name == "echo":
            from rioecho._server.blocking import echo

            return echo
        if name == "csapp" or name in __all__:
            import rioecho.csapp as csapp

            return csapp if name == "csapp" else getattr(csapp, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
