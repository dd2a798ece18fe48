"""A Rio over a connection of pyOpenSSL, and files of the socket that urllib3 makes of one."""

import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

import rioecho
from rioecho import Rio
from support.delivery import fill, tcp_pair

REST = 30  # seconds after which a test fails
LINES = 100_000
SSL_CB_READ_ALERT = 0x4004  # OpenSSL's

SENDER = """if True:
    import random, socket, ssl, sys
    chance = random.Random(5)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2])
    sock = context.wrap_socket(socket.socket(fileno=int(sys.argv[1])), server_side=True)
    data = memoryview(b"".join(b"%d " % n + b"x" * (n % 40) + b"\\n" for n in range(int(sys.argv[3]))))
    while data:
        size = chance.choice([1, 7, 1000, 20_000, 70_000])
        sock.sendall(data[:size])
        data = data[size:]
        if chance.random() < 0.2:
            assert sock.recv(1) == b"."   # go on when the reader has waited
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(1000):
        pass
"""
ECHO = """if True:
    import socket, ssl, sys
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2])
    sock = context.wrap_socket(socket.socket(fileno=int(sys.argv[1])), server_side=True)
    total = bytearray()
    while len(total) < int(sys.argv[3]):
        total += sock.recv(1 << 16)
    sock.sendall(total)
    sock.unwrap()
"""


@pytest.fixture(scope="module")
def openssl():
    pytest.importorskip("OpenSSL", reason="pyOpenSSL is not installed")
    return pytest.importorskip("OpenSSL.SSL")


@pytest.fixture
def handshake(openssl):
    """Return a function that makes a socket the client's end of a connection. They are closed after the test."""
    made = []

    def connect(sock, context=None):
        connection = openssl.Connection(context or openssl.Context(openssl.TLS_CLIENT_METHOD), sock)
        made.append(connection)
        connection.set_connect_state()
        connection.do_handshake()
        return connection

    yield connect
    for each in made:
        each.close()


