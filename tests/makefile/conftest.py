"""The fixtures of the tests that run with rioecho's makefile and with the standard library's."""

import socket

import pytest

import rioecho
from support.conversations import LONG, contexts  # noqa: F401, a fixture


@pytest.fixture(params=[rioecho.makefile, socket.socket.makefile], ids=["rioecho", "stdlib"])
def makefile(request):
    """Run the test with either function, for their common behaviour."""
    return request.param


@pytest.fixture
def encrypted(wire, contexts, background):  # noqa: F811
    """Yield both ends of a TLS connection, with a timeout of LONG."""
    ends = wire("tcp")
    server, client = contexts
    ends.near.settimeout(LONG)
    ends.far.settimeout(LONG)
    far = []
    thread = background(lambda: far.append(server.wrap_socket(ends.far, server_side=True)))
    with client.wrap_socket(ends.near, server_hostname="localhost") as near:
        thread.join(LONG)
        with far[0]:
            yield near, far[0]
