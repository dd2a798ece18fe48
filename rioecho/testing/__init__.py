r"""A pytest plugin for tests of network code: an echo server, and peers and proxies that misbehave on purpose.

The fixtures are there as soon as rioecho is installed::

    def test_a_client_survives_a_slow_server(peer):
        server = peer(expect(b"PING\r\n"), drip(b"PONG\r\n"))
        assert ping(*server.address)

    echo_server            an EchoServer on a free port; it has a host, a port and an address
    echo_server_unix       the same on a unix socket; its address is a path
    peer(*steps)           start a Peer: a server that plays these steps to each client
    proxy(upstream)        start a Proxy: a server that passes on, with faults

Outside pytest, ``Peer`` and ``Proxy`` are context managers. Everything runs on real sockets, in threads.

    Peer, and the steps    send drip expect stall echo garbage half_close reset close (_peer.py, _steps.py)
    Proxy                  (_proxy.py)
    the fixtures           (_fixtures.py)

pytest imports this module whenever it starts, so the rest is imported on first use.
"""

TYPE_CHECKING = False  # importing typing is slow
if TYPE_CHECKING:
    from rioecho.testing._peer import Peer, PeerFactory
    from rioecho.testing._proxy import Proxy, ProxyFactory
    from rioecho.testing._steps import (
        Step,
        close,
        drip,
        echo,
        expect,
        garbage,
        half_close,
        reset,
        send,
        stall,
    )

__all__ = [
    "Peer",
    "PeerFactory",
    "Proxy",
    "ProxyFactory",
    "Step",
    "close",
    "drip",
    "echo",
    "expect",
    "garbage",
    "half_close",
    "reset",
    "send",
    "stall",
]

#: pytest loads the fixtures with this module.
pytest_plugins = ("rioecho.testing._fixtures",)

#: The modules of the names that are imported on first use; the others are steps.
_HOMES = {"Peer": "_peer", "PeerFactory": "_peer", "Proxy": "_proxy", "ProxyFactory": "_proxy"}

if not TYPE_CHECKING:  # with a __getattr__, a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = __import__(f"{__name__}.{_HOMES.get(name, '_steps')}", fromlist=[name])
        value = globals()[name] = getattr(module, name)
        return value
