"""EchoServer and rioecho-server with UDP and TCP. For the guard and the limits see test_udp.py."""

import select
import socket

import pytest

from rioecho import EchoServer
from rioecho._server.listeners import listen_sockets
from support.peers import SECONDS, Server, ask, dial
from support.procfs import until


def ask_by_datagram(address, data=b"are you there?"):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect(address)
        sock.send(data)
        assert sock.recv(1 << 16) == data


@pytest.mark.parametrize("engine", ["iterative", "process", "thread", "event"])
def test_datagrams_are_echoed_on_the_port_of_each_address(engine):
    with EchoServer(engine=engine, udp=True) as server:
        for address in server.addresses:
            ask_by_datagram(address)
            with dial(address) as sock:
                ask(sock)
    stats = server.stats()  # not before the end: a client may receive its echo before it is counted
    assert (stats["datagrams"], stats["dropped"]) == (len(server.addresses), 0)
    assert stats["bytes_in"] == stats["bytes_out"] == len(server.addresses) * (14 + 15)


def test_without_udp_the_server_receives_no_datagrams():
    with EchoServer() as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(server.addresses[0])  # the port is free for UDP
        assert "datagrams" not in server.stats()


def test_a_port_in_use_for_udp_is_an_error_that_names_it():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        (listener,) = listen_sockets(["127.0.0.1"], 0)
        with listener:  # free for TCP
            port = listener.getsockname()[1]
            taken.bind(("127.0.0.1", port))
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1 port {port} \(UDP\)"):
            EchoServer(port, "127.0.0.1", udp=True)
        listen_sockets(["127.0.0.1"], port)[0].close()  # nothing stays open


@pytest.mark.parametrize("with_tcp", [False, True])
def test_datagrams_that_have_arrived_at_a_passed_socket_are_answered_before_the_stop(with_tcp):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as passed, socket.socket(type=socket.SOCK_DGRAM) as client:
        passed.bind(("127.0.0.1", 0))
        client.bind(("127.0.0.1", 0))
        client.settimeout(SECONDS)
        server = EchoServer(0 if with_tcp else None, sockets=[passed.dup()], udp=True)
        sent = [b"%d" % i for i in range(50)]
        for data in sent:
            client.sendto(data, passed.getsockname())
        server.stop()
        server.serve_forever()
        server.close()
        assert [client.recv(100) for _ in sent] == sent


def test_a_datagram_socket_may_be_passed_together_with_the_listener_of_the_same_port():
    """As a unit of systemd with ListenStream=7 and ListenDatagram=7 does."""
    (listener,) = listen_sockets(["127.0.0.1"], 0)
    address = listener.getsockname()
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    datagrams.bind(address)
    with EchoServer(None, sockets=[listener, datagrams], udp=True), dial(address) as sock:
        ask(sock)
        ask_by_datagram(address)


@pytest.mark.long
def test_datagrams_are_echoed_after_the_end_of_a_passed_connection():
    near, far = socket.socketpair()
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    address = datagrams.getsockname()
    with EchoServer(None, sockets=[near, datagrams], udp=True) as server:
        with far:
            far.settimeout(SECONDS)
            ask(far)
        until(lambda: server.stats()["closed"] == 1)
        assert select.select([server.stop_fd], [], [], 0.3)[0] == []
        ask_by_datagram(address)


def test_udp_without_a_port_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="UDP needs a port"):
        EchoServer(None, unix=tmp_path / "echo.sock", udp=True)


def test_the_command_echoes_datagrams_and_stops_at_a_signal():
    with Server("--udp", "-q") as server:
        for address in server.addresses:
            ask_by_datagram(address)
            with dial(address) as sock:
                ask(sock)
        server.process.terminate()
        assert server.status() == 0
        assert server.err.text == ""
