"""rioecho-client in a pipe: it returns any input unchanged, in bounded memory."""

import contextlib
import os
import select
import socket
import subprocess

import pytest

from rioecho.client import CHUNK, LIMIT, WINDOW, EchoLostError, pump
from rioecho.server import EchoServer
from support.peers import Command, Running, answering, binary, lines, peak_memory, piped, receive

MODULE = "rioecho.cli.client"


@pytest.fixture(params=["line", "raw"])
def server(request):
    """Run an echo server; yield its address."""
    with EchoServer(framing=request.param) as running:
        yield running.addresses[0]


@pytest.fixture
def lines_server():
    with EchoServer() as running:
        yield running.addresses[0]


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_hundred_thousand_lines_are_returned_unchanged(server):
    data = b"".join(lines(100_000))
    status, output, complaint = piped(server, data)
    assert (status, complaint) == (0, "")
    assert output == data


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\n", id="an empty line"),
        pytest.param(b"no newline", id="no newline at the end"),
        pytest.param(binary(3_000_000) + b"end", id="binary"),
        pytest.param(b"x" * 5_000_000, id="a long line without an end"),
        pytest.param(b"short\n" + b"x" * 5_000_000 + b"\n" + b"short\n" * 1000, id="a long line between short ones"),
        pytest.param(b"\n" * 3_000_000, id="many empty lines"),
    ],
)
def test_any_input_is_returned_unchanged(server, data):
    status, output, complaint = piped(server, data)
    assert (status, complaint) == (0, "")
    assert output == data


@pytest.mark.long
def test_the_host_may_be_a_name_or_an_ipv6_address(lines_server):
    for host in ("localhost", "::1", "127.0.0.1"):
        assert piped((host, lines_server[1]), b"hello\n") == (0, b"hello\n", "")


def test_a_file_is_copied_unchanged(lines_server, tmp_path):
    data = binary(1_000_000)
    (tmp_path / "in").write_bytes(data)
    with (
        open(tmp_path / "in", "rb") as source,
        open(tmp_path / "out", "wb") as sink,
        Command(MODULE, *lines_server, stdin=source, stdout=sink) as client,
    ):
        assert client.status() == 0
    assert (tmp_path / "out").read_bytes() == data


def test_each_line_is_returned_before_the_next_is_written(lines_server):
    with Command(MODULE, *lines_server) as client:
        for i in range(20):
            client.stdin.write(b"line %d\n" % i)
            client.stdin.flush()
            client.out.wait_for(b"line %d\n" % i)
        assert client.status() == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_stream(lines_server):
    data = b"".join(lines(10_000))
    with Command(MODULE, *lines_server, stdout=subprocess.DEVNULL) as client:

        def memory_after(rounds):
            for _ in range(rounds):
                client.stdin.write(data)
            client.stdin.flush()
            return peak_memory(client.pid)

        before = memory_after(20)
        if before is None:
            pytest.skip("there is no /proc")
        assert memory_after(150) - before < 4 << 20
        assert client.status() == 0


@pytest.mark.slow
def test_a_slow_reader_loses_nothing(lines_server):
    data = b"".join(lines(100_000))
    reader, writer = os.pipe()
    with open(reader, "rb") as output, Command(MODULE, *lines_server, stdout=writer, stdin=subprocess.PIPE) as client:
        os.close(writer)
        os.set_blocking(client.stdin.fileno(), False)
        sent = 0
        while select.select([], [client.stdin], [], 0.5)[1]:  # until all buffers on the way are full
            with contextlib.suppress(BlockingIOError):
                sent += os.write(client.stdin.fileno(), data[sent : sent + 4096])
        assert 0 < sent <= len(data)
        client.stdin.close()
        assert output.read() == data[:sent]
        assert client.status() == 0


def test_a_non_blocking_output_loses_nothing(lines_server):
    """A terminal or pipe shared with another program may be non-blocking."""
    data = b"".join(lines(20_000))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb") as output, Command(MODULE, *lines_server, stdout=writer) as client:
        os.close(writer)
        running = Running(output.read)
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write(data)
        status = client.status()
        assert running.result() == data
        assert status == 0


# ---- a server that reads and does not echo


def swallowed(sock, least):
    """Receive this many bytes, and what the client sends until it has been silent for a while; return their number."""
    total = len(receive(sock, least))
    while select.select([sock], [], [], 0.5)[0]:
        total += len(sock.recv(1 << 20))
    return total


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("data", "bound"), [(b"\0" * 4096, LIMIT), (b"x" * 4095 + b"\n", WINDOW)], ids=["without newlines", "lines"]
)
def test_the_bytes_in_flight_to_a_server_that_never_answers_are_bounded(data, bound):
    with socket.create_server(("127.0.0.1", 0)) as listener, Command(MODULE, *listener.getsockname()) as client:
        sock, _ = listener.accept()
        with sock:
            feeding = Running(feed, client.stdin, data, 1 << 30)
            assert swallowed(sock, bound - CHUNK) <= bound
            assert peak_memory(client.pid) < 80 << 20
            assert client.process.poll() is None
        assert client.status() == 1
        assert feeding.result() < 16 << 20


def feed(pipe, data, most):
    """Write ``data`` repeatedly until ``most`` bytes are written or the reader has gone; return the number of bytes."""
    taken = 0
    with contextlib.suppress(BrokenPipeError):
        while taken < most:
            taken += os.write(pipe.fileno(), data)
    return taken


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no packet pipes")
def test_input_in_pieces_of_one_byte_needs_no_more_memory_than_in_larger_ones():
    reader, writer = os.pipe2(os.O_DIRECT)  # a packet pipe: each read returns one write
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        open(writer, "wb", buffering=0) as pipe,
        Command(MODULE, *listener.getsockname(), stdin=reader) as client,
    ):
        os.close(reader)
        sock, _ = listener.accept()
        with sock:
            pipe.write(b"x")
            receive(sock, 1)
            before = peak_memory(client.pid)
            feeding = Running(feed, pipe, b"x", 30_000)
            receive(sock, 30_000)
            feeding.result()
            assert peak_memory(client.pid) - before < 4 << 20


@pytest.mark.slow
def test_waiting_for_the_server_is_reported_once(monkeypatch):
    monkeypatch.setattr("rioecho.client.PATIENCE", 0.05)
    reported = []
    ours, theirs = socket.socketpair()
    with ours, theirs, open("/dev/zero", "rb") as source, open(os.devnull, "wb") as sink:
        running = Running(pump, ours, source.fileno(), sink.fileno(), on_wait=reported.append)
        assert swallowed(theirs, LIMIT - CHUNK) <= LIMIT  # it waits another half second
        theirs.close()
        with pytest.raises(EchoLostError):
            running.result()
    assert reported == [LIMIT]


@pytest.mark.long
def test_a_line_as_long_as_the_limit_is_sent_whole():
    line = b"x" * (LIMIT - 1) + b"\n"

    def answer(sock):
        sock.sendall(receive(sock, len(line)))

    with answering(answer) as address:
        assert piped(address, line) == (0, line, "")
