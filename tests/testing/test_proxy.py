"""rioecho.testing.Proxy: what it passes on, its faults, and that a seed decides them."""

import asyncio
import contextlib
import random
import socket
import sys
import threading
import time

import pytest

from rioecho import EchoServer
from rioecho.testing import Peer, Proxy, echo, expect, garbage, half_close, reset, send, stall
from rioecho.testing._faults import Faults
from support.event_loops import nothing_comes
from support.peers import SECONDS, binary, dial, exchange, lines, receive, receive_all
from support.procfs import until

DATA = binary(300_000)


@pytest.fixture
def peer():
    with Peer(echo()) as peer:
        yield peer


def through(upstream, data, **faults):
    with Proxy(upstream, **faults) as proxy, dial(proxy.address) as client:
        return exchange(client, data)


def test_without_faults_everything_is_passed_on_in_both_directions(peer):
    assert through(peer, DATA) == DATA
    assert peer.received == DATA


def test_an_address_a_path_and_a_server_can_be_the_upstream(peer, tmp_path):
    assert through(peer.address, b"x") == b"x"
    assert through(("localhost", peer.port), b"x") == b"x"
    with Peer(echo(), unix=True) as unix:
        assert through(unix.address, b"x") == b"x"
        assert through(unix, b"x") == b"x"
    with EchoServer() as server, Proxy(server) as first:
        assert through(first, b"x\n") == b"x\n"


def test_every_fault_together_loses_no_byte_of_lines(peer):
    data = b"".join(lines(50))
    assert through(peer, data, cut=100, delay=0.0001, bandwidth=10_000_000, seed=3) == data


def test_half_closes_are_passed_on():
    with Peer(half_close(), expect(b"more")) as peer, Proxy(peer) as proxy:
        with dial(proxy.address) as client:
            assert receive_all(client) == b""
            client.sendall(b"more")
            client.shutdown(socket.SHUT_WR)
            until(lambda: peer.received == b"more")
        assert peer.errors == []


def test_a_reset_is_passed_on_after_what_came_before():
    with Peer(send(b"abc"), reset()) as peer, Proxy(peer, delay=0.05) as proxy, dial(proxy.address) as client:
        assert receive(client, 3) == b"abc"
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_client_s_reset_reaches_the_server():
    with Peer(expect(b"a"), send(b"b"), expect(b"c")) as peer, Proxy(peer) as proxy:
        with dial(proxy.address) as client:
            client.sendall(b"a")
            assert receive(client, 1) == b"b"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        until(lambda: peer.errors)
    assert "got nothing, then the client reset the connection" in str(peer.errors[0])


@pytest.mark.parametrize("n", [1, 1000, 100_000])
def test_reset_after_lets_exactly_so_many_bytes_through(n):
    with Peer(send(DATA), stall(600)) as peer, Proxy(peer, reset_after=n) as proxy, dial(proxy.address) as client:
        came = bytearray()
        with pytest.raises(ConnectionResetError):
            while part := client.recv(1 << 16):
                came += part
        assert came == DATA[:n]


def test_reset_after_nothing_resets_at_once(peer):
    with Proxy(peer, reset_after=0) as proxy, pytest.raises(ConnectionResetError), dial(proxy.address) as client:
        client.recv(1)


@pytest.mark.long
def test_the_pieces_are_at_most_so_large_and_each_waits_for_the_delay():
    with Peer(send(b"x" * 100)) as peer, Proxy(peer, cut=10, delay=0.01) as proxy, dial(proxy.address) as client:
        started = time.monotonic()
        assert receive_all(client) == b"x" * 100
        assert time.monotonic() - started >= 0.1


def test_the_bandwidth_is_not_exceeded():
    with Peer(send(b"x" * 2000)) as peer, Proxy(peer, bandwidth=20_000) as proxy, dial(proxy.address) as client:
        started = time.monotonic()
        assert receive_all(client) == b"x" * 2000
        assert time.monotonic() - started >= 0.1


@pytest.mark.long
def test_the_same_bytes_are_changed_however_the_data_comes():
    def changed(seed, sizes):
        flow, left = Faults(seed, 7, None, None, None, 0.01).flow(1, "to"), DATA
        pieces = []
        for size in sizes:
            flow.take(left[:size])
            left = left[size:]
            while piece := flow.piece(0):
                flow.given(len(piece))
                pieces.append(piece)
        return pieces

    chance = random.Random(4)
    whole, parts = [1 << 16] * 5, [chance.randrange(1, 500) for _ in range(3000)]
    one, other = changed(5, whole), changed(5, parts)
    assert b"".join(one) == b"".join(other)

    def cuts(pieces):
        places, at = set(), 0
        for piece in pieces:
            at += len(piece)
            places.add(at)
        return places

    reads = {1 << 16, 2 << 16, 3 << 16, 4 << 16, len(DATA)}  # a piece of which a part has come is not held back
    assert cuts(one) - reads <= cuts(other)
    assert max(map(len, one)) == 7
    assert b"".join(one) != b"".join(changed(6, whole))


