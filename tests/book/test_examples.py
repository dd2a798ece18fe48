"""The iterative server and the client of examples/, run against each other, nc and socat."""

# ruff: noqa: F811, the fixtures are imported

import re
import shutil
import signal
import socket

import pytest

from rioecho import connect
from support.peers import needs_ipv6
from support.programs import LONG, OTHERS, command, other, run, serve, start  # noqa: F401, fixtures


@pytest.fixture
def server(serve):
    """Start the iterative server, and wait until it has served a client that sent nothing."""
    server = serve("echoserveri.py")
    assert server.lines(1) == ["Connected"]
    return server


@pytest.mark.long
def test_server_and_client_of_the_book_work_together(server):
    text = b"one\n\n\xc3\xa4\xff\n" + b"x" * 8190 + b"\n"
    assert run(command("echoclient.py", "127.0.0.1", server.port), text) == (0, text, b"")
    sizes = [len(line) for line in text.splitlines(keepends=True)]
    assert server.lines(5) == ["Connected"] + [f"server received {size} bytes" for size in sizes]
    assert server.end() == b""


@pytest.mark.long
def test_line_longer_than_maxline_is_echoed_in_pieces(server):
    text = b"y" * 20000 + b"\n"
    assert run(command("echoclient.py", "127.0.0.1", server.port), text) == (0, text, b"")
    assert server.lines(4) == ["Connected"] + [f"server received {size} bytes" for size in (8191, 8191, 3619)]


@pytest.mark.parametrize("name", OTHERS)
def test_server_works_with_other_clients(server, name):
    text = b"hello\nworld\nand no newline"
    status, out, _ = run(other(name, "127.0.0.1", server.port), text)
    assert (status, out) == (0, text)
    assert server.lines(4) == ["Connected", *(f"server received {size} bytes" for size in (6, 6, 14))]
    assert server.end() == b""


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6), "localhost"])
def test_server_listens_on_both_families(server, host):
    with connect(host, server.port, timeout=LONG) as rio:
        rio.writen(b"hello\n")
        assert rio.readline() == b"hello\n"


def test_server_serves_one_client_at_a_time_and_the_next_waits(server):
    first = connect("127.0.0.1", server.port, timeout=LONG)
    with connect("127.0.0.1", server.port, timeout=LONG) as second:
        second.writen(b"second\n")
        for _ in range(3):
            first.writen(b"first\n")
            assert first.readline() == b"first\n"
        with pytest.raises(BlockingIOError):
            second.readline(timeout=0)
        first.close()
        assert second.readline() == b"second\n"
    lines = server.lines(6)
    assert lines == [
        "Connected",
        *["server received 6 bytes"] * 3,
        "Connected",
        "server received 7 bytes",
    ]


def test_server_flushes_each_line_of_output_to_a_pipe(server):
    with connect("127.0.0.1", server.port, timeout=LONG) as rio:
        assert re.fullmatch(rb"Connected to \(.+, \w+\)\n", server.child.output.readline())
        rio.writen(b"12345\n")
        assert server.child.output.readline() == b"server received 6 bytes\n"


def socat_echo(start):
    """Start socat as the echo server, and return its port."""
    if shutil.which("socat") is None:
        pytest.skip("socat is not installed")
    child = start(["socat", "-d", "-d", "TCP4-LISTEN:0,bind=127.0.0.1", "PIPE"])
    for line in child.complaints:
        if found := re.search(rb"listening on .*:(\d+)", line):
            return int(found[1])
    pytest.fail("socat did not print its port")


def test_client_works_with_socat(start):
    text = b"hello\nworld\n"
    assert run(command("echoclient.py", "127.0.0.1", socat_echo(start)), text) == (0, text, b"")


def test_client_flushes_each_line_of_output_to_a_pipe(start):
    client = start(command("echoclient.py", "127.0.0.1", socat_echo(start)))
    for line in (b"one\n", b"two\n"):
        client.stdin.write(line)
        assert client.output.readline() == line


def test_client_works_with_nc(start):
    if shutil.which("nc") is None:
        pytest.skip("nc is not installed")
    nc = start(["nc", "-n", "-l", "-v", "127.0.0.1", "0"])
    found = re.search(rb"Listening on .* (\d+)", nc.complaints.readline())
    if not found or found[1] == b"0":
        pytest.skip("this nc does not print its port")
    client = start(command("echoclient.py", "127.0.0.1", int(found[1])))
    client.stdin.write(b"question\n")
    assert nc.output.readline() == b"question\n"
    nc.stdin.write(b"answer\n")
    assert client.output.readline() == b"answer\n"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "args", "usage"),
    [
        ("echoserveri.py", [], b"usage: echoserveri.py <port>\n"),
        ("echoserveri.py", ["80", "90"], b"usage: echoserveri.py <port>\n"),
        ("echoclient.py", [], b"usage: echoclient.py <host> <port>\n"),
        ("echoclient.py", ["localhost"], b"usage: echoclient.py <host> <port>\n"),
        ("echoclient.py", ["localhost", "80", "90"], b"usage: echoclient.py <host> <port>\n"),
    ],
)
def test_wrong_number_of_arguments_prints_the_usage_and_exits_with_status_1(name, args, usage):
    assert run(command(name, *args)) == (1, b"", usage)


@pytest.mark.long
def test_port_in_use_exits_with_status_1_and_names_the_port(server):
    status, out, err = run(command("echoserveri.py", server.port))
    assert (status, out) == (1, b"")
    assert err.startswith(f"Open_listenfd error: cannot listen on port {server.port}: ".encode())
    assert err.count(b"\n") == 1


def test_client_exits_with_status_1_if_no_server_listens():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        status, out, err = run(command("echoclient.py", "127.0.0.1", port), b"hello\n")
    assert (status, out) == (1, b"")
    assert err.startswith(f"Open_clientfd error: cannot connect to 127.0.0.1 port {port}: ".encode())
    assert err.count(b"\n") == 1


@pytest.mark.long
def test_interrupt_ends_the_client_without_a_traceback(start, server):
    client = start(command("echoclient.py", "127.0.0.1", server.port))
    client.stdin.write(b"hello\n")
    assert client.output.readline() == b"hello\n"
    client.send_signal(signal.SIGINT)
    assert client.communicate(timeout=LONG) == (b"", b"")
    assert client.returncode == -signal.SIGINT
