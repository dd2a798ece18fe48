"""rioecho-client in a pipe: what goes in comes out again, whatever it is; what goes wrong is one line and a status."""

import contextlib
import os
import select
import subprocess

import pytest

from rioecho.server import EchoServer
from support.peers import Command, Running, binary, lines, peak_memory, piped

MODULE = "rioecho.cli.client"


@pytest.fixture(params=["line", "raw"])
def server(request):
    """The address of an echo server."""
    with EchoServer(framing=request.param) as running:
        yield running.addresses[0]


@pytest.fixture
def lines_server():
    with EchoServer() as running:
        yield running.addresses[0]


@pytest.mark.sampled(1)
def test_a_hundred_thousand_lines_come_out_identical(server):
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
def test_what_goes_in_comes_out(server, data):
    status, output, complaint = piped(server, data)
    assert (status, complaint) == (0, "")
    assert output == data


def test_localhost_and_ipv6_will_do(lines_server):
    for host in ("localhost", "::1", "127.0.0.1"):
        assert piped((host, lines_server[1]), b"hello\n") == (0, b"hello\n", "")


def test_a_file_goes_through(lines_server, tmp_path):
    data = binary(1_000_000)
    (tmp_path / "in").write_bytes(data)
    with (
        open(tmp_path / "in", "rb") as source,
        open(tmp_path / "out", "wb") as sink,
        Command(MODULE, *lines_server, stdin=source, stdout=sink) as client,
    ):
        assert client.status() == 0
    assert (tmp_path / "out").read_bytes() == data


def test_each_line_comes_out_before_the_next_is_put_in(lines_server):
    with Command(MODULE, *lines_server) as client:
        for i in range(20):
            client.stdin.write(b"line %d\n" % i)
            client.stdin.flush()
            client.out.wait_for(b"line %d\n" % i)
        assert client.status() == 0


@pytest.mark.slow
def test_the_memory_is_the_same_for_a_long_stream_as_for_a_short_one(lines_server):
    data = b"".join(lines(10_000))
    with Command(MODULE, *lines_server, stdout=subprocess.DEVNULL) as client:

        def memory_after(rounds):
            for _ in range(rounds):
                client.stdin.write(data)
            client.stdin.flush()
            return peak_memory(client.pid)

        before = memory_after(20)
        if before is None:
            pytest.skip("no /proc to ask for the memory")
        assert memory_after(150) - before < 4 << 20
        assert client.status() == 0


def test_a_slow_reader_neither_loses_anything_nor_makes_it_grow(lines_server):
    data = b"".join(lines(100_000))
    reader, writer = os.pipe()
    with open(reader, "rb") as output, Command(MODULE, *lines_server, stdout=writer, stdin=subprocess.PIPE) as client:
        os.close(writer)
        os.set_blocking(client.stdin.fileno(), False)
        sent = 0
        while select.select([], [client.stdin], [], 0.5)[1]:  # until everything between here and there is full
            with contextlib.suppress(BlockingIOError):
                sent += os.write(client.stdin.fileno(), data[sent : sent + 4096])
        assert 0 < sent <= len(data)
        client.stdin.close()
        assert output.read() == data[:sent]
        assert client.status() == 0


def test_an_output_that_is_non_blocking_loses_nothing(lines_server):
    """As a terminal or pipe may be that is shared with another program."""
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
