"""Unknown arguments: the error names what the caller has called."""

import asyncio
import socket

import pytest

import rioecho
import rioecho.aio
import rioecho.testing


def connected():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        rioecho.connect(listener.getsockname(), nonsense=1)


async def opened(function):
    return await function(0, nonsense=1)


#: What is called by its name with arguments that are right, and one that is not known.
CALLS = {
    "Rio": lambda: rioecho.Rio(0, nonsense=1),
    "Feed": lambda: rioecho.Feed(nonsense=1),
    "EchoServer": lambda: rioecho.EchoServer(nonsense=1),
    "LineServer": lambda: rioecho.LineServer(len, nonsense=1),
    "connect": connected,
    "makefile": lambda: rioecho.makefile(None, nonsense=1),
    "echo": lambda: rioecho.echo(0, nonsense=1),
    "open_clientfd": lambda: rioecho.open_clientfd("localhost", 1, nonsense=1),
    "open_listenfd": lambda: rioecho.open_listenfd(0, nonsense=1),
    "wrap": lambda: asyncio.run(opened(rioecho.aio.wrap)),
    "Peer": lambda: rioecho.testing.Peer(nonsense=1),
    "Proxy": lambda: rioecho.testing.Proxy("/path", nonsense=1),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_argument_is_an_error_that_names_the_function(name):
    with pytest.raises(TypeError, match=rf"\b{name}(\.__init__)?\(\).* 'nonsense'"):
        CALLS[name]()


def test_an_argument_too_many_is_an_error_that_names_the_class():
    with pytest.raises(TypeError, match=r"EchoServer\.__init__\(\) takes"):
        rioecho.EchoServer(0, "localhost", 1)
    with pytest.raises(TypeError, match=r"\bRio\(\) takes"):
        rioecho.Rio()
