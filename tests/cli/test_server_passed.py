"""rioecho-server under a service manager: sockets that are passed in, connected ones too, and NOTIFY_SOCKET."""

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys

import pytest

from rioecho.cli.manager import Notifier
from support.peers import (
    SECONDS,
    Command,
    Running,
    Server,
    acknowledged,
    ask,
    binary,
    dial,
    exchange,
    lines,
    receive_all,
)
from support.procfs import until
from support.unix_sockets import needs_abstract_names
from support.visitors import Visitors

MODULE = "rioecho.cli.server"


def passed(sock, *arguments, **options):
    """Run the server with a socket passed as systemd does."""
    prelude = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1"
    return Command(MODULE, *arguments, prelude=prelude, stdin=sock, **options)


def is_open(client, path):
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        client.connect(path)
        return True
    return False


@contextlib.contextmanager
def connection():
    """Yield the two ends of a TCP connection: the client's, and the one that a service manager has accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener, dial(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        with accepted:
            yield client, accepted


# ---- listening sockets


@pytest.mark.slow
@pytest.mark.sampled(2)
def test_the_queue_of_a_passed_socket_is_left_to_the_next_instance(engine):
    """No client notices the change, although clients come all the time."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=100) as listener,
        Visitors(listener.getsockname(), 8) as visitors,
        passed(listener, "-q", "--engine", engine) as old,
    ):
        old.out.wait_for("Listening on")
        visitors.wait_for(200)
        with passed(listener, "-q", "--engine", engine) as new:
            new.out.wait_for("Listening on")
            old.drain()
            visitors.wait_for(100)
            visitors.end()
            assert {outcome for _, outcome in visitors.visits} == {"served"}


@pytest.mark.long
def test_what_waits_in_the_queue_of_a_passed_socket_is_not_accepted_at_the_stop(engine):
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        old = stack.enter_context(passed(listener, "--engine", "iterative"))
        first, second = (stack.enter_context(dial(listener.getsockname())) for _ in range(2))
        ask(first)
        second.sendall(b"for the next\n")
        second.shutdown(socket.SHUT_WR)
        acknowledged(second)
        old.drain(first)
        assert old.err.text.count("Connected to") == 1
        stack.enter_context(passed(listener, "--engine", engine))
        assert receive_all(second) == b"for the next\n"


@pytest.mark.long
def test_the_file_of_a_passed_unix_socket_outlives_the_server(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        for _ in range(2):
            with passed(listener) as server, socket.socket(socket.AF_UNIX) as client:
                server.out.wait_for(f"Listening on {path}\n")
                client.settimeout(SECONDS)
                client.connect(str(path))
                ask(client)
                server.drain(client)
            assert path.is_socket()


# ---- a connected socket


def passed_connection(way, sock, *arguments, everywhere=False):
    """Run the server for a connection, as systemd (Accept=yes) or inetd does; ``everywhere``: it is stderr too."""
    if way == "inetd":
        streams = {"stdin": sock, "stdout": sock}
        if everywhere:
            streams["stderr"] = sock
        return Command(MODULE, "--inetd", *arguments, **streams)
    streams = {"stdout": sock, "stderr": sock} if everywhere else {}
    return passed(sock, *arguments, **streams)


@pytest.fixture(params=["systemd", "inetd"])
def way(request):
    return request.param


@pytest.mark.long
@pytest.mark.sampled(3)
def test_a_connected_socket_is_served_and_then_the_command_ends(way, engine):
    data = b"".join(lines(3000)) + b"and no newline"
    with connection() as (client, accepted), passed_connection(way, accepted, "--engine", engine) as server:
        accepted.close()
        assert exchange(client, data) == data
        assert server.status() == 0
        assert f"Connected to ({client.getsockname()[0]}, {client.getsockname()[1]})" in server.err.text
        assert "Stopped: 1 accepted" in server.err.text
        if server.out:
            assert server.out.text == ""


@pytest.mark.long
def test_a_connected_unix_socket_is_served(way):
    client, accepted = socket.socketpair()
    with client, accepted, passed_connection(way, accepted) as server:
        accepted.close()
        assert exchange(client, b"hello\n") == b"hello\n"
        assert server.status() == 0


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "arguments", [["-v"], ["-v", "--log-format", "json"], ["--stats", "0.01"], ["--framing", "xml"]]
)
def test_nothing_but_the_echo_reaches_the_peer_even_where_stderr_is_the_socket(way, arguments):
    wrong = "xml" in arguments
    with contextlib.ExitStack() as stack:
        client, accepted = stack.enter_context(connection())
        server = stack.enter_context(passed_connection(way, accepted, *arguments, everywhere=True))
        accepted.close()
        if wrong:
            assert receive_all(client) == b""
        else:
            assert exchange(client, b"one\ntwo\nthree") == b"one\ntwo\nthree"
        assert server.status() == (2 if wrong else 0)


def test_a_stop_drains_a_passed_connection(way):
    data = b"".join(lines(2000))
    with connection() as (client, accepted), passed_connection(way, accepted) as server:
        accepted.close()
        ask(client)
        sending = Running(client.sendall, data)
        sending.result()
        acknowledged(client)
        server.signal(signal.SIGTERM)
        assert receive_all(client) == data
        client.close()
        assert server.status() == 0


