"""All listening sockets of a server together, and those that systemd passes.

For TCP alone see test_addresses.py, for unix sockets test_unix_listener.py.
"""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys

import pytest

from rioecho._server.listeners import Listeners, listen_sockets, passed_sockets
from support.peers import SECONDS
from support.unix_sockets import answers, bound, needs_abstract_names


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


# ---- sockets passed by systemd

LAUNCHER = """\
import fcntl, os, sys
count, code, pid = sys.argv[1:4]
fds = [int(fd) for fd in sys.argv[4:]]
# First to numbers that do not overlap.
aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]
for fd in set(fds):
    os.close(fd)
for i, fd in enumerate(aside):
    os.dup2(fd, 3 + i)
os.environ.update(LISTEN_PID=pid or str(os.getpid()), LISTEN_FDS=count, LISTEN_FDNAMES="a:b")
os.execv(sys.executable, [sys.executable, "-X", "faulthandler", "-W", "error", "-c", code])
"""

PRELUDE = """\
import os, socket, sys
from rioecho._server.listeners import Listeners, passed_sockets
"""

COMPLAIN = """\
try:
    passed_sockets()
except (OSError, ValueError) as error:
    print(type(error).__name__, getattr(error, "errno", None), getattr(error, "strerror", None) or error)
"""


def passed_to(code, *sockets, count=None, pid=""):
    """Pass sockets to a child as systemd does; return the lines that it prints."""
    fds = [sock if isinstance(sock, int) else sock.fileno() for sock in sockets]
    count = len(fds) if count is None else count
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(count), PRELUDE + code, pid, *map(str, fds)],
        pass_fds=fds,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def tcp():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.fixture
def unix_socket(path):
    with bound(path) as sock:
        sock.listen()
        yield sock


def test_passed_sockets_are_returned_in_order(tcp, unix_socket, udp):
    assert passed_to(
        """
        for sock in passed_sockets():
            print(sock.fileno(), sock.type.name, sock.getsockname(), sock.get_inheritable(), sock.getblocking())
        print(passed_sockets(), *[name for name in os.environ if name.startswith("LISTEN_")])
        """.replace("\n        ", "\n"),
        tcp,
        unix_socket,
        udp,
    ) == [
        f"3 SOCK_STREAM {tcp.getsockname()} False False",
        f"4 SOCK_STREAM {unix_socket.getsockname()} False False",
        f"5 SOCK_DGRAM {udp.getsockname()} False False",
        "[]",
    ]


def test_without_passed_sockets_the_list_is_empty():
    assert passed_to("print(passed_sockets())") == ["[]"]


def test_sockets_passed_to_another_process_are_left_alone_and_the_variables_removed(tcp):
    code = "print(passed_sockets(), os.get_inheritable(3), 'LISTEN_FDS' in os.environ)"
    assert passed_to(code, tcp, pid="1") == ["[] True False"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
        {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "many"},
    ],
)
def test_no_socket_is_passed_without_both_variables_and_this_process_id(environ):
    environ |= {"HOME": "/", "LISTEN_FDNAMES": "a", "LISTEN_PIDFDID": "5"}
    assert passed_sockets(environ) == []
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize("value", ["", "many", "-1", "+1", " 1", "1_0", "1.0", "\N{SUPERSCRIPT TWO}", "9" * 5000])
@pytest.mark.parametrize("name", ["LISTEN_PID", "LISTEN_FDS"])
def test_a_variable_that_is_not_a_number_is_a_value_error(name, value):
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", name: value}
    with pytest.raises(ValueError, match="not a number") as caught:
        passed_sockets(environ)
    assert str(caught.value) == f"{name}: not a number of at most 9 digits: {value!r}"
    assert environ == {}


def connected():
    """Return a connected socket, as systemd passes with Accept=yes."""
    near, far = socket.socketpair()
    far.close()
    return near


