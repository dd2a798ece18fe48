"""Unix sockets for tests of listening on a path."""

import os
import socket
import sys

import pytest

from support.peers import SECONDS

needs_abstract_names = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux only")


def bound(path, kind=socket.SOCK_STREAM):
    """Return a socket that is bound to the path and does not listen. Closing it leaves a stale socket file."""
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(path)
    return sock


def stale(path):
    """Create a stale socket file, old enough that no server can be about to listen on it."""
    bound(path).close()
    os.utime(path, (1, 1))


def answers(path, listener):
    """Report whether a client that connects to the path reaches this listener."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(path)
        listener.settimeout(SECONDS)
        server, _ = listener.accept()
        with server:
            server.sendall(b"here")
            return client.recv(4) == b"here"
