"""rioecho-client and errors: one line on stderr, an exit status for each kind, and no traceback."""

import contextlib
import os
import signal
import socket
import sys
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


@pytest.mark.long
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
        (("--connect-timeout", "-1s", "localhost", "1"), "'-1s' is not a number of seconds"),
        (("--magic",), "--magic|HOST"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(arguments, words):
    with Command(MODULE, *arguments) as client:
        assert client.status() == 2
        assert any(word in client.complaint() for word in words.split("|"))
        assert client.out.text == ""


@pytest.mark.long
def test_help_and_version_fit_a_terminal():
    for option in ("--help", "--version"):
        with Command(MODULE, option) as client:
            assert client.status() == 0
            text = client.out.text
            assert len(text.splitlines()) < 24
            assert max(map(len, text.splitlines())) <= 80
    assert text == f"rioecho-client {rioecho.__version__}\n"


def test_a_reader_that_closes_the_pipe_is_not_an_error(lines_server):
    reader, writer = os.pipe()
    with Command(MODULE, *lines_server, stdout=writer) as client:
        os.close(writer)
        os.close(reader)
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write(b"hello\n" * 100_000)
        assert client.status() == 0
        assert client.err.text == ""


def test_the_help_has_the_exit_statuses():
    with Command(MODULE, "--help") as client:
        assert client.status() == 0
        assert "exit status: 1 connection, 2 usage, 3 wrong echo, 130 Ctrl-C" in client.out.text


def test_the_examples_of_the_help_have_a_line_each():
    with Command(MODULE, "--help") as client:
        assert client.status() == 0
        assert [line.split()[:3] for line in client.out.text.splitlines()[-2:]] == [
            ["examples:", "rioecho-client", "localhost"],
            ["rioecho-client", "localhost", "8000"],
        ]


def test_a_connect_timeout_of_0_means_none(lines_server):
    with Command(MODULE, *lines_server, "--connect-timeout", "0") as client:
        client.stdin.write(b"hello\n")
        assert client.status() == 0
        assert client.out.text == "hello\n"


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract names")
def test_an_abstract_unix_socket_is_written_with_an_at_sign():
    name = f"rioecho-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        with Command(MODULE, "--unix", f"@{name}") as client:
            sock, _ = listener.accept()
            with sock:
                client.stdin.write(b"hello\n")
                client.stdin.close()
                sock.sendall(receive(sock, 6))
            assert client.status() == 0
            assert client.out.text == "hello\n"
    with Command(MODULE, "--unix", f"@{name}") as client:
        assert client.status() == 1
        assert client.complaint() == f"rioecho-client: cannot connect to @{name}: Connection refused"
    with Command(MODULE, "--unix", "@") as client:
        assert client.status() == 2
        assert "@NAME" in client.complaint()


@pytest.mark.long
def test_ctrl_c_while_the_command_starts_is_no_traceback(lines_server):
    """At any moment after the interpreter has begun to import the command."""
    code = """if True:
        import os, runpy, signal, sys
        sys.argv[0] = "rioecho-client"
        imports = 0
        import rioecho._core.startup

        class Interrupt:
            def find_spec(self, name, path=None, target=None):
                global imports
                imports += 1
                if imports == int(os.environ["AT"]):
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, Interrupt())
        runpy.run_module("rioecho.cli.client", run_name="__main__")
    """
    for at in range(1, 30, 3):
        with Command(MODULE, *lines_server, code=code, environment={"AT": str(at)}) as client:
            assert client.status() in (0, 130), at
            assert client.err.text == "", at


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
        assert client.status() == 1
        assert client.out.text == ""
        assert client.err.text == "rioecho-client: stdin: not open for reading\n"


def test_a_closed_stdout_does_no_harm(lines_server):
    """The connection must not get descriptor 1 and receive its own echo."""
    with Command(MODULE, *lines_server, prelude=">&-") as client:
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write(b"hello\n")
            client.stdin.flush()
        assert client.status() == 1
        assert client.err.text == "rioecho-client: stdout: not open for writing\n"