AFTER = (
    "print(*[fd for fd in range(3, 6) if os.path.exists(f'/dev/fd/{fd}')], *[n for n in os.environ if 'LISTEN' in n])"
)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("make", "number", "words"),
    [
        (lambda: os.open("/dev/null", os.O_RDONLY), errno.ENOTSOCK, "a socket"),
        (lambda: socket.socket(), errno.EINVAL, "a listening stream socket"),
        (connected, errno.EINVAL, "a listening stream socket"),
        (
            lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
            errno.EOPNOTSUPP,
            "a listening stream socket",
        ),
        pytest.param(
            lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM),
            errno.EAFNOSUPPORT,
            "a TCP, UDP or unix socket",
            marks=pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="netlink is Linux only"),
        ),
    ],
    ids=["file", "unbound", "connected", "seqpacket", "netlink"],
)
def test_an_unsuitable_descriptor_is_an_error_that_names_it(tcp, make, number, words):
    wrong = make()
    try:
        lines = passed_to(COMPLAIN + AFTER, tcp, wrong, tcp)
    finally:
        os.close(wrong) if isinstance(wrong, int) else wrong.close()
    assert lines == [f"OSError {number} LISTEN_FDS: descriptor 4 is not {words}", "4 5"]


@pytest.mark.parametrize("count", [2, 999_999_999])
def test_a_descriptor_that_is_not_open_is_an_error_that_names_it(tcp, count):
    assert passed_to(COMPLAIN + AFTER, tcp, count=count) == [
        f"OSError {errno.EBADF} LISTEN_FDS: descriptor 4 is not open",
        "",
    ]


def test_a_malformed_count_is_an_error_and_no_socket_is_taken_over(tcp):
    assert passed_to(COMPLAIN + AFTER, tcp, count="one") == [
        "ValueError None LISTEN_FDS: not a number of at most 9 digits: 'one'",
        "3",
    ]


def test_a_socket_is_assumed_to_listen_if_the_system_cannot_tell():
    with socket.socket() as sock:
        code = "if hasattr(socket, 'SO_ACCEPTCONN'): del socket.SO_ACCEPTCONN\nprint(len(passed_sockets()))"
        assert passed_to(code, sock) == ["1"]


def test_a_shell_can_pass_a_socket(tcp):
    code = PRELUDE + "print(passed_sockets()[0].getsockname()[1])"
    script = 'exec 3<&0; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
    command = ["/bin/sh", "-c", script, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, stdin=tcp, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.stdout == f"{tcp.getsockname()[1]}\n", done.stderr


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed")
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="the sanitizer would be preloaded into it")
def test_sockets_passed_by_systemd_are_served(path):
    code = PRELUDE + "\n".join(
        [
            "listeners = Listeners(passed=passed_sockets())",
            "sock = listeners.sockets[0].accept()[0]",
            "sock.sendall(repr(listeners.addresses).encode())",
            "listeners.close()",
        ]
    )
    environment = [f"--setenv={name}" for name in ("PYTHONPATH", "PATH") if name in os.environ]
    command = ["systemd-socket-activate", f"--listen={path}", *environment, sys.executable, "-c", code]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        process.stderr.readline()  # Listening on ...
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SECONDS)
            client.connect(path)
            answer = b""
            with contextlib.suppress(ConnectionResetError):  # of a child that has failed: what it says tells more
                answer = client.recv(1000)
        assert process.wait(SECONDS) == 0, process.stderr.read()
    assert answer.decode() == repr([path])
    assert os.path.lexists(path)


# ---- all listeners together


def nonblocking(sock):
    return sock.gettimeout() == 0 and not os.get_blocking(sock.fileno())


