"""The fixtures of the tests of the commands."""

import pytest

from rioecho import EchoServer


@pytest.fixture
def target():
    """Run an echo server; yield its HOST:PORT."""
    with EchoServer() as running:
        host, port = running.addresses[0]
        yield f"{host}:{port}"
