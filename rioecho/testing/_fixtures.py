"""The fixtures of the pytest plugin. pytest imports this module when it starts: everything else waits for a fixture."""

from __future__ import annotations

import contextlib

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from rioecho.server import EchoServer
    from rioecho.testing._peer import Peer, PeerFactory
    from rioecho.testing._proxy import Proxy, ProxyFactory
    from rioecho.testing._steps import Step

#: The seconds that a client which is still connected may delay the end of a test.
DRAIN = 1.0


@pytest.fixture
def echo_server() -> Iterator[EchoServer]:
    """Return a running ``rioecho.EchoServer`` on a free loopback port: ``.host``, ``.port``, ``.address``."""
    from rioecho.server import EchoServer

    with EchoServer(drain_timeout=DRAIN) as server:
        yield server


@pytest.fixture
def echo_server_unix() -> Iterator[EchoServer]:
    """Return a running ``rioecho.EchoServer`` on a unix socket; ``.address`` is its path."""
    import os
    import tempfile

    from rioecho.server import EchoServer

    # Not tmp_path, which may be longer than the path of a unix socket.
    with (
        tempfile.TemporaryDirectory(prefix="rioecho-") as folder,
        EchoServer(None, unix=os.path.join(folder, "socket"), drain_timeout=DRAIN) as server,
    ):
        yield server


@pytest.fixture
def peer() -> Iterator[PeerFactory]:
    """Return a function that starts a server which plays steps to each client: ``peer(*steps, tls=None, unix=False)``.

    An ``expect()`` that was not met fails the test at its end, unless the test has emptied ``peer.errors``.
    """
    from rioecho.testing._peer import Peer

    peers: list[Peer] = []
    with contextlib.ExitStack() as opened:

        def start(*steps: Step, **options: Any) -> Peer:
            peers.append(opened.enter_context(Peer(*steps, **options)))
            return peers[-1]

        yield start  # type: ignore[misc]  # it is called as the class is
    errors = [str(error) for each in peers for error in each.errors]
    if errors:
        pytest.fail("\n".join(errors), pytrace=False)


@pytest.fixture
def proxy(request: pytest.FixtureRequest) -> Iterator[ProxyFactory]:
    """Return a function that starts a server which passes on to another one, with faults: ``proxy(upstream, ...)``.

    The arguments are those of ``rioecho.testing.Proxy``. A test that fails shows them, with the seed.
    """
    from rioecho.testing._proxy import Proxy

    with contextlib.ExitStack() as opened:

        def start(upstream: Any, **faults: Any) -> Proxy:
            started = opened.enter_context(Proxy(upstream, **faults))
            request.node.add_report_section("call", "rioecho proxy", f"{started!r}\n")
            return started

        yield start  # type: ignore[misc]  # it is called as the class is
