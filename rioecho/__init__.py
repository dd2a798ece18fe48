"""The robust I/O (RIO) package of Computer Systems: A Programmer's Perspective, as a Python library.

    from rioecho import Rio, connect      the buffered reader and writer (rio.pyx); connecting one (sockets.py)
    from rioecho import makefile, echo    the drop-in for socket.makefile; the book's echo()
    from rioecho import Feed              the reading methods for bytes from any event loop (feed.pyx)
    from rioecho import aio               the same on asyncio (aio/)
    from rioecho.csapp import *           the book's names, lower case and capitalised
    from rioecho import EchoServer        the echo server (server.py)
    from rioecho import LineServer        the same loop with your handler in it
    from rioecho import testing           the pytest plugin: peers and proxies that misbehave on purpose (testing/)

Layers, bottom up: _core is shared by all; _rio, _server and _load implement Rio, the servers and the load test; the
modules in this folder are the public interface; cli holds the commands. Each file begins with a summary of its content.

PYTEST_DONT_REWRITE: a program may import the package before pytest, which warns of plugins that it comes too late for.
"""

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
from rioecho.errors import ConcurrentCall, FrameTooLong, IncompleteRead, LineTooLong, Woken, written

TYPE_CHECKING = False  # importing typing is slow
if TYPE_CHECKING:
    from rioecho import aio as aio
    from rioecho import testing as testing
    from rioecho._server.blocking import echo
    from rioecho.csapp import rio_readinitb, rio_readlineb, rio_readn, rio_readnb, rio_writen
    from rioecho.feed import Feed
    from rioecho.server import EchoServer, LineServer
    from rioecho.sockets import connect, makefile, open_clientfd, open_listenfd

__all__ = [
    "ConcurrentCall",
    "EchoServer",
    "Feed",
    "FrameTooLong",
    "IncompleteRead",
    "LineServer",
    "LineTooLong",
    "Rio",
    "Woken",
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
    "written",
]


#: The modules of the names that are imported on first use; the others are those of csapp.
_HOMES = {
    "EchoServer": "server",
    "Feed": "feed",
    "LineServer": "server",
    "connect": "sockets",
    "echo": "_server.blocking",
    "makefile": "sockets",
    "open_clientfd": "sockets",
    "open_listenfd": "sockets",
}

if not TYPE_CHECKING:  # with a __getattr__, a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Import a name on first use: a Rio needs neither the socket module nor the servers, which take longer."""
        if name in ("aio", "csapp", "sockets", "testing", "text"):  # modules that are attributes of the package at once
            return __import__(f"rioecho.{name}", fromlist=[name])  # importlib would take longer
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = __import__(f"rioecho.{_HOMES.get(name, 'csapp')}", fromlist=[name])
        value = globals()[name] = getattr(module, name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
