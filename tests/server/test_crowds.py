"""EchoServer with hundreds of concurrent clients: each gets its own bytes back, whatever the others do.

RIOECHO_SOAK=1 runs ten times as many clients that come and go.
"""

import contextlib
import os
import select
import signal
import socket
import time

import pytest

from rioecho.server import EchoServer
from support.crowd import FINISH, LEAVE, RESET, STAY, TOLD, VANISH, Client, Crowd, crowd_of, sizes, stretch
from support.peers import SECONDS, Running, Server, ask, dial, receive, receive_all
from support.procfs import children, descriptors, memory, needs_proc, threads, until

pytestmark = pytest.mark.slow

FULL = "RIOECHO_SOAK" in os.environ
ENGINES = ("iterative", "process", "thread", "event")
KINDS = {**{engine: {"engine": engine} for engine in ENGINES}, "event 2": {"engine": "event", "workers": 2}}


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(params=["line", "raw"])
def framing(request):
    return request.param


def sums(server):
    """Return accepted, active, closed, errors, bytes_in and bytes_out."""
    return tuple(server.stats()[name] for name in ("accepted", "active", "closed", "errors", "bytes_in", "bytes_out"))


def crowd_size(kind):
    """Return the number of concurrent clients: smaller for slow engines."""
    if kind["engine"] == "process" and os.environ.get("RIOECHO_BUILD") == "sanitize":
        return 50  # a fork copies AddressSanitizer's memory as well
    return 100 if kind["engine"] == "iterative" else 200


# ---- many concurrent clients


def test_a_crowd_gets_back_random_bytes_of_many_sizes(kind, framing):
    n = crowd_size(kind)
    data = [stretch(size, i) for i, size in enumerate(sizes(n))]
    with EchoServer(framing=framing, **kind) as server, crowd_of(server.addresses, data) as crowd:
        crowd.run()
        assert all(client.received == len(client.data) for client in crowd.clients)
    total = sum(map(len, data))
    assert sums(server) == (n, 0, n, 0, total, total)
    assert server.stats()["lines"] == (sum(each.count(b"\n") for each in data) if framing == "line" else 0)


@pytest.mark.parametrize("kind", ["process", "thread", "event", "event 2"])
def test_a_crowd_that_stays_connected_is_served_concurrently(kind):
    n = crowd_size(KINDS[kind])
    data = [stretch(2000, i)[:-1] + b"\n" for i in range(n)]
    server = EchoServer(drain_timeout=SECONDS, **KINDS[kind])
    with server, crowd_of(server.addresses, data, STAY) as crowd:
        crowd.run()
        assert sums(server)[:4] == (n, n, 0, 0)
    assert sums(server)[:4] == (n, 0, n, 0)


def test_two_workers_share_a_crowd_evenly():
    server = Server("-q", "--workers", 2)
    with server, crowd_of(server.addresses, [b"hello\n"] * 100, STAY) as crowd:
        crowd.run()
        if not os.path.isdir("/proc/self/task"):
            pytest.skip("there is no /proc")
        watched = []
        for number, what in descriptors(server.pid).items():
            if "eventpoll" in what:
                with open(f"/proc/{server.pid}/fdinfo/{number}") as info:
                    watched.append(info.read().count("tfd:"))
        assert len(watched) == 2
        assert abs(watched[0] - watched[1]) <= 1
        assert sum(watched) >= 100


# ---- coming and going


