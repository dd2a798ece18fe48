"""Making a Rio of asyncio: connect(), start_server() and wrap()."""

from __future__ import annotations

import asyncio
from rioecho.aio.rio import Rio, open_rio


class _Opening:
    def __init__(self, opening):
        self._opening = opening
        self._rio = None

    def __await__(self):
        return self._opening.__await__()

    async def __aenter__(self):
        self._rio = await self._opening
        return self._rio

    async def __aexit__(self, *exc):
        return await self._rio.__aexit__(*exc)


def connect(host, port=None, *, ssl=None, server_hostname=None, timeout=None, bufsize=65536, idle_timeout=None, max_line=1 << 20, **options):
    return _Opening(_connect(host, port, ssl, server_hostname, timeout, options, bufsize=bufsize, idle_timeout=idle_timeout, max_line=max_line))


async def _connect(host, port, ssl, server_hostname, timeout, options, **rio_options):
    loop = asyncio.get_running_loop()
    rio, protocol = open_rio(loop, timeout=timeout, **rio_options)
    async with asyncio.timeout(timeout):
        await loop.create_connection(lambda: protocol, host, port, ssl=ssl, server_hostname=server_hostname, **options)
    return rio


async def start_server(handler, host=None, port=None, *, ssl=None, **rio_options):
    loop = asyncio.get_running_loop()
    tasks = set()

    def made(rio):
        task = loop.create_task(_serve(handler, rio))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def factory():
        return open_rio(loop, made=made, **rio_options)[1]

    return await loop.create_server(factory, host, port, ssl=ssl)


async def _serve(handler, rio):
    await handler(rio)
    await rio.close()


def wrap(fd):
    raise NotImplementedError
