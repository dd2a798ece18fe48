"""The arguments of a server: what is refused is named, and passed sockets that were refused are still the caller's."""

import os
import socket
import ssl
import struct

import pytest

from rioecho import EchoServer, LineServer
from support.peers import SECONDS, dial, exchange, receive_all


def reset_connection():
    """Return a connected TCP socket whose peer has reset the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname(), SECONDS)
        with listener.accept()[0] as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return sock


def closed():
    sock = socket.socket()
    sock.close()
    return sock


def unbound():
    return socket.socket()


def bound():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def unix():
    return socket.socket(socket.AF_UNIX)


def packets():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    return ours


def secured():
    return ssl.create_default_context().wrap_socket(socket.create_server(("127.0.0.1", 0)), server_hostname="localhost")


def datagrams():
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


# ---- sockets


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (unbound, ValueError, "neither listens nor is connected"),
        (bound, ValueError, "neither listens nor is connected"),
        (unix, ValueError, "neither listens nor is connected"),
        (closed, ValueError, "closed"),
        (packets, TypeError, "carries packets"),
        (datagrams, ValueError, "UDP was not requested"),
        (secured, TypeError, "no TLS"),
    ],
)
def test_a_socket_that_cannot_be_served_is_refused_before_anything_is_listened_on(make, error, text, tmp_path):
    path = tmp_path / "socket"
    with make() as sock:
        fd = sock.fileno()
        with pytest.raises(error, match=text):
            EchoServer(None, unix=path, sockets=[sock])
        assert sock.fileno() == fd
    assert not path.exists()


@pytest.mark.parametrize("sockets", [["x"], [5], [None], 5, socket.socket], ids=str)
def test_what_is_no_socket_is_a_type_error(sockets):
    with pytest.raises(TypeError, match="sockets must be"):
        EchoServer(None, sockets=sockets)


def test_a_socket_that_is_not_in_a_sequence_is_a_type_error():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TypeError, match="sequence of sockets"):
        EchoServer(None, sockets=listener)


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "x"},
        {"workers": 0},
        {"host": "192.0.2.1", "port": 1},
        {"unix": "missing/socket"},
        {"port": -1},
        {"sockets": ["x"]},
        {"udp": True, "unix": "missing/socket"},
        {"metrics": "x"},
    ],
    ids=str,
)
def test_the_sockets_of_a_server_that_could_not_be_made_are_still_the_callers(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(listener.getsockname())
        os.set_blocking(listener.fileno(), False)
        passed = [listener, datagrams, *options.pop("sockets", ())]
        with pytest.raises((OSError, TypeError, ValueError)):
            EchoServer(options.pop("port", None), sockets=passed, **options)
        assert listener.getblocking()
        assert not os.get_blocking(listener.fileno())  # which the module socket does not know
        assert datagrams.getblocking()
        os.set_blocking(listener.fileno(), True)
        address = listener.getsockname()
        with EchoServer(None, sockets=[listener.dup(), datagrams.dup()], udp=True), dial(address) as client:
            assert exchange(client, b"hello\n") == b"hello\n"


def test_the_sockets_of_a_line_server_whose_handler_is_refused_are_still_the_callers():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(TypeError, match="handler"):
            LineServer(5, port=None, sockets=[listener])
        with LineServer(lambda lines: lines, port=None, sockets=[listener]), dial(listener.getsockname()) as client:
            assert exchange(client, b"hello\n") == b"hello\n"


def test_a_connection_that_was_reset_before_it_was_passed_ends_the_server():
    server = EchoServer(None, sockets=[reset_connection()])
    server.serve_forever()
    server.close()
    assert server.stats()["closed"] == 1


# ---- addresses


def test_a_server_of_one_connection_has_no_address():
    near, far = socket.socketpair()
    with far, EchoServer(None, sockets=[near]) as server:
        for name in ("address", "host", "port"):
            with pytest.raises(AttributeError, match="does not listen"):
                getattr(server, name)
        assert (server.addresses, server.paths) == ([], [])
        far.sendall(b"x\n")
        far.shutdown(socket.SHUT_WR)
        assert receive_all(far) == b"x\n"


def test_the_lists_of_addresses_are_copies(tmp_path):
    with EchoServer(host="127.0.0.1", unix=tmp_path / "socket") as server:
        address = server.address
        server.addresses.clear()
        server.paths.clear()
        assert (server.addresses, server.paths) == ([address], [str(tmp_path / "socket")])


# ---- hosts and ports


@pytest.mark.parametrize("port", [[], "", False, 0.0, b"80", b"", ()], ids=repr)
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises((TypeError, ValueError), match="a port must be"):
        EchoServer(port, "127.0.0.1")


@pytest.mark.parametrize("host", [b"localhost", None, 5, bytearray(b"x")], ids=repr)
def test_a_host_that_is_no_text_is_a_type_error_that_names_it(host):
    with pytest.raises(TypeError, match=f"host must be .*, not {type(host).__name__}"):
        EchoServer(0, host)


@pytest.mark.parametrize("hosts", [[5], [None], [b"localhost"]], ids=repr)
def test_a_host_in_a_sequence_that_is_no_text_is_a_type_error(hosts):
    with pytest.raises(TypeError, match="a host name must be a str"):
        EchoServer(0, hosts)


@pytest.mark.parametrize("metrics", [("a",), (), ("127.0.0.1", 0, 0)], ids=repr)
def test_metrics_at_a_tuple_of_another_length_are_refused(metrics):
    pytest.importorskip("prometheus_client")
    with pytest.raises(ValueError, match=r"is not \(host, port\)"):
        EchoServer(0, "127.0.0.1", metrics=metrics)
