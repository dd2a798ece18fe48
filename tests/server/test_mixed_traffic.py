"""All kinds of concurrent clients, and servers that stop at any time: every byte is accounted for.

RIOECHO_SOAK sets the seconds of the mixed traffic, which the engines share, and runs more stops. The actions of the
clients are random and seeded; their interleaving is not.
"""

import contextlib
import logging
import os
import random
import socket
import threading
import time

import pytest

from rioecho.server import EchoServer
from support.crowd import FINISH, LEAVE, RESET, STAY, TOLD, VANISH, Client, Crowd, stretch
from support.peers import SECONDS, Running, acknowledged, ask, dial, receive_all, reset

MIXED_SECONDS = float(os.environ.get("RIOECHO_SOAK", "3"))
ROUNDS = 300 if "RIOECHO_SOAK" in os.environ else 12
KINDS = {
    **{engine: {"engine": engine} for engine in ("iterative", "process", "thread", "event")},
    "event 2": {"engine": "event", "workers": 2},
}
LONG_LINE = stretch(3_000_000).replace(b"\n", b"n") + b"\n"


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(params=["line", "raw"])
def framing(request):
    return request.param


def some_client(chance, addresses, *, may_stay):
    """Return a random client: large or small, fast or slow, well-behaved or not."""
    size = chance.choice([0, 1, 2, 50, 1000, 5000, 65_536, chance.randrange(200_000), chance.randrange(200_000)])
    data = stretch(size, chance.randrange(1000))
    if chance.random() < 0.05:
        data = LONG_LINE[chance.randrange(len(LONG_LINE)) :]
    end = chance.choices([FINISH, LEAVE, STAY, RESET, VANISH], [10, 4, 1 if may_stay else 0, 3, 3])[0]
    if end in (LEAVE, STAY) and not data.endswith(b"\n"):  # an incomplete line is echoed only after a half-close
        data += b"\n"
    options = {"piece": chance.choice([1 << 17, 5000, 100]) if len(data) < 10_000 else 1 << 17}
    if chance.random() < 0.2 and len(data) < 200_000:
        options |= {"gulp": 1 + len(data) // 20, "room": 4096, "pauses": (0.3, 0.02)}
    if chance.random() < 0.2:
        options |= {"pauses": (0.3, 0.05)}
    cut = chance.randrange(len(data) + 1) if end in (RESET, VANISH) else None
    return Client(chance.choice(addresses), data, end, cut=cut, seed=chance.random(), **options)


@pytest.mark.slow
def test_in_mixed_traffic_every_byte_is_accounted_for(kind, framing):
    chance = random.Random(f"{kind} {framing}")
    one_by_one = kind["engine"] == "iterative"
    clean = sent = received = accepted = unclean = 0
    end = time.monotonic() + MIXED_SECONDS / 10
    with EchoServer(framing=framing, max_line=100_000, backlog=4000, **kind) as server, Crowd() as crowd:

        def count_the_settled():
            nonlocal clean, sent, received, accepted, unclean
            for client in crowd.clients[:]:
                if client not in crowd.unsettled:
                    accepted += 1
                    sent += client.sent
                    received += client.received
                    if client.end in (RESET, VANISH):
                        unclean += 1
                    else:
                        assert client.received == client.sent == len(client.data)
                        clean += client.sent
                    crowd.dismiss(client)

        while time.monotonic() < end:
            while len(crowd.unsettled) < (10 if one_by_one else 60):
                crowd.add(some_client(chance, server.addresses, may_stay=not one_by_one))
            crowd.turn(0.1)
            if len(crowd.clients) > 200:
                count_the_settled()
        crowd.run()
        count_the_settled()
    stats = server.stats()
    assert (stats["active"], stats["refused"]) == (0, 0)
    assert stats["accepted"] == stats["closed"] == accepted
    assert stats["errors"] <= unclean
    assert clean <= received <= stats["bytes_out"] <= stats["bytes_in"] <= sent


@pytest.mark.slow
def test_in_mixed_traffic_of_well_behaved_clients_bytes_out_equals_bytes_in(kind, framing):
    chance = random.Random(f"{kind} {framing}")
    sent = 0
    with EchoServer(framing=framing, max_line=100_000, **kind) as server, Crowd() as crowd:
        while len(crowd.clients) < 40:
            client = some_client(chance, server.addresses, may_stay=False)
            if client.end in (FINISH, LEAVE):
                crowd.add(client)
                sent += len(client.data)
            else:
                client.close()
                crowd.clients.append(client)
        crowd.run()
    stats = server.stats()
    assert stats["bytes_in"] == stats["bytes_out"] == sent
    assert stats["errors"] <= 40 - sum(client.end in (FINISH, LEAVE) for client in crowd.clients)


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_stop_at_any_time_loses_nothing_that_was_acknowledged(kind, framing):
    chance = random.Random(f"{kind} {framing}")
    for _ in range(ROUNDS):
        limit = chance.choice([0, 3])
        server = EchoServer(framing=framing, drain_timeout=SECONDS, max_connections=limit, **kind)
        with Crowd() as crowd:
            serving, first = None, b""
            if chance.random() < 0.5:
                serving = Running(server.serve_forever)
                first = b"do you serve?\n"  # so that it serves before a close()
                with dial(server.addresses[0]) as sock:
                    ask(sock, first)
            else:
                server.start()
            for i in range(chance.randrange(13)):
                data = stretch(chance.choice([1, 100, 10_000, 300_000]), i)
                piece = chance.choice([100, 1 << 17])
                crowd.add(Client(chance.choice(server.addresses), data, TOLD, piece=piece, seed=i))
                crowd.run_for(chance.choice([0, 1, 30]))
            promises = [client.promised() for client in crowd.clients]
            stopping = [chance.choice([server.stop, server.close]) for _ in range(chance.choice([1, 1, 3]))]
            stopping = [Running(stop) for stop in stopping]
            if chance.random() < 0.7:
                for client in crowd.clients:
                    client.hush()
            crowd.run()
            for each in stopping:
                each.result()
            if serving:
                serving.result()
            server.close()
            for client, promised in zip(crowd.clients, promises, strict=True):
                assert client.received >= promised, f"{promised} bytes had been acknowledged: {client}"
                assert client.ended or not promised
            stats = server.stats()
            assert (stats["accepted"], stats["active"], stats["errors"]) == (stats["closed"], 0, 0)
            received = len(first) + sum(client.received for client in crowd.clients)
            assert stats["bytes_in"] == stats["bytes_out"] == received


class Gate(logging.Handler):
    """Blocks the first thread that logs a closed connection until the gate is opened."""

    def __init__(self):
        super().__init__()
        self.reached, self.opened = threading.Event(), threading.Event()

    def handle(self, record):
        self.emit(record)  # without the lock, so that other threads are not blocked

    def emit(self, record):
        if record.getMessage().startswith("Closed") and not self.reached.is_set():
            self.reached.set()
            self.opened.wait(SECONDS)


@pytest.fixture
def gate(caplog):
    caplog.set_level(logging.INFO, "rioecho.server")
    gate = Gate()
    log = logging.getLogger("rioecho.server")
    log.addHandler(gate)
    yield gate
    gate.opened.set()
    log.removeHandler(gate)


@pytest.mark.parametrize("attempt", range(2))
def test_a_close_at_the_stop_does_not_make_the_loop_forget_other_connections(gate, attempt):
    """A report interrupts draining: connections with unread input must still be drained afterwards."""
    data = b"x" * 100_000  # one read of the loop and part of another, without a newline
    with EchoServer(drain_timeout=SECONDS) as server, contextlib.ExitStack() as stack:
        first, leaver, sender = (stack.enter_context(dial(server.addresses[0])) for _ in range(3))
        for sock in (first, leaver, sender):
            ask(sock)
        first.close()
        assert gate.reached.wait(SECONDS)  # all of these close while the loop is logging
        sender.sendall(data)
        acknowledged(sender)
        reset(leaver)
        server.stop()
        wait_until_free(server.addresses[-1])
        start = time.monotonic()
        gate.opened.set()
        assert receive_all(sender) == data
        sender.close()
        server.close()
        assert time.monotonic() - start < SECONDS / 2


def wait_until_free(address):
    """Wait until no server listens at the address."""
    deadline = time.monotonic() + SECONDS
    while True:
        assert time.monotonic() < deadline
        with socket.socket(socket.AF_INET6) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(address)
                return


@pytest.mark.parametrize("engine", ["iterative", "process", "thread", "event"])
def test_close_waits_until_every_closed_connection_has_been_logged(gate, engine, caplog):
    with EchoServer(engine=engine) as server:
        with dial(server.addresses[0]) as sock:
            ask(sock)
        assert gate.reached.wait(SECONDS)
        closing = Running(server.close)
        wait_until_free(server.addresses[-1])
        gate.opened.set()
        closing.result()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("echo")]
        assert sum(message.startswith("Closed") for message in caplog.messages) == 1


@pytest.mark.slow
def test_many_threads_may_stop_the_server_while_another_closes_it():
    """stop() never writes to its descriptor after the close, when the number may belong to an unrelated file."""
    for _ in range(ROUNDS * 5):
        server = EchoServer()
        running = [Running(stop) for stop in [server.stop] * 4 + [server.close] + [server.stop] * 4]
        for each in running:
            each.result()
