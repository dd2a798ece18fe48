"""A server process that is suspended, forked, or lacks a resource."""

import errno
import os
import signal
import time

import pytest

from support.peers import Server, ask, dial, receive
from support.pollers import each_poller
from support.procfs import until

ENGINES = ("iterative", "process", "thread", "event")


@pytest.mark.slow
@each_poller
def test_a_suspended_server_does_not_close_its_clients_as_idle(poller):
    """There are more clients than one wait reports: the loop checks for input before it closes any."""
    with Server("-q", "--idle-timeout", "3", environment={"RIOECHO_POLLER": poller}) as server:
        socks = [dial(server.address) for _ in range(300)]
        try:
            for sock in socks:
                ask(sock)
            server.signal(signal.SIGSTOP)
            for sock in socks:
                sock.sendall(b"while you slept\n")
            time.sleep(3.1)  # the time itself is tested: the idle timeout passes
            server.signal(signal.SIGCONT)
            for sock in socks:
                assert receive(sock, 16) == b"while you slept\n"
        finally:
            for sock in socks:
                sock.close()


FORKED = """if True:
    import os, socket, sys
    from rioecho import EchoServer
    server = EchoServer(engine=sys.argv[1])
    server.start()
    with socket.create_connection(server.addresses[0], timeout=30) as sock:
        sock.sendall(b"before\\n")
        assert sock.recv(100) == b"before\\n"
        pid = os.fork()
        if pid == 0:
            server.stop()
            server.close()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        sock.sendall(b"after\\n")
        assert sock.recv(100) == b"after\\n"
    with socket.create_connection(server.addresses[0], timeout=30) as sock:
        sock.sendall(b"another\\n")
        assert sock.recv(100) == b"another\\n"
    server.close()
    stats = server.stats()
    print(stats["accepted"], stats["closed"], stats["bytes_in"], stats["bytes_out"])
"""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_forked_child_that_closes_its_copy_leaves_the_server_alone(child, engine):
    code = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"  # fork() with threads
    code += FORKED
    assert child(code, engine).split() == ["2", "2", "21", "21"]


@pytest.mark.long
def test_a_server_whose_engine_cannot_start_prints_no_ready_line():
    with Server("--workers", "50", prelude="ulimit -n 40", ready=False) as server:
        assert server.status() == 1
        assert server.out.text == ""
        assert server.complaint() == f"rioecho-server: {os.strerror(errno.EMFILE)}"


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_counts_are_consistent_with_each_other(engine):
    """One client at a time connects and disconnects, so stats() must never report more than one."""
    with Server(
        "-q", "--engine", engine, "--max-connections", "1", "--stats", "0.01", "--log-format", "json"
    ) as server:
        for _ in range(50):
            with dial(server.address) as sock:
                ask(sock)
        until(lambda: '"accepted": 50' in server.err.text)
        server.signal(signal.SIGTERM)
        assert server.status() == 0
    assert '"active": 2' not in server.err.text
    assert '"active": -' not in server.err.text
