"""The command rioecho-server: its output, its usage errors, and the programs that can talk to it."""

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

import rioecho
from support.peers import SECONDS, Command, Server, ask, binary, dial, exchange, lines, receive, receive_all

MODULE = "rioecho.cli.server"


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def refused(*arguments, **options):
    """Return the exit status and the one line of a command that does not start, or all of its output."""
    with Command(MODULE, *arguments, **options) as command:
        status = command.status()
        assert command.out.text == ""
        return status, command.complaint()


@pytest.mark.long
def test_the_ready_line_names_both_loopback_addresses_and_one_port():
    with Server() as server:
        port = server.address[1]
        assert server.out.text == f"Listening on 127.0.0.1:{port}, [::1]:{port}\n"
        for address in server.addresses:
            with dial(address) as sock:
                ask(sock)
        server.signal(signal.SIGTERM)
        assert server.status() == 0
        assert server.out.text.count("\n") == 1


@pytest.mark.long
def test_the_ready_line_names_the_requested_hosts():
    with Server("--host", "::1", "--host", "127.0.0.1") as server:
        port = server.address[1]
        assert server.out.text == f"Listening on [::1]:{port}, 127.0.0.1:{port}\n"


@pytest.mark.long
def test_a_port_in_use_is_one_line_and_status_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, line = refused(port)
    assert status == 1
    assert line.startswith("rioecho-server: ")
    assert f"127.0.0.1 port {port}: {os.strerror(errno.EADDRINUSE)}" in line


@pytest.mark.long
def test_a_port_in_use_in_one_family_is_an_error():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        status, line = refused(port)
    assert status == 1
    assert f"::1 port {port}: {os.strerror(errno.EADDRINUSE)}" in line


def unprivileged():
    """Return a command prefix that drops root's permission for privileged ports; None if not needed."""
    with contextlib.suppress(FileNotFoundError), open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as start:
        if int(start.read()) <= 1:
            pytest.skip("no port is privileged")
    if os.geteuid() != 0:
        return None
    drop = ["setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-all", "--reuid=65534", "--clear-groups"]
    if (
        not shutil.which(drop[0])
        or subprocess.run([*drop, sys.executable, "-c", "import rioecho"], check=False).returncode
    ):
        pytest.skip("root may bind any port, and another user cannot run the command")
    return f'exec {" ".join(drop)} "$@"'


@pytest.mark.long
def test_a_privileged_port_is_one_line_and_status_1():
    status, line = refused(1, prelude=unprivileged())
    assert status == 1
    assert line.endswith("127.0.0.1 port 1: Permission denied; choose a port of 1024 or more")


@pytest.mark.long
def test_a_path_that_may_not_be_written_is_one_line_with_advice_for_paths(tmp_path):
    tmp_path.chmod(0o555)
    status, line = refused("0", "--unix", tmp_path / "socket", prelude=unprivileged())
    assert status == 1
    assert line.endswith("socket: Permission denied; choose a path in a directory that you can write to")


@pytest.mark.long
def test_an_unknown_host_is_one_line_and_status_1():
    status, line = refused("--host", "no-such-host.invalid", 0)
    assert status == 1
    assert "no-such-host.invalid" in line


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "PORT"),
        (("http",), "'http' is not a port"),
        (("65536",), "'65536' is not a port"),
        (("-1",), "-1"),
        (("1" * 5000,), "port"),
        (("0", "0"), "0"),
        (("0", "--engine", "magic"), "magic"),
        (("0", "--framing", "xml"), "xml"),
        (("0", "--backlog", "many"), "many"),
        (("0", "--backlog", "9" * 20), "backlog"),
        (("0", "--idle-timeout", "-1"), "-1"),
        (("0", "--idle-timeout", "nan"), "nan"),
        (("0", "--drain-timeout", "inf"), "inf"),
        (("0", "--max-line", "1.5"), "1.5"),
        (("0", "--max-line", "9" * 30), "max-line|max_line"),
        (("0", "--max-line", "-1k"), "'-1k' is not a size"),
        (("0", "--idle-timeout", "-.5s"), "'-.5s' is not a number of seconds"),
        (("-8000x",), "'-8000x' is not a port"),
        (("0", "-v", "-q"), "-q"),
        (("0", "--raw", "--framing", "line"), "--framing"),
        (("0", "--magic"), "--magic"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(arguments, words):
    status, line = refused(*arguments)
    assert status == 2
    assert line.startswith("rioecho-server: ")
    assert re.search(words, line)


def printed(*arguments):
    with Command(MODULE, *arguments) as command:
        assert command.status() == 0
        assert command.err.text == ""
        return command.out.text


@pytest.mark.long
def test_the_help_fits_a_terminal_of_24_lines():
    text = printed("--help")
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) < 24


@pytest.mark.long
def test_the_help_has_the_exit_statuses():
    assert "exit status: 0 stopped, 1 failed, 2 usage, 128+N" in printed("--help")


def test_the_help_explains_0():
    assert "0: never" in re.sub(r"\s+", " ", printed("--help"))


