"""rioecho-client and errors: one line on stderr, an exit status for each kind, and no traceback."""

import contextlib
import os
import signal
import socket
import threading

import pytest

import rioecho
from rioecho.server import EchoServer
from support.peers import SECONDS, Command, answering, lines, piped, receive, receive_all, reset

MODULE = "rioecho.cli.client"


@pytest.fixture
def lines_server():
    with EchoServer() as running:
        yield running.addresses[0]


def failed(address, data=b"hello\n"):
    """Run a client that fails; return its status, its output and the one line on stderr."""
    status, output, complaint = piped(address, data)
    assert complaint.count("\n") == 1, complaint
    assert complaint.startswith("rioecho-client: ")
    return status, output, complaint


def test_a_wrong_echo_is_status_3_and_its_offset_is_reported():
    def lie(sock):
        assert receive(sock, 12) == b"hello\nworld\n"
        sock.sendall(b"hello\nwOrld\n")
        receive_all(sock)

    with answering(lie) as address:
        status, output, complaint = failed(address, b"hello\nworld\n")
    assert status == 3
    assert output == b"hello\nw"
    assert "7" in complaint


def test_more_bytes_than_were_sent_are_a_wrong_echo():
    def add(sock):
        sock.sendall(receive(sock, 6) + b"and more")
        receive_all(sock)

    with answering(add) as address:
        status, output, complaint = failed(address)
    assert (status, output) == (3, b"hello\n")
    assert "6" in complaint


def test_a_close_before_the_whole_echo_is_status_1():
    def close(sock):
        receive(sock, 12)
        sock.sendall(b"hello\n")

    with answering(close) as address:
        status, output, complaint = failed(address, b"hello\nworld\n")
    assert (status, output) == (1, b"hello\n")
    assert "6 bytes" in complaint


def test_a_reset_while_sending_is_status_1_and_the_echo_so_far_is_written():
    def close(sock):
        data = receive(sock, 30_000)
        sock.sendall(data)
        reset(sock)

    data = b"".join(lines(200_000))
    with answering(close) as address:
        status, output, _ = failed(address, data)
    assert status == 1
    assert data.startswith(output)


def test_the_echo_received_before_a_reset_is_written():
    """Sending fails first; the echo received before must still be read and written."""
    received, stopped, gone = threading.Event(), threading.Event(), threading.Event()

    def break_off(sock):
        receive(sock, 6)
        received.set()
        assert stopped.wait(SECONDS)
        sock.sendall(b"hello\n")
        reset(sock)
        gone.set()

    with answering(break_off) as address, Command(MODULE, *address) as client:
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        assert received.wait(SECONDS)
        client.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, client.pid, os.WSTOPPED)
        stopped.set()
        assert gone.wait(SECONDS)
        client.stdin.write(b"too late\n" * 1000)
        client.stdin.flush()
        client.signal(signal.SIGCONT)
        assert client.status() == 1
        assert "onnection" in client.complaint()
        assert client.out.text == "hello\n"


def test_a_refused_connection_is_status_1():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # without listen()
        host, port = sock.getsockname()
        status, output, complaint = failed((host, port))
    assert (status, output) == (1, b"")
    assert f"{host} port {port}: Connection refused" in complaint


def test_an_unknown_host_is_status_1():
    status, output, complaint = failed(("no-such-host.invalid", 1))
    assert (status, output) == (1, b"")
    assert "no-such-host.invalid" in complaint


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "HOST"),
        (("localhost",), "PORT"),
        (("localhost", "http"), "'http' is not a port"),
        (("localhost", "65536"), "'65536' is not a port"),
        (("localhost", "1", "2"), "2"),
        (("localhost", "1", "--unix", "/x"), "not both"),
        (("--connect-timeout", "-1", "localhost", "1"), "-1"),
        (("--magic",), "--magic|HOST"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(arguments, words):
    with Command(MODULE, *arguments) as client:
        assert client.status() == 2
        assert any(word in client.complaint() for word in words.split("|"))
        assert client.out.text == ""


def test_help_and_version_fit_a_terminal():
    for option in ("--help", "--version"):
        with Command(MODULE, option) as client:
            assert client.status() == 0
            text = client.out.text
            assert len(text.splitlines()) < 24
            assert max(map(len, text.splitlines())) <= 80
    assert text == f"rioecho-client {rioecho.__version__}\n"


def test_a_reader_that_closes_the_pipe_is_one_line_and_no_traceback(lines_server):
    reader, writer = os.pipe()
    with Command(MODULE, *lines_server, stdout=writer) as client:
        os.close(writer)
        os.close(reader)
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write(b"hello\n" * 100_000)
        assert client.status() == 1
        assert "Broken pipe" in client.complaint()


def test_ctrl_c_is_status_130_and_no_traceback(lines_server):
    with Command(MODULE, *lines_server) as client:
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        client.out.wait_for("hello\n")
        client.interrupt()  # Python can miss one that arrives just before it waits
        assert client.status() == 130
        assert client.err.text == ""


def test_a_directory_as_input_is_status_1(lines_server, tmp_path):
    directory = os.open(tmp_path, os.O_RDONLY)
    with Command(MODULE, *lines_server, stdin=directory) as client:
        os.close(directory)
        assert client.status() == 1  # Python itself does not start, with a message of its own
        assert client.out.text == ""


def test_a_closed_stdin_does_no_harm(lines_server):
    """The connection must not get descriptor 0 and be read as the input."""
    with Command(MODULE, *lines_server, prelude="<&-") as client:
        assert client.status() in (0, 1)
        assert client.out.text == ""
        assert "Traceback" not in client.err.text


def test_a_closed_stdout_does_no_harm(lines_server):
    """The connection must not get descriptor 1 and receive its own echo."""
    with Command(MODULE, *lines_server, prelude=">&-") as client:
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write(b"hello\n")
            client.stdin.flush()
        assert client.status() in (0, 1)
        assert "Traceback" not in client.err.text