@needs_proc
@pytest.mark.parametrize(
    ("engine", "count"), [("iterative", 1000), ("process", 300), ("thread", 2000), ("event", 2000)]
)
def test_clients_that_come_and_go_leave_no_resources_behind(engine, count):
    count = 20_000 if FULL else count
    with Server("-q", "--engine", engine) as server:

        def come_and_go(n):
            """Run n clients that close in every way, some concurrently; wait until their resources are released."""
            with Crowd() as crowd:
                for i in range(n):
                    crowd.run(lambda: len(crowd.unsettled) < 20)
                    end = (FINISH, LEAVE, RESET, VANISH)[i % 4]
                    crowd.add(Client(server.addresses[i % 2], b"hello\n" if i % 5 else b"", end))
                    if len(crowd.clients) > 100:
                        crowd.clients = list(crowd.unsettled)
                crowd.run()
            until(lambda: sum(what.startswith("socket:") for what in descriptors(server.pid).values()) == 2)
            until(lambda: not children(server.pid))

        come_and_go(count // 4)
        left = len(descriptors(server.pid)), threads(server.pid)
        used = memory(server.pid)
        come_and_go(count)
        assert memory(server.pid) - used < 1 << 20
        until(lambda: len(descriptors(server.pid)) <= left[0] and threads(server.pid) <= left[1])
        with dial(server.address) as sock:
            ask(sock)
        server.signal(signal.SIGTERM)
        assert server.status() == 0
        assert server.err.text == ""


@pytest.mark.parametrize("engine", ["process", "thread", "event"])
def test_connected_is_logged_before_closed(engine):
    with Server("-v", "--engine", engine) as server, Crowd() as crowd:  # those without a byte are at DEBUG
        for i in range(300):
            crowd.run(lambda: len(crowd.unsettled) < 10)
            crowd.add(Client(server.address, b"", RESET if i % 2 else LEAVE))
        crowd.run()
        server.err.wait_for("Closed", 300)
        open_now = set()
        for line in server.err.text.splitlines():
            what, _, peer = line.split(maxsplit=3)[3].partition("(")
            peer = peer.partition(")")[0]
            if what == "Connected to ":
                assert peer not in open_now
                open_now.add(peer)
            else:
                assert peer in open_now, f"closed before it was connected: {line}"
                open_now.remove(peer)
        assert not open_now


# ---- the limit


@pytest.mark.parametrize(("engine", "limit"), [("process", 5), ("thread", 5), ("event", 5), ("iterative", 5)])
def test_at_max_connections_each_close_admits_one_client(engine, limit):
    let_in = 1 if engine == "iterative" else limit
    with EchoServer(engine=engine, max_connections=limit) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.addresses[0])) for _ in range(20)]
        for i, sock in enumerate(clients):
            sock.sendall(b"%02d\n" % i)
        for i, sock in enumerate(clients):
            if i + let_in < len(clients):
                assert not select.select([clients[i + let_in]], [], [], 0.005)[0]
            assert receive(sock, 3) == b"%02d\n" % i
            assert server.stats()["active"] <= let_in
            sock.close()
        with dial(server.addresses[1]) as sock:
            ask(sock)
        assert server.stats()["refused"] == 0
    assert sums(server)[:4] == (21, 0, 21, 0)


@pytest.mark.parametrize("kind", ["process", "thread", "event", "event 2"])
def test_a_crowd_is_served_completely_with_a_small_max_connections(kind, framing):
    data = [stretch(size, i) for i, size in enumerate(sizes(60))]
    server = EchoServer(max_connections=7, framing=framing, **KINDS[kind])
    with server, crowd_of(server.addresses, data) as crowd:
        while crowd.unsettled:
            crowd.turn()
            assert server.stats()["active"] <= 7
    assert sums(server)[:4] == (60, 0, 60, 0)


def test_a_max_connections_of_0_means_no_limit(engine):
    n = 1 if engine == "iterative" else min(150, crowd_size({"engine": engine}))
    server = EchoServer(engine=engine, max_connections=0)
    with server, crowd_of(server.addresses, [b"hello\n"] * n, STAY) as crowd:
        crowd.run()
        assert server.stats()["active"] == n
        with dial(server.addresses[0]) as late:
            late.sendall(b"me too\n")
            if engine == "iterative":
                assert not select.select([late], [], [], 0.05)[0]
                crowd.clients[0].close()
            assert receive(late, 7) == b"me too\n"