@pytest.fixture
def ends(handshake, certificate, background):
    """Return a connection of pyOpenSSL and its peer, an SSLSocket."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    near, far = tcp_pair()
    peer = []
    far.settimeout(REST)
    thread = background(lambda: peer.append(server.wrap_socket(far, server_side=True)))
    connection = handshake(near)
    thread.join(REST)
    yield connection, peer[0]
    peer[0].close()


@pytest.fixture
def process(handshake, certificate):
    """Return a function that starts a peer and returns a connection to it."""
    children = []

    def start(code, size):
        near, far = tcp_pair()
        with far:
            children.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, str(far.fileno()), str(certificate), str(size)],
                    pass_fds=[far.fileno()],
                )
            )
        return handshake(near)

    yield start
    for child in children:
        child.kill()
        child.wait(REST)


@pytest.fixture
def idle_thread(background):
    """Return a function that starts a thread that does nothing until the test has ended."""
    stop = threading.Event()
    yield lambda: background(stop.wait)
    stop.set()


def test_lines_are_exchanged_and_buffered_output_is_sent_before_a_wait(ends, background):
    connection, peer = ends
    rio = Rio(connection, timeout=REST)

    def answer():
        assert peer.recv(100) == b"question\n"
        peer.sendall(b"one\ntwo\nthree")

    background(answer)
    rio.write(b"question\n")
    assert [rio.readline(), rio.readline(), rio.read(5)] == [b"one\n", b"two\n", b"three"]
    assert rio.fileno() == connection.fileno()


@pytest.mark.parametrize("own", [None, 0, 5])
def test_a_timeout_limits_the_call_and_the_socket_keeps_its_own(ends, own):
    connection, peer = ends
    connection.settimeout(own)
    rio = Rio(connection)
    assert rio.timeout == own
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.05)
    assert 0.05 <= time.monotonic() - start < REST
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    assert connection.gettimeout() == own
    peer.sendall(b"a line\nand more")
    assert rio.readline(timeout=REST) == b"a line\n"
    assert connection.pending() == 0


@pytest.mark.parametrize("unwrap", [True, False])
def test_the_end_of_the_connection_is_the_end_of_the_input(ends, unwrap, background):
    connection, peer = ends
    peer.sendall(b"the rest")
    if unwrap:
        thread = background(peer.unwrap)
    else:
        socket.socket(fileno=peer.detach()).close()
    rio = Rio(connection, timeout=REST)
    assert rio.read() == b"the rest"
    assert rio.readline() == b""
    if unwrap:
        connection.shutdown()
        thread.join(REST)


def test_a_reset_is_a_connection_reset_error(ends):
    connection, peer = ends
    rio = Rio(connection, timeout=REST)
    peer.sendall(b"half")
    assert rio.fill(4) == 4
    plain = socket.socket(fileno=peer.detach())
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    plain.close()
    for _ in range(2):  # OpenSSL tells the reason once
        with pytest.raises(ConnectionResetError):
            rio.readline()
    assert rio.read_buffered() == b"half"
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        rio.writen(b"x")


def test_a_write_to_a_peer_that_has_ended_and_gone_is_a_broken_pipe(ends):
    connection, peer = ends
    rio = Rio(connection, timeout=REST)
    peer.settimeout(0)
    with pytest.raises(ssl.SSLWantReadError):  # the end was sent
        peer.unwrap()
    assert rio.read() == b""
    socket.socket(fileno=peer.detach()).close()
    with pytest.raises(BrokenPipeError):
        for _ in range(100):  # the first ones may be taken by the kernel
            rio.writen(b"x" * 1000)
    for _ in range(3):
        with pytest.raises(BrokenPipeError):
            rio.writen(b"x")


@pytest.mark.parametrize("call", [lambda rio: rio.readline(), lambda rio: rio.writen(b"x")], ids=["read", "write"])
def test_what_is_no_tls_is_the_error_of_the_library(openssl, ends, call):
    connection, peer = ends
    rio = Rio(connection, timeout=REST)
    with socket.socket(fileno=peer.detach()) as plain:
        plain.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        with pytest.raises(openssl.Error, match=r"version number|record type"):
            rio.readline()
        with pytest.raises((openssl.Error, OSError)):  # after such an error OpenSSL does nothing any more
            call(rio)


def test_records_that_were_begun_are_completed_with_their_own_bytes(ends, background):
    connection, peer = ends
    data = random.Random(2).randbytes(6 << 20)
    rio = Rio(connection, bufsize=1000)
    sent = 0
    for timeout in 0.02, 0:
        with pytest.raises((TimeoutError, BlockingIOError)) as caught:
            rio.writen(data[sent:], timeout=timeout)
        sent += caught.value.characters_written
    assert 0 < sent < len(data)
    got = bytearray()

    def drain():
        while len(got) < sent + 5:
            got.extend(peer.recv(1 << 16))

    thread = background(drain)
    rio.writen(b"other", timeout=REST)  # not the bytes that followed
    thread.join(REST)
    assert got == data[:sent] + b"other"


def test_one_reader_and_one_writer_share_a_connection(process, background):
    data = random.Random(3).randbytes(4 << 20)
    rio = Rio(process(ECHO, len(data)), timeout=REST)
    got = []
    reader = background(lambda: got.append(rio.readexactly(len(data))))
    for at in range(0, len(data), 5000):
        rio.write(data[at : at + 5000])
    rio.flush()
    reader.join(REST)
    assert got == [data]


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside-a-thread"])
def test_100000_lines_with_timeouts_and_handlers_that_raise_in_their_middle_arrive_whole(
    process, storm, idle_thread, beside
):
    if beside:  # the kernel gives it the signals that this thread blocks, and their handlers run in this one
        idle_thread()
    connection = process(SENDER, LINES)
    rio = Rio(connection)
    chance = random.Random(4)
    expected = [b"%d " % n + b"x" * (n % 40) + b"\n" for n in range(LINES)]
    storm(chance, 0.0005)
    broken = {}
    got = []
    owed = 0
    while b"" not in got[-1:]:
        timeout = chance.choice([0.0002, 0.001, 0])
        line, error = storm.attempt(partial(rio.readline, timeout=timeout))
        if error is not None:
            broken[type(error).__name__] = broken.get(type(error).__name__, 0) + 1
            if isinstance(error, TimeoutError):
                owed = 1
        else:
            got.append(line)
        while owed:  # an error without `characters_written` was raised before the call
            _, error = storm.attempt(partial(rio.writen, b"."))
            owed = 1 - getattr(error, "characters_written", 0) if error is not None else 0
    assert got == [*expected, b""]
    assert broken.keys() == {"TimeoutError", "BlockingIOError", "Alarm"}


def test_urllib3_s_socket_is_read_through_its_own_methods(ends):
    made = pytest.importorskip("urllib3.contrib.pyopenssl", reason="urllib3 is not installed")
    connection, peer = ends
    connection.settimeout(0.1)
    sock = made.WrappedSocket(connection, connection._socket)
    file = rioecho.makefile(sock, "rb")
    assert isinstance(file, Rio)
    peer.sendall(b"HTTP/1.1 200 OK\r\n" + b"x" * 40_000)
    assert file.readline() == b"HTTP/1.1 200 OK\r\n"
    with pytest.raises(TimeoutError, match=r"^The read operation timed out$"):
        file.read(100_000)
    assert file.buffered == 40_000
    sock.close()
    peer.sendall(b"more\n")
    file.read_buffered()
    assert file.readline() == b"more\n"
    file.close()
    assert connection.fileno() == -1


def test_urllib3_s_socket_lacks_a_send_so_it_is_no_stream(ends):
    made = pytest.importorskip("urllib3.contrib.pyopenssl", reason="urllib3 is not installed")
    connection, _ = ends
    with pytest.raises(TypeError, match=r"WrappedSocket has no send\(\)"):
        Rio(made.WrappedSocket(connection, connection._socket))


def test_a_connection_without_a_socket_is_refused(openssl):
    connection = openssl.Connection(openssl.Context(openssl.TLS_CLIENT_METHOD), None)
    with pytest.raises(TypeError, match="has no socket"):
        Rio(connection)


# ---- Python code that OpenSSL runs, and the first call that makes the handshake


@pytest.fixture
def unsecured(openssl, certificate):
    """Return a function that makes a connection on which no handshake has been made, and the peer's plain socket."""
    made = []

    def make(context=None):
        near, far = tcp_pair()
        connection = openssl.Connection(context or openssl.Context(openssl.TLS_CLIENT_METHOD), near)
        connection.set_connect_state()
        far.settimeout(REST)
        made.extend((connection, far))
        return connection, far

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("call", [lambda rio: rio.readline(), lambda rio: rio.writen(b"x")], ids=["read", "write"])
def test_what_a_callback_of_the_program_raises_in_a_handshake_is_raised(
    openssl, unsecured, certificate, background, call
):
    def refuse(*arguments):
        raise LookupError("no such certificate")

    context = openssl.Context(openssl.TLS_CLIENT_METHOD)
    context.set_verify(openssl.VERIFY_PEER, refuse)
    connection, far = unsecured(context)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)

    def serve():
        with pytest.raises((ssl.SSLError, OSError)):
            server.wrap_socket(far, server_side=True)

    thread = background(serve)
    with pytest.raises(LookupError, match="no such certificate"):
        call(Rio(connection, timeout=REST))
    thread.join(REST)