@pytest.mark.long
def test_a_passed_connection_has_the_idle_timeout(way):
    with connection() as (client, accepted), passed_connection(way, accepted, "--idle-timeout", "100ms") as server:
        accepted.close()
        assert receive_all(client) == b""
        assert server.status() == 0
        assert "idle timeout" in server.err.text


def test_a_connection_that_was_reset_before_the_start_ends_the_command(way):
    with connection() as (client, accepted):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with passed_connection(way, accepted) as server:
            accepted.close()
            assert server.status() == 0
            assert "Traceback" not in server.err.text


@pytest.mark.long
@pytest.mark.parametrize("what", ["/dev/null", "pipe", "unconnected"])
def test_a_stdin_that_is_no_connection_is_one_line_and_status_1(what):
    with contextlib.ExitStack() as stack:
        if what == "pipe":
            stdin = subprocess.PIPE
        elif what == "unconnected":
            stdin = stack.enter_context(socket.socket())
        else:
            stdin = stack.enter_context(open(what, "rb"))
        command = stack.enter_context(Command(MODULE, "--inetd", stdin=stdin))
        assert command.status() == 1
        words = "a listening or connected stream socket" if what == "unconnected" else "a socket"
        assert command.complaint().startswith(f"rioecho-server: stdin is not {words}")
        assert command.out.text == ""


@pytest.mark.long
@pytest.mark.parametrize("more", [["0"], ["--unix", "socket"]])
def test_a_connection_that_is_passed_in_is_served_alone(way, more, tmp_path):
    with connection() as (_, accepted), passed_connection(way, accepted, *more) as server:
        assert server.status() == 2
        assert server.complaint().startswith("rioecho-server: a connection was passed in, which is served alone")


@pytest.mark.long
def test_inetd_may_wait_with_a_listening_socket():
    with socket.create_server(("127.0.0.1", 0)) as listener, Command(MODULE, "--inetd", stdin=listener) as server:
        server.out.wait_for(f"Listening on 127.0.0.1:{listener.getsockname()[1]}\n")
        with dial(listener.getsockname()) as client:
            ask(client)
            server.drain(client)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed")
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="the sanitizer would be preloaded into it")
@pytest.mark.parametrize("inetd", [[], ["--inetd"]])
def test_systemd_passes_each_connection_with_accept_yes(tmp_path, inetd):
    path = str(tmp_path / "socket")
    environment = [f"--setenv={name}" for name in ("PYTHONPATH", "PATH") if name in os.environ]
    command = ["systemd-socket-activate", "--accept", *inetd, f"--listen={path}", *environment]
    command += [sys.executable, "-m", MODULE, *inetd]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        process.stderr.readline()  # Listening on ...
        try:
            for i in range(2):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(SECONDS)
                    client.connect(path)
                    data = binary(100_000, i)
                    assert exchange(client, data) == data
        finally:
            process.terminate()
            process.communicate(timeout=SECONDS)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("socat"), reason="socat is not installed")
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="other programs are not sanitized")
def test_socat_passes_each_connection_as_inetd_does(tmp_path):
    path = str(tmp_path / "socket")
    program = f"{sys.executable} -m {MODULE} --inetd -v"
    command = ["socat", f"UNIX-LISTEN:{path},fork", f'EXEC:"{program}",stderr']
    with subprocess.Popen(command) as process:
        try:
            for _ in range(2):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(SECONDS)
                    until(lambda: is_open(client, path), "socat")
                    ask(client, b"hello\n")
                    ask(client, b"again\n")
        finally:
            process.terminate()
            process.wait(SECONDS)


# ---- Type=notify


@pytest.fixture(params=["path", pytest.param("abstract", marks=needs_abstract_names)])
def manager(request, tmp_path):
    """A datagram socket of a service manager, and the value of NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@rioecho-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name if name[0] != "@" else "\0" + name[1:])
        sock.settimeout(SECONDS)
        yield sock, name


@pytest.mark.long
def test_the_service_manager_is_told_ready_and_stopping(manager, engine):
    sock, name = manager
    with Server("--engine", engine, environment={"NOTIFY_SOCKET": name}) as server, dial(server.address) as client:
        assert sock.recv(100) == b"READY=1"
        ask(client)
        server.signal(signal.SIGTERM)
        assert sock.recv(100) == b"STOPPING=1"  # while it drains
        assert server.process.poll() is None
        assert receive_all(client) == b""
        client.close()
        assert server.status() == 0
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(100)


@pytest.mark.long
@pytest.mark.parametrize("name", ["/no/such/socket", "relative", "@" + "x" * 200, "@"])
def test_a_service_manager_that_cannot_be_told_is_a_warning(name):
    with Server(environment={"NOTIFY_SOCKET": name}) as server, dial(server.address) as client:
        ask(client)
        server.drain(client)
        assert "Traceback" not in server.err.text
        assert "cannot notify the service manager" in server.err.text


def test_a_server_that_stops_before_it_is_ready_is_not_reported_as_ready(manager):
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.stopping()
    notifier.ready()
    notifier.stopping()
    assert sock.recv(100) == b"STOPPING=1"
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(100)


@pytest.mark.long
def test_a_server_that_cannot_start_tells_the_service_manager_nothing(manager):
    sock, name = manager
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Command(MODULE, port, environment={"NOTIFY_SOCKET": name}) as command:
            assert command.status() == 1
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(100)
