"""rioecho-server --host and --unix: all addresses, link-local ones, abstract names and the mode of a socket file."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from support.peers import SECONDS, Command, Server, ask, dial, needs_ipv6, receive_all
from support.unix_sockets import needs_abstract_names

MODULE = "rioecho.cli.server"


def refused(*arguments, **options):
    """Return the exit status and the one line of a command that does not start."""
    with Command(MODULE, *arguments, **options) as command:
        status = command.status()
        assert command.out.text == ""
        return status, command.complaint()


def serves(address):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(SECONDS)
        sock.connect(address)
        ask(sock)
    return True


# ---- TCP


@needs_ipv6
def test_an_asterisk_is_every_address_of_both_families():
    with Server("--host", "*") as server:
        port = server.address[1]
        assert server.out.text == f"Listening on 0.0.0.0:{port}, [::]:{port}\n"
        for host in ("127.0.0.1", "::1"):
            with dial((host, port)) as sock:
                ask(sock)


@pytest.mark.long
@needs_ipv6
def test_two_colons_are_every_ipv6_address_and_no_ipv4_one():
    with Server("--host", "::") as server:
        port = server.address[1]
        assert server.out.text == f"Listening on [::]:{port}\n"
        with dial(("::1", port)) as sock:
            ask(sock)
        with pytest.raises(ConnectionRefusedError):
            dial(("127.0.0.1", port))


LINK_LOCAL = """if True:
    import contextlib, re, socket, subprocess, sys

    @contextlib.contextmanager
    def kept(server):
        try:
            yield
        except BaseException:
            server.kill()
            raise

    command = [sys.executable, "-W", "error", "-m", "rioecho.cli.server", "0", "--udp", "--host", "fe80::1234%echo0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as server, kept(server):
        ready = server.stdout.readline()
        print(re.sub("[0-9]+$", "PORT", ready.strip()))
        port = int(ready.rpartition(":")[2])
        with socket.create_connection(("fe80::1234%echo0", port), 20) as client:
            to = socket.getnameinfo(client.getpeername(), 3)[0]
            client.sendall(b"over TCP")
            client.shutdown(socket.SHUT_WR)
            print(client.recv(100).decode(), "to", to)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.settimeout(20)
            client.connect(socket.getaddrinfo("fe80::1234%echo0", port)[0][4])
            client.send(b"over UDP")
            print(client.recv(100).decode())
        server.terminate()
        log = server.stderr.read()
        print(*re.findall("Connected to .*,", log), server.wait())

    from rioecho import EchoServer, connect
    with EchoServer(host="fe80::1234%echo0") as server, connect(*server.addresses[0], timeout=20) as rio:
        rio.writen(b"in Python\\n")
        print(rio.readline().decode().strip())
"""


@pytest.mark.long
@needs_ipv6
@pytest.mark.skipif(sys.platform != "linux", reason="what other systems make of it is their own")
def test_a_link_local_address_without_its_interface_is_explained():
    status, line = refused("0", "--host", "fe80::1234")
    assert status == 1
    assert line.startswith("rioecho-server: cannot listen on fe80::1234 port 0: ")
    assert "interface" in line


# The kernel sets up an address in the background, when nobody else changes interfaces: until then packets for it are
# sent to the other end of the link, where nobody answers.
INTERFACE = """
    ip link set lo up && ip link add echo0 type veth peer name echo1 || exit 77
    ip link set echo0 addrgenmode none up && ip link set echo1 addrgenmode none up || exit 77
    ip addr add fe80::1234/64 dev echo0 nodad || exit 77
    for i in $(seq 1000); do
        ip -6 route get fe80::1234 oif echo0 | grep -q "^local.*table local" && exec "$@"
        sleep 0.01
    done
    echo "the address is not ready" >&2
    exit 1
"""


@pytest.mark.long
@pytest.mark.skipif(shutil.which("unshare") is None or shutil.which("ip") is None, reason="needs unshare and ip")
def test_the_interface_of_a_link_local_address_is_kept():
    """In a network namespace with an interface of its own."""
    options = ["-n"] if os.geteuid() == 0 else ["-r", "-n"]
    done = subprocess.run(
        ["unshare", *options, "sh", "-c", INTERFACE, "sh", sys.executable, "-c", LINK_LOCAL],
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"no network namespace: {done.stderr.strip()}")
    assert (done.stdout.splitlines(), done.stderr) == (
        [
            "Listening on [fe80::1234%echo0]:PORT",
            "over TCP to fe80::1234%echo0",
            "over UDP",
            "Connected to (fe80::1234%echo0, 0",
            "in Python",
        ],
        "",
    )


# ---- unix sockets


@pytest.mark.long
@needs_abstract_names
def test_an_abstract_name_is_listened_on_and_shown_with_an_at_sign():
    name = f"@rioecho-test-{os.getpid()}"
    with Command(MODULE, "--unix", name) as server:
        server.out.wait_for(f"Listening on {name}\n")
        assert serves("\0" + name[1:])
        status, line = refused("--unix", name)
        assert status == 1
        assert line.startswith(f"rioecho-server: cannot listen on {name}: Address already in use")
        server.signal(signal.SIGTERM)
        assert server.status() == 0


@needs_abstract_names
def test_an_abstract_name_accepts_no_client_after_the_stop():
    name = f"@rioecho-test-{os.getpid()}"
    with Command(MODULE, "--unix", name) as server, socket.socket(socket.AF_UNIX) as client:
        server.out.wait_for("\n")
        client.settimeout(SECONDS)
        client.connect("\0" + name[1:])
        ask(client)
        server.signal(signal.SIGTERM)
        assert receive_all(client) == b""
        deadline = time.monotonic() + SECONDS
        with pytest.raises(ConnectionRefusedError):
            while time.monotonic() < deadline:  # the client may hear of the stop before the listener
                with socket.socket(socket.AF_UNIX) as late:
                    late.connect("\0" + name[1:])
        assert server.process.poll() is None
        client.close()
        assert server.status() == 0


def test_a_file_may_have_a_name_with_an_at_sign(tmp_path):
    with Command(MODULE, "--unix", "./@echo", cwd=tmp_path) as server:
        server.out.wait_for("Listening on ./@echo\n")
        assert serves(str(tmp_path / "@echo"))


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("777", 0o777), ("0", 0)])
def test_the_mode_of_a_socket_file_is_set_whatever_the_umask(tmp_path, umask, text, mode):
    path = str(tmp_path / "socket")
    with Command(MODULE, "--unix", path, "--unix-mode", text, umask=umask) as server:
        server.out.wait_for("\n")
        assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_without_a_mode_the_umask_decides(tmp_path):
    path = str(tmp_path / "socket")
    with Command(MODULE, "--unix", path, umask=0o027) as server:
        server.out.wait_for("\n")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o750


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--unix", "@"], "'@' is not the path or the @NAME of a unix socket"),
        (["--unix", ""], "'' is not the path"),
        (["0", "--unix-mode", "0660"], "--unix-mode needs --unix PATH"),
        (["--unix", "x", "--unix-mode", "0888"], "'0888' is not a mode"),
        pytest.param(["--unix", "@x", "--unix-mode", "0600"], "no file and no mode", marks=needs_abstract_names),
        (["--host", "127.0.0.1"], "give a PORT"),
        (["0", "--idle-timeout", "5 s"], "'5 s' is not a number of seconds"),
        (["0", "--idle-timeout", "64k"], "'64k' is not a number of seconds"),
        (["0", "--max-memory", "30s"], "'30s' is not a size"),
        (["0", "--max-connections", "10k"], "'10k' is not a whole number"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(tmp_path, arguments, words):
    status, line = refused(*arguments, cwd=tmp_path)
    assert status == 2
    assert words in line
    assert os.listdir(tmp_path) == []


@pytest.mark.long
def test_times_and_sizes_take_units():
    with Server("--max-line", "1k", "--idle-timeout", "300ms", "--max-memory", "1M", "--drain-timeout", "1m") as server:
        with dial(server.address) as sock:
            ask(sock, b"x" * 1024)  # as long as a line may be: it is echoed without a newline
            sock.sendall(b"y" * 1023)
            assert receive_all(sock) == b""
        server.err.wait_for("idle timeout, 1024 bytes echoed")
