"""How EchoServer stops: it echoes the bytes that had arrived and closes, within drain_timeout whatever clients do."""

import asyncio
import contextlib
import itertools
import os
import select
import socket
import threading
import time

import pytest

from rioecho.server import EchoServer
from support.peers import SECONDS, Running, acknowledged, ask, binary, dial, exchange, lines, receive_all, reset
from support.procfs import until


@pytest.fixture(params=["line", "raw"])
def framing(request):
    return request.param


@contextlib.contextmanager
def dial_to(server):
    with server, dial(server.addresses[0]) as sock:
        yield server, sock


def test_bytes_that_had_arrived_are_echoed_before_the_close(engine, framing):
    data = b"".join(lines(200)) + b"and no newline"
    with EchoServer(engine=engine, framing=framing) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        sock.sendall(data)
        acknowledged(sock)
        server.stop()
        assert receive_all(sock) == data
    assert server.stats()["errors"] == 0


def send_as_far_as_possible(sock, data):
    with contextlib.suppress(OSError):
        sock.sendall(data)


def test_bytes_that_had_arrived_are_echoed_to_a_client_that_reads_late(engine):
    data = binary(4_000_000)
    with EchoServer(engine=engine, drain_timeout=SECONDS) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        running = Running(send_as_far_as_possible, sock, data)
        server.stop()
        back = receive_all(sock)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        running.result()
    assert data.startswith(back)
    assert server.stats()["bytes_out"] == server.stats()["bytes_in"] == len(back) + 15


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_client_connected_but_not_yet_accepted_is_served(engine):
    """The kernel has acknowledged its bytes, so they must not be lost."""
    server = EchoServer(engine=engine)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(address)) for address in server.addresses * 3]
        for sock in clients:
            sock.sendall(b"in the queue\n")
            sock.shutdown(socket.SHUT_WR)
            acknowledged(sock)
        server.stop()
        with server:
            for sock in clients:
                assert receive_all(sock) == b"in the queue\n"


def test_waiting_clients_are_served_before_the_iterative_server_stops():
    with dial_to(EchoServer(engine="iterative")) as (server, first), dial(server.addresses[0]) as second:
        ask(first)
        second.sendall(b"I can wait\n")
        acknowledged(second)
        server.stop()
        assert receive_all(first) == b""
        first.close()
        assert receive_all(second) == b"I can wait\n"


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_client_that_never_closes_is_disconnected_at_the_drain_deadline(engine):
    start = time.monotonic()
    with dial_to(EchoServer(engine=engine, drain_timeout=0.2)) as (server, sock):
        ask(sock)
        server.close()
        assert 0.2 <= time.monotonic() - start < SECONDS / 2
        assert receive_all(sock) == b""
    assert server.stats()["closed"] == 1


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("reads", [True, False])
def test_a_flooding_client_is_disconnected_at_the_drain_deadline(engine, framing, reads):
    ended = threading.Event()

    def flood(sock):
        with contextlib.suppress(OSError):
            while not ended.is_set():
                sock.sendall(b"x" * 65_535 + b"\n")

    def sink(sock):
        with contextlib.suppress(OSError):
            while sock.recv(1 << 16):
                pass

    with dial_to(EchoServer(engine=engine, framing=framing, drain_timeout=0.2)) as (server, sock):
        ask(sock)
        running = [Running(flood, sock)] + [Running(sink, sock)] * reads
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < SECONDS / 2
        ended.set()
        sock.close()
        for each in running:
            each.result()
    stats = server.stats()
    assert stats["closed"] == stats["accepted"] == 1


def test_a_client_that_keeps_sending_reads_its_echo_and_eof_and_no_reset(engine):
    with dial_to(EchoServer(engine=engine)) as (server, sock):
        ask(sock)
        sock.sendall(b"before\n")
        acknowledged(sock)
        server.stop()
        assert sock.recv(7) == b"before\n"
        assert sock.recv(1) == b""
        for _ in range(100):
            sock.sendall(b"too late\n")  # the server reads and discards it, otherwise it would send a reset
        assert sock.recv(1) == b""


def test_any_thread_may_stop_the_server(engine):
    with dial_to(EchoServer(engine=engine)) as (server, sock):
        ask(sock)
        Running(server.stop).result()
        assert receive_all(sock) == b""
        sock.close()


def test_a_stop_before_the_start_takes_effect(engine):
    server = EchoServer(engine=engine)
    server.stop()
    server.serve_forever()
    server.close()
    assert server.stats()["accepted"] == 0


