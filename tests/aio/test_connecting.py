"""Making a Rio of asyncio: connect() and wrap(), what they refuse, and what is left when they fail."""

import asyncio
import errno
import io
import os
import pty
import socket
import ssl
import subprocess
import sys
import time
import tty

import pytest

import rioecho
from rioecho import aio
from support.aio import is_open, tls_contexts, turns, until


async def echo(rio):
    async for line in rio:
        rio.write(line)


def server_of(kind="tcp"):
    return aio.start_server(echo, "127.0.0.1", 0, ssl=tls_contexts()[0] if kind == "tls" else None)


def address_of(server):
    return server.sockets[0].getsockname()


async def check(rio):
    rio.write(b"line\n")
    assert await rio.readline() == b"line\n"


# ---- connect()


async def test_the_forms_of_connect(tmp_path):
    async with server_of() as server:
        host, port = address_of(server)
        for arguments in [(host, port), (host, str(port)), ((host, port),), ("localhost", port)]:
            async with aio.connect(*arguments) as rio:
                await check(rio)
            rio = await aio.connect(*arguments)
            await check(rio)
            await rio.close()
    path = tmp_path / "socket"
    async with aio.start_server(echo, path):
        for place in (path, str(path), os.fsencode(path)):
            async with aio.connect(place) as rio:
                await check(rio)


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6")
async def test_an_address_of_ipv6_has_four_items():
    try:
        server = await aio.start_server(echo, "::1", 0)
    except OSError:
        pytest.skip("there is no IPv6 loopback")
    async with server, aio.connect(address_of(server)) as rio:
        await check(rio)


async def test_connect_over_tls_checks_the_host():
    context = tls_contexts()[1]
    async with server_of("tls") as server:
        _, port = address_of(server)
        async with aio.connect("localhost", port, ssl=context) as rio:
            await check(rio)
            assert rio.get_extra_info("peercert")
        async with aio.connect("127.0.0.1", port, ssl=context, server_hostname="localhost") as rio:
            await check(rio)
        with pytest.raises(ssl.SSLCertVerificationError):
            await aio.connect("127.0.0.1", port, ssl=context, server_hostname="example.com")
        with pytest.raises(ssl.SSLCertVerificationError):
            await aio.connect("localhost", port, ssl=True)


async def test_wrong_arguments_of_connect():
    for arguments, more, kind in [
        ((5,), {}, TypeError),
        ((("h", 1), 1), {}, TypeError),
        ((("h",),), {}, TypeError),
        (("h", 1.5), {}, TypeError),
        ((b"h", 1), {}, TypeError),
        (("h", 70000), {}, ValueError),
        (("127.0.0.1", 1), {"bufsize": 0}, ValueError),
        (("127.0.0.1", 1), {"timeout": -1}, ValueError),
        (("127.0.0.1", 1), {"idle_timeout": 0}, ValueError),
        (("127.0.0.1", 1), {"wake_fd": 1}, TypeError),
        (("127.0.0.1", 1), {"ssl": 1}, TypeError),
        (("127.0.0.1", 1), {"server_hostname": "h"}, ValueError),
        (("/path",), {"ssl": tls_contexts()[1]}, ValueError),
    ]:
        with pytest.raises(kind):
            await aio.connect(*arguments, **more)


async def test_errors_name_host_and_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(ConnectionRefusedError, match=rf"cannot connect to localhost port {port}: ") as error:
        await aio.connect("localhost", port)
    assert error.value.errno == errno.ECONNREFUSED
    with pytest.raises(socket.gaierror, match=r"nosuch\.invalid port 1"):
        await aio.connect("nosuch.invalid", 1)
    with pytest.raises(FileNotFoundError, match="/nonexistent/socket"):
        await aio.connect("/nonexistent/socket")
    with pytest.raises(FileNotFoundError, match="use connect"):
        await aio.connect("localhost")


async def test_a_timeout_of_0_would_wait():
    async with server_of() as server:
        with pytest.raises(BlockingIOError):
            await aio.connect(*address_of(server), timeout=0)


