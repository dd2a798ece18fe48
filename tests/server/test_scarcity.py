"""rioecho-server without enough memory, descriptors or processes, and the costs of its clients.

RIOECHO_SOAK=1 opens 10,000 idle connections.
"""

import contextlib
import errno
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from support.peers import SECONDS, Server, ask, assert_waits, dial, fill, receive
from support.procfs import children, memory, needs_proc

FULL = "RIOECHO_SOAK" in os.environ


def ends(sock):
    """Wait until the server has closed the connection."""
    poller = select.poll()
    poller.register(sock, getattr(select, "POLLRDHUP", 0))  # POLLHUP and POLLERR are always reported; input is ignored
    assert poller.poll(SECONDS * 1000), "timed out waiting for the close"


# ---- memory


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("framing", ["line", "raw"])
@pytest.mark.parametrize("engine", ["iterative", "process", "thread", "event"])
def test_clients_that_only_send_use_little_memory_and_are_closed_as_idle(engine, framing):
    n = 1 if engine == "iterative" else 3
    options = ["--engine", engine, "--framing", framing, "--idle-timeout", "1", "--max-line", "65536"]
    with Server("-q", *options) as server, contextlib.ExitStack() as stack:
        with dial(server.address) as sock:
            ask(sock)
        before = memory(server.pid, "VmHWM")
        deaf = [stack.enter_context(dial(server.address)) for _ in range(n)]
        for sock in deaf:
            sock.sendall(b"x" * 65_535)  # an incomplete line, which the server holds
        for sock in deaf:
            sock.sendall(b"\n")
        fill(deaf[-1])
        if engine != "iterative":
            with dial(server.address) as sock:
                ask(sock)
        for child in children(server.pid):
            assert memory(child, "VmHWM") - before < 2 << 20
        assert memory(server.pid, "VmHWM") - before < n * (1 << 19)
        for sock in deaf:
            ends(sock)
        with dial(server.address) as sock:
            ask(sock)
        server.signal(signal.SIGTERM)
        assert server.status() == 0
        assert server.err.text == ""


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("workers", [1, 2])
def test_an_idle_connection_costs_less_than_a_kibibyte(workers):
    n = 9_500 if FULL else 2_000
    with Server("-q", "--workers", workers, "--idle-timeout", "0") as server, contextlib.ExitStack() as stack:
        clients = []

        def come(count):
            for _ in range(count):
                clients.append(stack.enter_context(dial(server.addresses[len(clients) % 2])))
                ask(clients[-1], b"hello, and now I have nothing more to say\n" * 20)

        come(200)
        before = memory(server.pid)
        come(n)
        each = (memory(server.pid) - before) / n
        assert each < 1024
        for sock in clients[::500]:
            ask(sock)


# ---- descriptors


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["process", "thread", "event"])
def test_without_descriptors_clients_wait_until_others_disconnect(engine):
    server = Server("--engine", engine, "--host", "127.0.0.1", prelude="ulimit -n 64")
    with server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.address)) for _ in range(200)]
        for i, sock in enumerate(clients):
            sock.sendall(b"%03d\n" % i)
        server.err.wait_for("accepting pauses")
        assert_waits(server.pid, clients[-50:])
        assert 10 < len(select.select(clients, [], [], 0)[0]) < 64
        ask(clients[0], receive(clients[0], 4) + b"who is in stays in\n")
        for i, sock in enumerate(clients):
            if i:
                assert receive(sock, 4) == b"%03d\n" % i
            sock.close()
        for _ in range(100):
            with dial(server.address) as sock:
                ask(sock)
        server.signal(signal.SIGTERM)
        assert server.status() == 0
        assert server.err.text.count("accepting pauses") == 1
        assert os.strerror(errno.EMFILE) in server.err.text
        assert "refused" not in server.err.text
        assert "Traceback" not in server.err.text


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("engine", ["process", "thread", "event"])
def test_without_descriptors_waiting_clients_are_served_after_sigterm(engine):
    server = Server("-q", "--engine", engine, "--host", "127.0.0.1", "--drain-timeout", SECONDS, prelude="ulimit -n 64")
    with server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.address)) for _ in range(150)]
        for i, sock in enumerate(clients):
            sock.sendall(b"%03d\n" % i)
        server.err.wait_for("accepting pauses")
        start = time.monotonic()
        server.signal(signal.SIGTERM)
        for i, sock in enumerate(clients):
            assert receive(sock, 4) == b"%03d\n" % i
            assert sock.recv(1) == b""
            sock.close()
        assert server.status() == 0
        assert time.monotonic() - start < SECONDS / 2
        assert "Traceback" not in server.err.text


