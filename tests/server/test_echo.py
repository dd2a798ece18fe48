"""rioecho.echo(): lines or raw bytes are echoed unchanged on every kind of descriptor, and their number is returned."""

import os
import random
import select
import socket
import ssl
import tty

import pytest

from rioecho import ConcurrentCall, Rio, echo
from rioecho._core.budget import MemoryBudget
from rioecho._server.blocking import Echo
from support.delivery import fileno
from support.peers import SECONDS, SIZES, Running, binary, exchange, receive, receive_all
from support.procfs import until


@pytest.fixture(params=["line", "raw"])
def framing(request):
    return request.param


@pytest.fixture(params=["socketpair", "tcp"])
def sockets(request, wire):
    """Two connected sockets, one for the echo and one for the test."""
    connection = wire(request.param)
    return connection.near, connection.far


def held_back(descriptor, framing="line"):
    """Echo what has arrived; return the number of bytes echoed and the unsent bytes."""
    with pytest.raises(BlockingIOError) as raised:
        echo(descriptor, framing, timeout=0)
    return raised.value.characters_written, raised.value.unsent


def test_whole_lines_are_echoed_and_a_partial_line_is_held(stream):
    stream.feed(b"one\n\ntwo\r\nthr")
    assert held_back(stream.near) == (10, b"thr")
    assert stream.take() == b"one\n\ntwo\r\n"
    assert not stream.readable()


def test_a_partial_line_is_echoed_at_eof(stream):
    stream.feed(b"one\nthr")
    stream.end()
    assert echo(stream.near) == 7
    assert stream.take() == b"one\nthr"


def test_raw_bytes_are_echoed_at_once(stream):
    stream.feed(b"no line")
    assert held_back(stream.near, "raw") == (7, b"")
    assert stream.take() == b"no line"


def test_a_line_of_over_a_mebibyte_is_echoed_in_pieces_and_a_shorter_one_is_not(sockets):
    near, far = sockets
    running = Running(echo, near)
    far.sendall(b"x" * ((1 << 20) - 1))
    assert not select.select([far], [], [], 0.1)[0]
    far.sendall(b"y")
    assert exchange(far, b"", finish=False) == b""
    got = b""
    far.setblocking(True)
    while len(got) < 1 << 20:
        got += far.recv(1 << 16)
    assert got == b"x" * ((1 << 20) - 1) + b"y"
    assert exchange(far, b"the rest\n", finish=False) == b"the rest\n"
    far.shutdown(socket.SHUT_WR)
    assert running.result() == (1 << 20) + 9


def test_immediate_eof_echoes_nothing(sockets, framing):
    near, far = sockets
    far.shutdown(socket.SHUT_WR)
    assert echo(near, framing) == 0


@pytest.mark.parametrize("n", SIZES)
def test_random_bytes_are_echoed_unchanged(sockets, framing, n):
    near, far = sockets
    data = binary(n)
    running = Running(lambda: (echo(near, framing), near.shutdown(socket.SHUT_WR)))
    assert exchange(far, data) == data
    assert running.result()[0] == n


@pytest.mark.sampled(1)
@pytest.mark.parametrize("n", [1, 64, 5000, 200_000])
def test_random_bytes_are_echoed_unchanged_through_a_terminal(wire, framing, n):
    terminal = wire("pty")
    data = binary(n - 1) + b"\n"
    running = Running(echo, terminal.near, framing)
    assert exchange(terminal.far, data, finish=False) == data
    terminal.end()
    assert running.result() == n


def test_the_echo_may_run_on_the_slave_of_a_terminal(wire):
    terminal = wire("pty")
    running = Running(echo, terminal.far, timeout=SECONDS)
    assert exchange(terminal.near, b"typed\n", finish=False) == b"typed\n"
    os.close(terminal.near)  # a hang-up
    terminal.near = None
    assert running.result() == 6


def test_a_non_blocking_descriptor_makes_no_difference(wire, framing):
    for kind in ("socketpair", "tcp", "pty"):
        connection = wire(kind, blocking=False)
        data = binary(100_000) + b"\n"
        running = Running(echo, connection.near, framing)
        assert exchange(connection.far, data, finish=False) == data
        assert not os.get_blocking(fileno(connection.near))
        connection.end()
        assert running.result() == len(data)


def test_pieces_of_any_size_are_echoed_unchanged(sockets, framing):
    near, far = sockets
    chance = random.Random(framing)
    running = Running(echo, near, framing)
    for _ in range(300):
        data = binary(chance.choice([1, 2, 3, 100, 4096, 70_000]), chance.random()) + b"\n"
        assert exchange(far, data, finish=False) == data
    far.shutdown(socket.SHUT_WR)
    running.result()


def test_the_descriptor_is_left_open(stream):
    stream.end()
    echo(stream.near)
    os.write(fileno(stream.near), b"still there")
    assert stream.take() == b"still there"


def test_a_descriptor_number_works_like_a_socket(stream):
    stream.feed(b"one\n")
    stream.end()
    assert echo(stream.near.fileno()) == 4
    assert stream.take() == b"one\n"


def test_bytes_received_before_a_half_close_are_echoed_to_a_peer_that_reads_late(sockets, framing):
    near, far = sockets
    data = binary(30_000)
    far.sendall(data)
    far.shutdown(socket.SHUT_WR)
    assert echo(near, framing) == len(data)
    near.shutdown(socket.SHUT_WR)
    assert receive_all(far) == data