@pytest.mark.long
async def test_the_timeout_is_then_that_of_each_call():
    async with server_of() as server, aio.connect(*address_of(server), timeout=0.5, idle_timeout=9) as rio:
        assert rio.timeout == 0.5
        assert rio.idle_timeout == 9
        with pytest.raises(TimeoutError):
            await rio.readline()


def full_queue(path):
    """Return a listening unix socket whose queue is full, and the sockets in it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    waiting = []
    while True:
        waiting.append(socket.socket(socket.AF_UNIX))
        waiting[-1].setblocking(False)
        try:
            waiting[-1].connect(str(path))
        except BlockingIOError:
            return listener, waiting


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a full queue refuses")
async def test_connecting_waits_for_room_in_the_listen_queue(tmp_path):
    path = tmp_path / "socket"
    listener, waiting = full_queue(path)
    with listener:
        with pytest.raises(TimeoutError, match="socket"):
            await aio.connect(path, timeout=0.05)
        connecting = asyncio.create_task(aio.connect(path, timeout=20))
        await turns(3)
        assert not connecting.done()
        listener.accept()[0].close()
        await (await connecting).close()
        for each in waiting:
            each.close()


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_a_handshake_that_is_not_answered_leaves_nothing(how):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        opening = aio.connect(
            *listener.getsockname(),
            ssl=tls_contexts()[1],
            server_hostname="localhost",
            timeout=0.1 if how == "timeout" else None,
        )
        connecting = asyncio.create_task(opening)
        sock = (await asyncio.to_thread(listener.accept))[0]
        with sock:
            await asyncio.to_thread(sock.recv, 1)  # the handshake has begun
            if how == "cancel":
                connecting.cancel()
            with pytest.raises((TimeoutError, asyncio.CancelledError)):
                await connecting
            sock.settimeout(20)
            await asyncio.to_thread(lambda: [None for _ in iter(lambda: sock.recv(4096), b"")])


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_connect_cancelled_in_any_turn_leaves_nothing(kind):
    more = {"ssl": tls_contexts()[1], "server_hostname": "localhost"} if kind == "tls" else {}
    async with server_of(kind) as server:
        for turn in range(15):
            connecting = asyncio.create_task(aio.connect(*address_of(server), **more))
            await turns(turn)
            connecting.cancel()
            try:
                rio = await connecting
            except asyncio.CancelledError:
                continue
            await rio.close()


async def test_the_next_address_is_tried(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()
    async with server_of() as server:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in (closed, closed, address_of(server))]

        async def look_up(*arguments, **options):
            return found

        # A name with several addresses needs a name server; the connections are real.
        loop = asyncio.get_running_loop()
        if not hasattr(loop, "_selector"):
            pytest.skip("uvloop's methods cannot be replaced")
        monkeypatch.setattr(loop, "getaddrinfo", look_up)
        async with aio.connect("name", 1, timeout=20) as rio:
            await check(rio)
        found.reverse()
        found.pop(0)
        with pytest.raises(ConnectionRefusedError, match="name port 1"):
            await aio.connect("name", 1)


async def test_options_of_asyncio_go_through():
    async with server_of() as server:
        host, port = address_of(server)
        with socket.create_server(("127.0.0.1", 0)) as free:
            local = free.getsockname()
        async with aio.connect(host, port, local_addr=local, family=socket.AF_INET) as rio:
            assert rio.get_extra_info("sockname") == local
            await check(rio)
        if hasattr(asyncio.get_running_loop(), "_selector"):
            async with aio.connect(host, port, happy_eyeballs_delay=0.1) as rio:
                await check(rio)
            with pytest.raises(ConnectionRefusedError):
                await aio.connect(host, local[1], happy_eyeballs_delay=0.1)


async def test_nagles_algorithm_is_off():
    async with server_of() as server, aio.connect(*address_of(server)) as rio:
        assert rio.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_an_opening_is_a_coroutine():
    async with server_of() as server:
        place = address_of(server)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(aio.connect(place)), group.create_task(aio.connect(place))]
        for rio in [task.result() for task in tasks] + await asyncio.gather(aio.connect(place)):
            await rio.close()
        opening = aio.connect(place)
        await (await opening).close()
        with pytest.raises(RuntimeError, match="reuse"):
            await opening
        with pytest.warns(RuntimeWarning, match="connect"):
            aio.connect(place)


def test_a_rio_is_not_made_directly():
    with pytest.raises(TypeError, match=r"connect\(\).*start_server\(\).*wrap\(\)"):
        aio.Rio(3)


@pytest.mark.long
def test_importing_rioecho_does_not_import_asyncio():
    code = (
        "import sys, rioecho; assert 'asyncio' not in sys.modules; rioecho.aio.connect; assert 'asyncio' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- wrap()


async def test_a_socket_a_number_and_a_raw_file_are_wrapped():
    for form in (lambda sock: sock, lambda sock: sock.detach()):
        mine, other = socket.socketpair()
        with other:
            fd = mine.fileno()
            async with aio.wrap(form(mine), timeout=20, max_line=100) as rio:
                other.send(b"line\n")
                assert await rio.readline() == b"line\n"
                await rio.writen(b"answer\n")
                assert other.recv(100) == b"answer\n"
            assert not is_open(fd)  # the Rio owned it
    reader, writer = os.pipe()
    async with aio.wrap(open(reader, "rb", buffering=0)) as rio, aio.wrap(open(writer, "wb", buffering=0)) as out:
        await out.writen(b"line\n")
        assert await rio.readline() == b"line\n"


async def test_a_process_is_spoken_to_through_its_pipes():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as cat:
        async with aio.wrap(cat.stdout) as rio:
            async with aio.wrap(cat.stdin) as out:
                out.write(b"line\n")
                assert await rio.readline() == b"line\n"
            assert await rio.read() == b""


async def test_a_terminal_is_read_and_written():
    master, slave = pty.openpty()
    tty.setraw(slave)
    async with aio.wrap(master) as ours:
        async with aio.wrap(slave) as theirs:
            await ours.writen(b"question\n")
            assert await theirs.readline() == b"question\n"
            await theirs.writen(b"answer\n")
            assert await ours.readline() == b"answer\n"
        assert await ours.read(timeout=20) == b""  # it was hung up


async def test_a_terminal_without_data_has_not_ended():
    import termios

    master, slave = pty.openpty()
    tty.setraw(slave)
    settings = termios.tcgetattr(slave)
    settings[6][termios.VMIN] = 0
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    async with aio.wrap(master) as ours, aio.wrap(slave) as theirs:
        reading = asyncio.create_task(theirs.readline())
        await turns(5)
        assert not reading.done()
        await ours.writen(b"li")
        await turns(5)
        await ours.writen(b"ne\n")
        assert await reading == b"line\n"
        await ours.close()
        assert await theirs.read(timeout=20) == b""


async def test_control_d_ends_the_input_of_a_terminal():
    master, slave = pty.openpty()
    async with aio.wrap(master) as ours, aio.wrap(slave) as theirs:
        await ours.writen(b"line\n\x04")
        assert await theirs.readline() == b"line\n"
        assert await theirs.read(timeout=20) == b""
        await theirs.writen(b"still written\n")
        assert b"still written" in await ours.readuntil(b"written\r\n")


async def test_a_pipe_that_nobody_has_opened_for_writing_yet_is_waited_for(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    async with aio.wrap(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as rio:
        reading = asyncio.create_task(rio.readline())
        await turns(5)
        assert not reading.done()
        writer = os.open(path, os.O_WRONLY)
        os.write(writer, b"line\n")
        assert await reading == b"line\n"
        os.close(writer)
        assert await rio.read() == b""


async def test_a_pipe_is_not_read_from_while_enough_is_held():
    reader, writer = os.pipe()
    async with aio.wrap(reader, bufsize=1024) as rio, aio.wrap(writer) as out:
        with pytest.raises(TimeoutError):
            await out.writen(b"x" * (1 << 20) + b"\n", timeout=0.1)
        assert rio.buffered < 1 << 19
        assert await rio.readuntil(limit=1 << 22) == b"x" * (1 << 20) + b"\n"


async def test_the_flags_of_a_descriptor_are_put_back():
    reader, writer = os.pipe()
    other = os.dup(reader)
    async with aio.wrap(reader):
        assert not os.get_blocking(other)
    assert os.get_blocking(other)
    os.close(other)
    os.close(writer)


async def test_what_wrap_refuses_is_still_the_callers(tmp_path):
    listener = socket.create_server(("127.0.0.1", 0))
    closed = socket.socket()
    closed.close()
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    buffered, raw = path.open("rb"), path.open("rb", buffering=0)
    null = os.open("/dev/null", os.O_RDWR)
    datagrams, unconnected = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
    mine, other = socket.socketpair()
    tls = tls_contexts()[1].wrap_socket(mine, server_hostname="localhost", do_handshake_on_connect=False)
    blocking = rioecho.Rio(other)
    blocking.unread(b"held")
    for thing, kind, words in [
        (datagrams, TypeError, "byte stream"),
        (datagrams.fileno(), TypeError, "byte stream"),
        (tls, TypeError, "start_tls"),
        (listener, OSError, "listens"),
        (listener.fileno(), OSError, "listens"),
        (unconnected, OSError, "not connected"),
        (closed, ValueError, "closed"),
        (raw, io.UnsupportedOperation, "never waited for"),
        (raw.fileno(), ValueError, "never waited for"),
        (buffered, ValueError, "never waited for"),
        (null, io.UnsupportedOperation, "never waited for"),
        (blocking, ValueError, "holds 4 bytes"),
        (-1, ValueError, "negative"),
        (True, TypeError, "bool"),
        ("path", TypeError, "str"),
        (None, TypeError, "NoneType"),
    ]:
        with pytest.raises(kind, match=words):
            await aio.wrap(thing)
    with pytest.raises(ValueError, match="bufsize"):
        await aio.wrap(other, bufsize=0)
    for thing in (listener, buffered, raw, datagrams, unconnected, tls, other):
        assert is_open(thing.fileno())
        thing.close()
    os.close(null)


async def test_a_rio_of_asyncio_cannot_be_wrapped():
    mine, other = socket.socketpair()
    with other:
        async with aio.wrap(mine) as rio:
            with pytest.raises(TypeError, match="already"):
                await aio.wrap(rio)
            other.send(b"line\n")
            assert await rio.readline() == b"line\n"


async def test_a_blocking_rio_is_handed_over():
    mine, other = socket.socketpair()
    with other:
        blocking = rioecho.Rio(mine)
        other.send(b"one\ntwo\nthr")
        assert blocking.readline() == b"one\n"
        fd, rest = blocking.detach()
        async with aio.wrap(fd) as rio:
            assert rio.unread(rest) == len(rest)
            assert await rio.readline() == b"two\n"
            other.send(b"ee\n")
            assert await rio.readline() == b"three\n"


async def test_bytes_of_a_peer_that_has_gone_are_read():
    mine, other = socket.socketpair()
    other.send(b"last\nwords")
    other.close()
    async with aio.wrap(mine) as rio:
        assert await rio.readlines() == [b"last\n", b"words"]


async def test_a_wrap_cancelled_in_any_turn_leaves_nothing():
    for turn in range(6):
        mine, other = socket.socketpair()
        with other:
            fd = mine.fileno()
            wrapping = asyncio.create_task(aio.wrap(mine))
            await turns(turn)
            wrapping.cancel()
            try:
                rio = await wrapping
            except asyncio.CancelledError:
                if turn:
                    await until(lambda fd=fd: not is_open(fd))
                mine.close()
                continue
            await rio.close()


@pytest.mark.long
async def test_each_address_gets_its_share_of_the_time():
    # A listener whose queue is full does not answer a connection request.
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = []
    with listener:
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(listener.getsockname())
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"cannot connect to 127\.0\.0\.1 port"):
            await aio.connect(*listener.getsockname(), timeout=0.2)
        assert time.monotonic() - began < 10
        for each in waiting:
            each.close()


@pytest.mark.parametrize("fd", [-1, -(1 << 31)])
async def test_a_negative_descriptor_is_a_value_error(fd):
    with pytest.raises(ValueError, match="negative"):
        await aio.wrap(fd)