# ---- processes and threads

#: A user ID that is probably unused: the limit counts the processes of one user, also those of another test run.
NOBODY = 61_200 + os.getpid() % 4000


def few_processes(n):
    """Return a command prefix that limits the command to n processes and threads as a user of its own."""
    drop = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "--inh-caps=-all", "--"]
    if os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("prlimit"):
        pytest.skip("needs root, setpriv and prlimit")
    done = subprocess.run([*drop, sys.executable, "-c", "import rioecho.server"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("another user cannot run the command")
    return f'exec prlimit --nproc={n}:{n} {" ".join(drop)} "$@"'


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["process", "thread"])
def test_without_processes_clients_wait_until_others_disconnect(engine):
    with Server("--engine", engine, "--host", "127.0.0.1", prelude=few_processes(30)) as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(dial(server.address)) for _ in range(80)]
            for i, sock in enumerate(clients):
                sock.sendall(b"%03d\n" % i)
            server.err.wait_for("accepting pauses")
            assert_waits(server.pid, clients[40:])
            for i, sock in enumerate(clients):
                assert receive(sock, 4) == b"%03d\n" % i
                sock.close()
        for _ in range(50):
            with dial(server.address) as sock:
                ask(sock)
        server.signal(signal.SIGTERM)
        assert server.status() == 0
        assert server.err.text.count("accepting pauses") == 1
        assert "refused" not in server.err.text
        assert "Traceback" not in server.err.text


@pytest.mark.long
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("engine", ["process", "event"])
def test_without_threads_the_command_prints_one_line_and_exits_with_1(engine, n):
    with Server("--engine", engine, prelude=few_processes(n), ready=False) as server:
        assert server.status() == 1
        assert server.complaint() == "rioecho-server: can't start new thread"
        assert server.out.text == ""


# ---- failing allocations


@pytest.fixture
def many_descriptors():
    """Raise the descriptor limit of this process to its maximum; return it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = before[1] if before[1] != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 1 << 20), before[1]))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["thread", "event"])
def test_the_server_keeps_serving_in_an_address_space_too_small_for_all_clients(engine, many_descriptors):
    """9,000 partial lines in 148 MB: connections without memory wait or are closed, and the server keeps serving."""
    n = 9000
    if many_descriptors < n + 100:
        pytest.skip("the descriptor limit is too low")
    if os.environ.get("RIOECHO_BUILD") == "sanitize":
        pytest.skip("AddressSanitizer needs the address space")
    options = ["-q", "--engine", engine, "--host", "127.0.0.1", "--drain-timeout", "2"]
    with Server(*options, prelude='exec prlimit --as=148000000 --stack=262144 "$@"') as server:
        with contextlib.ExitStack() as stack:
            for _ in range(n):
                sock = stack.enter_context(socket.socket())
                sock.settimeout(1)
                try:
                    sock.connect(server.address)
                    sock.sendall(b"x" * 500)
                except TimeoutError:  # the listen queue is full: accepting pauses
                    break
                except ConnectionError:
                    continue
            assert server.process.poll() is None
        for _ in range(5):
            with dial(server.address) as sock:
                ask(sock)
        start = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.status() == 0
        assert time.monotonic() - start < SECONDS / 3
        assert "Traceback" not in server.err.text
        assert server.err.text.count("\n") <= 2  # accepting pauses; refused a connection