@pytest.mark.long
def test_corrupt_changes_about_so_many_bytes_and_none_to_itself():
    with Peer(send(DATA)) as peer:
        back = [through(peer, b"", corrupt=0.1, seed=seed) for seed in (1, 1, "one")]
        assert through(peer, b"", corrupt=0) == DATA
        every = through(peer, b"", corrupt=1)
    assert back[0] == back[1] != back[2]
    assert len(back[0]) == len(DATA)
    changes = sum(one != other for one, other in zip(back[0], DATA, strict=True))
    assert 0.09 < changes / len(DATA) < 0.11
    assert all(one != other for one, other in zip(every, DATA, strict=True))


def test_an_upstream_that_is_not_there_resets_the_client_and_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    with Proxy(address) as proxy:
        with dial(proxy.address) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        (error,) = proxy.errors
        assert isinstance(error, ConnectionRefusedError)
        assert str(address[1]) in str(error)


def test_a_unix_socket_that_is_not_there_is_an_error_with_its_path(tmp_path):
    with Proxy(tmp_path / "gone") as proxy:
        with dial(proxy.address) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        (error,) = proxy.errors
        assert isinstance(error, FileNotFoundError)
        assert "gone" in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="another system refuses the connection for good")
def test_a_unix_socket_whose_listen_queue_is_full_is_waited_for(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        listener.settimeout(SECONDS)
        first.connect(path)
        with Proxy(path) as proxy, dial(proxy.address) as client:
            client.sendall(b"hello")
            assert nothing_comes(client)  # nor an end
            listener.accept()[0].close()
            with listener.accept()[0] as accepted:
                assert receive(accepted, 5) == b"hello"
        assert proxy.errors == []


def test_close_ends_connections_that_wait_and_leaves_no_thread(peer):
    threads = threading.active_count()
    with Proxy(peer, delay=600) as proxy, contextlib.ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(dial(proxy.address)).sendall(b"x")
        started = time.monotonic()
        proxy.close()
        assert time.monotonic() - started < 5
    until(lambda: threading.active_count() == threads)  # those of the peer end when the proxy has closed its clients


def test_async_with_works(peer):
    async def talk():
        async with Proxy(peer, cut=2) as proxy:
            reader, writer = await asyncio.open_connection(*proxy.address)
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()

    asyncio.run(talk())


@pytest.mark.parametrize(
    "fault", [{"cut": 0}, {"delay": -1}, {"bandwidth": 0}, {"reset_after": -1}, {"corrupt": 1.1}], ids=str
)
def test_a_fault_that_makes_no_sense_is_refused(fault):
    with pytest.raises(ValueError, match=next(iter(fault))):
        Proxy(("127.0.0.1", 1), **fault)


@pytest.mark.parametrize(
    "fault", [{"cut": 1.5}, {"delay": "1"}, {"bandwidth": "1M"}, {"reset_after": 1.5}, {"corrupt": None}], ids=str
)
def test_a_fault_of_another_type_is_refused(fault):
    with pytest.raises(TypeError, match=f"{next(iter(fault))} must be a"):
        Proxy(("127.0.0.1", 1), **fault)


@pytest.mark.parametrize("seed", [1.5, None, b"one", True], ids=repr)
def test_a_seed_that_is_neither_a_number_nor_a_text_is_refused(seed):
    for make in (lambda: Proxy(("127.0.0.1", 1), seed=seed), lambda: garbage(10, seed)):
        with pytest.raises(TypeError, match="seed must be an int or a str"):
            make()


@pytest.mark.parametrize(
    ("upstream", "error"),
    [
        (8000, "upstream must be"),
        (None, "upstream must be"),
        (("localhost",), "upstream must be"),
        ((8000, "localhost"), "a host name must be a str"),
        (("localhost", 70000), "a port must be"),
        ("a\0b", "contains a NUL"),
    ],
)
def test_an_upstream_that_is_no_address_is_refused(upstream, error):
    with pytest.raises((TypeError, ValueError), match=error):
        Proxy(upstream)


def test_a_name_that_cannot_be_looked_up_is_an_error_of_the_proxy():
    with Proxy(("a" * 70 + ".invalid", 1)) as proxy:  # too long a label for the codec, which raises no OSError
        with dial(proxy.address) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        assert [isinstance(error, UnicodeError) for error in proxy.errors] == [True]
