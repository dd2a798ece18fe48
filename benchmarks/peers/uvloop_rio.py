"""A line echo server with a handler on aio.Rio, on uvloop. usage: uvloop_rio.py [--asyncio] [UNIX-PATH]."""

from __future__ import annotations

import asyncio
import contextlib
import sys

from rioecho import aio


async def echo(rio: aio.Rio) -> None:
    with contextlib.suppress(ConnectionError):
        async for line in rio:
            rio.write(line)


async def serve(path: str | None) -> None:
    if path:
        server = await aio.start_server(echo, path, backlog=4096)
        where = path
    else:
        server = await aio.start_server(echo, "127.0.0.1", 0, backlog=4096)
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    print("Listening on", where, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    factory = None
    if "--asyncio" in arguments:
        arguments.remove("--asyncio")
    else:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(arguments[0] if arguments else None))
