"""Bulk in the raw event loop, which goes through a pipe by splice(2): nothing is lost, mixed up or waited for."""

import resource
import subprocess
import sys
import threading

import pytest

from support.event_loops import BULK, CHUNK, Loop
from support.peers import SECONDS, ask, binary, exchange, fill, receive, receive_all, reset

needs_splice = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has splice(2)")


@pytest.fixture(params=["unix", "tcp"])
def kind(request):
    return request.param


def in_flight(run):
    counts = run.counts()
    return counts["bytes_in"] - counts["bytes_out"]


def spliced(run, sock):
    """Send, and receive too little of it, until the loop has received more at once than by a read.

    The loop then holds what the peer did not take. Returns the number of bytes that are still to be received.
    """
    left = 0
    for _ in range(10):
        left += fill(sock)
        sock.settimeout(SECONDS)
        if in_flight(run) > CHUNK:
            return left
        left -= len(receive(sock, min(left, 400_000)))
    raise AssertionError("no more than a read was received at once")


def test_bulk_comes_back_whole_and_is_counted(kind):
    data = binary(5_000_003)
    with Loop("raw") as run:
        assert exchange(run.client("sender", kind=kind), data) == data
        assert run.next_closing() == ("sender", "end of input", 0, len(data))
        counts = run.counts()
        assert (counts["bytes_in"], counts["bytes_out"], counts["errors"]) == (len(data), len(data), 0)


@needs_splice
@pytest.mark.slow
def test_a_client_that_does_not_read_its_bulk_delays_no_other():
    with Loop("raw") as run:
        deaf = run.client("deaf", kind="tcp")
        left = spliced(run, deaf)
        assert in_flight(run) <= BULK
        taken = run.counts()["bytes_in"]
        for _ in range(20):
            ask(run.client(kind="tcp"))
        assert run.counts()["bytes_in"] == taken + 20 * 15
        receive(deaf, left)
        assert in_flight(run) == 0
        ask(deaf)
        deaf.close()
        assert run.next_closing()[:3] == ("deaf", "end of input", 0)


@needs_splice
@pytest.mark.slow
def test_after_a_half_close_all_bulk_comes_back():
    with Loop("raw") as run:
        sock = run.client(kind="tcp")
        left = spliced(run, sock)
        sock.shutdown(1)
        assert len(receive_all(sock)) == left


@needs_splice
@pytest.mark.slow
def test_the_bulk_of_a_connection_that_was_reset_reaches_no_other():
    data = binary(3_000_001)
    with Loop("raw") as run:
        for _ in range(3):
            lost = run.client(kind="tcp")
            spliced(run, lost)
            reset(lost)
            assert exchange(run.client(kind="tcp"), data) == data


@needs_splice
def test_clients_take_turns_in_the_pipe(kind):
    pieces = [binary(4_000_000 + i, seed=i) for i in range(4)]
    back = [b""] * 4
    with Loop("raw") as run:

        def talk(i):
            back[i] = exchange(run.client(kind=kind), pieces[i])

        threads = [threading.Thread(target=talk, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
    assert back == pieces


@needs_splice
@pytest.mark.slow
def test_bulk_is_drained_at_the_stop():
    with Loop("raw") as run:
        sock = run.client(kind="tcp")
        left = spliced(run, sock)
        run.stop()
        assert len(receive_all(sock)) == left


PROGRAM = """
import os, resource, socket, threading
from rioecho._server.eventloop import EventLoop

stop, never = os.pipe()
pairs = [socket.socketpair() for _ in range(20)]
lowest = os.dup(0)
os.close(lowest)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
loop = EventLoop(
    "raw", idle_timeout=None, max_line=1, drain_timeout=None, stop_fd=stop, on_closed=lambda *_: None
)
for _, near in pairs:
    loop.adopt(near.detach())
loop.no_more()
thread = threading.Thread(target=loop.run)
thread.start()
for far, _ in pairs:
    with far:
        sender = threading.Thread(target=lambda: (far.sendall(bytes(1_000_000)), far.shutdown(1)))
        sender.start()
        while far.recv(1 << 20):
            pass
        sender.join()
thread.join()
print(loop.counts.now()["bytes_out"])
"""


@pytest.mark.slow
@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 64, reason="few descriptors")
def test_without_a_descriptor_for_the_pipe_bulk_is_read_and_written():
    run = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, timeout=SECONDS)
    assert (run.returncode, run.stdout, run.stderr) == (0, "20000000\n", "")
