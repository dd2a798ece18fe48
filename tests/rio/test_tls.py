"""A Rio over an ssl.SSLSocket, which behaves as over a plain socket."""

import contextlib
import os
import random
import select
import signal
import socket
import ssl
import sys
import threading
import time
from functools import partial

import pytest

import rioecho
from rioecho import ConcurrentCall, Rio
from support import certificates
from support.delivery import tcp_pair

REST = 30  # seconds after which a test fails


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def tls(request, certificate, background):
    """Return the two sockets of a TLS connection: the Rio's and the peer's."""
    server, client = certificates.contexts(certificate)
    server.minimum_version = server.maximum_version = ssl.TLSVersion[request.param]
    near, far = tcp_pair()
    ends = {}
    near.settimeout(REST)
    far.settimeout(REST)
    thread = background(lambda: ends.update(far=server.wrap_socket(far, server_side=True)))
    near = client.wrap_socket(near, server_hostname="localhost")
    thread.join(REST)
    near.settimeout(None)
    yield near, ends["far"]
    near.close()
    ends["far"].close()


def recv_exactly(sock, n):
    """Receive exactly n bytes from a socket."""
    parts = []
    while n:
        parts.append(sock.recv(min(n, 1 << 16)))
        assert parts[-1]
        n -= len(parts[-1])
    return b"".join(parts)


def test_lines_are_exchanged_and_buffered_output_is_sent_before_a_wait(tls, background):
    near, far = tls
    rio = Rio(near, timeout=REST)

    def answer():
        assert recv_exactly(far, 9) == b"question\n"
        far.sendall(b"one\ntwo\nthree")

    background(answer)
    rio.write(b"question\n")
    assert [rio.readline(), rio.readline(), rio.read(5)] == [b"one\n", b"two\n", b"three"]


@pytest.mark.parametrize("place", ["class", "object"])
def test_a_method_that_a_program_replaces_is_called_by_what_is_made_later(tls, monkeypatch, place):
    near, far = tls
    far.sendall(b"one\n")
    with rioecho.makefile(near, "rb") as file:
        assert file.readline() == b"one\n"
    with monkeypatch.context() as patch:
        original = ssl.SSLSocket.recv_into

        def recv_into(*arguments):
            calls.append(True)
            return original(*arguments) if place == "class" else original(near, *arguments)

        calls = []
        patch.setattr(ssl.SSLSocket if place == "class" else near, "recv_into", recv_into, raising=False)
        far.sendall(b"two\n")
        with rioecho.makefile(near, "rb") as file:
            assert file.readline() == b"two\n"
        assert calls
    calls.clear()
    far.sendall(b"three\n")
    with rioecho.makefile(near, "rb") as file:
        assert file.readline() == b"three\n"
    assert not calls


def test_what_one_rio_has_begun_to_send_another_one_over_the_same_socket_completes(tls, background):
    near, far = tls
    first, second = Rio(near), Rio(near)
    data = random.Random(1).randbytes(8 << 20)
    with pytest.raises(TimeoutError) as caught:
        first.writen(data, timeout=0.05)
    received = []
    thread = background(lambda: received.append(recv_exactly(far, len(data))))
    second.writen(data[caught.value.characters_written :], timeout=REST)
    thread.join(REST)
    assert received == [data]


@pytest.mark.parametrize("size", [1, 16383, 16384, 16385, 100_000])
def test_records_of_any_size_arrive_whole(tls, size, background):
    near, far = tls
    data = random.Random(size).randbytes(size)
    background(far.sendall, data)
    assert Rio(near, bufsize=4096, timeout=REST).readexactly(size) == data


@pytest.mark.parametrize("kind", ["Rio", "file"])
@pytest.mark.parametrize("size", [5, 40_000])
def test_with_a_bufsize_of_1_the_socket_s_own_methods_get_what_follows(tls, background, kind, size):
    near, far = tls
    background(far.sendall, b"220 ready\r\n" + b"x" * size + b"rest")
    rio = Rio(near, bufsize=1, timeout=REST) if kind == "Rio" else rioecho.makefile(near, "rb", 1)
    with rio:
        assert rio.readline() == b"220 ready\r\n"
        assert rio.read(size) == b"x" * size
        assert recv_exactly(near, 4) == b"rest"


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_a_timeout_loses_nothing_at_any_byte(tls, timeout):
    near, far = tls
    rio = Rio(near, bufsize=4)
    data = b"a line\r\nand the rest of it\r\n"
    for byte in range(len(data)):
        with pytest.raises((TimeoutError, BlockingIOError)):
            rio.read(len(data), timeout=timeout)
        far.sendall(data[byte : byte + 1])
        assert rio.fill(byte + 1, timeout=REST) == byte + 1
    assert rio.readuntil(b"\r\n", timeout=0) == b"a line\r\n"
    assert rio.readline(timeout=0) == b"and the rest of it\r\n"