def test_other_threads_run_while_it_echoes(sockets, framing):
    near, far = sockets
    data = binary(2_000_000)  # more than both socket buffers hold: the echo needs the peer's thread to run
    running = Running(exchange, far, data)
    assert echo(near, framing) == len(data)
    near.shutdown(socket.SHUT_WR)
    assert running.result() == data


def test_many_echoes_run_concurrently(wire, framing):
    wires = [wire("socketpair") for _ in range(20)]
    echoes = [Running(lambda w: (echo(w.near, framing), w.near.shutdown(socket.SHUT_WR)), w) for w in wires]
    peers = [Running(exchange, w.far, binary(200_000, i)) for i, w in enumerate(wires)]
    for i, (served, peer) in enumerate(zip(echoes, peers, strict=True)):
        assert peer.result() == binary(200_000, i)
        assert served.result()[0] == 200_000


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("word",), {}, "framing", "framing"),
        ((b"line",), {}, "framing", "framing"),
        ((None,), {}, "framing", "framing"),
        ((), {"timeout": -1}, ValueError, "timeout"),
        ((), {"timeout": float("nan")}, ValueError, "timeout"),
        ((), {"timeout": "1"}, TypeError, "timeout"),
        (("line", 1), {}, TypeError, "positional"),
    ],
)
def test_an_invalid_argument_is_an_error_and_nothing_is_read(stream, arguments, options, error, words):
    stream.feed(b"one\n")
    with pytest.raises((ValueError, TypeError) if error == "framing" else error, match=words):
        echo(stream.near, *arguments, **options)
    assert os.read(fileno(stream.near), 100) == b"one\n"


@pytest.mark.parametrize(("descriptor", "error"), [("0", TypeError), (None, TypeError), (-1, ValueError)])
def test_an_invalid_descriptor_is_an_error(descriptor, error):
    with pytest.raises(error):
        echo(descriptor)


def test_a_closed_descriptor_is_an_error():
    near, far = socket.socketpair()
    near.close()
    far.close()
    with pytest.raises((OSError, ValueError), match=r"closed|Bad file descriptor|-1"):
        echo(near)
    with pytest.raises(OSError, match="Bad file descriptor"):
        echo(99_999)


def test_a_tls_socket_is_a_type_error(wire):
    connection = wire("tcp")
    context = ssl.create_default_context()
    with context.wrap_socket(connection.near, server_hostname="localhost", do_handshake_on_connect=False) as secure:
        with pytest.raises(TypeError, match="TLS"):
            echo(secure)
        assert secure.fileno() >= 0


def test_one_end_of_a_pipe_cannot_echo_and_nothing_is_read(wire):
    pipe = wire("pipe")
    pipe.feed(b"one\ntwo\n")
    for end in (pipe.near, pipe.far):
        with pytest.raises((OSError, ValueError)) as raised:
            echo(end, timeout=1)
        assert not isinstance(raised.value, TimeoutError)
    assert os.read(pipe.near, 100) == b"one\ntwo\n"


def test_an_echo_runs_once_at_a_time(stream, background):
    running = Echo(stream.near)
    thread = background(running.run)
    assert exchange(stream.far, b"line\n", finish=False) == b"line\n"
    for call in (running.run, running.unsent):
        with pytest.raises(ConcurrentCall):
            call()
    assert exchange(stream.far, b"line\n", finish=False) == b"line\n"
    stream.far.shutdown(socket.SHUT_WR)
    thread.join(SECONDS)
    assert (running.bytes_out, running.unsent()) == (10, b"")


def test_a_proxy_header_is_taken_off_even_if_nobody_is_told_of_it(stream):
    running = Echo(stream.near, proxied=True)
    stream.feed(b"PROXY TCP4 192.0.2.7 198.51.100.1 4321 7\r\none\n")
    stream.far.shutdown(socket.SHUT_WR)
    assert running.run() == 4
    assert receive(stream.far, 4) == b"one\n"


def test_an_echo_of_a_terminal_drains_at_the_stop_and_ends():
    """There is no sending side to be closed, and nothing to linger for."""
    (far, near), (stop, stopper) = os.openpty(), os.pipe()
    tty.setraw(near)
    os.write(far, b"one\ntwo")
    os.write(stopper, b"s")
    running = Echo(near, stop_fd=stop, drain_timeout=SECONDS)
    assert running.run() == 7
    assert running.draining
    assert Rio(far, timeout=SECONDS).readexactly(7) == b"one\ntwo"  # a terminal may pass it on in pieces
    for fd in (far, near, stop, stopper):
        os.close(fd)


def test_what_waits_for_memory_at_the_half_close_is_echoed_and_reported_as_a_line():
    budget, reported = MemoryBudget(60_000), []
    pairs = [socket.socketpair() for _ in range(2)]
    echoes = [Echo(near, memory=budget, on_line=reported.append, timeout=SECONDS) for _, near in pairs]
    running = [Running(each.run) for each in echoes]
    data = b"x" * 100_000  # fits into the socket buffer, and not into the memory
    for far, _ in pairs:
        far.settimeout(SECONDS)
        far.sendall(data)
    until(lambda: budget.used > 40_000)
    for far, _ in pairs:
        far.shutdown(socket.SHUT_WR)
    for (far, near), each in zip(pairs, running, strict=True):
        assert receive(far, len(data)) == data
        assert each.result() == len(data)
        near.close()
        far.close()
    assert sum(reported) == 2 * len(data)
    assert len(reported) > 2
    del echoes, running, each
    until(lambda: budget.used == 0)
