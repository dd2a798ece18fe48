"""How the connections of a LineServer end, and what a Connection says of itself."""

import os
import socket
import threading
import time

import pytest

from support.handlers import Life, call, ended, iter_events, serve, still_serves, stuff
from support.peers import SECONDS, dial, exchange, lines, needs_ipv6, receive, receive_all, reset
from support.procfs import until

PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"


@pytest.fixture
def life():
    return Life()


# Closing


def test_close_in_a_call_takes_effect_after_its_answer(life):
    def answer(conn, lines):
        conn.close()
        conn.close()
        return b"bye\n"

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"quit\n")
        assert receive_all(client) == b"bye\n"
        assert life.lost() is None


def test_after_close_no_further_input_is_handled(life):
    calls = []

    def answer(conn, lines):
        calls.append(lines)
        conn.close()
        return b"bye\n"

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"quit\n")
        assert receive_all(client) == b"bye\n"
        client.sendall(b"more\n" * 100_000)
        client.close()
        assert life.lost() is None
        until(lambda: server.stats()["active"] == 0)
        assert calls == [[b"quit\n"]]
        assert server.stats()["errors"] == 0


def test_close_in_connection_made_sends_the_greeting(life):
    def made(conn):
        conn.write(b"busy\n")
        conn.close()

    with serve(life.handler(made=made)) as server, dial(server.addresses[0]) as client:
        assert receive_all(client) == b"busy\n"
        life.next("made")
        assert life.next("lost") is None


@pytest.mark.parametrize("end", ["close", "abort"])
def test_the_end_in_connection_made_after_a_proxy_header(life, end):
    def made(conn):
        getattr(conn, end)()

    with serve(life.handler(made=made), proxy_protocol=True) as server, dial(server.addresses[0]) as client:
        client.sendall(b"PROXY UNKNOWN\r\nx\n")
        assert not ended(client)
        life.next("made")
        assert isinstance(life.next("lost"), ConnectionAbortedError if end == "abort" else type(None))
    life.silent()


def test_close_of_a_connection_that_is_already_reset_is_an_orderly_end(life):
    called, gone = threading.Event(), threading.Event()

    def answer(conn, lines):
        called.set()
        assert gone.wait(SECONDS)
        conn.close()

    with serve(life.handler(answer)) as server:
        with dial(server.addresses[0]) as client:
            client.sendall(b"x\n")
            assert called.wait(SECONDS)
            reset(client)
        gone.set()
        assert life.lost() is None
        until(lambda: server.stats()["active"] == 0)
        assert server.stats()["errors"] == 0


def test_close_from_another_thread_sends_what_was_written(life):
    data = os.urandom(1_000_000)
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        conn.write(data)
        conn.close()
        conn.close()
        assert receive_all(client) == data
        assert life.lost() is None


def test_close_lingers_so_that_the_peer_receives_the_answer(life):
    def answer(conn, lines):
        conn.close()
        return b"z" * 200_000

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"x\n" + b"unread\n" * 5000)
        assert receive_all(client) == b"z" * 200_000


@pytest.mark.long
def test_a_peer_that_does_not_close_is_cut_off_at_the_drain_timeout(life):
    with serve(life.handler(lambda conn, lines: conn.close()), drain_timeout=0.3) as server:  # noqa: SIM117
        with dial(server.addresses[0]) as client:
            client.sendall(b"x\n")
            assert client.recv(1) == b""
            until(lambda: server.stats()["active"] == 0)


@pytest.mark.parametrize("inside", [True, False])
def test_abort_resets_at_once(inside, life):
    with serve(life.handler(lambda conn, lines: conn.abort() if inside else lines)) as server:
        with dial(server.addresses[0]) as client:
            conn = life.next("made")
            if inside:
                client.sendall(b"x\n")
            else:
                conn.abort()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            assert isinstance(life.lost(), ConnectionAbortedError)
            conn.abort()
            conn.close()
        until(lambda: server.stats()["active"] == 0)
    life.silent()


def test_abort_in_connection_made_resets(life):
    with serve(life.handler(made=lambda conn: conn.abort())) as server:
        with pytest.raises(ConnectionResetError), dial(server.addresses[0]) as client:
            client.recv(1)
        assert isinstance(life.lost(), ConnectionAbortedError)
    life.silent()