def test_a_timeout_limits_the_whole_call_and_the_socket_keeps_its_own(tls, background):
    near, far = tls
    near.settimeout(0.06)
    rio = Rio(near)
    stop = threading.Event()

    def drip():
        while not stop.wait(0.005):
            far.sendall(b"x")

    thread = background(drip)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        rio.readline()
    assert 0.06 <= time.monotonic() - start < REST
    assert near.gettimeout() == 0.06
    stop.set()
    thread.join(REST)


def test_an_interrupted_write_continues_and_sends_each_byte_once(tls, background, alarm):
    near, far = tls
    data = random.Random(1).randbytes(4 << 20)
    rio = Rio(near, bufsize=1000)
    with pytest.raises(TimeoutError) as caught:
        rio.writen(data, timeout=0.02)
    sent = caught.value.characters_written
    assert 0 < sent < len(data)
    with pytest.raises(BlockingIOError) as caught:
        rio.writen(data[sent:], timeout=0)
    sent += caught.value.characters_written
    with pytest.raises(alarm.error) as caught:
        alarm(0.01)
        rio.writen(data[sent:])
    sent += caught.value.characters_written
    got = []
    thread = background(lambda: got.append(recv_exactly(far, len(data))))
    rio.writen(data[sent:], timeout=REST)
    thread.join(REST)
    assert got == [data]


def test_after_an_interrupted_write_other_data_may_follow(tls, background):
    near, far = tls
    data = b"x" * (4 << 20)
    rio = Rio(near, bufsize=1000)
    with pytest.raises(BlockingIOError) as caught:
        rio.writen(data, timeout=0)
    sent = caught.value.characters_written
    got = []
    thread = background(lambda: got.append(recv_exactly(far, sent + 5)))
    rio.write(b"other")
    rio.flush(timeout=REST)
    thread.join(REST)
    assert got == [data[:sent] + b"other"]


@pytest.mark.long
def test_one_reader_and_one_writer_move_big_transfers_both_ways(tls, background):
    near, far = tls
    sent, received = (random.Random(seed).randbytes(6 << 20) for seed in (1, 2))
    ends = Rio(near, bufsize=5000, timeout=REST), Rio(far, bufsize=50_000, timeout=REST)

    def write(rio, data):
        for at in range(0, len(data), 7001):
            rio.write(data[at : at + 7001])
        rio.flush()

    def read(rio, data):
        assert rio.read(len(data)) == data

    threads = [
        background(write, ends[0], sent),
        background(write, ends[1], received),
        background(read, ends[0], received),
        background(read, ends[1], sent),
    ]
    for thread in threads:
        thread.join(60)


def test_a_makefile_reads_and_writes_at_the_same_time_with_the_timeout_of_its_socket(tls, background):
    near, far = tls
    near.settimeout(REST)
    data = random.Random(3).randbytes(3 << 20)
    with rioecho.makefile(near, "rwb") as file:
        background(lambda: far.sendall(recv_exactly(far, len(data))))

        def write():
            for at in range(0, len(data), 997):
                file.write(data[at : at + 997])
            file.flush()

        writer = background(write)
        assert b"".join(file.read(min(1000, len(data) - at)) for at in range(0, len(data), 1000)) == data
        writer.join(REST)
    assert near.gettimeout() == REST


def test_a_half_close_of_the_peer_is_eof(tls, background):
    near, far = tls
    rio = Rio(near, timeout=REST)
    far.sendall(b"last")
    # unwrap() would wait for this side's close_notify, so half-close the TCP connection directly.
    far.shutdown(socket.SHUT_WR)
    assert rio.readline() == b"last"
    assert rio.readline() == b""


def test_unwrapping_is_eof(tls, background):
    near, far = tls
    rio = Rio(near, timeout=REST)
    far.sendall(b"last line\nrest")
    thread = background(lambda: far.unwrap().close())
    assert list(rio) == [b"last line\n", b"rest"]
    near.unwrap().close()
    thread.join(REST)