# ---- a signal under load


LOAD = stretch(4_000_000)


def served_under_load(crowd):
    """Run the crowd until every client is busy or queued; return the bytes acknowledged to each."""
    crowd.run(lambda: sum(client.received for client in crowd.clients) > 3_000_000)
    return [client.promised() for client in crowd.clients]


def check_promises(crowd, promises):
    """Check that every client got its acknowledged bytes back, and then EOF."""
    for client, promised in zip(crowd.clients, promises, strict=True):
        assert client.received >= promised, f"{promised} bytes had been acknowledged: {client}"
        if promised:
            assert client.ended, f"{errno_name(client)} instead of EOF: {client}"


def errno_name(client):
    return os.strerror(client.error or 0)


@pytest.mark.parametrize("hush", [True, False], ids=["they stop sending", "they keep sending"])
def test_under_load_sigterm_loses_nothing_that_was_acknowledged(kind, framing, hush):
    options = ["--engine", kind["engine"], "--workers", kind.get("workers", 1), "--framing", framing]
    server = Server("-q", *options, "--drain-timeout", SECONDS)
    with server, crowd_of(server.addresses, [LOAD] * 60, TOLD, piece=20_000) as crowd:
        promises = served_under_load(crowd)
        assert sum(promises) > 3_000_000
        server.signal(signal.SIGTERM)
        if hush:
            for client in crowd.clients:
                client.hush()
        crowd.run()
        check_promises(crowd, promises)
        assert server.status() == 0
        assert server.err.text == ""
        with EchoServer(server.address[1]) as heir, dial(heir.addresses[0]) as sock:  # the port is free at once
            ask(sock)


def test_under_load_the_server_exits_with_status_0_at_the_drain_deadline(engine):
    server = Server("-q", "--engine", engine, "--drain-timeout", "0.3")
    with server, crowd_of(server.addresses, [LOAD] * 40, TOLD) as crowd:
        served_under_load(crowd)
        deaf = [dial(server.address) for _ in range(3)]
        for sock in deaf:
            sock.sendall(b"x" * 1000 + b"\n")
        start = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.status() == 0  # although no client reads
        assert 0.3 <= time.monotonic() - start < SECONDS / 3
        for sock in deaf:
            sock.close()


def test_under_load_a_second_signal_exits_at_once(engine):
    server = Server("-q", "--engine", engine, "--drain-timeout", "20")
    with server, crowd_of(server.addresses, [LOAD] * 40, TOLD) as crowd, dial(server.address) as witness:
        served_under_load(crowd)
        server.signal(signal.SIGTERM)
        assert receive_all(witness) == b""  # it is draining
        start = time.monotonic()
        server.signal_until_it_ends(signal.SIGTERM)
        assert server.status() == 128 + signal.SIGTERM
        assert time.monotonic() - start < SECONDS / 3


# ---- several servers in one process


def test_servers_of_every_engine_run_in_one_process(framing):
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(EchoServer(framing=framing, **each)) for each in KINDS.values()]
        crowds = []
        for i, server in enumerate(servers):
            data = [stretch(size, i) for i, size in enumerate(sizes(30, i))]
            crowds.append(stack.enter_context(crowd_of(server.addresses, data)))
        for each in [Running(crowd.run) for crowd in crowds]:
            each.result()
        totals = [sum(len(client.data) for client in crowd.clients) for crowd in crowds]
    for server, total in zip(servers, totals, strict=True):
        assert sums(server) == (30, 0, 30, 0, total, total)


def test_stopping_one_of_several_servers_does_not_affect_the_others():
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(EchoServer(**each)) for each in KINDS.values()]
        clients = [stack.enter_context(dial(server.addresses[0])) for server in servers]
        for i, server in enumerate(servers):
            for sock in clients[i:]:
                ask(sock)
            server.stop()
            assert receive_all(clients[i]) == b""
            clients[i].close()
            server.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(server.addresses[0])
