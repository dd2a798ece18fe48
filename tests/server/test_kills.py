"""Signals from outside: to clients, to the children of the process engine, and to their parent."""

import contextlib
import os
import signal
import socket
import time

import pytest

from rioecho._core.budget import Share
from rioecho._core.counts import Counts
from rioecho._server.accepted import AcceptCounts, adopt
from rioecho._server.child import END, OPENED_NOW, Child
from rioecho._server.children import Children
from rioecho._server.notify import WakePipe
from rioecho.server import EchoServer
from support.crowd import TOLD, crowd_of, stretch
from support.peers import SECONDS, Command, Server, acknowledged, ask, dial, receive_all
from support.procfs import children, descriptors, gone, needs_proc, until

CLIENTS = """if True:
    import contextlib, select, socket, sys
    socks = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(20)]
    for i, sock in enumerate(socks):
        sock.setblocking(False)
        sock.sendall(b"whole lines\\n" * (i % 4) + b"half a line" * (i % 2))
        while i % 5 == 0 and select.select([], [sock], [], 0.05)[1]:  # some never read
            with contextlib.suppress(BlockingIOError):
                sock.send(b"more\\n" * 10_000)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("engine", ["process", "thread", "event"])
def test_killed_clients_affect_only_their_own_connections(engine):
    with EchoServer(engine=engine) as server, dial(server.addresses[0]) as witness:
        ask(witness)
        with Command(None, *server.addresses[0], code=CLIENTS) as clients:
            clients.out.wait_for("ready")
            until(lambda: server.stats()["active"] == 21)
            ask(witness)
            clients.signal(signal.SIGKILL)
            clients.status()
        until(lambda: server.stats()["active"] == 1)
        ask(witness)
    stats = server.stats()
    assert (stats["accepted"], stats["closed"], stats["active"]) == (21, 21, 0)
    assert stats["bytes_out"] <= stats["bytes_in"]


@pytest.mark.long
@needs_proc
def test_a_killed_child_affects_only_its_connection_and_is_counted_as_an_error(caplog):
    caplog.set_level("INFO", "rioecho.server")
    others = children(os.getpid())
    with EchoServer(engine="process") as server, contextlib.ExitStack() as stack:
        first = stack.enter_context(dial(server.addresses[0]))
        ask(first)
        (victim,) = children(os.getpid()) - others
        witnesses = [stack.enter_context(dial(server.addresses[i % 2])) for i in range(5)]
        for sock in witnesses:
            ask(sock)
        os.kill(victim, signal.SIGKILL)
        assert receive_all(first) == b""
        until(lambda: server.stats()["active"] == 5)
        assert server.stats()["errors"] == 1
        assert victim not in children(os.getpid())
        for sock in [*witnesses, stack.enter_context(dial(server.addresses[0]))]:
            ask(sock)
    stats = server.stats()
    assert (stats["accepted"], stats["closed"], stats["errors"]) == (7, 7, 1)
    assert sum("killed by signal 9" in message for message in caplog.messages) == 1


@pytest.mark.slow
@needs_proc
def test_the_server_keeps_serving_when_all_children_are_killed():
    others = children(os.getpid())
    with EchoServer(engine="process") as server, crowd_of(server.addresses, [stretch(1 << 20)] * 30, TOLD) as crowd:
        crowd.run(lambda: all(client.received for client in crowd.clients))
        for pid in children(os.getpid()) - others:
            os.kill(pid, signal.SIGKILL)
        crowd.run()
        until(lambda: server.stats()["active"] == 0)
        with dial(server.addresses[0]) as sock:
            ask(sock)
    stats = server.stats()
    assert (stats["accepted"], stats["closed"], stats["errors"]) == (31, 31, 30)


@needs_proc
def test_a_killed_child_that_the_system_has_waited_for_is_an_error(caplog):
    """With SIGCHLD ignored no zombie is left, and how a child has ended is not known."""
    caplog.set_level("INFO", "rioecho.server")
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        others = children(os.getpid())
        with EchoServer(engine="process") as server:
            with dial(server.addresses[0]) as sock:
                ask(sock)
                (victim,) = children(os.getpid()) - others
                with dial(server.addresses[0]) as other:
                    ask(other)
                    os.kill(victim, signal.SIGKILL)
                    assert receive_all(sock) == b""
                    ask(other)
            until(lambda: server.stats()["active"] == 0)
        assert server.stats()["errors"] == 1
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert sum("its process exited" in message for message in caplog.messages) == 1
    assert sum("end of input" in message for message in caplog.messages) == 1


def a_fork():
    """Return a Children, an accepted connection, its client, and a function that forks a child for it."""
    kids, counts, stop = Children(), Counts(), WakePipe()
    far, near = socket.socketpair()
    accepted = adopt(near, AcceptCounts())

    def fork(child):
        kids.fork(
            child,
            accepted,
            "line",
            timeout=None,
            max_line=0,
            stop_fd=stop.fd,
            drain_timeout=1,
            tell_lines=False,
            proxied=False,
            counts=counts,
            memory=Share(None, 0),
        )

    return kids, accepted, far, fork


def test_a_child_whose_descriptor_somebody_has_closed_reports_the_error():
    kids, accepted, far, fork = a_fork()
    child = Child("somebody")
    os.close(accepted.fileno())
    fork(child)
    while kids.next() is None:
        pass
    assert child.read_line() == END
    counts = Counts()
    kids.reap(child, counts, WakePipe())
    assert child.reason == "Bad file descriptor"
    assert counts.now()["errors"] == 1
    far.close()


def test_a_connection_is_given_to_one_child_only():
    kids, _, far, fork = a_fork()
    child = Child("somebody")
    fork(child)
    with pytest.raises(ValueError, match="taken already"):
        fork(Child("nobody"))
    with far:
        far.settimeout(SECONDS)
        ask(far)
    while kids.next() is None:
        pass
    assert child.read_line() == OPENED_NOW
    child.opened(None)
    while kids.next() is None or child.read_line() != END:
        pass
    kids.reap(child, Counts(), WakePipe())
    assert child.reason == "end of input"
    assert not kids.any


def test_without_descriptors_for_both_pipes_there_is_no_child(few_descriptors):
    for left in range(4):
        with few_descriptors(left), pytest.raises(OSError, match="Too many open files"):
            Child("somebody", asks=True)
    with few_descriptors(4):
        Child("somebody", asks=True)


@needs_proc
def test_a_child_keeps_only_its_own_descriptors():
    with Server("--engine", "process", "--udp") as server, contextlib.ExitStack() as stack:
        for i in range(10):
            ask(stack.enter_context(dial(server.addresses[i % 2])))
        assert len(children(server.pid)) == 10
        sockets = set()
        for pid in children(server.pid):
            kinds = sorted(what.partition(":")[0] for what in descriptors(pid).values())
            assert kinds == ["pipe", "pipe", "socket"], descriptors(pid)
            sockets.update(what for what in descriptors(pid).values() if what.startswith("socket:"))
        assert len(sockets) == 10
        until(lambda: not sockets & set(descriptors(server.pid).values()), "that the parent has given them up")


@pytest.mark.long
@needs_proc
def test_children_whose_parent_is_killed_drain_and_exit():
    with Server("-q", "--engine", "process") as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.addresses[i % 2])) for i in range(20)]
        for sock in clients:
            ask(sock)
        orphans = children(server.pid)
        assert len(orphans) == 20
        for sock in clients:
            sock.sendall(b"one\ntwo\nand a half")
            acknowledged(sock)
        server.signal(signal.SIGKILL)
        assert server.status() == -signal.SIGKILL
        with EchoServer(server.address[1]) as heir, dial(heir.addresses[0]) as sock:  # the port is free again
            ask(sock)
        for sock in clients:
            assert receive_all(sock) == b"one\ntwo\nand a half"
            sock.close()
        until(lambda: all(map(gone, orphans)), "the end of the children")


@pytest.mark.long
@needs_proc
def test_children_whose_parent_is_killed_do_not_outlive_the_drain_timeout():
    with Server("-q", "--engine", "process", "--drain-timeout", "0.3") as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.address)) for _ in range(5)]
        for sock in clients:
            ask(sock)
        orphans = children(server.pid)
        server.signal(signal.SIGKILL)
        assert server.status() == -signal.SIGKILL
        until(lambda: all(map(gone, orphans)), "the end of the children")
        for sock in clients:
            assert receive_all(sock) == b""


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("engine", ["iterative", "process", "thread", "event"])
def test_a_signal_to_the_whole_process_group_loses_nothing(engine, number):
    """As by Ctrl-C in a terminal and by service managers."""
    server = Server("-q", "--engine", engine, start_new_session=True)
    with server, crowd_of(server.addresses, [stretch(1 << 20, i) for i in range(30)], TOLD) as crowd:
        crowd.run(lambda: sum(client.received for client in crowd.clients) > 1 << 19)
        promises = [client.promised() for client in crowd.clients]
        os.killpg(server.pid, number)
        for client in crowd.clients:
            client.hush()
        crowd.run()
        for client, promised in zip(crowd.clients, promises, strict=True):
            assert client.received >= promised
            assert client.ended or not promised
        assert server.status() == 0
        assert server.err.text == ""


@pytest.mark.slow
@needs_proc
def test_a_suspended_child_is_killed_at_the_drain_deadline():
    server = Server("--engine", "process", "--drain-timeout", "0.3")
    with server, dial(server.address) as suspended:
        ask(suspended)
        (pid,) = children(server.pid)
        with dial(server.address) as other:
            ask(other)
            os.kill(pid, signal.SIGSTOP)
            other.sendall(b"one more\n")
            acknowledged(other)
            start = time.monotonic()
            server.signal(signal.SIGTERM)
            assert receive_all(other) == b"one more\n"
        assert server.status() == 0
        assert 0.3 <= time.monotonic() - start < SECONDS / 3
        assert gone(pid)
        assert receive_all(suspended) == b""
        assert "killed by signal 9" in server.err.text


@pytest.mark.long
@needs_proc
def test_a_child_that_is_suspended_and_resumed_loses_nothing():
    data = stretch(4 << 20)
    with Server("-q", "--engine", "process") as server, crowd_of(server.addresses, [data], piece=5000) as crowd:
        crowd.run(lambda: crowd.clients[0].received > 1000)
        (pid,) = children(server.pid)
        for _ in range(10):
            os.kill(pid, signal.SIGSTOP)
            crowd.run_for(20)
            os.kill(pid, signal.SIGCONT)
            crowd.run_for(2)
        crowd.run()
        assert crowd.clients[0].received == len(data)


@pytest.mark.slow
def test_a_second_signal_kills_all_children():
    with Server("-q", "--engine", "process", "--drain-timeout", "0") as server, dial(server.address) as sock:
        ask(sock)
        own = children(server.pid)
        server.signal(signal.SIGTERM)
        assert receive_all(sock) == b""  # it waits for the client's close, and has no deadline
        server.signal_until_it_ends(signal.SIGTERM)
        assert server.status() == 128 + signal.SIGTERM
        until(lambda: all(gone(each) for each in own))
