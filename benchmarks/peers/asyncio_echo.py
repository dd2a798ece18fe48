"""An echo server on uvloop or asyncio's loop. usage: asyncio_echo.py {rio,streams,protocol} [--asyncio] [UNIX-PATH].

``rio``       a line echo server with a handler on aio.Rio
``streams``   a line echo server on asyncio's streams
``protocol``  a byte echo server as a Protocol
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any


async def on_rio(place: tuple[Any, ...]) -> Any:
    from rioecho import aio

    async def echo(rio: aio.Rio) -> None:
        with contextlib.suppress(ConnectionError):
            async for line in rio:
                rio.write(line)

    return await aio.start_server(echo, *place, backlog=4096)


async def on_streams(place: tuple[Any, ...]) -> Any:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(line)  # no drain(), which would only cost time
        writer.close()

    start = asyncio.start_unix_server if len(place) == 1 else asyncio.start_server
    return await start(echo, *place, backlog=4096)


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def on_protocol(place: tuple[Any, ...]) -> Any:
    loop = asyncio.get_running_loop()
    start = loop.create_unix_server if len(place) == 1 else loop.create_server
    return await start(Echo, *place, backlog=4096)


PROGRAMS = {"rio": on_rio, "streams": on_streams, "protocol": on_protocol}


async def serve(program: str, path: str | None) -> None:
    server = await PROGRAMS[program]((path,) if path else ("127.0.0.1", 0))
    where = path or f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    print("Listening on", where, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    program, *arguments = sys.argv[1:]
    factory = None
    if "--asyncio" in arguments:
        arguments.remove("--asyncio")
    else:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(program, arguments[0] if arguments else None))
