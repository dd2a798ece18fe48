"""Faults that come from the program around a server: log handlers that raise, descriptors that others close, limits."""

import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time

import pytest

from rioecho._server.accepted import AcceptCounts, accept
from rioecho._server.udp import UdpEcho
from rioecho.server import EchoServer
from support.handlers import Life, serve
from support.peers import SECONDS, Running, Server, ask, dial, processor_seconds, receive_all
from support.procfs import until

ENGINES = ["iterative", "process", "thread", "event"]
log = logging.getLogger("rioecho.server")


class Raises(logging.Handler):
    """Raises the same error for each record."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.records = 0

    def emit(self, record):
        self.records += 1
        raise self.error


@contextlib.contextmanager
def handled_by(handler):
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


errors = pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(3), pytest.fail.Exception("no")], ids=repr)


@errors
@pytest.mark.parametrize("engine", ENGINES)
def test_no_error_of_a_log_handler_ends_the_server_or_a_connection(engine, error):
    with handled_by(Raises(error)) as handler, EchoServer(engine=engine) as server:
        for n in range(1, 4):
            with dial(server.addresses[0]) as sock:
                ask(sock)
                ask(sock)
            until(lambda n=n: server.stats()["closed"] == n)
        server.stop()
        server.wait()
        assert server.stats()["errors"] == 0
    assert handler.records


@errors
def test_no_error_of_a_log_handler_ends_the_echo_of_datagrams(error):
    with handled_by(Raises(error)) as handler, EchoServer(0, "127.0.0.1", udp=True) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(SECONDS)
            sock.connect(server.addresses[0])
            server._udp._drop(("192.0.2.1", 7), "guard", "a test")
            sock.send(b"hello")
            assert sock.recv(100) == b"hello"
        server.stop()
        server.wait()
    assert handler.records


@pytest.mark.long
@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no"), RuntimeError("no")], ids=repr)
def test_an_error_that_passes_pauses_the_echo_of_datagrams(error):
    """Only a broken socket ends it."""

    class Scarce:
        """A socket that fails the first time."""

        def __init__(self, sock):
            self.sock, self.errors = sock, [error, error]

        def __getattr__(self, name):
            return getattr(self.sock, name)

        def sendto(self, *arguments):
            if self.errors and not isinstance(error, OSError):
                raise self.errors.pop()
            return self.sock.sendto(*arguments)

        def recvmsg_into(self, *arguments):
            if self.errors and isinstance(error, OSError):
                raise self.errors.pop()
            return self.sock.recvmsg_into(*arguments)

    ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    stop, stopper = socket.socketpair()
    with ours, theirs, stop, stopper:
        ours.bind(("127.0.0.1", 0))
        theirs.settimeout(0.1)
        theirs.connect(ours.getsockname())
        echo = UdpEcho([Scarce(ours)], stop_fd=stop.fileno())
        running = Running(echo.run)
        deadline = time.monotonic() + SECONDS
        while True:
            assert time.monotonic() < deadline
            theirs.send(b"x")
            with contextlib.suppress(TimeoutError):
                assert theirs.recv(10) == b"x"
                break
        stopper.send(b"x")
        running.result()
        counts = echo.counts()
        assert counts["bytes_out"] == counts["datagrams"]
        assert counts["bytes_in"] == counts["datagrams"] + counts["dropped"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_listener_that_somebody_closes_is_broken_and_the_server_ends(engine):
    """It must not be looked at again and again, either."""
    # The client has the lower number afterwards: who gets the listener's would be waited for in its place.
    lower = os.open(os.devnull, os.O_RDONLY)
    listener = socket.create_server(("127.0.0.1", 0))
    server = EchoServer(None, sockets=[listener], engine=engine)
    server.start()
    address = listener.getsockname()
    with dial(address) as sock:
        ask(sock)
        listener.close()
        os.close(lower)
        with contextlib.suppress(OSError):  # poll() may have the socket yet; then this ends its wait
            dial(address).close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        Running(server.wait).result()
    server.close()


def test_a_connection_that_goes_with_a_cycle_is_closed_and_counted():
    with socket.create_server(("127.0.0.1", 0)) as listener, dial(listener.getsockname()) as sock:
        tally = AcceptCounts()
        accepted = accept(listener.fileno(), tally)
        cycle = [accepted]
        cycle.append(cycle)
        del accepted, cycle
        gc.collect()
        assert tally.refused == 1
        assert sock.recv(10) == b""


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.skipif(sys.platform != "linux", reason="sets the limit of another process")
@pytest.mark.parametrize("engine", ["process", "event"])
def test_a_limit_of_descriptors_below_their_number_is_a_pause(engine, monkeypatch):
    """poll(2) fails with EINVAL meanwhile; nothing spins, the server goes on afterwards, or ends when it is told to."""
    monkeypatch.setenv("RIOECHO_POLLER", "poll")
    with Server("--engine", engine) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.address)) for _ in range(10)]
        for sock in clients:
            ask(sock)
        limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        for lowered in (True, False):
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (4, limits[1]) if lowered else limits)
            before = processor_seconds(server.pid)
            clients.pop().close()
            if lowered:
                time.sleep(0.5)
                assert processor_seconds(server.pid) - before < 0.25
            else:
                for sock in clients:
                    ask(sock)
                with dial(server.address) as sock:
                    ask(sock)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (4, limits[1]))
        server.signal(signal.SIGTERM)
        for sock in clients:
            sock.close()
        assert server.status() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="finds the descriptor of epoll(7) in /proc")
def test_a_poller_that_somebody_closes_ends_a_server_and_tells_its_handlers():
    """Also those whose connections linger, which have been told already."""
    life = Life()

    def answer(conn, lines):
        conn.close()
        return b"bye\n"

    before = pollers_of_this_process()
    server = serve(life.handler(answer))
    server.start()
    with contextlib.ExitStack() as stack:
        lingering = stack.enter_context(dial(server.addresses[0]))
        lingering.sendall(b"quit\n")
        assert receive_all(lingering) == b"bye\n"
        assert life.lost() is None
        other = stack.enter_context(dial(server.addresses[0]))
        life.next("made")
        null = os.open(os.devnull, os.O_RDONLY)
        for fd in pollers_of_this_process() - before:
            os.dup2(null, fd)  # not only closed: nobody may get the number
        os.close(null)
        other.sendall(b"x\n")  # ends the wait; what comes of it is not certain
        with pytest.raises(OSError, match="Invalid argument"):
            Running(server.wait).result()
        server.close()
        for sock in (lingering, other):
            with contextlib.suppress(ConnectionError):
                assert receive_all(sock) in (b"", b"bye\n")
    life.lost()
    life.silent()
    assert server.stats()["active"] == 0


def pollers_of_this_process():
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventpoll]":
                found.add(fd)
    return found