def test_stopping_and_closing_again_does_nothing():
    with EchoServer() as server:
        server.stop()
        server.stop()
    unrelated = [os.pipe() for _ in range(8)]  # with the numbers that the server had
    server.stop()
    server.close()
    assert select.select([reader for reader, _ in unrelated], [], [], 0)[0] == []  # nothing was written to them
    for fd in itertools.chain.from_iterable(unrelated):
        os.close(fd)  # raises if the server closed it
    assert server.stats()["accepted"] == 0


def test_many_threads_may_stop_the_server_at_once(engine):
    with dial_to(EchoServer(engine=engine)) as (server, sock):
        ask(sock)
        for each in [Running(server.stop) for _ in range(20)]:
            each.result()
        assert receive_all(sock) == b""


def test_no_new_client_is_accepted_after_the_stop(engine):
    with dial_to(EchoServer(engine=engine)) as (server, sock):
        ask(sock)
        server.stop()
        assert receive_all(sock) == b""
        sock.close()
        server.close()
        with pytest.raises(ConnectionRefusedError):
            dial(server.addresses[0])


def test_serve_forever_serves_in_the_calling_thread_until_stopped(engine):
    server = EchoServer(engine=engine)
    running = Running(server.serve_forever)
    with dial(server.addresses[0]) as sock:
        ask(sock)
        server.stop()
        assert receive_all(sock) == b""
    running.result()
    server.close()


def test_close_waits_until_serving_has_ended(engine):
    server = EchoServer(engine=engine)
    running = Running(server.serve_forever)
    with dial(server.addresses[0]) as sock:
        ask(sock)
        sock.sendall(b"the last line\n")
        acknowledged(sock)
        sock.shutdown(socket.SHUT_WR)
        server.close()
        assert receive_all(sock) == b"the last line\n"
    running.result()
    assert server.stats()["closed"] == 1


def test_an_error_in_the_block_closes_the_server(engine):
    with pytest.raises(KeyError), EchoServer(engine=engine) as server:
        raise KeyError
    with pytest.raises(ConnectionRefusedError):
        dial(server.addresses[0])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("engine", ["process", "thread", "event"])
def test_many_clients_are_drained_together(engine):
    data = binary(20_000) + b"\n"
    with EchoServer(engine=engine) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.addresses[i % 2])) for i in range(50)]
        for sock in clients:
            ask(sock)
        for sock in clients:
            sock.sendall(data)
            acknowledged(sock)
        server.stop()
        for sock in clients:
            assert receive_all(sock) == data
    stats = server.stats()
    assert (stats["closed"], stats["active"], stats["errors"]) == (50, 0, 0)
    assert stats["bytes_out"] == 50 * (len(data) + 15)


def test_a_reset_while_draining_ends_it(engine):
    with dial_to(EchoServer(engine=engine)) as (server, sock):
        ask(sock)
        server.stop()
        assert receive_all(sock) == b""
        reset(sock)
    assert server.stats()["closed"] == 1


def test_starting_twice_is_an_error_and_the_server_keeps_serving(engine):
    with dial_to(EchoServer(engine=engine)) as (server, sock):
        with pytest.raises(RuntimeError):
            server.start()
        assert exchange(sock, b"still there\n") == b"still there\n"


def test_serve_forever_waits_if_the_server_was_started(engine):
    events = []

    def serve(server):
        server.serve_forever()
        events.append("served")

    with dial_to(EchoServer(engine=engine)) as (server, sock):
        forever = Running(serve, server)
        for _ in range(100):
            ask(sock)
        events.append("stopped")
        server.stop()
        sock.close()
        forever.result()
    assert events == ["stopped", "served"]
    assert server.stats()["closed"] == 1


@pytest.mark.parametrize("begin", ["start", "serve_forever", "__enter__"])
def test_a_closed_server_does_not_start_again(engine, begin):
    server = EchoServer(engine=engine)
    server.close()
    with pytest.raises((RuntimeError, ValueError)):
        getattr(server, begin)()


@pytest.mark.parametrize("seconds", [1e12, float("inf")])
def test_a_huge_drain_timeout_means_no_limit(engine, seconds):
    with EchoServer(engine=engine, drain_timeout=seconds) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        server.stop()
        assert receive_all(sock) == b""
    assert server.stats()["closed"] == 1