def test_reading_under_a_storm_of_signals_and_timeouts_loses_no_byte(tls, storm, background):
    near, far = tls
    data = random.Random(7).randbytes(2 << 20)
    chance = random.Random(9)
    # The kernel may deliver a signal to any thread that does not block it, including the one that sends.
    sender = background(feed_in_pieces, far, data)
    rio = Rio(near, bufsize=3000)
    storm(chance, 0.0002)
    parts, size = [], 0
    end = time.monotonic() + REST  # bytes that are missing by then were lost
    while size < len(data) and time.monotonic() < end:
        timeout = chance.choice([0, 0.0002, 0.002])
        want = min(len(data) - size, chance.choice([1, 10, 3000, 3001, 50_000]))
        method = chance.choice([rio.read, rio.readline, rio.readexactly])
        got, _ = storm.attempt(partial(method, want, timeout=timeout))
        if got:
            parts.append(got)
            size += len(got)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert b"".join(parts) == data
    sender.join(REST)


def feed_in_pieces(sock, data):
    """Send data in pieces of many sizes, but not of one byte: see the remaining race in _rio/tls.pyx."""
    chance = random.Random(11)
    at = 0
    while at < len(data):
        end = at + chance.choice([2, 100, 5000, 40_000])
        sock.sendall(data[at:end])
        at = end


def exactly_by_floods(sock, n, sender):
    """Return n bytes from a socket, most of them read only when the sender's buffer is full and a record half sent."""
    parts = []
    while n:
        end = time.monotonic() + 0.01  # it may be the last flood, or the sender at rest
        while select.select([], [sender], [], 0)[1] and time.monotonic() < end:
            os.sched_yield()
        while n and (sock.pending() or select.select([sock], [], [], 0)[0]):
            parts.append(sock.recv(min(n, 1 << 16)))
            assert parts[-1]
            n -= len(parts[-1])
    return b"".join(parts)


def send_signals_to_itself(stop):
    """Send signals to this thread: the main thread, which runs their handlers, cannot block them."""
    while not stop.is_set():
        signal.pthread_kill(threading.get_ident(), signal.SIGALRM)


any_thread = pytest.mark.skipif(sys.platform != "linux", reason="see _rio/tls.pyx")


@pytest.mark.long
@pytest.mark.parametrize(
    ("threads", "send_buffer"),
    [
        ("one thread", None),
        pytest.param("any thread", None, marks=any_thread),
        pytest.param("another thread", 0, marks=any_thread),
        pytest.param("another thread", 20_000, marks=any_thread),
    ],
)
def test_writing_under_a_storm_of_signals_and_timeouts_sends_each_byte_once(
    tls, storm, background, threads, send_buffer
):
    near, far = tls
    if send_buffer is not None:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    data = random.Random(7).randbytes(1 << 20)
    chance = random.Random(9)
    got = []
    # Of the signals of another thread see _rio/tls.pyx. The receiver inherits the mask, and has it before it runs.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM} if threads == "one thread" else set())
    receiver = background(lambda: got.append(exactly_by_floods(far, len(data), near)))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    rio = Rio(near, bufsize=3000)
    storm(chance, 0.0002)
    stop = threading.Event()
    signaller = background(send_signals_to_itself, stop) if threads == "another thread" else None
    sent = 0
    try:
        while sent < len(data):
            chunk = data[sent : sent + chance.choice([1, 900, 5000, 200_000])]
            count, error = storm.attempt(partial(rio.writen, chunk, timeout=chance.choice([0, 0.0002, 5])))
            sent += count or getattr(error, "characters_written", 0)
    finally:
        stop.set()
        if signaller:
            signaller.join(REST)
    signal.setitimer(signal.ITIMER_REAL, 0)
    rio.flush(timeout=REST)
    receiver.join(REST)
    assert got == [data]


def test_a_file_never_changes_the_timeout_of_its_socket(tls, background, monkeypatch):
    near, far = tls
    near.settimeout(REST)
    changes = []
    monkeypatch.setattr(near, "settimeout", changes.append)
    background(lambda: [far.sendall(recv_exactly(far, 9)) for _ in range(10)])
    with rioecho.makefile(near, "rwb") as file:
        for _ in range(5):
            file.write(b"question\n")
            file.flush()
            assert file.readline() == b"question\n"
        for _ in range(5):
            file.write(b"question\n")  # sent by the read
            assert file.readline() == b"question\n"
    assert changes == ([] if sys.platform == "linux" else [0, REST] * 10)


