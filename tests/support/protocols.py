"""Readers of three protocols, as a user writes them with ``frame()``, over a Rio or over a Feed.

Each function reads one message and returns it, ``END`` at the end of the input. Over a Feed it returns ``None`` where
bytes are missing.
"""

import struct

END = object()


class Missing(Exception):
    """A read of a Feed returned None inside a frame."""


def there(result):
    """Return the result of a read. Raises ``Missing`` for None."""
    if result is None:
        raise Missing
    return result


def redis(source):
    """Read a reply of the Redis protocol (RESP2), arrays included."""
    with source.frame():
        line = there(source.readuntil(b"\r\n"))
        kind, text = line[:1], line[1:-2]
        if kind == b"$":
            if int(text) < 0:
                return None
            value = there(source.readexactly(int(text)))
            assert there(source.skip(2)) == 2
            return value
        if kind == b"*":
            return [redis(source) for _ in range(int(text))]
        return int(text) if kind == b":" else text.decode()


def packets(source):
    """Read a packet of MySQL: three bytes of length, a sequence number, the payload."""
    with source.frame():
        header = there(source.readexactly(4))
        size = int.from_bytes(header[:3], "little")
        return header[3], there(source.readexactly(size))


def chunked(source):
    """Read an HTTP/1.1 response with a chunked body (RFC 9112, 7.1)."""
    with source.frame():
        status = there(source.readline())
        headers = []
        while (line := there(source.readline())) != b"\r\n":
            headers.append(line)
        body = b""
        while size := int(there(source.readline()).partition(b";")[0], 16):
            body += there(source.readexactly(size))
            assert there(source.readline()) == b"\r\n"
        while there(source.readline()) != b"\r\n":
            pass
        return status, headers, body


def prefixed(source):
    """Read a frame with a length of two bytes in front."""
    payload = source.readframe(2)
    return there(payload)


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;name=value\r\n, rio\n\r\n0\r\nTrailer: 1\r\n\r\n"
)
RESPONSE = (b"HTTP/1.1 200 OK\r\n", [b"Transfer-Encoding: chunked\r\n"], b"hello, rio\n")

#: For each protocol: the reader, a stream of messages, and the messages.
PROTOCOLS = {
    "redis": (
        redis,
        b"$5\r\nhello\r\n:42\r\n*3\r\n$0\r\n\r\n*1\r\n+OK\r\n$-1\r\n+PONG\r\n",
        [b"hello", 42, [b"", ["OK"], None], "PONG"],
    ),
    "packets": (
        packets,
        b"".join(
            len(data).to_bytes(3, "little") + bytes([i]) + data for i, data in enumerate([b"", b"select", b"x" * 40])
        ),
        [(0, b""), (1, b"select"), (2, b"x" * 40)],
    ),
    "chunked": (chunked, CHUNKED * 2, [RESPONSE, RESPONSE]),
    "prefixed": (
        prefixed,
        b"".join(struct.pack("!H", len(data)) + data for data in [b"first", b"", b"y" * 30]),
        [b"first", b"", b"y" * 30],
    ),
}
