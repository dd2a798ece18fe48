"""A byte echo server as a Protocol of uvloop. usage: uvloop_protocol.py [--asyncio] [UNIX-PATH]."""

from __future__ import annotations

import asyncio
import sys


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def serve(path: str | None) -> None:
    loop = asyncio.get_running_loop()
    if path:
        server = await loop.create_unix_server(Echo, path, backlog=4096)
        where = path
    else:
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=4096)
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
