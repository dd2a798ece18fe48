"""A server of asyncio whose handler gets a Rio: start_server()."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as tls

from rioecho._core.addresses import check_path
from rioecho.aio.connecting import RIO_OPTIONS, TLS_OPTIONS
from rioecho.aio.opening import Opening
from rioecho.aio.rio import Rio, open_rio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, TypeAlias

    Handler: TypeAlias = Callable[[Rio], Awaitable[object]]


class Serving(Opening["asyncio.Server"]):
    """What start_server() returns."""

    __slots__ = ()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the server, and wait for the end of its connections unless the block is left by an exception.

        From Python 3.12 on ``wait_closed()`` waits for them. A Ctrl-C would not end a server that has clients.
        """
        if self._opened is not None:
            self._opened.close()
            if kind is None:
                await self._opened.wait_closed()


#: The tasks of all handlers. A loop refers to its tasks weakly.
_running: set[asyncio.Task[None]] = set()


def start_server(
    handler: Handler,
    host: Any = None,
    port: int | str | None = None,
    *,
    sock: socket.socket | None = None,
    ssl: tls.SSLContext | None = None,
    **options: Any,
) -> Serving:
    """Start a server and return it, the ``asyncio.Server`` of the loop.

    ``server = await start_server(handler, host, port)``, or ``async with``, which closes it at the end of the block,
    and does not wait for its connections if an exception ends the block, Ctrl-C for example. ``handler`` is an ``async
    def handler(rio)``, called in a task of its own for each connection.
    ``start_server(handler, path)`` listens on a unix socket, ``start_server(handler, sock=s)`` on a bound socket.

    When the handler returns, what it wrote is flushed and the connection is closed. When it raises, the connection is
    aborted and the exception goes to the loop's exception handler, except for a cancellation, and for a
    ``ConnectionError`` after its connection was lost. A handler is kept alive until it ends.

    With ``ssl``, an ``ssl.SSLContext`` with a certificate, the handler is called after the handshake; a handshake that
    fails ends the connection silently. ``timeout`` is that of each call on the Rio; ``bufsize``, ``idle_timeout`` and
    ``max_line`` are those of ``rioecho.Rio``. All other options are passed to the loop's ``create_server()`` or
    ``create_unix_server()``: ``backlog``, ``reuse_port``, ``ssl_handshake_timeout`` and so on.
    """
    return Serving(_start_server(handler, host, port, sock, ssl, options))


async def _start_server(
    handler: Handler, host: Any, port: Any, sock: socket.socket | None, ssl: Any, options: dict[str, Any]
) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    if not callable(handler):
        raise TypeError(f"the handler must be an async def handler(rio), not {type(handler).__name__}")
    if ssl is not None and not isinstance(ssl, tls.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext or None, not {type(ssl).__name__}")
    rio_options = {name: options.pop(name) for name in (*RIO_OPTIONS, "timeout") if name in options}
    open_rio(loop, **rio_options)  # checks them
    tls_options = {name: options.pop(name) for name in TLS_OPTIONS if name in options}

    def made(rio: Rio) -> None:
        task = loop.create_task(_serve(loop, handler, rio, ssl, tls_options))
        _running.add(task)
        task.add_done_callback(_running.discard)

    def factory() -> asyncio.BaseProtocol:
        return open_rio(loop, made=made, **rio_options)[1]

    if sock is not None:
        if host is not None or port is not None:
            raise ValueError("the call is start_server(handler, host, port), (handler, path) or (handler, sock=s)")
        if sock.family == socket.AF_UNIX:
            return await loop.create_unix_server(factory, sock=sock, **options)
        return await loop.create_server(factory, sock=sock, **options)
    if port is None and isinstance(host, str | bytes | os.PathLike):
        return await loop.create_unix_server(factory, os.fsdecode(check_path(host)), **options)
    if port is None:
        raise TypeError("the call is start_server(handler, host, port), (handler, path) or (handler, sock=s)")
    server = await loop.create_server(factory, host, port, **options)
    if not server.sockets:  # before 3.13 asyncio, and uvloop, pass over an address for which there is no socket
        server.close()
        raise OSError(f"could not bind on any address of {host!r}: no socket could be made")
    return server


async def _serve(
    loop: asyncio.AbstractEventLoop,
    handler: Handler,
    rio: Rio,
    ssl: tls.SSLContext | None,
    tls_options: dict[str, Any],
) -> None:
    """Run the handler of one connection, and end the connection."""
    if ssl is not None:
        try:
            await rio._secure(ssl, server_side=True, **tls_options)
        except (OSError, ValueError):  # of the peer: its handshake is wrong, late or was cut off
            rio.abort()
            return
    doing = "the handler of a connection"
    try:
        await handler(rio)
        doing = "closing the connection of a handler"
        await rio.close()
    except asyncio.CancelledError:
        rio.abort()
        raise
    except Exception as error:
        own = isinstance(error, ConnectionError) and rio._is_lost()
        rio.abort()
        if not own:
            # Without "task": the loop would call the handler in the context of the task, which is entered already.
            peer = rio.get_extra_info("peername")
            loop.call_exception_handler(
                {
                    "message": f"Unhandled exception in {doing}" + (f" from {peer}" if peer else ""),
                    "exception": error,
                }
            )
    except BaseException:
        rio.abort()
        raise
