"""The servers: EchoServer, which sends back what it receives, and LineServer, which has a handler of yours in its loop.

What they have in common is ``_server/service.py``.
"""

from __future__ import annotations

from rioecho._core.options import check_options
from rioecho._server.arguments import check_handler, integer, limit
from rioecho._server.lineconnection import Connection as Connection
from rioecho._server.listeners import passed_sockets as passed_sockets
from rioecho._server.service import MAX_CONNECTIONS as MAX_CONNECTIONS
from rioecho._server.service import OPTIONS, Service

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeAlias, TypedDict, Unpack

    from rioecho._core.addresses import Path
    from rioecho._server.engine import _Framing

    _Answer: TypeAlias = bytes | Iterable[bytes] | None

    class _Options(TypedDict, total=False):
        unix: Path | None
        sockets: Iterable[socket.socket]
        workers: int
        backlog: int
        max_connections: int
        idle_timeout: float
        max_line: int
        drain_timeout: float
        max_memory: int
        max_per_host: int
        proxy_protocol: bool
        metrics: int | str | tuple[str, int] | None
        unix_mode: int | None


class EchoServer(Service):
    """An echo server: sends back to each client what it receives (CS:APP 11.4.9; RFC 862 with ``framing="raw"``).

    It listens on ``port`` of every address of ``host``, a name or an address, or a sequence of them; ``localhost``
    stands for both loopback addresses and ``*`` for every address of both families. Port 0 chooses one free port for
    all addresses; None disables TCP. ``unix`` is the path of a unix socket to listen on as well, on Linux also an
    abstract name that begins with a NUL; ``unix_mode`` is the mode of its file (``0o660``), by default the umask's.
    ``udp`` echoes datagrams too, on the same addresses and ports and on the datagram sockets among ``sockets``.

    ``sockets`` are sockets that others have opened, which the server takes over and closes (``passed_sockets()``). The
    clients in the listen queue of such a socket are left there at the stop, for the next process that has it. A
    connected socket is served; with no other socket, serving ends when it is closed. If the constructor raises, the
    sockets are still the caller's.

    ``engine`` is ``"event"``, ``workers`` event loops, each in a thread of its own and without the GIL (CS:APP 12.2);
    ``"thread"``, a thread for each connection (12.3.8); ``"process"``, a child process for each connection (12.1); or
    ``"iterative"``, one connection at a time (11.4.9). ``framing`` is ``"line"``, which echoes whole lines, or
    ``"raw"``, which echoes bytes as they arrive.

    ``backlog`` is the length of the listen queue, listen(2)'s argument. At ``max_connections`` accepting pauses, and
    further clients wait in the listen queue. A connection that makes no progress for ``idle_timeout`` seconds is
    closed. A line longer than ``max_line`` bytes is echoed in pieces. ``drain_timeout`` is the maximum time in seconds
    that stopping takes. ``max_memory`` is the maximum number of bytes that all connections together hold; at that
    bound a connection that holds the beginning of a line is not read from until memory is free. 0 means no limit for
    ``max_connections``, ``idle_timeout``, ``max_line``, ``drain_timeout``, ``max_memory`` and ``max_per_host``.

    No address has more than ``max_per_host`` connections: what is more is closed and counted as refused. Unix sockets
    have no such limit. With ``proxy_protocol`` each connection begins with a PROXY header (version 1 or 2), by which a
    load balancer passes on the address of its client. That address is logged and counts for ``max_per_host``; the
    header is not echoed; a connection without one is closed. ``metrics`` is a port of 127.0.0.1, or ``(host, port)``,
    where the counts are served over HTTP in the OpenMetrics format, at ``/metrics``; ``/healthz`` fails from the stop
    on. The host may be such a name as ``host`` is. It needs the package prometheus-client (``rioecho[metrics]``).

    The log is that of the logger ``rioecho.server``. Its handlers run in the server's threads: one that blocks stops
    them, and ``close()`` with them. ``logging.handlers.QueueHandler`` does not block.

    As a context manager it serves in a thread of its own for the length of the block; ``async with`` does so too, and
    leaving the block does not block asyncio's loop, on which the clients may run. Raises ``OSError``, which names
    the address, if it cannot listen; ``ValueError`` or ``TypeError`` for an invalid argument.
    """


class LineServer(Service):
    """A server with your handler in its loop: it gets the lines of a connection, and returns what is sent back.

    ``handler`` is a class, of which an object is made for each connection, or any other callable, which is called as
    ``handler(lines)`` for all connections. The methods of such a class, in the order of the calls::

        connection_made(conn)      optional; conn is a ``Connection``: peer, write(), close(), abort(), get_extra_info()
        lines_received(lines)      a list of bytes, each a whole line; the last one at EOF may lack its newline
        connection_lost(reason)    optional, once: None after an orderly end, otherwise the exception

    With ``framing="raw"`` it is ``data_received(data)``, and the function is called as ``handler(data)``. They return
    bytes, an iterable of bytes, or None for no answer; the answer to all lines that one read brought is sent as one.
    A coroutine function is a ``TypeError``; ``rioecho.aio.start_server()`` is for those.

    The connections of a worker are served in one thread, so its handlers are never called at the same time, and one
    that blocks delays the others. A handler that raises is logged with its traceback and ends its own connection only.
    A line longer than ``max_line`` bytes ends its connection too, with ``connection_lost(LineTooLong(...))``; the lines
    before it are handled. While a peer does not read, its connection is not read from, and of what ``conn.write()``
    is given no more than ``write_limit`` bytes wait (0: no limit; one larger write is taken if none wait): more is a
    ``BlockingIOError``. At the stop a handler gets the lines that have arrived, but not the beginning of another.

    Every other argument is that of ``EchoServer``, which is this server without a handler; ``engine`` and ``udp`` are
    not. A process that a handler forks must not return from it. ``close()`` and ``wait()`` may not be called by a
    handler (``RuntimeError``), but ``stop()`` may.
    """

    def __init__(
        self,
        handler: Callable[..., Any],
        port: int | str | None = 0,
        host: str | Sequence[str] = "localhost",
        *,
        framing: _Framing = "line",
        write_limit: int = 1 << 20,
        **options: Unpack[_Options],
    ) -> None:
        check_handler(handler, "data_received" if framing == "raw" else "lines_received")
        for name in ("engine", "udp"):
            if name in options:
                raise TypeError(f"LineServer has no argument {name!r}: its handlers are called by the event engine")
        check_options("LineServer.__init__", options, OPTIONS)
        self.handler = handler
        self.write_limit = limit("write_limit", integer("write_limit", write_limit), (1 << 63) - 1)
        super().__init__(port, host, framing=framing, **options)
