"""rioecho.testing.Peer: its steps, what it receives, what it complains of, and its end."""

import asyncio
import contextlib
import os
import random
import re
import socket
import ssl
import threading
import time

import pytest

import rioecho
from rioecho.testing import Peer, close, drip, echo, expect, garbage, half_close, reset, send, stall
from support import certificates
from support.peers import SECONDS, binary, dial, receive, receive_all
from support.procfs import until

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def contexts(certificate):
    return certificates.contexts(certificate)


@contextlib.contextmanager
def connected(peer, tls=None):
    if isinstance(peer.address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(SECONDS)
        sock.connect(peer.address)
    else:
        sock = dial(peer.address)
    with tls.wrap_socket(sock, server_hostname="localhost") if tls else sock as sock:
        yield sock


def complaint(peer):
    """Return the only error of a peer, and empty the list."""
    (error,) = peer.errors
    peer.errors.clear()
    return str(error)


def test_a_peer_plays_its_steps_to_each_client_and_then_ends_its_output():
    with Peer(expect(b"PING\r\n"), send(b"PONG\r\n")) as peer:
        for _ in range(3):
            with connected(peer) as client:
                client.sendall(b"PING\r\n")
                assert receive_all(client) == b"PONG\r\n"
        assert peer.received == b"PING\r\n" * 3
        assert peer.errors == []


def test_clients_at_the_same_time_have_all_steps_each():
    with (
        Peer(expect(b"a"), send(b"b"), expect(b"c"), send(b"d")) as peer,
        connected(peer) as one,
        connected(peer) as two,
    ):
        for client in (one, two):
            client.sendall(b"a")
        assert [receive(two, 1), receive(one, 1)] == [b"b", b"b"]
        for client in (two, one):
            client.sendall(b"c")
            assert receive_all(client) == b"d"


@pytest.mark.parametrize("unix", [False, True])
def test_the_address_of_a_peer_is_what_connect_takes(unix):
    with Peer(echo(), unix=unix) as peer:
        with rioecho.connect(peer.address, timeout=SECONDS) as rio:
            rio.writen(b"hello\n")
            assert rio.readline() == b"hello\n"
        if unix:
            assert os.path.exists(peer.address)
            assert not hasattr(peer, "port")
        else:
            assert peer.address == (peer.host, peer.port)
    if unix:
        assert not os.path.exists(os.path.dirname(peer.address))


def test_what_the_client_has_sent_is_received_when_it_is_asked_for():
    with Peer(expect(b"one"), send(b"ok")) as peer:
        with connected(peer) as client:
            client.sendall(b"one and more")
        assert peer.received == b"one and more"


def test_a_client_that_has_come_and_gone_before_the_end_is_still_judged():
    with Peer(expect(b"hello")) as peer, connected(peer) as client:
        client.sendall(b"help!")
    assert complaint(peer) == "peer, client 1, step 1: expected b'hello', got b'help!'"
    assert peer.received == b"help!"


@pytest.mark.long
@pytest.mark.parametrize(
    ("sent", "ending", "expected"),
    [
        (b"PONG\r\n", None, r"expected b'PING\r\n', got b'PONG\r\n'"),
        (b"PI", "half-close", r"expected b'PING\r\n', got b'PI', then the client closed the connection"),
        (b"", "half-close", r"expected b'PING\r\n', got nothing, then the client closed the connection"),
        (b"PI", "reset", r"expected b'PING\r\n', got b'PI', then the client reset the connection"),
        (b"PI", "timeout", r"expected b'PING\r\n', got b'PI' in 0.5 s"),
        (b"", "timeout", r"expected b'PING\r\n', got nothing in 0.5 s"),
        (b"PI", "end", r"expected b'PING\r\n', got b'PI' until the peer was closed"),
    ],
)
def test_an_unmet_expectation_says_what_came_instead(sent, ending, expected):
    step = expect(b"PING\r\n", timeout=0.5 if ending == "timeout" else SECONDS)
    with Peer(send(b"hello"), step) as peer, connected(peer) as client:
        assert receive(client, 5) == b"hello"
        if ending != "timeout" or sent:
            client.sendall(sent)
        if ending == "reset":
            assert peer.received == sent
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        elif ending == "half-close":
            client.shutdown(socket.SHUT_WR)
        if ending == "timeout":
            assert receive_all(client) == b""
        if ending != "end":
            until(lambda: peer.errors)
        else:
            peer.close()  # while the client is connected
    text = complaint(peer)
    assert text == f"peer, client 1, step 2: {expected}"


def test_long_data_is_shown_short_with_the_place_of_the_difference():
    wanted = random.Random(1).randbytes(5000)
    sent = wanted[:3000] + bytes([wanted[3000] ^ 1]) + wanted[3001:]
    with Peer(expect(wanted)) as peer, connected(peer) as client:
        client.sendall(sent)
    text = complaint(peer)
    assert "(5000 bytes)" in text
    assert "from byte 3000 on it is" in text
    assert len(text) < 1500


def test_a_difference_in_a_line_is_shown_with_its_place():
    with Peer(expect(b"GET /index.html HTTP/1.1\r\nHost: x\r\n")) as peer, connected(peer) as client:
        client.sendall(b"GET /index.html HTTP/1.0\r\n")
    assert complaint(peer).endswith(r"; from byte 23 on it is b'0\r\n' instead of b'1\r\nHost: x\r\n'")


def test_a_pattern_is_searched_for_and_the_rest_is_left_to_the_next_step():
    with Peer(expect(re.compile(rb"\r\n\r\n")), send(b"1"), expect(b"body"), send(b"2")) as peer:
        with connected(peer) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nbody")
            assert receive_all(client) == b"12"
        assert peer.errors == []


def test_a_pattern_that_does_not_match_is_shown_with_what_came():
    with Peer(expect(re.compile(rb"\APOST "))) as peer, connected(peer) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        client.shutdown(socket.SHUT_WR)
        receive_all(client)
    assert r"expected a match of b'\\APOST ', got b'GET / HTTP/1.1\r\n', then" in complaint(peer)


def test_an_expectation_that_is_not_reached_because_the_client_has_gone_is_reported():
    with Peer(send(b"x" * (1 << 24)), expect(b"thanks")) as peer:
        with connected(peer) as client:
            receive(client, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        until(lambda: peer.errors)
    text = complaint(peer)
    assert text.startswith("peer, client 1, step 2: expected b'thanks', but before that the client ")


def test_check_raises_what_was_not_met_once():
    with Peer(expect(b"a")) as peer, connected(peer) as client:
        client.sendall(b"b")
    with pytest.raises(AssertionError, match="expected b'a', got b'b'"):
        peer.check()
    peer.check()
    assert peer.errors == []


def test_drip_sends_pieces_one_after_the_other():
    with Peer(drip(b"abcdef", size=2, every=0.02)) as peer, connected(peer) as client:
        started = time.monotonic()
        assert receive_all(client) == b"abcdef"
        assert time.monotonic() - started > 0.03


def test_a_stalled_peer_does_not_receive():
    with Peer(send(b"go"), stall(600)) as peer, connected(peer) as client:
        receive(client, 2)
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                client.send(bytes(1 << 16))
        assert peer.received == b""


def test_echo_sends_back_everything_until_the_client_is_done():
    data = random.Random(2).randbytes(3_000_000)
    with Peer(expect(data[:10]), echo(), send(b"bye")) as peer, connected(peer) as client:
        sending = threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
        sending.start()
        assert receive_all(client) == data[10:] + b"bye"
        sending.join()
        assert peer.received == data


def test_garbage_depends_on_the_seed_alone():
    def sent(*steps):
        with Peer(*steps) as peer, connected(peer) as client:
            return receive_all(client)

    assert sent(garbage(200_000, 7)) == sent(garbage(200_000, 7))
    assert sent(garbage(1000, 7)) != sent(garbage(1000, 8))
    assert len(sent(garbage(200_000, 7))) == 200_000


def test_half_close_leaves_the_other_direction_open():
    with Peer(half_close(), expect(b"still here")) as peer:
        with connected(peer) as client:
            assert receive_all(client) == b""
            client.sendall(b"still here")
        assert peer.errors == []
        assert peer.received == b"still here"


def test_a_reset_comes_after_what_was_sent():
    with Peer(expect(b"?"), send(b"half an ans"), reset()) as peer, connected(peer) as client:
        client.sendall(b"?")
        assert receive(client, 11) == b"half an ans"
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_close_is_an_orderly_end_although_something_is_unread():
    with Peer(expect(b"a"), send(b"answer"), close()) as peer, connected(peer) as client:
        client.sendall(b"a and more")
        assert receive_all(client) == b"answer"
        with pytest.raises(OSError):  # noqa: PT011 - EPIPE or ECONNRESET
            while True:
                client.sendall(b"more")
        assert peer.received.startswith(b"a and more")


@pytest.mark.long
@pytest.mark.parametrize("version", VERSIONS)
def test_the_steps_work_over_tls(contexts, version):
    server, trusting = contexts
    trusting.maximum_version = trusting.minimum_version = version
    data = random.Random(3).randbytes(500_000)
    with Peer(expect(b"hello"), drip(b"abc"), send(data), half_close(), tls=server) as peer:
        with connected(peer, trusting) as client:
            client.sendall(b"hello")
            assert receive_all(client) == b"abc" + data
        assert peer.received == b"hello"
        assert peer.errors == []
    with Peer(send(b"abc"), reset(), tls=server) as peer, connected(peer, trusting) as client:
        assert receive(client, 3) == b"abc"
        with contextlib.suppress(ConnectionResetError):  # which the ssl module may report as the end of the input
            assert client.recv(1) == b""
    with Peer(expect(b"x"), close(), tls=server) as peer, connected(peer, trusting) as client:
        client.sendall(b"x and more")
        assert receive_all(client) == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_half_close_over_tls_loses_nothing_that_the_client_sends_before_or_after_it(contexts, version):
    server, trusting = contexts
    trusting.maximum_version = trusting.minimum_version = version
    data = binary(1_000_000)
    with Peer(stall(0.1), half_close(), expect(data), tls=server) as peer:
        with connected(peer, trusting) as client:
            for start in range(0, len(data), 1000):
                client.sendall(data[start : start + 1000])
            assert receive_all(client) == b""
        assert peer.received == data
        assert peer.errors == []


@pytest.mark.parametrize("version", VERSIONS)
def test_an_orderly_end_over_tls_is_the_end_of_the_input(contexts, version):
    server, trusting = contexts
    trusting.maximum_version = trusting.minimum_version = version
    with Peer(half_close(), expect(b"bye"), tls=server) as peer:
        with connected(peer, trusting) as client:
            client.unwrap()
        assert complaint(peer).endswith("got nothing, then the client closed the connection")


def test_a_failed_handshake_is_an_error_only_if_something_was_expected(contexts):
    for steps in ((send(b"x"),), (send(b"x"), expect(b"y"))):
        with (
            Peer(*steps, tls=contexts[0]) as peer,
            pytest.raises(ssl.SSLError),
            connected(peer, ssl.create_default_context()),
        ):
            pass
        if len(steps) == 2:
            assert "expected b'y', but before that the TLS handshake failed" in complaint(peer)
        assert peer.errors == []


@pytest.mark.parametrize(
    "steps",
    [
        (stall(600),),
        (expect(b"x", timeout=float("inf")),),
        (echo(),),
        (send(bytes(1 << 26)),),
        (drip(bytes(1 << 20)),),
        (),
    ],
)
@pytest.mark.parametrize("unix", [False, True])
def test_close_ends_every_step_at_once_and_leaves_no_thread(steps, unix):
    threads = threading.active_count()
    with Peer(*steps, unix=unix) as peer, contextlib.ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(connected(peer))
        started = time.monotonic()
        peer.close()
        assert time.monotonic() - started < 5
    peer.close()
    assert threading.active_count() == threads


def test_close_ends_a_handshake_that_does_not_come(contexts):
    with Peer(tls=contexts[0]) as peer, connected(peer):
        started = time.monotonic()
        peer.close()
        assert time.monotonic() - started < 4


def test_async_with_does_not_block_the_loop():
    async def talk():
        async with Peer(expect(b"a\n"), send(b"b\n")) as peer:
            reader, writer = await asyncio.open_connection(*peer.address)
            writer.write(b"a\n")
            assert await reader.read() == b"b\n"
            writer.close()
            await writer.wait_closed()
        return peer

    assert asyncio.run(talk()).received == b"a\n"


def test_a_peer_starts_once():
    peer = Peer()
    with pytest.raises(RuntimeError, match="has not been started"):
        peer.address  # noqa: B018
    with peer, pytest.raises(RuntimeError, match="create another one"):
        peer.start()
    with pytest.raises(RuntimeError, match="create another one"):
        peer.start()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Peer(b"data"), "a step is required"),
        (lambda: Peer(close(), send(b"x")), r"send\(b'x'\) cannot follow close\(\)"),
        (lambda: Peer(half_close(), echo()), r"echo\(\) cannot follow half_close\(\)"),
        (lambda: expect(b""), "at least one byte"),
        (lambda: expect("text"), "bytes are required, not str"),
        (lambda: expect(re.compile("text")), "made of bytes"),
        (lambda: send("text"), "bytes are required"),
        (lambda: drip(b"x", 0), "at least 1"),
        (lambda: drip(b"x", 1.5), "size must be an integer, not float"),
        (lambda: drip(b"x", 1, -0.1), "every must be at least 0"),
        (lambda: expect(b"x", None), "timeout must be a number, not NoneType"),
        (lambda: expect(b"x", float("nan")), "timeout must be at least 0"),
        (lambda: stall(-1), "seconds must be at least 0"),
        (lambda: stall("1"), "seconds must be a number, not str"),
        (lambda: garbage(-1), "n must be at least 0"),
        (lambda: garbage("1"), "n must be an integer, not str"),
        (lambda: Peer(send), "a step is required, .* not <function send"),
        (lambda: Peer(unix="./socket"), r"unix must be True or False: .*\.address"),
        (lambda: Peer(tls=True), "tls must be an ssl.SSLContext, not bool"),
        (lambda: Peer(tls=ssl.create_default_context()), "tls must be the context of a server"),
    ],
)
def test_what_cannot_be_played_is_refused_at_once(make, error):
    with pytest.raises((TypeError, ValueError), match=error):
        make()
