"""The exit status of the commands if stdout or stderr cannot be written: the usual status, without a traceback.

Python's own flush at exit would make it 120. PYTHONUNBUFFERED decides whether a write or the flush fails.
"""

import os
import socket

import pytest

from rioecho.server import EchoServer
from support.peers import Command

COMMANDS = ["client", "bench", "server"]

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full"),
    pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"]),
]


def command(name, *arguments, unbuffered, **options):
    return Command(f"rioecho.cli.{name}", *arguments, environment={"PYTHONUNBUFFERED": unbuffered}, **options)


@pytest.fixture
def full():
    with open("/dev/full", "w") as file:
        yield file


@pytest.fixture
def left():
    """Yield the write end of a pipe whose read end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as file:
        yield file


@pytest.fixture
def unused_port():
    """Yield a port on which no socket listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.mark.long
@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_text_that_cannot_be_written_is_one_line_and_status_1(name, option, full, unbuffered):
    with command(name, option, unbuffered=unbuffered, stdout=full) as process:
        assert process.status() == 1
        assert process.complaint() == f"rioecho-{name}: stdout: No space left on device"


@pytest.mark.long
@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_pipe_as_the_output_of_help_is_not_an_error(name, option, left, unbuffered):
    with command(name, option, unbuffered=unbuffered, stdout=left) as process:
        assert process.status() == 0
        assert process.err.text == ""


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_a_usage_error_that_cannot_be_written_is_status_2(name, full, unbuffered):
    with command(name, "--magic", unbuffered=unbuffered, stdout=full, stderr=full) as process:
        assert process.status() == 2


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_status_1_if_neither_it_nor_the_error_can_be_written(name, full, unbuffered):
    with command(name, "--help", unbuffered=unbuffered, stdout=full, stderr=full) as process:
        assert process.status() == 1


@pytest.mark.long
@pytest.mark.parametrize(("name", "closed"), [("client", "2>&-"), ("bench", ">&-"), ("server", ">&- 2>&-")])
def test_closed_streams_do_not_change_the_status(name, closed, unbuffered):
    with command(name, "--magic", unbuffered=unbuffered, prelude=closed) as process:
        assert process.status() == 2


@pytest.mark.long
@pytest.mark.parametrize("stream", ["full", "left"])
@pytest.mark.parametrize(("name", "form"), [("client", "127.0.0.1 {}"), ("bench", "127.0.0.1:{}")])
def test_a_refused_connection_that_cannot_be_reported_is_status_1(name, form, stream, unused_port, request, unbuffered):
    stderr = request.getfixturevalue(stream)
    with command(name, *form.format(unused_port).split(), unbuffered=unbuffered, stderr=stderr) as process:
        assert process.status() == 1


@pytest.mark.long
def test_an_address_in_use_that_cannot_be_reported_is_status_1(full, unbuffered):
    with (
        EchoServer(host="127.0.0.1") as server,
        command("server", server.addresses[0][1], "--host", "127.0.0.1", unbuffered=unbuffered, stderr=full) as process,
    ):
        assert process.status() == 1


@pytest.mark.long
def test_an_invalid_argument_that_cannot_be_reported_is_status_2(full, unbuffered):
    with command("server", "0", "--workers", "0", unbuffered=unbuffered, stderr=full) as process:
        assert process.status() == 2


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_comparison_with_a_full_stdout_is_status_1(tmp_path, full, unbuffered):
    with EchoServer(host="127.0.0.1") as server:
        address = "{}:{}".format(*server.addresses[0])
        for name in ("a.json", "b.json"):
            with command("bench", address, "-c1", "-d0.4", "--json", tmp_path / name, unbuffered="1") as process:
                assert process.status() == 0
    files = tmp_path / "a.json", tmp_path / "b.json"
    with command("bench", "compare", *files, unbuffered=unbuffered, stdout=full) as process:
        assert process.status() == 1
        assert process.complaint() == "rioecho-bench: stdout: No space left on device"
