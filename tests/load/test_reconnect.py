"""A load test that goes on after a lost connection: counts, schedule, delays, and when it fails nevertheless."""

import contextlib
import socket
import threading

import pytest

from rioecho import EchoServer
from rioecho.bench import EchoLostError, Plan, Stalled, WrongEchoError, run
from support.loads import latencies, loop, peer
from support.peers import SECONDS, Running, receive, reset
from support.pollers import each_poller
from support.procfs import until

SIZE = 64


@contextlib.contextmanager
def serving(talk):
    """Run a server with a thread for each connection that calls ``talk(sock, n)`` for the n-th; yield HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        served = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    sock = listener.accept()[0]
                    sock.settimeout(SECONDS)
                    served.append(Running(one, sock, len(served)))

        def one(sock, n):
            with sock, contextlib.suppress(ConnectionError, AssertionError):
                talk(sock, n)

        running = Running(serve)
        yield "{}:{}".format(*listener.getsockname())
        listener.shutdown(socket.SHUT_RDWR)
        running.result()
        for each in served:
            each.result()


def echo(sock, n=0):
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def echo_some(messages, end):
    """Return a server's side of a connection: echo this number of messages, receive one more, and end."""

    def talk(sock, n):
        for _ in range(messages):
            sock.sendall(receive(sock, SIZE))
        receive(sock, SIZE)
        end(sock)

    return talk


@pytest.mark.long
@pytest.mark.parametrize("end", [lambda sock: None, reset], ids=["close", "reset"])
@pytest.mark.parametrize("rate", [None, 3000], ids=["closed loop", "open loop"])
@pytest.mark.parametrize("threads", [1, 2])
def test_lost_connections_are_made_again_and_counted_with_their_messages(end, rate, threads):
    counts = []
    talk = echo_some(100, end)

    def counted(sock, n):
        counts.append(n)
        if n < 7:
            talk(sock, n)
        else:
            echo(sock)

    with serving(counted) as target:
        plan = Plan(target, connections=3, duration=1.0, warmup=0, rate=rate, threads=threads, reconnect=True)
        result = run(plan)
    assert len(counts) == 3 + result.reconnects
    assert result.reconnects == 7
    assert result.lost == 7  # one message in flight on each
    assert (result.errors, result.error, result.interrupted) == (0, None, False)
    assert result.messages > 700
    assert result.warnings[0] == "7 messages were lost with their connections"


LARGE = 1 << 22  # bytes of a message: more than the kernel holds for a peer that does not read


def part_of_a_message_received(sock):
    receive(sock, 1000)
    reset(sock)


def all_but_the_last_byte_received(sock):
    receive(sock, LARGE - 1)
    reset(sock)


