"""TLS on asyncio: start_tls() on both sides, what it refuses, and a handshake that fails."""

import asyncio
import contextlib
import os
import smtplib
import socket
import ssl

import pytest

from rioecho import ConcurrentCall, aio
from support.aio import beside, is_open, joined, tls_contexts, turns, until

BIG = bytes(range(256)) * (1 << 12)


async def secure(rio, peer):
    """Begin TLS on both ends of a connection."""
    server, client = tls_contexts()
    await asyncio.gather(rio.start_tls(client, server_hostname="localhost"), peer.start_tls(server, server_side=True))


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_tls_begins_on_both_sides(kind):
    async with joined(kind) as (rio, peer):
        rio.write(b"STARTTLS\n")
        assert await peer.readline() == b"STARTTLS\n"
        peer.write(b"go ahead\n")  # sent in the clear by start_tls()
        server, client = tls_contexts()
        serving = asyncio.create_task(peer.start_tls(server, server_side=True))
        assert await rio.readline() == b"go ahead\n"
        await rio.start_tls(client, server_hostname="localhost")
        await serving
        assert rio.get_extra_info("ssl_object").version().startswith("TLS")
        reading = asyncio.create_task(peer.readexactly(len(BIG)))
        assert await rio.writen(BIG) == len(BIG)
        assert await reading == BIG
        await peer.writen(b"answer\n")
        assert await rio.readline() == b"answer\n"
        await rio.close()
        assert await peer.read() == b""


async def test_what_is_written_during_the_handshake_is_encrypted():
    async with joined() as (rio, peer):
        server, client = tls_contexts()
        serving = asyncio.create_task(peer.start_tls(server, server_side=True))
        shaking = asyncio.create_task(rio.start_tls(client, server_hostname="localhost"))
        for _ in range(3):
            await asyncio.sleep(0)
            rio.write(b"sec")  # in the clear it would end the handshake
            assert not shaking.done()
        rio.write(b"\n")
        await asyncio.gather(shaking, serving)
        assert await peer.readline() == b"secsecsec\n"


async def test_a_read_that_begins_during_the_handshake_waits_for_the_secured_bytes():
    async with joined() as (rio, peer):
        securing = asyncio.create_task(rio.start_tls(tls_contexts()[1], server_hostname="localhost"))
        await turns(2)
        reading = asyncio.create_task(rio.readline())
        await peer.start_tls(tls_contexts()[0], server_side=True)
        await securing
        await peer.writen(b"secured\n")
        assert await reading == b"secured\n"


async def test_bytes_that_came_in_the_clear_are_refused():
    async with joined() as (rio, peer):
        await peer.writen(b"220 go ahead\n250 injected\n")
        assert await rio.readline() == b"220 go ahead\n"
        with pytest.raises(ValueError, match="in the clear"):
            await rio.start_tls(tls_contexts()[1], server_hostname="localhost")
        assert await rio.readline() == b"250 injected\n"  # nothing has changed
        await secure(rio, peer)
        await peer.writen(b"safe\n")
        assert await rio.readline() == b"safe\n"


async def test_a_handshake_that_comes_while_start_tls_flushes_is_no_injection():
    async with joined() as (rio, peer):
        server, client = tls_contexts()
        peer.write(BIG)
        serving = asyncio.create_task(peer.start_tls(server, server_side=True))
        await turns(3)
        assert not serving.done()
        shaking = asyncio.create_task(rio.start_tls(client, server_hostname="localhost"))
        with pytest.raises(ValueError, match="in the clear"):
            await shaking
        assert await rio.readexactly(len(BIG)) == BIG
        await rio.start_tls(client, server_hostname="localhost")
        await serving
        await rio.writen(b"line\n")
        assert await peer.readline() == b"line\n"


async def test_tls_cannot_begin_within_a_frame():
    async with joined() as (rio, peer):
        await peer.writen(b"line\n")
        with rio.frame():
            assert await rio.readline() == b"line\n"
            with pytest.raises(ValueError, match="frame"):
                await rio.start_tls(tls_contexts()[1], server_hostname="localhost")
        await secure(rio, peer)


