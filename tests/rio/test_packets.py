"""What is not a byte stream is refused with a TypeError when a Rio, a file or an echo is made for it."""

import multiprocessing
import os
import socket

import pytest

import rioecho
from rioecho import Rio, csapp, echo

TYPES = [name for name in ("SOCK_DGRAM", "SOCK_SEQPACKET") if hasattr(socket, name)]


@pytest.fixture(params=TYPES)
def packets(request):
    try:
        near, far = socket.socketpair(socket.AF_UNIX, getattr(socket, request.param))
    except OSError:
        pytest.skip(f"this system has no local {request.param} sockets")
    with near, far:
        yield near


class Wrapper:
    def __init__(self, sock):
        self.fileno = sock.fileno


MAKERS = {
    "Rio of a socket": Rio,
    "Rio of a descriptor": lambda sock: Rio(sock.fileno()),
    "Rio of an object with fileno()": lambda sock: Rio(Wrapper(sock)),
    "Rio of a SocketIO": lambda sock: Rio(socket.SocketIO(sock, "rw")),
    "makefile, binary": lambda sock: rioecho.makefile(sock, "rwb"),
    "makefile, text": lambda sock: rioecho.makefile(sock, "r"),
    "echo of a socket": echo,
    "echo of a descriptor": lambda sock: echo(sock.fileno()),
    "rio_readinitb": csapp.rio_readinitb,
    "rio_readn": lambda sock: csapp.rio_readn(sock.fileno(), 1),
    "rio_writen": lambda sock: csapp.rio_writen(sock.fileno(), b"x"),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_socket_that_carries_packets_is_refused(packets, make):
    with pytest.raises(TypeError, match=r"byte stream is required.*recv\(\) and send\(\)"):
        make(packets)
    assert packets.fileno() >= 0


def test_an_internet_datagram_socket_is_refused_over_both_families():
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
        except OSError:
            continue  # no IPv6
        with sock, pytest.raises(TypeError, match="byte stream"):
            Rio(sock)


@pytest.mark.parametrize("duplex", [True, False], ids=["socket", "pipe"])
@pytest.mark.parametrize("make", [Rio, echo])
def test_a_connection_of_multiprocessing_is_refused(make, duplex):
    near, far = multiprocessing.Pipe(duplex)
    with near, far, pytest.raises(TypeError, match="Connection carries messages"):
        make(near)


def test_an_object_that_carries_messages_is_refused_whatever_its_class(stream):
    class Socket(Wrapper):  # as zmq.Socket, whose descriptor is not what it reads from
        def recv_multipart(self):
            raise NotImplementedError

    with pytest.raises(TypeError, match="Socket carries messages"):
        Rio(Socket(stream.near))


def test_a_directory_cannot_be_read(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for read in (lambda: Rio(fd).readline(), lambda: Rio(fd, timeout=1).read(1)):
            with pytest.raises(IsADirectoryError):
                read()
    finally:
        os.close(fd)


def test_a_refused_source_is_neither_read_nor_closed(packets):
    with pytest.raises(TypeError):
        Rio(packets, closefd=True)
    assert packets.type in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
    assert packets.fileno() >= 0
