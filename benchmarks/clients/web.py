"""http.client and urllib.request as clients of http.server, and http.server as the server of a client.

Each function is a context manager that yields a function: it runs the operation a number of times.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat

from measure import Meter
from wire import child

Run = Callable[[int], None]


@contextmanager
def http_client(meter: Meter, path: str, port: int, certificate: str | None = None) -> Iterator[Run]:
    """Get a page and read its body, over one connection; over TLS with the server's ``certificate``."""
    if certificate is None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
    else:
        context = ssl.create_default_context(cafile=certificate)
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)

    def run(times: int) -> None:
        for _ in repeat(None, times):
            connection.request("GET", path)
            with connection.getresponse() as response:
                check(response.read(), path)

    with contextlib.closing(connection):
        yield run


@contextmanager
def urllib_request(meter: Meter, path: str, port: int) -> Iterator[Run]:
    """Get a page with a connection of its own."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def run(times: int) -> None:
        for _ in repeat(None, times):
            with opener.open(f"http://127.0.0.1:{port}{path}") as response:
                check(response.read(), path)

    yield run


def check(body: bytes, path: str) -> None:
    if len(body) != int(path.rpartition("/")[2]):
        raise EOFError(f"{path} has {len(body)} bytes")


@contextmanager
def http_server(meter: Meter, size: int) -> Iterator[Run]:
    """Serve a request that has a body of ``size`` bytes, over one connection from a child process."""

    def post(sock: socket.socket) -> None:
        request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
        while True:
            sock.sendall(request)
            while not (answer := sock.recv(1 << 16)).endswith(b"\r\n\r\n"):
                if not answer:
                    return

    with child(post) as sock:
        handler = Poster(sock, ("127.0.0.1", 0), None)

        def run(times: int) -> None:
            for _ in repeat(None, times):
                handler.handle_one_request()
                if handler.close_connection:
                    raise EOFError

        yield run
        handler.rfile.close()


class Poster(http.server.BaseHTTPRequestHandler):
    """A handler that waits to be told to handle a request."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