async def test_another_call_that_waits_is_a_concurrent_call():
    async with joined() as (rio, peer):
        context = tls_contexts()[1]
        reading = asyncio.create_task(rio.readline())
        await turns(2)
        with pytest.raises(ConcurrentCall, match="readline"):
            await rio.start_tls(context, server_hostname="localhost")
        await peer.writen(b"line\n")
        assert await reading == b"line\n"
        writing = asyncio.create_task(rio.writen(BIG))
        await turns(3)
        with pytest.raises(ConcurrentCall):
            await rio.start_tls(context, server_hostname="localhost")
        assert await peer.readexactly(len(BIG)) == BIG
        await writing
        shaking = asyncio.create_task(rio.start_tls(context, server_hostname="localhost"))
        await turns(3)
        with pytest.raises(ConcurrentCall):
            await rio.flush()
        shaking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await shaking


async def test_a_certificate_that_is_not_trusted_aborts():
    async with joined() as (rio, peer):
        fd = rio.get_extra_info("socket").fileno()
        serving = asyncio.create_task(peer.start_tls(tls_contexts()[0], server_side=True))
        with pytest.raises(ssl.SSLCertVerificationError):
            await rio.start_tls(ssl.create_default_context(), server_hostname="localhost")
        assert rio.closed
        await until(lambda: not is_open(fd))
        with pytest.raises((OSError, ssl.SSLError)):
            await serving
        assert peer.closed
        await rio.close()
        await peer.close()


@pytest.mark.parametrize("arguments", [("context",), (None,), (5,), (True,)], ids=repr)
async def test_what_is_no_context_changes_nothing(arguments):
    async with joined() as (rio, peer):
        with pytest.raises(TypeError, match="SSLContext"):
            await rio.start_tls(*arguments, server_hostname="localhost")
        with pytest.raises(TypeError, match="server_hostname"):
            await rio.start_tls(tls_contexts()[1], server_hostname=5)
        for name in (".x", "a\0b", "x" * 64):
            with pytest.raises((ValueError, TypeError)):
                await rio.start_tls(tls_contexts()[1], server_hostname=name)
        with pytest.raises(ssl.SSLError):
            await rio.start_tls(tls_contexts()[1], server_side=True)
        assert not rio.closed
        await secure(rio, peer)


async def test_a_peer_that_speaks_no_tls_aborts():
    async with beside() as (rio, other):
        fd = rio.get_extra_info("socket").fileno()
        shaking = asyncio.create_task(rio.start_tls(tls_contexts()[1], server_hostname="localhost"))
        await turns(3)
        other.send(b"500 what?\r\n")
        with pytest.raises(ssl.SSLError):
            await shaking
        assert rio.closed
        await until(lambda: not is_open(fd))


@pytest.mark.parametrize("how", ["peer", "abort", "cancel", "timeout", "close"])
async def test_a_handshake_that_does_not_end_leaves_nothing(how):
    async with beside() as (rio, other):
        fd = rio.get_extra_info("socket").fileno()
        timeout = 0.05 if how == "timeout" else None
        shaking = asyncio.create_task(rio.start_tls(tls_contexts()[1], server_hostname="localhost", timeout=timeout))
        await turns(3)
        if how == "peer":
            other.close()
        elif how == "abort":
            rio.abort()
        elif how == "cancel":
            shaking.cancel()
        elif how == "close":
            await rio.close(timeout=0.05)
        expected = {"cancel": asyncio.CancelledError, "timeout": TimeoutError}.get(how, (OSError, ValueError))
        with pytest.raises(expected):
            await shaking
        assert rio.closed
        await rio.close()
        await until(lambda: not is_open(fd))


