"""A unix socket's two ends, for the tests of who listens on one."""

import os
import socket

from support.peers import SECONDS


def bound(path, kind=socket.SOCK_STREAM):
    """Give a socket that has the path and does not listen: closed, it leaves a stale file."""
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(path)
    return sock


def stale(path):
    """Leave a socket there that nobody has, and that no server has just made to listen on."""
    bound(path).close()
    os.utime(path, (1, 1))


def answers(path, listener):
    """Whether a client of the path reaches this listener."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(path)
        listener.settimeout(SECONDS)
        server, _ = listener.accept()
        with server:
            server.sendall(b"here")
            return client.recv(4) == b"here"
