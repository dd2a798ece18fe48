"""What ends a wait, reading ahead and half-close: over TLS, by an object's own methods, and beside other callers."""

import io
import os
import socket
import struct
import threading

import pytest

from rioecho import Rio, Woken
from support import certificates
from support.delivery import tcp_pair

REST = 20


@pytest.fixture
def tls(certificate, background):
    """Return the two sockets of a TLS connection."""
    server, client = certificates.contexts(certificate)
    near, far = tcp_pair()
    ends = {}
    near.settimeout(REST)
    far.settimeout(REST)
    thread = background(lambda: ends.update(far=server.wrap_socket(far, server_side=True)))
    near = client.wrap_socket(near, server_hostname="localhost")
    thread.join(REST)
    yield near, ends["far"]
    near.close()
    ends["far"].close()


def test_a_tls_read_ends_when_no_byte_comes_and_nothing_is_lost(tls):
    near, far = tls
    rio = Rio(near, timeout=REST, idle_timeout=0.05)
    far.sendall(b"ha")
    with pytest.raises(TimeoutError, match="no byte came"):
        rio.readline()
    far.sendall(b"lf\n")
    assert rio.readline() == b"half\n"


@pytest.mark.parametrize("timeout", [None, REST])
def test_a_tls_read_and_a_tls_write_are_woken(tls, timeout):
    near, far = tls
    bell, hammer = os.pipe()
    try:
        rio = Rio(near, timeout=timeout, wake_fd=bell)
        far.sendall(b"line\n")
        assert rio.readline() == b"line\n"
        threading.Timer(0.05, os.write, [hammer, b"!"]).start()
        with pytest.raises(Woken):
            rio.readline()
        with pytest.raises(Woken) as caught:
            rio.writen(b"x" * 10**7)
        assert caught.value.characters_written > 0
    finally:
        os.close(bell)
        os.close(hammer)


def test_two_tls_peers_that_both_send_first_go_on_with_read_ahead(tls, background):
    data = os.urandom(1 << 20) * 4
    rios = [Rio(end, timeout=REST) for end in tls]
    answers = {}

    def talk(rio):
        rio.writen(data, read_ahead=len(data))
        answers[rio] = rio.read(len(data))

    threads = [background(talk, rio) for rio in rios]
    for thread in threads:
        thread.join(REST)
    assert [answers[rio] == data for rio in rios] == [True, True]


def test_write_eof_over_tls_is_unsupported_and_sends_nothing(tls):
    rio = Rio(tls[0], timeout=REST)
    rio.write(b"kept")
    with pytest.raises(io.UnsupportedOperation):
        rio.write_eof()
    rio.flush()
    assert tls[1].recv(99) == b"kept"


def test_a_reset_that_a_tls_write_was_told_of_is_no_end_for_the_reader(tls):
    near, far = tls
    rio = Rio(near, timeout=REST)
    far.sendall(b"half a file")
    rio.fill(11)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket.close(far)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        rio.writen(b"x")
    assert caught.type is ConnectionResetError
    with pytest.raises(ConnectionResetError):
        rio.read()
    assert rio.read_buffered() == b"half a file"


class Shuts(socket.socket):
    """A socket with methods of its own."""

    def recv_into(self, *arguments):
        return super().recv_into(*arguments)


def test_write_eof_asks_an_object_with_methods_of_its_own(stream):
    with Shuts(fileno=os.dup(stream.near.fileno())) as near:
        rio = Rio(near, timeout=REST)
        rio.write(b"last")
        rio.write_eof()
        assert stream.take_exactly(4) == b"last"
        assert stream.far.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            rio.writen(b"x")


def test_write_eof_of_an_object_without_shutdown_is_unsupported(stream):
    class Half:
        recv, send = stream.near.recv, stream.near.send

    with pytest.raises(io.UnsupportedOperation):
        Rio(Half()).write_eof()


@pytest.mark.parametrize("kind", ["plain", "TLS"])
def test_a_reader_beside_a_write_that_reads_ahead_gets_every_byte_in_order(request, kind, background):
    if kind == "TLS":
        ends = request.getfixturevalue("tls")
    else:
        wire = request.getfixturevalue("stream")
        ends = wire.near, wire.far
    data = b"".join(b"%07d\n" % i for i in range(200_000))
    near, far = (Rio(end, timeout=REST) for end in ends)

    def far_talk():
        far.writen(data, read_ahead=len(data))
        assert far.read(len(data)) == data

    got = []

    def read():
        while sum(map(len, got)) < len(data):
            got.append(near.read1())

    threads = [background(far_talk), background(read)]
    for at in range(0, len(data), 100_000):
        near.writen(data[at : at + 100_000], read_ahead=10_000)
    for thread in threads:
        thread.join(REST)
    assert b"".join(got) == data


def test_a_handler_that_raises_while_a_write_reads_ahead_loses_nothing(stream, on_alarm):
    class Rung(Exception):
        pass

    def ring(*_):
        raise Rung

    rio = Rio(stream.near, timeout=REST)
    stream.feed(b"0123456789")
    on_alarm(ring, 0.02)
    with pytest.raises(Rung) as caught:
        rio.writen(b"x" * 10**7, read_ahead=4)
    assert rio.read(10) == b"0123456789"
    assert len(stream.take_exactly(caught.value.characters_written)) > 0