@pytest.mark.parametrize("options", [{}, {"framing": "raw"}, {"workers": 2}], ids=["line", "raw", "two workers"])
@pytest.mark.parametrize("kind", ["bytes", "list", "generator"])
def test_what_is_written_or_answered_in_a_call_that_aborts_is_not_sent(kind, options, life):
    writes = []

    def answer(conn, _):
        conn.write(b"before")
        conn.abort()
        for _ in range(2):
            with pytest.raises(ConnectionError, match="aborted"):
                conn.write(b"after")
            conn.close()
        writes.append(conn)
        return {"bytes": b"never", "list": [b"never"], "generator": iter([b"never"])}[kind]

    with serve(life.handler(answer), **options) as server, dial(server.addresses[0]) as client:
        client.sendall(b"x\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert isinstance(life.lost(), ConnectionAbortedError)
        assert len(writes) == 1
        assert server.stats()["bytes_out"] == 0


def test_a_write_after_another_thread_has_aborted_is_no_failure_of_the_handler(life, caplog):
    def answer(conn, lines):
        thread = threading.Thread(target=conn.abort)
        thread.start()
        thread.join()
        conn.write(b"never\n")

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"go\n")
        with pytest.raises(ConnectionResetError):
            receive(client, 1)
        assert isinstance(life.lost(), ConnectionAbortedError)
    assert [record.levelname for record in caplog.records if record.levelname == "ERROR"] == []


def test_an_error_of_the_handlers_own_is_logged_although_it_aborts(life, caplog):
    def answer(conn, lines):
        conn.abort()
        raise ConnectionRefusedError("of a database")

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"go\n")
        with pytest.raises(ConnectionResetError):
            receive(client, 1)
        assert isinstance(life.lost(), ConnectionRefusedError)
    assert "of a database" in caplog.text


def test_a_generator_that_aborts_sends_nothing_of_what_it_yields(life):
    def answer(conn, lines):
        yield lines[0]
        conn.abort()
        yield lines[0]

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"x\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert isinstance(life.lost(), ConnectionAbortedError)
        assert server.stats()["bytes_out"] == 0


def test_abort_after_close_in_one_call_drops_the_answer(life):
    def answer(conn, lines):
        conn.close()
        conn.abort()
        return lines

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"x\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert isinstance(life.lost(), ConnectionAbortedError)
        assert server.stats()["bytes_out"] == 0


def test_abort_in_connection_made_drops_the_greeting(life):
    def made(conn):
        conn.write(b"hello\n")
        conn.abort()

    with serve(life.handler(made=made)) as server:
        with pytest.raises(ConnectionResetError), dial(server.addresses[0]) as client:
            client.recv(1)
        assert isinstance(life.lost(), ConnectionAbortedError)
        assert server.stats()["bytes_out"] == 0


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_connection_that_another_handler_has_ended_gets_no_further_input(end, life):
    # Both connections become readable while the loop is in a call, and are then handled in the same turn.
    waits, goes_on = threading.Event(), threading.Event()
    conns, calls = [], []

    def answer(conn, lines):
        if lines == [b"wait\n"]:
            waits.set()
            assert goes_on.wait(SECONDS)
            return lines
        calls.append(conn)
        for other in conns:
            if other is not conn:
                getattr(other, end)()
        return b"first\n"

    with serve(life.handler(answer, made=conns.append)) as server, dial(server.addresses[0]) as holder:
        life.next("made")
        with dial(server.addresses[0]) as one, dial(server.addresses[0]) as two:
            for _ in range(2):
                life.next("made")
            del conns[0]  # of the holder
            holder.sendall(b"wait\n")
            assert waits.wait(SECONDS)
            for client in (one, two):
                client.sendall(b"x\n")
            goes_on.set()
            answers = set()
            for client in (one, two):
                try:
                    answers.add(client.recv(100))
                except ConnectionResetError:
                    answers.add("reset")
            assert answers == {b"first\n", "reset" if end == "abort" else b""}
            assert len(calls) == 1


def test_abort_with_data_waiting_resets(life):
    with serve(life.handler(), write_limit=100_000) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        stuff(conn)
        conn.abort()
        assert isinstance(life.lost(), ConnectionAbortedError)
        with pytest.raises(ConnectionResetError):
            receive_all(client)


def test_abort_after_close_resets(life):
    with serve(life.handler(), write_limit=100_000) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        stuff(conn)
        conn.close()
        conn.abort()
        life.lost()
        with pytest.raises(ConnectionResetError):
            receive_all(client)
        until(lambda: server.stats()["active"] == 0)
    life.silent()


def test_abort_in_connection_lost_does_nothing(life):
    with serve(life.handler(lost=lambda conn, reason: (conn.abort(), conn.close()))) as server:
        still_serves(server)
        assert life.lost() is None
    life.silent()


# Ends that the peer makes


def test_the_reason_of_a_reset_is_the_error(life):
    with serve(life.handler()) as server:
        with dial(server.addresses[0]) as client:
            client.sendall(b"x\n")
            receive(client, 2)
            reset(client)
        assert isinstance(life.lost(), ConnectionError)
        until(lambda: server.stats()["closed"] == 1)
        assert server.stats()["errors"] == 1
    life.silent()