class Cut:
    """The peer's end of a TLS connection whose records can be sent in parts."""

    def __init__(self, sock, context):
        self.sock = sock
        self.encrypted, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.encrypted, self.out, server_side=True)

    def run(self, call, *args):
        """Make a call of the TLS object, and give it what it wants to read."""
        while True:
            try:
                return call(*args)
            except ssl.SSLWantReadError:
                self.sock.sendall(self.out.read())
                self.encrypted.write(self.sock.recv(1 << 16))

    def record(self, data):
        """Return the encrypted record of data, and records of the handshake if they have not been sent."""
        self.tls.write(data)
        return self.out.read()


@pytest.fixture
def cut(certificate, background):
    """Return a TLS socket and its peer, a ``Cut``."""
    server, client = certificates.contexts(certificate)
    near, far = tcp_pair()
    far.settimeout(REST)
    peer = Cut(far, server)
    thread = background(lambda: peer.run(peer.tls.do_handshake))
    near = client.wrap_socket(near, server_hostname="localhost")
    thread.join(REST)
    yield near, peer
    near.close()
    far.close()


def asleep_in_a_read(thread):
    """Wait until a thread waits in the kernel for its socket; elsewhere, return after a while."""
    end = time.monotonic() + (2 if sys.platform == "linux" else 0.2)
    while time.monotonic() < end:
        if sys.platform == "linux":
            with open(f"/proc/self/task/{thread.native_id}/wchan") as file:
                where = file.read()
            if where and not where.startswith(("0", "futex")):  # not running, not waiting for the GIL
                return
        os.sched_yield()


@pytest.mark.parametrize("timeout", [None, REST])
@pytest.mark.parametrize("kind", ["Rio", "file"])
@pytest.mark.parametrize("size", ["handshake", "header", "record"])
def test_a_writer_works_while_a_reader_waits_for_the_rest_of_a_record(cut, background, timeout, kind, size):
    near, peer = cut
    near.settimeout(timeout)
    tickets = peer.out.read()  # of TLS 1.3: OpenSSL reads them and then waits for data
    record = peer.record(b"answer\n")
    end = {"handshake": 0, "header": 3, "record": len(record) - 4}[size]
    lines = []
    with Rio(near) if kind == "Rio" else rioecho.makefile(near, "rwb") as rio:
        reader = background(lambda: lines.append(rio.readline()))
        peer.sock.sendall(tickets + record[:end])
        asleep_in_a_read(reader)
        for _ in range(3):
            rio.write(b"question\n")
            rio.flush()
            assert peer.run(peer.tls.read, 100) == b"question\n"
        peer.sock.sendall(record[end:])
        reader.join(REST)
    assert lines == [b"answer\n"]


@pytest.mark.parametrize("timeout", [None, REST])
@pytest.mark.parametrize("kind", ["Rio", "file"])
def test_a_signal_handler_writes_while_its_thread_waits_in_a_read(tls, on_alarm, background, timeout, kind):
    near, far = tls
    near.settimeout(timeout)
    background(lambda: far.sendall(recv_exactly(far, 9)))
    with Rio(near) if kind == "Rio" else rioecho.makefile(near, "rwb") as rio:

        def ring(*_):
            rio.write(b"question\n")
            rio.flush()

        on_alarm(ring, 0.01)
        assert rio.readline() == b"question\n"


@pytest.mark.parametrize("timeout", [None, REST])
@pytest.mark.parametrize("kind", ["Rio", "file"])
def test_a_signal_handler_that_raises_ends_a_read_and_loses_nothing(cut, alarm, timeout, kind):
    near, peer = cut
    near.settimeout(timeout)
    first, second = peer.record(b"the beginning"), peer.record(b" and the end\n")
    peer.sock.sendall(first + second[:-5])
    with Rio(near) if kind == "Rio" else rioecho.makefile(near, "rb") as rio:
        alarm(0.01)
        with pytest.raises(alarm.error):
            rio.readline()
        peer.sock.sendall(second[-5:])
        assert rio.readline() == b"the beginning and the end\n"


