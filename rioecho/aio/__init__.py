r"""The asyncio twin of rioecho: the names and promises of ``rioecho.Rio`` on asyncio's event loop and on uvloop.

An echo server, and a client::

    async def echo(rio):
        async for line in rio:
            rio.write(line)

    server = await rioecho.aio.start_server(echo, "127.0.0.1", 8000)
    async with rioecho.aio.connect("127.0.0.1", 8000, timeout=5) as rio:
        await rio.writen(b"hello\n")
        print(await rio.readline())
    server.close()
    await server.wait_closed()

A cancellation or a timeout loses no received byte: the next call continues. ``help(rioecho.aio.Rio)`` says the rest.

    Rio                    the connection: reading, writing, closing (rio.pyx)
    connect                make one as a client (connecting.py)
    start_server           make one for each client (serving.py)
    wrap                   make one of a connected socket, a pipe's end or a descriptor (wrapping.py)
    streams                the drop-in for asyncio's streams (streams.py), imported at its first use
"""

from rioecho.aio.connecting import connect
from rioecho.aio.rio import Rio
from rioecho.aio.serving import start_server
from rioecho.aio.wrapping import wrap

__all__ = ["Rio", "connect", "start_server", "wrap"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rioecho.aio import streams as streams
else:  # with a __getattr__, a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name == "streams":
            return __import__("rioecho.aio.streams", fromlist=[name])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
