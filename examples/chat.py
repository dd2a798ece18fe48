"""A chat on asyncio: what one member says goes to all others. usage: chat.py [PORT]; members use nc localhost PORT.

The first line of a member is its name. A member that takes nothing for five seconds is put out.
"""

import asyncio
import sys

from rioecho import ConcurrentCall, aio

members: set[aio.Rio] = set()


async def tell(rio: aio.Rio, text: bytes) -> None:
    try:
        rio.write(text)
        await rio.flush(timeout=5)
    except ConcurrentCall:
        pass  # another task waits until this member takes more: the text goes out behind its own
    except (OSError, ValueError):  # too slow, or gone
        rio.abort()


async def member(rio: aio.Rio) -> None:
    name = (await rio.readline()).strip()
    members.add(rio)
    try:
        async for line in rio:
            await asyncio.gather(*(tell(other, name + b": " + line) for other in members - {rio}))
    except ValueError:
        pass  # put out, or a line of more than max_line bytes
    finally:
        members.remove(rio)


async def main(port: int = 8000) -> None:
    async with aio.start_server(member, "127.0.0.1", port, max_line=1000) as server:
        print("Chat on port", server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()  # until Ctrl-C


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
