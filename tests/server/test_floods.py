"""Clients that connect as fast as they can do not delay the stop beyond the drain timeout."""

import contextlib
import errno
import os
import signal
import socket
import time

import pytest

from rioecho.server import EchoServer
from support.peers import SECONDS, Command, Server, acknowledged, dial, receive_all

FLOOD = """if True:
    import os, socket, sys
    family, address = socket.AF_UNIX, sys.argv[1]
    if sys.argv[2:]:
        family, address = socket.AF_INET, (sys.argv[1], int(sys.argv[2]))
    reader, writer = os.pipe()
    parent = os.getpid()
    for _ in range(8):
        if os.fork() == 0:
            n = 0
            while os.getppid() == parent:
                n += 1
                if n == 100:
                    os.write(writer, b"x")
                try:
                    with socket.socket(family) as sock:
                        sock.connect(address)
                except OSError:
                    os.sched_yield()
            os._exit(0)
    for _ in range(8):
        os.read(reader, 1)
    print("connecting", flush=True)
    sys.stdin.read()
"""


FLOODS = [(engine, family) for engine in ("iterative", "process", "thread", "event") for family in ("unix", "tcp")]


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "family"),
    [pytest.param(*flood, marks=[] if flood == ("event", "unix") else pytest.mark.slow) for flood in FLOODS],
)
def test_a_flood_of_clients_does_not_delay_the_end(engine, family, tmp_path):
    path = str(tmp_path / "echo")
    options = ["-q", "--engine", engine, "--drain-timeout", "0.1"]
    if family == "unix":
        options += ["--unix", path]
    with Server(*options) as server:
        address = [path] if family == "unix" else server.address
        with Command(None, *address, code=FLOOD) as flood:
            flood.out.wait_for("connecting")
            start = time.monotonic()
            server.signal(signal.SIGTERM)
            assert server.status() == 0
            assert time.monotonic() - start < SECONDS / 2


@pytest.mark.long
@pytest.mark.parametrize("engine", ["iterative", "process", "thread", "event"])
def test_only_clients_in_the_listen_queue_at_the_stop_are_served(engine):
    """A client that prolongs the drain must not keep the listener open for new clients."""
    server = EchoServer(host="127.0.0.1", engine=engine, drain_timeout=SECONDS)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.addresses[0])) for _ in range(5)]
        for sock in clients:
            sock.sendall(b"in the queue\n")
            acknowledged(sock)
        server.stop()
        with server:
            assert receive_all(clients[0]) == b"in the queue\n"
            deadline = time.monotonic() + SECONDS
            while True:  # clients that connect too late get no echo, and soon no connection
                assert time.monotonic() < deadline
                try:
                    with socket.create_connection(server.addresses[0], timeout=SECONDS) as late:
                        if late.getsockname() == late.getpeername():  # TCP connects a free port to itself
                            break
                except OSError as error:  # refused; or reset as the listener closes, and no longer connected after it
                    if not isinstance(error, ConnectionError) and error.errno != errno.ENOTCONN:
                        raise
                    break
                os.sched_yield()
            for sock in clients[1:]:
                assert receive_all(sock) == b"in the queue\n"
            for sock in clients:
                sock.close()
    assert 5 <= server.stats()["accepted"] <= 6
