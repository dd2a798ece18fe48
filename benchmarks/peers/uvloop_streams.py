"""A line echo server on uvloop's streams. usage: uvloop_streams.py [--asyncio] [UNIX-PATH]."""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(line)  # no drain(), which would only cost time
    writer.close()


async def serve(path: str | None) -> None:
    if path:
        server = await asyncio.start_unix_server(echo, path, backlog=4096)
        where = path
    else:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=4096)
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