def test_a_reset_before_the_first_byte_is_no_error_in_the_counts(life):
    with serve(life.handler()) as server:
        with dial(server.addresses[0]) as client:
            life.next("made")
            reset(client)
        life.lost()
        until(lambda: server.stats()["closed"] == 1)
        assert server.stats()["errors"] == 0
    life.silent()


def test_all_is_answered_before_the_close_after_a_half_close(life):
    data = b"".join(lines(3000))
    with serve(life.handler()) as server:
        assert call(server, data) == data
        assert life.lost() is None


@pytest.mark.long
def test_an_idle_connection_ends_at_its_timeout(life):
    with serve(life.handler(), idle_timeout=0.2) as server, dial(server.addresses[0]) as client:
        client.sendall(b"beginning")
        ended(client)
        reason = life.lost()
        assert isinstance(reason, TimeoutError), reason
        assert b"beginning" not in [line for kind, line in iter_events(life) if kind == "input"]


@pytest.mark.slow
def test_a_write_is_progress(life):
    with serve(life.handler(), idle_timeout=0.6) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        begun = time.monotonic()
        while time.monotonic() < begun + 1.5:
            conn.write(b"tick\n")
            assert receive(client, 5) == b"tick\n"
            threading.Event().wait(0.05)


# The connection's facts


def test_peer_is_the_address_of_the_client(life):
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        assert conn.peer == client.getsockname()
    assert life.lost() is None
    assert conn.peer[0] == "127.0.0.1"


@needs_ipv6
def test_peer_over_ipv6_is_host_and_port(life):
    with serve(life.handler(), host="::1") as server, dial(server.addresses[0]) as client:
        assert life.next("made").peer == client.getsockname()[:2]


def test_peer_of_a_unix_socket_is_its_path(life, tmp_path):
    path = tmp_path / "socket"
    with serve(life.handler(), port=None, unix=path, unix_mode=0o600) as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SECONDS)
            client.connect(os.fspath(path))
            assert path.stat().st_mode & 0o777 == 0o600
            assert life.next("made").peer == os.fspath(path)
            assert exchange(client, b"x\nlast") == b"x\nlast"
        assert server.stats()["accepted"] == 1
    assert not path.exists()


@pytest.mark.parametrize(
    ("header", "peer"),
    [
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 4321 80\r\n", ("192.0.2.7", 4321)),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 4321 80\r\n", ("2001:db8::7", 4321)),
        (PROXY_V2 + b"\x21\x11\x00\x0c" + bytes([192, 0, 2, 7, 192, 0, 2, 1]) + b"\x10\xe1\0\x50", ("192.0.2.7", 4321)),
        (b"PROXY UNKNOWN\r\n", None),
    ],
    ids=["v1 IPv4", "v1 IPv6", "v2", "unknown"],
)
@pytest.mark.parametrize("piece", [1, 1000])
def test_peer_is_the_proxy_headers_address(header, peer, piece, life):
    with serve(life.handler(made=lambda conn: conn.write(b"hello\n")), proxy_protocol=True) as server:  # noqa: SIM117
        with dial(server.addresses[0]) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(header), piece):
                client.sendall(header[at : at + piece])
            assert receive(client, 6) == b"hello\n"
            conn = life.next("made")
            assert conn.peer == (peer or client.getsockname())
            client.sendall(b"x\n")
            assert life.next("input") == [b"x\n"]
            assert receive(client, 2) == b"x\n"


def test_a_wrong_proxy_header_ends_the_connection_without_a_handler(life):
    with serve(life.handler(), proxy_protocol=True) as server:
        with dial(server.addresses[0]) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert not ended(client)
        until(lambda: server.stats()["active"] == 0)
        until(lambda: server.stats()["closed"] == 1)
    assert "input" not in [kind for kind, _ in iter_events(life)]


def test_the_representation_of_a_connection_names_its_peer_and_its_end(life):
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        name = "({}, {})".format(*client.getsockname())
        assert repr(conn) == f"<Connection {name}>"
    assert life.lost() is None
    assert repr(conn) == f"<Connection {name} over>"


def test_extra_info_is_of_the_connection(life):
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        assert conn.get_extra_info("peername") == client.getsockname()
        assert conn.get_extra_info("sockname") == client.getpeername()
        sock = conn.get_extra_info("socket")
        assert sock.getpeername() == client.getsockname()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert conn.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert conn.get_extra_info("cipher") is None
        assert conn.get_extra_info("cipher", 7) == 7
        del sock
    assert life.lost() is None
    for name in ("socket", "sockname"):
        assert conn.get_extra_info(name, "none") == "none"
        assert conn.get_extra_info(name) is None
