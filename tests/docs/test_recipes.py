"""The programs of examples/ that the documentation shows, run with clients that try what the pages say."""

# ruff: noqa: F811, the fixtures are imported

import asyncio
import importlib.util
import re
import runpy
import shutil
import ssl
from pathlib import Path

import pytest

from rioecho import aio, connect
from rioecho.testing import Peer, close, expect, send
from support.programs import LONG, command, run, start  # noqa: F401, fixtures

EXAMPLES = Path(__file__).parents[2] / "examples"

pytest_plugins = ["pytester"]


@pytest.mark.long
def test_both_sides_of_starttls_talk_over_tls(certificate):
    assert run(command("starttls.py", certificate)) == (0, b"b'over TLS\\n'\n", b"")


@pytest.mark.long
def test_the_command_of_starttls_makes_its_certificate(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("the openssl command is not installed")
    (making,) = re.findall(r"^    (openssl .*(?:\n {8}.*)*)", (EXAMPLES / "starttls.py").read_text(), re.MULTILINE)
    status, _, complaint = run(["/bin/sh", "-c", making], cwd=tmp_path)
    assert status == 0, complaint
    assert run(command("starttls.py", tmp_path / "both.pem")) == (0, b"b'over TLS\\n'\n", b"")


@pytest.mark.parametrize("arguments", [(), ("a.pem", "b.pem")], ids=len)
def test_starttls_without_its_argument_prints_its_usage(arguments):
    assert run(command("starttls.py", *arguments)) == (1, b"", b"usage: starttls.py CERTIFICATE\n")


def test_the_client_of_starttls_checks_the_name_that_it_is_given(certificate):
    program = runpy.run_path(str(EXAMPLES / "starttls.py"))
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=certificate)
    ours.load_cert_chain(certificate)

    async def connect_to(name):
        async with aio.start_server(program["server_with"](ours), "127.0.0.1", 0) as server:
            rio = await asyncio.to_thread(program["secured"], server.sockets[0].getsockname(), theirs, name)
            rio.close()

    asyncio.run(connect_to("localhost"))
    with pytest.raises(ssl.SSLCertVerificationError, match="example"):
        asyncio.run(connect_to("mail.example.org"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"220 go on\r\n250 injected\r\n", "14 bytes came in the clear"), (b"454 no\r\n", "454 no"), (b"", "b''")],
)
def test_the_client_of_starttls_refuses_what_was_injected_and_what_is_no_agreement(answer, message):
    program = runpy.run_path(str(EXAMPLES / "starttls.py"))
    with (
        Peer(expect(b"STARTTLS\r\n"), send(answer), close()) as server,
        pytest.raises(ConnectionError, match=message),
    ):
        program["secured"](server.address, ssl.create_default_context(), "localhost")


def test_the_server_of_starttls_refuses_what_was_injected(certificate):
    program = runpy.run_path(str(EXAMPLES / "starttls.py"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    errors = []

    async def inject():
        asyncio.get_running_loop().set_exception_handler(lambda _, found: errors.append(found["exception"]))
        server = await aio.start_server(program["server_with"](context), "127.0.0.1", 0)
        async with aio.connect(server.sockets[0].getsockname(), timeout=LONG) as rio:
            await rio.writen(b"hello\r\n")
            assert await rio.readline() == b"530 STARTTLS comes first\r\n"
            await rio.writen(b"STARTTLS\r\ninjected\r\n")
            assert await rio.read() == b""
        server.close()
        await server.wait_closed()

    asyncio.run(inject())
    assert [type(error) for error in errors] == [ValueError]


@pytest.mark.parametrize("loop", ["trio", "twisted"])
def test_a_server_on_another_event_loop_reads_lines_in_any_pieces(loop, start):
    if importlib.util.find_spec(loop) is None:
        pytest.skip(f"{loop} is not installed")
    server = start(command(f"{loop}_shout.py", 0))
    address = "127.0.0.1", int(server.output.readline().split()[-1])
    with connect(address, timeout=LONG) as rio:
        for piece in (b"o", b"ne\ntw", b"o\nthree\n"):
            rio.writen(piece)
        assert rio.read(14) == b"ONE\nTWO\nTHREE\n"
        rio.writen(b"x" * 1001)
        assert rio.readline() == b""


@pytest.mark.long
def test_the_tests_of_a_client_pass(pytester):
    program = (EXAMPLES / "test_ping.py").read_text()
    pytester.makepyfile(test_ping=program)
    result = pytester.runpytest("-p", "rioecho.testing", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=program.count("\ndef test_"))