def test_a_read_that_begins_with_a_handshake_waits_until_it_can_send(unsecured):
    connection, far = unsecured()
    filled = fill(connection.fileno())
    rio = Rio(connection)
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.01)
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    while filled:
        filled -= len(far.recv(min(filled, 1 << 16)))
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.01)
    assert far.recv(1) == b"\x16"  # a handshake record


@pytest.fixture
def told(openssl, handshake, certificate, background):
    """Return a connection, its peer, and a list of functions that OpenSSL calls in a read that meets the end."""
    calls = []

    def tell(connection, where, value):
        if where & SSL_CB_READ_ALERT == SSL_CB_READ_ALERT and calls:
            calls.pop()()

    context = openssl.Context(openssl.TLS_CLIENT_METHOD)
    context.set_info_callback(tell)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    near, far = tcp_pair()
    far.settimeout(REST)
    peer = []
    thread = background(lambda: peer.append(server.wrap_socket(far, server_side=True)))
    connection = handshake(near, context)
    thread.join(REST)
    yield connection, peer[0], calls
    peer[0].close()


def end_output(peer):
    """Send the alert that ends TLS."""
    peer.settimeout(0)
    with pytest.raises(ssl.SSLWantReadError):
        peer.unwrap()


def test_code_that_openssl_calls_cannot_use_the_connection(told):
    connection, peer, calls = told
    refused = []

    def use():
        other = Rio(connection, timeout=REST)
        for call in (other.readline, lambda: other.writen(b"x")):
            with pytest.raises(rioecho.ConcurrentCall):
                call()
            refused.append(call)

    calls.append(use)
    end_output(peer)
    assert Rio(connection, timeout=REST).readline() == b""
    assert len(refused) == 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_process_cannot_use_a_connection_that_another_thread_was_in(told, background):
    connection, peer, calls = told
    inside, go_on = threading.Event(), threading.Event()

    def stay():
        inside.set()
        assert go_on.wait(REST)

    calls.append(stay)
    rio, other = Rio(connection, timeout=REST), Rio(connection, timeout=REST)
    thread = background(lambda: rio.readline())
    end_output(peer)
    assert inside.wait(REST)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            other.writen(b"x")
        except ConnectionAbortedError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    go_on.set()
    thread.join(REST)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_process_goes_on_with_a_connection_that_nobody_was_in(ends):
    connection, peer = ends
    rio = Rio(connection, timeout=REST)
    peer.sendall(b"question\n")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if rio.readline() == b"question\n":
                rio.writen(b"answer\n")
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert peer.recv(100) == b"answer\n"