def test_listeners_are_tcp_unix_and_passed_sockets_in_this_order(path, tmp_path, udp):
    with bound(str(tmp_path / "passed")) as passed, socket.create_server(("127.0.0.1", 0)) as passed_tcp:
        passed.listen()
        taken = [each.dup() for each in (passed, udp, passed_tcp)]
        listeners = Listeners(["127.0.0.1"], 0, paths=[path, tmp_path / "other"], passed=taken)
        with contextlib.closing(listeners):
            assert listeners.addresses == [
                listeners.sockets[0].getsockname(),
                path,
                str(tmp_path / "other"),
                str(tmp_path / "passed"),
                passed_tcp.getsockname(),
            ]
            assert listeners.sockets[3:] == [taken[0], taken[2]]
            assert listeners.datagrams == [taken[1]]
            assert all(map(nonblocking, [*listeners.sockets, *listeners.datagrams]))
            for sock, address in zip(listeners.sockets[1:3], listeners.addresses[1:3], strict=True):
                assert answers(address, sock)
        assert {sock.fileno() for sock in [*listeners.sockets, *taken]} == {-1}
        assert os.listdir(tmp_path) == ["passed"]
        assert answers(str(tmp_path / "passed"), passed)
        listeners.close()


def test_listeners_may_be_empty():
    listeners = Listeners()
    assert (listeners.sockets, listeners.addresses, listeners.datagrams) == ([], [], [])
    listeners.close()


def test_an_ipv6_address_is_a_pair():
    with contextlib.closing(Listeners(["localhost"])) as listeners:
        assert {len(address) for address in listeners.addresses} == {2}
        assert len({port for _, port in listeners.addresses}) == 1


@needs_abstract_names
def test_the_abstract_name_of_a_passed_socket_is_a_str():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("")  # the kernel chooses a name
        sock.listen()
        with contextlib.closing(Listeners(passed=[sock.dup()])) as listeners:
            assert listeners.addresses == [os.fsdecode(sock.getsockname())]


@pytest.mark.parametrize(
    "options", [{"paths": ["ours", "missing/socket"]}, {"paths": ["ours", "ours"]}, {"port": -1}, {"paths": 5}]
)
def test_after_an_error_no_file_is_left_and_only_the_passed_sockets_are_open(tmp_path, monkeypatch, tcp, udp, options):
    monkeypatch.chdir(tmp_path)
    passed = [tcp, udp]
    before = set(os.listdir("/dev/fd"))
    with pytest.raises((OSError, ValueError, TypeError)):
        Listeners(["127.0.0.1"], **options, passed=passed)
    assert set(os.listdir("/dev/fd")) == before
    assert [sock.getblocking() for sock in passed] == [True, True]
    assert os.listdir(tmp_path) == []


FORK = """\
import os, socket, sys, threading
from rioecho._server.listeners import Listeners
path = sys.argv[1]
listeners = Listeners(paths=[path])
{before}
pid = os.fork()
if pid == 0:
    listeners.close()
    os._exit(0 if listeners.sockets[0].fileno() == -1 and os.path.lexists(path) else 1)
print(os.waitpid(pid, 0)[1])
{after}
with socket.socket(socket.AF_UNIX) as client:
    client.connect(path)
    listeners.sockets[0].accept()
listeners.close()
print(os.path.lexists(path))
"""


def test_a_forked_child_closes_its_descriptors_and_leaves_the_files(path, child):
    assert child(FORK.format(before="", after=""), path) == "0\nFalse\n"


def test_a_child_forked_while_another_thread_closes_does_not_block(path, child):
    before = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # about fork() with threads, which is what this tests
held, go_on = threading.Event(), threading.Event()

def hold():
    with listeners._unix[0]._lock:
        held.set()
        go_on.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
"""
    assert child(FORK.format(before=before, after="go_on.set(); thread.join()"), path) == "0\nFalse\n"


def test_listen_sockets_returns_blocking_sockets_on_one_port():
    sockets = listen_sockets(["localhost"], 0)
    assert {sock.gettimeout() for sock in sockets} == {None}
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    for sock in sockets:
        sock.close()
