"""The readers of protocols.py over a Rio of asyncio."""

from support.protocols import PROTOCOLS


async def redis(rio):
    """Read a reply of the Redis protocol (RESP2), arrays included."""
    with rio.frame():
        line = await rio.readuntil(b"\r\n")
        kind, text = line[:1], line[1:-2]
        if kind == b"$":
            if int(text) < 0:
                return None
            value = await rio.readexactly(int(text))
            assert await rio.skip(2) == 2
            return value
        if kind == b"*":
            return [await redis(rio) for _ in range(int(text))]
        return int(text) if kind == b":" else text.decode()


async def packets(rio):
    """Read a packet of MySQL: three bytes of length, a sequence number, the payload."""
    with rio.frame():
        header = await rio.readexactly(4)
        return header[3], await rio.readexactly(int.from_bytes(header[:3], "little"))


async def chunked(rio):
    """Read an HTTP/1.1 response with a chunked body (RFC 9112, 7.1)."""
    with rio.frame():
        status = await rio.readline()
        headers = []
        while (line := await rio.readline()) != b"\r\n":
            headers.append(line)
        body = b""
        while size := int((await rio.readline()).partition(b";")[0], 16):
            body += await rio.readexactly(size)
            assert await rio.readline() == b"\r\n"
        while await rio.readline() != b"\r\n":
            pass
        return status, headers, body


async def prefixed(rio):
    """Read a frame with a length of two bytes in front."""
    return await rio.readframe(2)


READERS = {"redis": redis, "packets": packets, "chunked": chunked, "prefixed": prefixed}
assert READERS.keys() == PROTOCOLS.keys()