@pytest.mark.long
def test_a_handler_in_a_read_of_a_file_does_not_wait_for_a_write_that_waits_for_the_read(tls, on_alarm, background):
    near, far = tls
    file = rioecho.makefile(near, "rwb")
    size = 4_000_000
    results = []

    def write():
        results.append(file.write(b"x" * size))

    def drain():
        results.append(len(recv_exactly(far, size)))

    def ring(*_):
        far.sendall(b"line\n")
        select.select([near], [], [], REST)  # from now on the read is in the way of the write
        threads.append(background(drain))
        with contextlib.suppress(ConcurrentCall):  # raised if the read is inside OpenSSL, and not in poll(2)
            file.write(b"y")

    threads = [background(write)]
    on_alarm(ring, 0.3)
    assert file.readline() == b"line\n"
    for thread in threads:
        thread.join(REST)
    assert results == [size, size]
    file.close()


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_write_ends_in_time_while_an_interrupted_read_is_inside_openssl(tls, on_alarm, background, timeout):
    near, far = tls
    reader, writer = Rio(near), Rio(near)
    results = []

    def write():
        try:
            writer.writen(b"x", timeout=timeout)
        except OSError as error:
            results.append(type(error))

    def ring(*_):
        far.sendall(b"line\n")
        select.select([near], [], [], REST)  # from now on the read is in the way
        background(write).join(REST)
        results.append("the end")

    on_alarm(ring, 0.05)
    assert reader.readline() == b"line\n"
    assert results == [TimeoutError if timeout else BlockingIOError, "the end"]


@pytest.mark.parametrize(
    "error", [TimeoutError, BlockingIOError, ssl.SSLWantReadError, ssl.SSLEOFError, ConnectionResetError]
)
@pytest.mark.parametrize("kind", ["Rio", "Rio without a limit", "file"])
def test_an_exception_of_a_handler_is_raised_even_if_the_ssl_module_raises_its_like(tls, on_alarm, kind, error):
    near, far = tls
    mine = error("of the handler")

    def ring(*_):
        raise mine

    with rioecho.makefile(near, "rb") if kind == "file" else Rio(near, timeout=REST if kind == "Rio" else None) as rio:
        waker = threading.Timer(REST, far.sendall, [b"too late\n"])
        waker.start()
        on_alarm(ring, 0.05)
        try:
            with pytest.raises(error) as caught:
                rio.readline()
        finally:
            waker.cancel()
        assert caught.value is mine
        far.sendall(b"line\n")
        assert rio.readline() == b"line\n"


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize("kind", ["Rio", "Rio without a limit", "file"])
def test_the_first_call_makes_the_handshake(certificate, background, kind, call):
    server, client = certificates.contexts(certificate)
    near, far = tcp_pair()
    far.settimeout(REST)

    def answer():
        with server.wrap_socket(far, server_side=True) as sock:
            if call == "write":
                assert recv_exactly(sock, 9) == b"question\n"
            sock.sendall(b"answer\n")

    background(answer)
    with client.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False) as near:
        near.settimeout(REST)
        rio = rioecho.makefile(near, "rwb") if kind == "file" else Rio(near, timeout=60 if kind == "Rio" else None)
        with rio:
            if call == "write":
                rio.write(b"question\n")
                rio.flush()
            assert rio.readline() == b"answer\n"
            assert rio.readline() == b""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ssl", "pyOpenSSL"])
def test_a_write_does_not_wait_for_what_a_reader_took_during_the_handshake(certificate, background, kind):
    if kind == "pyOpenSSL":
        pytest.importorskip("OpenSSL", reason="pyOpenSSL is not installed")
        openssl = pytest.importorskip("OpenSSL.SSL")
    server, client = certificates.contexts(certificate)
    server.maximum_version = ssl.TLSVersion.TLSv1_2  # no session ticket follows a handshake that would end the wait
    server.options |= ssl.OP_NO_TICKET

    def answer(sock):
        with server.wrap_socket(sock, server_side=True) as sock:
            assert recv_exactly(sock, 8) == b"one\ntwo\n"
            sock.sendall(b"answer\n")

    def write(rio):
        rio.writen(b"one\n")
        rio.writen(b"two\n")

    for _ in range(50):  # the reader takes the end of the handshake in about one of ten
        near, far = tcp_pair()
        far.settimeout(REST)
        if kind == "ssl":
            near = client.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False)
        else:
            near = openssl.Connection(openssl.Context(openssl.TLS_CLIENT_METHOD), near)
            near.set_connect_state()
        with contextlib.closing(near):
            rio = Rio(near, timeout=5)
            threads = [background(answer, far), background(write, rio)]
            assert rio.readline() == b"answer\n"
            for thread in threads:
                thread.join(REST)


def test_an_end_that_the_socket_has_seen_is_seen_again(tls, background):
    near, far = tls
    thread = background(lambda: far.unwrap().close())
    assert near.recv(1) == b""
    for timeout in (None, REST, 2 * REST):
        assert Rio(near, timeout=timeout).readline() == b""
    near.unwrap().close()
    thread.join(REST)


