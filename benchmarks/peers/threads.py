"""A line echo server with a thread per client. usage: threads.py rio|makefile [UNIX-PATH]."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

from rioecho import Rio


def with_rio(sock: socket.socket) -> None:
    with sock, Rio(sock) as rio:
        for line in rio:
            rio.write(line)


def with_makefile(sock: socket.socket) -> None:
    with sock, sock.makefile("rb") as file:
        for line in iter(file.readline, b""):
            sock.sendall(line)


def serve(echo, sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        echo(sock)


if __name__ == "__main__":
    echo = {"rio": with_rio, "makefile": with_makefile}[sys.argv[1]]
    if sys.argv[2:]:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(sys.argv[2])
        listener.listen(1024)
        where = sys.argv[2]
    else:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        where = f"127.0.0.1:{listener.getsockname()[1]}"
    print("Listening on", where, flush=True)
    while True:
        client = listener.accept()[0]
        if not sys.argv[2:]:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(echo, client), daemon=True).start()