@pytest.mark.slow
def test_draining_a_long_queue_takes_no_longer_than_the_drain_timeout():
    server = EchoServer(engine="iterative", drain_timeout=0.5)
    server.start()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(server.addresses[0])) for _ in range(20)]
        for client in clients:
            client.sendall(b"hi\n")
        assert clients[0].recv(3) == b"hi\n"
        start = time.monotonic()
        server.close()
        assert 0.5 <= time.monotonic() - start < 8
    counts = server.stats()
    assert counts["accepted"] + counts["refused"] == 20


@pytest.mark.sampled(2)
def test_a_client_that_has_just_connected_gets_its_echo_although_it_sends_after_the_stop(engine, framing):
    with dial_to(EchoServer(engine=engine, framing=framing)) as (server, sock):
        other = dial(server.addresses[0])
        with other:
            until(lambda: server.stats()["accepted"] == (1 if engine == "iterative" else 2))
            server.stop()
            for each in (sock, other):
                each.sendall(b"late\n")
                each.shutdown(socket.SHUT_WR)
            for each in (sock, other):
                assert receive_all(each) == b"late\n"


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_client_that_sends_nothing_is_disconnected_soon_after_the_stop(engine):
    with dial_to(EchoServer(engine=engine, drain_timeout=SECONDS)) as (server, sock):
        until(lambda: server.stats()["accepted"] == 1)
        start = time.monotonic()
        server.stop()
        assert receive_all(sock) == b""
        assert time.monotonic() - start < SECONDS / 2
        sock.close()
        server.close()
    assert server.stats()["errors"] == 0


@pytest.mark.long
@pytest.mark.sampled(2)
def test_a_reset_after_the_stop_of_a_client_that_has_sent_nothing_is_no_error(engine):
    with dial_to(EchoServer(engine=engine, drain_timeout=SECONDS)) as (server, sock):
        until(lambda: server.stats()["accepted"] == 1)
        server.stop()
        assert receive_all(sock) == b""
        reset(sock)
        server.close()
    assert server.stats()["closed"] == 1
    assert server.stats()["errors"] == 0


def test_the_queue_of_a_passed_socket_is_left_to_others(engine):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = EchoServer(None, sockets=[listener.dup()], engine=engine)
        with dial(listener.getsockname()) as sock:
            sock.sendall(b"for the next\n")
            sock.shutdown(socket.SHUT_WR)
            acknowledged(sock)
            server.stop()
            server.serve_forever()
            server.close()
            assert server.stats()["accepted"] == 0
            with EchoServer(None, sockets=[listener.dup()], engine=engine):
                assert receive_all(sock) == b"for the next\n"


def test_a_connected_socket_is_served_and_then_the_server_ends(engine):
    near, far = socket.socketpair()
    server = EchoServer(None, sockets=[near], engine=engine)
    with far:
        server.start()
        assert exchange(far, b"hello\n") == b"hello\n"
    server.wait()  # without a stop
    assert server.stats()["closed"] == 1
    server.close()


def test_leaving_an_async_block_lets_the_loop_of_its_clients_run(engine):
    """Otherwise the clients could not disconnect, and the server would wait for them until the drain deadline."""

    async def main():
        async with EchoServer(engine=engine, drain_timeout=1000) as server:
            clients = [
                await asyncio.open_connection(*server.addresses[0]) for _ in range(1 if engine == "iterative" else 3)
            ]
            for reader, writer in clients:
                writer.write(b"hello\n")
                assert await reader.readline() == b"hello\n"
                writer.close()  # takes effect in the next turn of the loop
        return server.stats()

    assert asyncio.run(asyncio.wait_for(main(), SECONDS))["active"] == 0


def test_an_error_in_an_async_block_is_passed_on_and_the_server_closed():
    async def main():
        async with EchoServer() as server:
            address.append(server.addresses[0])
            raise KeyError

    address = []
    with pytest.raises(KeyError):
        asyncio.run(main())
    with pytest.raises(ConnectionRefusedError):
        dial(address[0])


def test_leaving_an_async_block_can_be_cancelled():
    async def main():
        async with EchoServer(drain_timeout=SECONDS) as server:
            reader, writer = await asyncio.open_connection(*server.addresses[0])
            opened.append(writer)
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            asyncio.get_running_loop().call_later(0.01, asyncio.current_task().cancel)
        raise AssertionError("not cancelled")

    async def outer():
        task = asyncio.create_task(main())
        with pytest.raises(asyncio.CancelledError):
            await task
        opened[0].close()
        await opened[0].wait_closed()

    opened = []
    start = time.monotonic()
    asyncio.run(outer())
    assert time.monotonic() - start < SECONDS / 2
