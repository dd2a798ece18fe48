"""PROXY headers: never echoed, logged, and the same in every engine."""

import contextlib
import logging
import socket
import time

import pytest

from rioecho.server import EchoServer
from support.peers import acknowledged, ask, dial, receive, receive_all, reset
from support.procfs import until, until_read
from support.proxies import HEADERS, LOCAL, WRONG, raw_version_2, version_1, version_2


@pytest.fixture
def server(engine):
    with EchoServer(engine=engine, proxy_protocol=True) as server:
        yield server


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.INFO, "rioecho.server")
    return caplog


def own_name(sock):
    return "({}, {})".format(*sock.getsockname()[:2])


def closed(sock):
    """Report whether the server closes the connection without a byte. It resets it if it has not read everything."""
    try:
        return receive_all(sock) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_not_echoed_and_its_address_is_logged(engine, name, caplog):
    header, peer = HEADERS[name]
    with EchoServer(engine=engine, proxy_protocol=True) as server, dial(server.addresses[0]) as sock:
        sock.sendall(header + b"together\n")
        assert receive(sock, 9) == b"together\n"
        ask(sock)
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""
        peer = peer or own_name(sock)
    assert [message for message in caplog.messages if "Connected" in message] == [f"Connected to {peer}"]
    assert f"Closed {peer}: end of input, 24 bytes echoed" in caplog.messages
    stats = server.stats()
    assert (stats["bytes_in"], stats["bytes_out"], stats["lines"], stats["errors"]) == (24, 24, 2, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["v1 TCP4", "v1 UNKNOWN", "v2 TCP6", "v2 TCP4 with TLVs", "v2 LOCAL"])
def test_a_header_may_be_split_at_every_byte(engine, name):
    header, _ = HEADERS[name]
    data = header + b"hello\n"
    with EchoServer(engine=engine, proxy_protocol=True) as server:
        for i in range(1, len(data), 1 if engine == "event" else 9):
            with dial(server.addresses[0]) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.sendall(data[:i])
                acknowledged(sock)
                until_read(sock)
                sock.sendall(data[i:])
                assert receive(sock, 6) == b"hello\n"
    assert server.stats()["errors"] == 0


def test_a_header_may_arrive_byte_by_byte(server):
    with dial(server.addresses[0]) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in version_2("2001:db8::5", more=b"x" * 100):
            sock.sendall(bytes([byte]))
        ask(sock)


@pytest.mark.parametrize("version", [version_1, version_2])
def test_a_header_within_the_data_is_data(server, version):
    with dial(server.addresses[0]) as sock:
        sock.sendall(version())
        ask(sock, version() + b"\n")


def test_the_largest_header_is_skipped(server):
    with dial(server.addresses[0]) as sock:
        sock.sendall(version_2(more=b"\n" * (0xFFFF - 12)) + b"hello\n")
        assert receive(sock, 6) == b"hello\n"
    assert server.stats()["bytes_in"] == 6


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_header_ends_the_connection(engine, name, caplog):
    with EchoServer(engine=engine, proxy_protocol=True) as server, dial(server.addresses[0]) as sock:
        sock.sendall(WRONG[name])
        assert closed(sock)
        peer = own_name(sock)
    stats = server.stats()
    assert (stats["errors"], stats["closed"], stats["bytes_in"], stats["bytes_out"]) == (1, 1, 0, 0)
    assert f"Closed {peer}: no valid PROXY header, 0 bytes echoed" in caplog.messages


@pytest.mark.parametrize("name", ["a line", "NUL", "too short for IPv4"])
def test_a_header_is_not_wrong_before_its_wrong_byte(engine, name):
    with EchoServer(engine=engine, proxy_protocol=True) as server, dial(server.addresses[0]) as sock:
        sock.sendall(WRONG[name][:-1])
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(30)
        sock.sendall(WRONG[name][-1:])
        assert closed(sock)


@pytest.mark.parametrize("name", ["v1 TCP4", "v2 TCP4", "v2 TCP4 with TLVs"])
@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_header_that_is_cut_off_is_an_error(engine, name, how):
    with EchoServer(engine=engine, proxy_protocol=True) as server, dial(server.addresses[0]) as sock:
        sock.sendall(HEADERS[name][0][:-1])
        if how == "reset":
            reset(sock)
        else:
            sock.shutdown(socket.SHUT_WR)
            assert closed(sock)
    assert server.stats()["errors"] == 1


@pytest.mark.slow
def test_a_header_that_drips_in_ends_at_the_idle_timeout(engine):
    with (
        EchoServer(engine=engine, proxy_protocol=True, idle_timeout=0.4) as server,
        dial(server.addresses[0]) as sock,
        contextlib.suppress(ConnectionError),
    ):
        began = time.monotonic()
        sock.settimeout(0.05)
        for byte in version_2(more=b"x" * 1000):
            sock.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                assert sock.recv(1) == b""
                break
        assert time.monotonic() - began < 10
    assert server.stats()["bytes_in"] == 0


@pytest.mark.parametrize("header", [b"", raw_version_2(LOCAL, 0), b"PROXY UNKNOWN\r\n"], ids=["none", "v2", "v1"])
@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_check_of_a_load_balancer_is_no_error_and_is_not_logged(engine, header, how, caplog):
    with EchoServer(engine=engine, proxy_protocol=True) as server:
        for _ in range(3):
            with dial(server.addresses[0]) as sock:
                sock.sendall(header)
                if how == "reset":
                    reset(sock)
                else:
                    sock.shutdown(socket.SHUT_WR)
                    assert closed(sock)
    assert (server.stats()["errors"], server.stats()["closed"]) == (0, 3)
    assert [message for message in caplog.messages if "Connected" in message or "Closed" in message] == []


@pytest.mark.long
def test_the_stop_ends_a_connection_whose_header_is_incomplete(engine, caplog):
    with EchoServer(engine=engine, proxy_protocol=True) as server, dial(server.addresses[0]) as sock:
        sock.sendall(version_1()[:-1])
        acknowledged(sock)
        until(lambda: server.stats()["active"] == 1)
        until_read(sock)
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 4
        assert closed(sock)
        assert f"Closed {own_name(sock)}: server stopped, 0 bytes echoed" in caplog.messages
    assert server.stats()["errors"] == 0


def test_a_header_and_line_sent_before_the_stop_are_served(engine):
    with EchoServer(engine=engine, proxy_protocol=True) as server, dial(server.addresses[0]) as sock:
        sock.sendall(version_2() + b"hello\n")
        server.stop()
        assert receive_all(sock) == b"hello\n"


class SlowLog(logging.Handler):
    """A log that takes a long time over the line about the stop."""

    def emit(self, record):
        if record.getMessage().startswith("Stopping"):
            time.sleep(0.4)  # longer than new connections have after the stop to send their first bytes


@pytest.mark.slow
def test_a_header_and_line_in_the_listen_queue_are_served_however_late_the_server_is(engine):
    slow = SlowLog()
    logger = logging.getLogger("rioecho.server")
    server = EchoServer(engine=engine, proxy_protocol=True)
    with dial(server.addresses[0]) as sock:
        sock.sendall(version_2(more=b"x" * 65_523) + b"hello\n")  # more than one read takes
        acknowledged(sock)
        server.stop()
        logger.addHandler(slow)
        try:
            server.serve_forever()
        finally:
            logger.removeHandler(slow)
        assert receive_all(sock) == b"hello\n"
    server.close()


def test_without_the_option_a_header_is_data(engine):
    with EchoServer(engine=engine) as server, dial(server.addresses[0]) as sock:
        ask(sock, version_1())
