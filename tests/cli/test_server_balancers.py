"""rioecho-server behind load balancers, and on systems with few resources."""

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from support.peers import SECONDS, Command, Server, ask, dial, reset
from support.procfs import until

MODULE = "rioecho.cli.server"
needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@contextlib.contextmanager
def haproxy(folder, port, options):
    """Run HAProxy in front of the server at ``port``; yield its address."""
    front = free_port()
    (folder / "haproxy.cfg").write_text(
        f"""\
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s
listen echo
    bind 127.0.0.1:{front}
    server echo 127.0.0.1:{port} {options}
"""
    )
    process = subprocess.Popen(["haproxy", "-db", "-q", "-f", folder / "haproxy.cfg"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(ConnectionError):
                socket.create_connection(("127.0.0.1", front), 1).close()
                break
            assert time.monotonic() < deadline
            assert process.poll() is None, "haproxy has ended"
        yield "127.0.0.1", front
    finally:
        process.terminate()
        process.wait(SECONDS)


@needs_haproxy
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["process", "thread", "event"])
@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn"])
def test_haproxy_passes_on_the_address_of_its_client(engine, version, tmp_path):
    with (
        Server("--engine", engine, "--proxy-protocol") as server,
        haproxy(tmp_path, server.address[1], version) as front,
        dial(front) as sock,
    ):
        ask(sock)
        ask(sock, b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n")
        server.err.wait_for(f"Connected to (127.0.0.1, {sock.getsockname()[1]})")


@needs_haproxy
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["process", "thread", "event"])
@pytest.mark.parametrize(
    "options", ["send-proxy-v2 check check-send-proxy inter 50ms", "send-proxy check check-send-proxy inter 50ms"]
)
def test_checks_of_haproxy_are_logged_at_debug_only_and_are_no_errors(engine, options, tmp_path):
    with Server("-v", "--engine", engine, "--proxy-protocol") as server:
        with haproxy(tmp_path, server.address[1], options):
            server.err.wait_for("DEBUG Connected to", 5)
        server.signal(signal.SIGTERM)
        assert server.status() == 0
        events = [line.split(maxsplit=2)[2] for line in server.err.text.splitlines()]
        assert not [event for event in events if event.startswith(("INFO Connected", "INFO Closed"))]
        assert "errors" not in server.err.text.splitlines()[-1]


@pytest.mark.long
@pytest.mark.parametrize("engine", ["iterative", "process", "thread", "event"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_connection_that_ends_before_its_first_byte_is_logged_at_debug_only(engine, how):
    with Server("--engine", engine) as server:
        for _ in range(5):
            sock = dial(server.address)
            if how == "reset":
                reset(sock)
            else:
                sock.close()
        with dial(server.address) as sock:
            ask(sock)
            name = sock.getsockname()[:2]
        server.err.wait_for("Closed")
        server.signal(signal.SIGTERM)
        assert server.status() == 0
        lines = [line.split(maxsplit=2)[2] for line in server.err.text.splitlines()]
        assert lines[0] == "INFO Connected to ({}, {})".format(*name)
        assert lines[1] == "INFO Closed ({}, {}): end of input, 15 bytes echoed".format(*name)
        assert lines[2].startswith("INFO Stopping: ")
        assert "errors" not in lines[3]


# ---- few resources

LIMITED = """if True:
    import resource, sys
    limit = int(sys.argv.pop(1))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    from rioecho.cli.server import main
    main()
"""


@pytest.mark.long
def test_fewer_descriptors_than_max_connections_are_reported_at_the_start():
    with Command(None, 100, 0, "--max-connections", 50, code=LIMITED) as server:
        server.out.wait_for("Listening")
        server.err.wait_for("WARNING 100 file descriptors are too few for max_connections (50): raise ulimit -n\n")
        assert server.err.text.count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize("limit", ["0", "30"])
def test_enough_descriptors_are_not_reported(limit):
    with Command(None, 100, 0, "--max-connections", limit, code=LIMITED) as server:
        server.out.wait_for("Listening")
        server.signal(signal.SIGTERM)
        assert server.status() == 0
        assert "WARNING" not in server.err.text


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is read from /proc")
def test_a_backlog_above_the_kernel_s_limit_is_reported_at_the_start():
    with open("/proc/sys/net/core/somaxconn") as file:
        limit = int(file.read())
    with Server("--backlog", limit + 1) as server:
        server.err.wait_for(f"WARNING the backlog is {limit}, the kernel's limit, not {limit + 1}: ")
    with Server("--backlog", limit) as server:
        server.signal(signal.SIGTERM)
        assert server.status() == 0
        assert "WARNING" not in server.err.text


NO_THREADS = """if True:
    import ctypes, errno, os, struct, sys

    # Return EAGAIN for clone3, and for clone where it would make a thread (CLONE_THREAD).
    clone, clone_thread, clone3 = int(sys.argv.pop(1)), 0x10000, 435
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in [
            (0x20, 0, 0, 0),
            (0x15, 3, 0, clone3),
            (0x15, 0, 3, clone),
            (0x20, 0, 0, 16),
            (0x45, 0, 1, clone_thread),
            (0x06, 0, 0, 0x50000 | errno.EAGAIN),
            (0x06, 0, 0, 0x7FFF0000),
        ]
    )
    code = ctypes.create_string_buffer(program, len(program))
    argument = ctypes.create_string_buffer(struct.pack("HP", 7, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, argument, 0, 0):
        sys.exit(f"no filter: {os.strerror(ctypes.get_errno())}")
    from rioecho.cli.server import main
    main()
"""
CLONE = {"x86_64": 56, "aarch64": 220}


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in CLONE, reason="seccomp")
@pytest.mark.parametrize("options", [[], ["--stats", "1"], ["--engine", "thread"], ["--engine", "process"], ["--udp"]])
def test_no_thread_at_all_is_one_line_and_status_1(options):
    with Command(None, CLONE[platform.machine()], 0, *options, code=NO_THREADS) as command:
        assert command.status() == 1
        assert command.out.text == ""
        assert "thread" in command.complaint()


FEW_THREADS = """if True:
    import resource, sys
    most = int(sys.argv.pop(1))
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    from rioecho.cli.server import main
    main()
"""
# The limit counts the threads of a real user ID, and does not apply to root's.
AS_ANOTHER = ["setpriv", "--ruid=54321", "--clear-groups", "--bounding-set=-sys_resource,-sys_admin"]
LIMITING = (
    f"import os, sys; os.execvp('setpriv', [*{AS_ANOTHER}, sys.executable, '-c', {FEW_THREADS!r}, *sys.argv[1:]])"
)


def is_limited():
    """Report whether RLIMIT_NPROC can be made to apply here."""
    code = "import resource, _thread; resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)); "
    code += "_thread.start_new_thread(print, ())"
    with contextlib.suppress(OSError):
        run = subprocess.run([*AS_ANOTHER, sys.executable, "-c", code], capture_output=True, check=False)
        return b"start new thread" in run.stderr
    return False


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="LeakSanitizer needs a process at the exit")
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NPROC counts threads on Linux")
@pytest.mark.parametrize("options", [[], ["--workers", "2"], ["--stats", "1"], ["--engine", "thread"], ["--udp"]])
def test_too_few_threads_are_one_line_and_status_1(options):
    if not is_limited():
        pytest.skip("needs root and setpriv")
    started = False
    for most in range(1, 9):
        with Command(None, most, 0, *options, code=LIMITING) as command:
            until(lambda: command.out.data or command.process.poll() is not None, "the command to start or to end")
            if command.out.data:
                started = True
                command.signal(signal.SIGTERM)
                assert command.status() == 0
                break
            assert command.status() == 1
            assert "thread" in next(line for line in command.err.text.splitlines() if "INFO" not in line)
            assert "Traceback" not in command.err.text
            assert command.err.text.count("rioecho-server: ") == 1
    assert started