def test_handlers_that_raise_where_the_reason_of_a_failure_is_asked_for_end_the_call(ends, monkeypatch):
    connection, peer = ends
    ask = connection._raise_ssl_error
    left = [Interruption(number) for number in range(3)]

    def handler(signum, frame):
        raise left.pop(0)

    def asked(ssl, result):
        if left:
            signal.raise_signal(signal.SIGUSR1)
        ask(ssl, result)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        monkeypatch.setattr(connection, "_raise_ssl_error", asked)
        rio = Rio(connection, timeout=REST)
        with pytest.raises(Interruption, match="0"):
            rio.readline()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert left == []
    peer.sendall(b"a line\n")
    assert rio.readline() == b"a line\n"


class Interruption(Exception):
    """What a signal handler raises."""


# ---- connections with methods of their own


@pytest.fixture
def counting(openssl, certificate, background):
    """Return a connection of a class that counts what ``recv_into()`` has moved, and its peer."""

    class Counting(openssl.Connection):
        received = 0

        def recv_into(self, *arguments):
            count = super().recv_into(*arguments)
            self.received += count
            return count

    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    near, far = tcp_pair()
    far.settimeout(REST)
    peer = []
    thread = background(lambda: peer.append(server.wrap_socket(far, server_side=True)))
    connection = Counting(openssl.Context(openssl.TLS_CLIENT_METHOD), near)
    connection.set_connect_state()
    connection.do_handshake()
    thread.join(REST)
    yield connection, peer[0]
    connection.close()
    peer[0].close()


@pytest.mark.parametrize("unwrap", [True, False])
def test_overridden_methods_of_a_connection_are_called(counting, unwrap):
    connection, peer = counting
    rio = Rio(connection)
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.01)
    peer.sendall(b"a line\nthe rest")
    assert rio.readline(timeout=REST) == b"a line\n"
    assert connection.received == 15
    if unwrap:
        end_output(peer)
    else:
        socket.socket(fileno=peer.detach()).close()
    assert rio.read(timeout=REST) == b"the rest"


def test_a_file_of_a_connection_has_the_timeout_of_its_socket(ends):
    connection, peer = ends
    connection.settimeout(0.01)
    with rioecho.makefile(connection, "rwb") as file:
        assert isinstance(file, Rio)
        with pytest.raises(TimeoutError, match=r"^timed out$"):
            file.readline()
        peer.sendall(b"a line\n")
        connection.settimeout(REST)
        assert file.readline() == b"a line\n"
        file.write(b"answer\n")
    assert peer.recv(100) == b"answer\n"