@pytest.mark.long
def test_the_version_is_the_package_version():
    assert printed("--version") == f"rioecho-server {rioecho.__version__}\n"


def talked_to(*arguments):
    """Return what a server logs about two lines of a client."""
    with Server(*arguments) as server:
        with dial(server.address) as sock:
            name = sock.getsockname()
            ask(sock, b"s3cret\n")
            ask(sock, b"s3cret, again\n")
        server.signal(signal.SIGTERM)
        assert server.status() == 0
        assert "s3cret" not in server.err.text + server.out.text
        return server.err.text, f"Connected to ({name[0]}, {name[1]})"


@pytest.mark.long
def test_connections_are_logged():
    text, connected = talked_to()
    assert text.count(connected + "\n") == 1
    assert "server received" not in text


@pytest.mark.long
def test_verbose_logs_the_length_of_every_line():
    text, connected = talked_to("-v")
    assert connected + "\n" in text
    assert text.count("server received 7 bytes\n") == 1
    assert text.count("server received 14 bytes\n") == 1


@pytest.mark.long
def test_quiet_logs_no_normal_events():
    assert talked_to("-q")[0] == ""


@pytest.mark.long
def test_a_line_typed_piecemeal_as_telnet_sends_it_is_echoed_whole():
    with Server() as server, dial(server.address) as sock:
        for piece in (b"h", b"el", b"lo", b"\r"):
            sock.sendall(piece)
        sock.sendall(b"\n")
        assert receive(sock, 7) == b"hello\r\n"
        sock.sendall(b"\xff\xf4\xff\xfd\x06\r\n")  # telnet's Ctrl-C, which the server does not interpret
        assert receive(sock, 7) == b"\xff\xf4\xff\xfd\x06\r\n"


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", [[], ["--raw"], ["--framing", "raw"], ["--engine", "iterative"]])
@pytest.mark.parametrize(
    "program",
    [
        pytest.param("nc -N {host} {port}", marks=needs("nc")),
        pytest.param("socat -t 30 - TCP:{host}:{port}", marks=needs("socat")),
    ],
)
def test_netcat_and_socat_get_their_bytes_back(program, options):
    data = b"".join(lines(20_000)) + binary(100_000)
    with Server("-q", *options) as server:
        for host, port in server.addresses:
            shown = f"[{host}]" if ":" in host and program.startswith("socat") else host
            words = program.format(host=shown, port=port).split()
            done = subprocess.run(words, input=data, capture_output=True, timeout=SECONDS, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout == data


@pytest.mark.long
def test_an_idle_client_is_closed_after_the_idle_timeout():
    with Server("--idle-timeout", "0.1") as server, dial(server.address) as sock:
        assert receive_all(sock) == b""
        server.err.wait_for("idle timeout")


@pytest.mark.long
def test_the_max_line_option_is_applied():
    with Server("--max-line", "10") as server, dial(server.address) as sock:
        ask(sock, b"0123456789")


@pytest.mark.slow
def test_a_log_that_nobody_reads_does_not_stop_the_server():
    with Server("-v", stderr=subprocess.DEVNULL) as server:  # for comparison
        assert chat(server) == 300
    reader, writer = os.pipe()
    try:
        with Server("-v", stderr=writer) as server:
            assert chat(server) == 300
            server.signal(signal.SIGTERM)
            assert server.status() == 0
    finally:
        os.close(reader)
        os.close(writer)


def chat(server):
    """Return how many of 300 clients with ten lines each are served."""
    data = b"one more line for the log\n" * 10
    done = 0
    with contextlib.suppress(AssertionError, TimeoutError):
        for _ in range(300):
            with dial(server.address) as sock:
                sock.sendall(data)
                receive(sock, len(data))
            done += 1
    return done


@pytest.mark.long
def test_a_log_that_cannot_be_written_does_not_stop_the_server():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with Server("-v", stderr=writer) as server:
            assert chat(server) == 300
            server.signal(signal.SIGTERM)
            assert server.status() == 0
    finally:
        os.close(writer)


def test_a_stdout_that_nobody_reads_is_one_line_and_status_1():
    reader, writer = os.pipe()
    os.close(reader)
    with Server(stdout=writer, ready=False) as server:
        os.close(writer)
        assert server.status() == 1
        assert "ready" in server.complaint()


@pytest.mark.long
def test_closed_standard_streams_do_no_harm(tmp_path):
    """The first files that it opens must not get their numbers and receive its output."""
    path = str(tmp_path / "socket")
    with Command(MODULE, "-q", "--unix", path, prelude="<&- >&- 2>/dev/null", stderr=None) as server:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:  # nothing reports that it is ready
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                assert exchange(sock, b"hello\n") == b"hello\n"
                break
            assert server.process.poll() is None
        server.signal(signal.SIGTERM)
        assert server.status() == 0


@pytest.mark.long
def test_a_log_line_has_one_time_and_one_level():
    logged, _ = talked_to("-v")
    line = next(line for line in logged.splitlines() if "Connected to" in line)
    assert re.fullmatch(r"\S+ \S+ INFO Connected to \(127\.0\.0\.1, \d+\)", line)