def half_of_an_echo_sent(sock):
    data = receive(sock, LARGE)
    sock.sendall(data[: LARGE // 2])
    reset(sock)


def an_echo_and_a_half_sent(sock):
    sock.sendall(receive(sock, LARGE) + receive(sock, LARGE)[: LARGE // 2])
    reset(sock)


def output_ended_in_an_echo(sock):
    sock.sendall(receive(sock, LARGE)[: LARGE // 2])
    sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 20):
            pass


STATES = [
    part_of_a_message_received,
    all_but_the_last_byte_received,
    half_of_an_echo_sent,
    an_echo_and_a_half_sent,
    output_ended_in_an_echo,
]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [None, 40], ids=["closed loop", "open loop"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__.replace("_", " "))
def test_a_connection_may_be_lost_in_any_state(state, rate):
    """Messages that were begun are lost; those that were not are sent whole on the next connection."""
    served, echoed = [], []

    def talk(sock, n):
        served.append(n)
        if n < 3:
            state(sock)
            return
        while data := sock.recv(1 << 20):
            sock.sendall(data)
            echoed.append(len(data))

    options = {"message_bytes": LARGE, "pipeline": 2, "duration": 1.0, "warmup": 0, "rate": rate}
    with serving(talk) as target:
        result = run(Plan(target, connections=1, reconnect=True, **options))
    assert served == [0, 1, 2, 3]
    assert (result.errors, result.error, result.reconnects) == (0, None, 3)
    assert 3 <= result.lost <= 6
    before = result.total_messages - sum(echoed) / LARGE
    assert sum(echoed) > 0
    assert before in ((0, 1, 2, 3) if state is an_echo_and_a_half_sent else (0,))
    assert result.histogram.count >= result.total_messages
    if rate is not None:  # each message that was due is in it, unless it is lost
        assert result.histogram.count == rate - result.lost


@pytest.mark.long
@pytest.mark.parametrize("end", [lambda sock: None, reset], ids=["close", "reset"])
def test_a_connection_that_is_lost_after_the_end_of_the_time_is_not_waited_for(end):
    """Its messages in flight are lost, and not those of the other connection."""
    over = threading.Event()

    def talk(sock, n):
        sock.sendall(receive(sock, SIZE))
        data = receive(sock, SIZE)
        assert over.wait(SECONDS)
        if n == 0:
            end(sock)
        else:
            sock.sendall(data)
            sock.recv(1)

    def report(progress):
        if progress.elapsed > 0.3:
            over.set()

    with serving(talk) as target:
        result = run(Plan(target, connections=2, duration=0.2, warmup=0, reconnect=True), report, 0.05)
    assert (result.lost, result.total_messages, result.messages) == (1, 3, 2)
    assert (result.errors, result.error, result.interrupted) == (0, None, False)


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_wrong_echo_is_reported_even_if_a_connection_of_another_thread_is_lost(wrong):
    both, sent = threading.Barrier(2, timeout=SECONDS), threading.Event()

    def talk(sock, n):
        number = 0 if receive(sock, SIZE).startswith(b"0000000") else 1  # the connections begin with different messages
        both.wait()
        if number == wrong:
            sock.sendall(b"?" * SIZE)
            sent.set()
            sock.recv(1)
        else:
            assert sent.wait(SECONDS)
            reset(sock)

    with serving(talk) as target, pytest.raises(WrongEchoError) as raised:
        run(Plan(target, connections=2, threads=2, duration=SECONDS, warmup=0))
    assert raised.value.connection == wrong


def test_without_the_option_a_lost_connection_ends_the_test():
    with serving(echo_some(3, reset)) as target, pytest.raises(EchoLostError):
        run(Plan(target, connections=2, duration=SECONDS, warmup=0))


def test_a_wrong_echo_ends_the_test_all_the_same():
    def talk(sock, n):
        if n == 0:
            echo_some(2, lambda sock: None)(sock, n)
        else:
            receive(sock, SIZE)
            sock.sendall(b"?" * SIZE)
            sock.recv(1)

    with serving(talk) as target, pytest.raises(WrongEchoError) as raised:
        run(Plan(target, connections=1, duration=SECONDS, warmup=0, reconnect=True))
    assert raised.value.offset == 0  # on the new connection
    assert raised.value.result.reconnects == 1


@pytest.mark.long
def test_messages_due_while_the_connection_is_down_count_from_their_scheduled_time():
    closed = threading.Event()

    def talk(sock, n):
        if n == 0:
            echo_some(10, lambda sock: None)(sock, n)
            closed.set()
        elif n < 4:
            reset(sock)  # delays of 0, 20 and 40 ms until one is kept
        else:
            echo(sock)

    with serving(talk) as target:
        result = run(Plan(target, connections=1, rate=1000, duration=1.0, warmup=0, pipeline=64, reconnect=True))
        assert closed.is_set()
    assert result.reconnects >= 1  # a reset may end an attempt before it counts as a connection
    assert result.latency_us["max"] > 50_000
    assert result.latency_us["max"] > result.latency_uncorrected_us["max"]
    assert result.messages + result.lost == pytest.approx(1000, abs=100)


@pytest.mark.long
def test_a_server_that_does_not_come_back_stalls_the_test_and_the_reason_is_given():
    with EchoServer() as server:
        target = f"127.0.0.1:{server.addresses[0][1]}"
        seen = []

        def stop(progress):
            if not seen:
                server.stop()
            seen.append(progress)

        with pytest.raises(Stalled) as raised:
            run(Plan(target, connections=3, duration=SECONDS, stall_timeout=0.5, reconnect=True), stop, 0.1)
    assert "no byte received for 0.5 s, no connection established again" in raised.value.strerror
    assert "Connection refused" in raised.value.strerror
    assert raised.value.result.error == raised.value.strerror
    assert seen[-1].connected == 0


@pytest.mark.slow
def test_a_server_that_accepts_and_closes_stalls_the_test_and_is_not_asked_in_a_busy_loop():
    accepted = []

    def talk(sock, n):
        accepted.append(n)

    with serving(talk) as target, pytest.raises(Stalled):
        run(Plan(target, connections=1, duration=SECONDS, stall_timeout=1.0, reconnect=True))
    assert len(accepted) < 12  # delays of 0, 20, 40, 80 ms and so on


@pytest.mark.slow
def test_a_server_that_is_restarted_loses_nothing_it_has_received():
    """The test's own count of echoes is what all instances of the server have sent."""
    lines = 0
    stop = threading.Event()
    server = EchoServer()
    port = server.addresses[0][1]
    plan = Plan(f"127.0.0.1:{port}", connections=20, pipeline=8, duration=600, warmup=0, reconnect=True)
    server.start()
    running = Running(run, plan, stop=stop)
    try:
        for left in range(3, -1, -1):
            until(lambda running=server: running.stats()["lines"] > 2000)
            if left == 0:
                stop.set()
                result = running.result()
            server.close()
            lines += server.stats()["lines"]
            if left:
                server = EchoServer(port=port)
                server.start()
    finally:
        stop.set()
        server.close()
    assert result.reconnects > 0
    assert result.lost > 0  # sent after the server had stopped reading
    assert result.total_messages == lines


# ---- the loop itself


@pytest.mark.long
@each_poller
def test_the_loop_reports_a_lost_connection_once_and_continues_on_another_socket(poller):
    def talk(one, two):
        one.sendall(receive(one, 2 * SIZE)[:SIZE])
        one.shutdown(socket.SHUT_WR)
        while data := two.recv(1 << 16):
            two.sendall(data)

    with peer(talk, pairs=2) as (one, two):
        load = loop([one], pipeline=2, duration=0.5, reconnect=True, poller=poller)
        running = Running(load.run)
        found = []
        while not found:
            found = load.lost()
        assert found == [0]
        assert load.lost() == []
        with pytest.raises(ValueError, match="connection 1 is not a lost one"):
            load.replace(1, two.fileno())
        load.replace(0, two.fileno())
        with pytest.raises(ValueError, match="connection 0 is not a lost one"):
            load.replace(0, two.fileno())
        assert running.result()[0] == "done"
        _, echoed, in_flight = load.counts()
        assert echoed > 10
        assert in_flight == 0
        assert load.lost_messages in (1, 2)  # the second message may follow the first echo
        assert latencies(load).count == echoed
