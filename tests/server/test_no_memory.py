"""Bytes for which there is no memory: their connection ends, nothing else does, and what was received is accounted for.

The programs limit the size of their address space, so that new pages are refused while small objects still find room.
"""

import os
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and needs a limit that the system enforces"),
    pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") in ("sanitize", "race"), reason="sanitizers map huge regions"),
]

PROGRAM = """if True:
    import contextlib, logging, resource, socket, sys, threading, time
    from rioecho import EchoServer, LineServer

    SECONDS = 30.0
    logging.disable()   # a record could find no memory either

    @contextlib.contextmanager
    def no_more_pages():
        with open("/proc/self/statm") as sizes:
            size = int(sizes.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def until(condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.001)

    def dial(server):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)   # little of what is not read fits
        sock.settimeout(SECONDS)
        sock.connect(server.addresses[0])
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def receive(sock, n):
        got = b""
        while len(got) < n:
            part = sock.recv(n - len(got))
            assert part, "closed"
            got += part
        return got

    def ask(sock, line=b"are you there?\\n"):
        sock.sendall(line)
        assert receive(sock, len(line)) == line

    def send_until_closed(sock, data, server):
        # Without ever receiving, so that the server has to keep what it cannot send.
        sock.settimeout(0.01)
        deadline = time.monotonic() + SECONDS
        while server.stats()["errors"] == 0:
            assert time.monotonic() < deadline, "timed out"
            with contextlib.suppress(TimeoutError, ConnectionError):
                sock.send(data)

    def end(server):
        until(lambda: server.stats()["active"] == 1)
        assert server.stats()["errors"] == 1
        assert server.memory.used == 0
"""

BULK = (
    PROGRAM
    + """
    import os
    from rioecho._server.eventloop import EventLoop

    stop, never = os.pipe()
    loop = EventLoop(
        "raw", idle_timeout=None, max_line=1, drain_timeout=None, stop_fd=stop, on_closed=lambda *_: None
    )
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as far:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)   # what is sent before the loop runs
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)           # what is echoed does not fit
        far.connect(listener.getsockname())
        near, _ = listener.accept()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)   # the first read can be sent
        far.setblocking(False)
        assert far.send(bytes(500_000)) > 300_000
        loop.adopt(near.detach())
        loop.no_more()
        ready, gate = threading.Event(), threading.Event()

        def run():
            ready.set()   # the thread has its stack and its heap
            gate.wait()
            loop.run()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        ready.wait()
        with no_more_pages():
            gate.set()
            thread.join(SECONDS)
    counts = loop.counts.now()
    assert (counts["closed"], counts["errors"]) == (1, 1), counts
    assert counts["bytes_in"] - 16_384 > counts["bytes_out"] >= 65_536, counts
    print("served")
"""
)

HANDLER = (
    PROGRAM
    + """
    answer = b"x" * 60_000
    with LineServer(lambda lines: answer, host="127.0.0.1") as server:
        with dial(server) as witness, dial(server) as sock:
            for each in witness, sock:
                each.sendall(b"x\\n")
                assert receive(each, len(answer)) == answer
            with no_more_pages():
                send_until_closed(sock, b"x\\n", server)
            end(server)
            witness.sendall(b"x\\n")
            assert receive(witness, len(answer)) == answer
    print("served")
"""
)

POSTS = (
    PROGRAM
    + """
    data = bytes(64 << 20)
    lost, conns = [], []
    gate, called = threading.Event(), threading.Event()

    class Handler:
        def connection_made(self, conn):
            self.conn = conn
            conns.append(conn)

        def lines_received(self, lines):
            if b"wait\\n" in lines:
                called.set()
                assert gate.wait(SECONDS)
                return None   # all that is left to be sent is what the other thread wrote
            return lines

        def connection_lost(self, reason):
            lost.append(reason)

    with LineServer(Handler, host="127.0.0.1", write_limit=0) as server:
        with dial(server) as witness:
            ask(witness)
            with dial(server) as sock:
                ask(sock)
                conn = conns[1]
                if sys.argv[1] == "in its call":
                    sock.sendall(b"wait\\n")
                    assert called.wait(SECONDS)
                with no_more_pages():
                    conn.write(data)
                    if sys.argv[1] == "in its call":
                        conn.close()
                        gate.set()
                    until(lambda: lost)
                while sock.recv(1 << 16):
                    pass
            assert len(lost) == 1 and isinstance(lost[0], MemoryError), lost
            ask(witness)
    print("served")
"""
)

CONSTRUCTORS = """if True:
    import resource
    from rioecho._core.budget import MemoryBudget
    from rioecho._core.counts import Counts

    with open("/proc/self/statm") as sizes:
        size = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    failed = []
    for make in (lambda: MemoryBudget(1000), Counts):
        try:
            make()
        except MemoryError as error:
            failed.append(str(error))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(failed, MemoryBudget(1000).limit, Counts().now()["closed"])
"""


@pytest.mark.long
def test_spliced_bytes_that_cannot_be_kept_end_their_connection(child):
    assert child(BULK) == "served\n"


@pytest.mark.long
def test_an_answer_that_cannot_be_kept_ends_its_connection_only(child):
    assert child(HANDLER) == "served\n"


@pytest.mark.long
@pytest.mark.parametrize("place", ["outside", "in its call"])
def test_a_write_of_another_thread_for_which_there_is_no_memory_ends_its_connection_only(child, place):
    assert child(POSTS, place) == "served\n"


@pytest.mark.long
def test_without_shared_memory_there_is_no_account(child):
    assert child(CONSTRUCTORS) == f"{['no shared memory available'] * 2} 1000 0\n"