def test_a_second_reader_raises_while_a_writer_works(tls, background):
    near, far = tls
    rio = Rio(near, timeout=REST)
    lines = []
    thread = background(lambda: lines.append(rio.readline()))
    while True:
        try:
            rio.has_line()
        except ConcurrentCall:
            break
        os.sched_yield()
    with pytest.raises(ConcurrentCall):
        rio.read(1)
    rio.writen(b"written")
    assert recv_exactly(far, 7) == b"written"
    far.sendall(b"line\n")
    thread.join(REST)
    assert lines == [b"line\n"]


def test_a_truncated_connection_behaves_as_on_the_socket_itself(tls):
    near, far = tls
    rio = Rio(near, timeout=REST)
    far.sendall(b"one\ntwo")
    raw = socket.socket(fileno=far.detach())
    raw.close()
    assert rio.readline() == b"one\n"
    assert near.suppress_ragged_eofs
    assert rio.readline() == b"two"


def test_what_was_made_from_a_tls_socket_is_read_and_written_over_tls(tls):
    near, far = tls
    with near.makefile("wb") as file:
        file.write(b"first ")
        Rio(file, timeout=REST).writen(b"second\n")
    assert recv_exactly(far, 13) == b"first second\n"
    far.sendall(b"one\ntwo\n")
    with socket.SocketIO(near, "rb") as raw:
        assert Rio(raw, bufsize=1, timeout=REST).readline() == b"one\n"
    first = Rio(near, timeout=REST)
    assert Rio(first, timeout=REST).readline() == b"two\n"


def test_with_bufsize_1_the_rest_of_a_record_stays_in_openssl(tls):
    near, far = tls
    far.sendall(b"one\ntwo\nNEXT")
    rio = Rio(near, bufsize=1, timeout=REST)
    assert [rio.readline(), rio.readuntil()] == [b"one\n", b"two\n"]
    assert near.recv(10) == b"NEXT"


def test_a_closed_socket_is_ebadf(tls):
    near, _ = tls
    rio = Rio(near, timeout=REST)
    near.close()
    with pytest.raises(OSError, match=r"closed|Bad file") as caught:
        rio.readline()
    assert caught.value.errno == 9


SIGPIPE = """if True:
    import signal, socket, ssl, struct, sys, threading
    from rioecho import Rio
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(sys.argv[1])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(sys.argv[1])
    near, far = socket.socketpair()
    ends = []
    thread = threading.Thread(target=lambda: ends.append(server.wrap_socket(far, server_side=True)))
    thread.start()
    near = client.wrap_socket(near, server_hostname="localhost")
    thread.join()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    ends[0].close()
    rio = Rio(near, timeout=10)
    for _ in range(3):
        try:
            rio.writen(b"nobody listens")
        except OSError as error:
            print(type(error).__name__, flush=True)
    near.close()
"""


def test_no_sigpipe_reaches_the_process(child, certificate):
    assert "BrokenPipeError" in child(SIGPIPE, certificate)


def test_a_frame_interrupted_at_every_byte_is_read_whole_over_tls(tls):
    near, far = tls
    message = b"$5\r\nhello\r\n"
    rio = Rio(near)

    def reply(timeout):
        with rio.frame():
            assert rio.readuntil(b"\r\n", timeout=timeout) == b"$5\r\n"
            return rio.readexactly(7, timeout=timeout)

    for k in range(len(message)):
        with pytest.raises(TimeoutError):
            reply(0.005)
        far.sendall(message[k : k + 1])
    assert reply(REST) == b"hello\r\n"
    assert rio.buffered == 0


def test_after_an_error_of_openssl_the_input_is_at_its_end(tls):
    near, far = tls
    rio = Rio(near, timeout=REST)
    far.sendall(b"line\npart")
    assert rio.readline() == b"line\n"
    with socket.socket(fileno=os.dup(far.fileno())) as clear:
        clear.sendall(b"what is no record")
    with pytest.raises(ssl.SSLError):
        rio.readline()
    assert [rio.readline(), rio.readline(), rio.read()] == [b"part", b"", b""]


@pytest.mark.parametrize("meets", ["write", "handshake"])
def test_after_an_error_of_the_handshake_the_input_is_at_its_end(meets):
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n" * 10)
        context = ssl.create_default_context()
        with context.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False) as sock:
            rio = Rio(sock, timeout=REST)
            with pytest.raises(ssl.SSLError):
                sock.do_handshake() if meets == "handshake" else rio.writen(b"hello")
            assert [rio.readline(), rio.read()] == [b"", b""]
