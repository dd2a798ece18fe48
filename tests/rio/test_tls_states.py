"""A Rio over an ssl.SSLSocket before the handshake, after unwrap(), with little room, and under code in OpenSSL."""

import os
import select
import socket
import ssl

import pytest

from rioecho import ConcurrentCall, Rio
from support import certificates
from support.delivery import fill, tcp_pair

REST = 20  # seconds after which a test fails


@pytest.fixture
def contexts(certificate):
    """Return the contexts of a server and of a client."""
    return certificates.contexts(certificate)


@pytest.fixture
def secure(contexts, background):
    """Return a function that makes a TLS connection over two sockets and returns its ends."""
    made = []

    def connect(near, far, **options):
        server, client = contexts
        ends = {}
        near.settimeout(REST)
        far.settimeout(REST)
        thread = background(lambda: ends.update(far=server.wrap_socket(far, server_side=True)))
        near = client.wrap_socket(near, server_hostname="localhost", **options)
        thread.join(REST)
        made.extend((near, ends["far"]))
        return near, ends["far"]

    yield connect
    for each in made:
        each.close()


# ---- before and after


def test_a_read_that_begins_with_a_handshake_waits_until_it_can_send(contexts):
    near, far = tcp_pair()
    near = contexts[1].wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False)
    far.settimeout(REST)
    with near, far:
        filled = fill(near.fileno())
        rio = Rio(near)
        with pytest.raises(TimeoutError):
            rio.readline(timeout=0.01)
        with pytest.raises(BlockingIOError):
            rio.readline(timeout=0)
        while filled:
            filled -= len(far.recv(min(filled, 1 << 16)))
        with pytest.raises(TimeoutError):
            rio.readline(timeout=0.01)
        assert far.recv(1) == b"\x16"  # a handshake record


@pytest.mark.parametrize("timeout", [None, 0.5])
def test_after_unwrap_the_connection_goes_on_in_plain_text(secure, background, timeout):
    near, far = secure(*tcp_pair())
    rio, other = Rio(near, timeout=REST), Rio(far, timeout=REST)
    other.writen(b"secured\n")
    assert rio.readline() == b"secured\n"
    thread = background(far.unwrap)
    near.unwrap()
    thread.join(REST)
    near.settimeout(timeout)
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.01)
    other.writen(b"plain\n")
    assert rio.readline() == b"plain\n"
    assert rio.writen(b"answer\n") == 7
    assert other.readline() == b"answer\n"
    assert near.gettimeout() == timeout


def test_a_truncated_connection_is_an_error_where_the_socket_was_made_so(secure):
    near, far = secure(*tcp_pair(), suppress_ragged_eofs=False)
    rio = Rio(near, timeout=REST)
    far.sendall(b"half")
    socket.socket(fileno=far.detach()).close()
    assert rio.fill(4) == 4
    with pytest.raises(ssl.SSLEOFError):
        rio.readline()
    assert rio.read_buffered() == b"half"


READS = """if True:
    import signal, socket, ssl
    from rioecho import Rio
    near, far = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    near = context.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False)
    far.close()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        print(Rio(near, timeout=10).readline())   # begins with a handshake, which sends
    except OSError as error:
        print(type(error).__name__)
    near.close()
"""


def test_a_read_that_sends_to_nobody_raises_no_sigpipe(child):
    assert child(READS) in ("b''\n", "BrokenPipeError\n", "SSLError\n")


# ---- little room


def test_records_that_the_socket_takes_in_parts_arrive_whole(secure, background):
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is: less than a record
    near, far = secure(near, far)
    data = os.urandom(300_000)
    got = []
    thread = background(lambda: got.append(Rio(far, timeout=REST).read(len(data))))
    rio = Rio(near, timeout=REST)
    assert rio.writen(data) == len(data)
    thread.join(REST)
    assert got == [data]


def test_a_socket_that_does_not_wait_still_does_not_after_calls_with_a_timeout(secure):
    near, far = secure(*tcp_pair())
    near.settimeout(0)
    rio = Rio(near)
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.01)
    with pytest.raises(BlockingIOError):
        rio.readline()
    far.sendall(b"a line\n")
    assert rio.readline(timeout=REST) == b"a line\n"
    far.sendall(b"and more\n")
    assert select.select([near], [], [], REST)[0]
    assert rio.readline(timeout=0) == b"and more\n"
    assert near.gettimeout() == 0


# ---- code that OpenSSL calls


def test_code_that_openssl_calls_cannot_use_the_connection(contexts, background):
    near, far = tcp_pair()
    refused = []

    def name_was_sent(sock, name, context):
        for call in (Rio(server, timeout=REST).readline, lambda: Rio(server, timeout=REST).writen(b"x")):
            with pytest.raises(ConcurrentCall, match="TLS call of this thread"):
                call()
            refused.append(name)

    contexts[0].sni_callback = name_was_sent
    with contexts[0].wrap_socket(near, server_side=True, do_handshake_on_connect=False) as server, far:
        far.settimeout(REST)

        def talk():
            with contexts[1].wrap_socket(far, server_hostname="localhost") as client:
                client.sendall(b"a line\n")

        background(talk)
        assert Rio(server, timeout=REST).readline() == b"a line\n"
    assert refused == ["localhost", "localhost"]