@pytest.mark.parametrize("turn", range(8))
async def test_a_handshake_cancelled_in_any_turn_leaves_nothing(turn):
    async with joined() as (rio, peer):
        fd = rio.get_extra_info("socket").fileno()
        server, client = tls_contexts()
        serving = asyncio.create_task(peer.start_tls(server, server_side=True))
        shaking = asyncio.create_task(rio.start_tls(client, server_hostname="localhost"))
        await turns(turn + 1)
        shaking.cancel()
        try:
            await shaking
        except asyncio.CancelledError:
            await until(lambda: not is_open(fd))
        rio.abort()
        with contextlib.suppress(OSError, ssl.SSLError):
            await serving


async def test_a_pipe_has_no_tls():
    reader, writer = os.pipe()
    async with aio.wrap(reader), aio.wrap(writer) as out:
        with pytest.raises(TypeError):
            await out.start_tls(tls_contexts()[1])


async def test_a_wrong_context_is_a_type_error():
    async with joined() as (rio, _peer):
        with pytest.raises(TypeError):
            await rio.start_tls(True, server_hostname="localhost")


async def test_many_bytes_at_once_after_the_handshake_do_not_stop_the_reading():
    async with joined(theirs={"bufsize": 16}) as (rio, peer):
        await secure(rio, peer)
        sending = asyncio.create_task(rio.writen(BIG))
        assert await peer.readexactly(len(BIG)) == BIG
        await sending


async def test_tls_within_tls():
    async with joined("tls") as (rio, peer):
        await secure(rio, peer)
        sending = asyncio.create_task(rio.writen(BIG))
        assert await peer.readexactly(len(BIG)) == BIG
        await sending
        await rio.close()
        assert await peer.read() == b""


async def smtp(rio):
    """Serve the beginning of SMTP with STARTTLS (RFC 3207)."""
    rio.write(b"220 localhost\r\n")
    async for line in rio:
        command = line.strip().upper()
        if command.startswith(b"EHLO"):
            secured = rio.get_extra_info("ssl_object") is not None
            rio.write(b"250-localhost\r\n250 " + (b"SIZE 1000" if secured else b"STARTTLS") + b"\r\n")
        elif command == b"STARTTLS":
            rio.write(b"220 go ahead\r\n")
            await rio.start_tls(tls_contexts()[0], server_side=True)
        elif command == b"QUIT":
            rio.write(b"221 bye\r\n")
            return
        else:
            rio.write(b"250 ok\r\n")


async def test_the_standard_librarys_mail_client_begins_tls():
    def client(port):
        with smtplib.SMTP("localhost", port, timeout=20) as mail:
            mail.starttls(context=tls_contexts()[1])
            mail.ehlo()
            return mail.esmtp_features

    async with aio.start_server(smtp, "localhost", 0, family=socket.AF_INET) as server:
        port = server.sockets[0].getsockname()[1]
        assert await asyncio.to_thread(client, port) == {"size": "1000"}


async def test_a_dialogue_with_starttls_from_the_client_side():
    async with (
        aio.start_server(smtp, "127.0.0.1", 0) as server,
        aio.connect(*server.sockets[0].getsockname(), timeout=20) as rio,
    ):
        assert await rio.readline() == b"220 localhost\r\n"
        rio.write(b"EHLO me\r\nSTARTTLS\r\n")
        assert await rio.readuntil(b"STARTTLS\r\n") == b"250-localhost\r\n250 STARTTLS\r\n"
        assert await rio.readline() == b"220 go ahead\r\n"
        await rio.start_tls(tls_contexts()[1], server_hostname="localhost")
        rio.write(b"EHLO me\r\nQUIT\r\n")
        assert await rio.read() == b"250-localhost\r\n250 SIZE 1000\r\n221 bye\r\n"


async def test_a_context_that_checks_the_name_needs_one():
    async with joined() as (rio, peer):
        _, client = tls_contexts()
        with pytest.raises(ValueError, match="server_hostname"):
            await rio.start_tls(client)
        await rio.writen(b"still in the clear\n")
        assert await peer.readline() == b"still in the clear\n"
