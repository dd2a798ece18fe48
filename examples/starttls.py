r"""STARTTLS from both sides. Usage: ``starttls.py CERTIFICATE``.

CERTIFICATE is a PEM file with the certificate of localhost and its key. This makes one, ``both.pem``:

    openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost -keyout both.pem -out both.pem

The client is blocking, and the server is on asyncio. Each refuses what has come in the clear behind the agreement.
"""

import asyncio
import ssl
import sys

from rioecho import Rio, aio, connect


def secured(address, context, hostname, timeout=10):
    """Connect, begin TLS by STARTTLS, and return a Rio over TLS that owns the connection.

    The certificate of the server has to be for ``hostname``.
    """
    rio = connect(address, timeout=timeout)
    try:
        rio.writen(b"STARTTLS\r\n")
        if (answer := rio.readline()) != b"220 go on\r\n":
            raise ConnectionError(f"the server refuses TLS: {answer!r}")
    except BaseException:
        rio.close()
        raise
    sock, rest = rio.detach()
    with sock:  # closed, unless wrap_socket() takes it over
        if rest:
            raise ConnectionError(f"{len(rest)} bytes came in the clear before TLS began")
        sock.settimeout(timeout)  # for the handshake
        sock = context.wrap_socket(sock, server_hostname=hostname)
    return Rio(sock, timeout=timeout, closefd=True)


def server_with(context):
    """Return the handler of a server that echoes lines, after STARTTLS only."""

    async def serve(rio):
        while (command := await rio.readline()) != b"STARTTLS\r\n":
            if not command:
                return  # the end of the input
            rio.write(b"530 STARTTLS comes first\r\n")
        rio.write(b"220 go on\r\n")
        await rio.start_tls(context, server_side=True)  # sends it in the clear; ValueError if bytes are held
        async for line in rio:
            rio.write(line)

    return serve


async def main(certificate):
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.load_cert_chain(certificate)
    theirs.load_verify_locations(certificate)

    def talk(address):
        with secured(address, theirs, "localhost") as rio:
            rio.writen(b"over TLS\n")
            return rio.readline()

    async with aio.start_server(server_with(ours), "127.0.0.1", 0, timeout=10) as server:
        print(await asyncio.to_thread(talk, server.sockets[0].getsockname()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: starttls.py CERTIFICATE")
    asyncio.run(main(sys.argv[1]))
