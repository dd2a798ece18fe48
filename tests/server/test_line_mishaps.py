"""What handlers of LineServer do wrong, or to the server: it ends their connection at most."""

import gc
import logging
import os
import socket
import struct
import subprocess
import threading
import time

import pytest

from rioecho import LineServer
from support.handlers import Recorder, a_recorder, serving, stuff, take
from support.peers import SECONDS, Running, acknowledged, ask, dial, receive, receive_all, reset
from support.procfs import descriptors, needs_proc, until
from support.proxies import version_1


@pytest.fixture
def recorder():
    return a_recorder()


@pytest.fixture
def failures(caplog):
    """A function that returns the log's records of failed handlers."""
    caplog.set_level(logging.ERROR, "rioecho.server")
    return lambda: [record for record in caplog.records if record.levelno >= logging.ERROR]


class OurError(BaseException):
    pass


ERRORS = (ValueError, OSError, MemoryError, OurError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration)


def failing(recorder, place, error):
    """Return a handler class that raises in one place."""

    class Handler(recorder):
        def __init__(self):
            if place == "__init__":
                raise error
            super().__init__()

        def connection_made(self, conn):
            super().connection_made(conn)
            if place == "connection_made":
                raise error

        def lines_received(self, lines):
            if place == "lines_received":
                raise error
            return self.answers(lines) if place == "generator" else lines

        def answers(self, lines):
            yield lines[0]
            raise error

        def connection_lost(self, reason):
            super().connection_lost(reason)
            if place == "connection_lost":
                raise error

    return Handler


# ---- raising


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", ["__init__", "connection_made", "lines_received", "generator", "connection_lost"])
def test_an_exception_is_logged_and_ends_its_own_connection(recorder, failures, place, error):
    handler = failing(recorder, place, error)
    with serving(recorder) as healthy, dial(healthy.addresses[0]):
        with serving(handler) as server:
            with dial(server.addresses[0]) as sock:
                name = "({}, {})".format(*sock.getsockname())
                sock.sendall(b"x\n")
                if place == "connection_lost":
                    assert receive(sock, 2) == b"x\n"
                else:
                    assert receive_all(sock) == b""
            until(lambda: server.stats()["active"] == 0)
            until(failures)
            with dial(server.addresses[0]) as other:  # and the server serves
                acknowledged(other)
            until(lambda: server.stats()["closed"] == 2)
        if place != "__init__":
            reason = take(handler.lost)
            if place == "connection_lost":
                assert reason is None
            elif error is StopIteration and place == "generator":
                assert isinstance(reason, RuntimeError)
            else:
                assert isinstance(reason, error)
        record = failures()[0]
        assert name in record.getMessage()
        assert record.exc_info[2] is not None
        if place in ("connection_made", "lines_received", "generator"):
            assert server.stats()["errors"] >= 1


def test_a_function_that_raises_ends_its_own_connection(failures):
    def handler(lines):
        if b"bad\n" in lines:
            raise ValueError("bad line")
        return lines

    with serving(handler) as server, dial(server.addresses[0]) as good, dial(server.addresses[0]) as bad:
        ask(good)
        ask(bad)
        bad.sendall(b"bad\n")
        assert receive_all(bad) == b""
        ask(good)
        assert "bad line" in str(failures()[0].exc_info[1])


@pytest.mark.parametrize("level", [logging.ERROR, logging.INFO])
@pytest.mark.parametrize("header", [b"", b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n", b"PROXY UNKNOWN\r\n"])
def test_the_failure_of_a_function_is_logged_with_the_peer(failures, caplog, header, level):
    def handler(lines):
        if b"bad\n" in lines:
            raise ValueError
        return lines

    caplog.set_level(level, "rioecho.server")
    with serving(handler, proxy_protocol=bool(header)) as server, dial(server.addresses[0]) as sock:
        name = "(192.0.2.7, 4711)" if b"TCP4" in header else "({}, {})".format(*sock.getsockname())
        sock.sendall(header)
        ask(sock)
        sock.sendall(b"bad\n")
        assert receive_all(sock) == b""
        until(failures)
    assert failures()[0].getMessage() == f"The handler of {name} failed"


def test_the_failure_at_the_first_line_is_logged_with_the_address_of_the_proxy_header(failures, caplog):
    def handler(lines):
        raise ValueError

    caplog.set_level(logging.INFO, "rioecho.server")
    with serving(handler, proxy_protocol=True) as server, dial(server.addresses[0]) as sock:
        sock.sendall(version_1() + b"bad\n")  # the header and the line are read together
        assert receive_all(sock) == b""
        until(failures)
    assert failures()[0].getMessage() == "The handler of (192.0.2.7, 4321) failed"


def test_the_failure_of_a_function_whose_client_has_gone_is_logged_without_a_name(failures):
    gone, called = threading.Event(), threading.Event()

    def handler(lines):
        called.set()
        assert gone.wait(SECONDS)
        raise ValueError

    with serving(handler) as server:
        with dial(server.addresses[0]) as sock:
            sock.sendall(b"x\n")
            assert called.wait(SECONDS)
            reset(sock)
        gone.set()
        until(failures)
    assert failures()[0].getMessage() == "The handler of a connection failed"


def test_a_handler_whose_connection_lost_cannot_be_got_is_logged(recorder, failures):
    class Handler(recorder):
        @property
        def connection_lost(self):
            raise ValueError

    with serving(Handler) as server:
        with dial(server.addresses[0]) as sock:
            ask(sock)
        until(failures)
        with dial(server.addresses[0]) as sock:
            ask(sock)
    assert "failed when the connection was lost" in failures()[0].getMessage()


def test_a_handler_is_told_of_the_end_although_its_socket_cannot_be_closed(recorder, failures):
    """Somebody has closed the descriptor of the duplicate."""

    class Handler(recorder):
        def lines_received(self, lines):
            os.close(self.conn.get_extra_info("socket").fileno())
            return lines

    with serving(Handler) as server:
        with dial(server.addresses[0]) as sock:
            ask(sock)
        assert take(Handler.lost) is None
    assert "Bad file descriptor" in str(failures()[0].exc_info[1])


@pytest.mark.long
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") in ("sanitize", "race"), reason="sanitizers abort at such a size")
def test_an_answer_for_which_there_is_no_memory_ends_the_connection_and_none_of_it_is_sent(recorder, failures):
    class Handler(recorder):
        def lines_received(self, lines):
            self.conn.write(b"written before\n")
            return [b"first\n"] + [bytes(1 << 26)] * (1 << 22)  # 2 ** 48 bytes, which no machine has

    with serving(Handler) as server:
        with dial(server.addresses[0]) as sock:
            sock.sendall(b"x\n")
            assert receive_all(sock) == b"written before\n"
        assert isinstance(take(Handler.lost), MemoryError)
    assert failures()


def test_what_was_answered_and_written_before_the_failure_is_sent(recorder):
    class Handler(recorder):
        def lines_received(self, lines):
            self.conn.write(b"written\n")
            if b"bad\n" in lines:
                raise ValueError
            return lines

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        sock.sendall(b"good\n")
        assert receive(sock, 13) == b"written\ngood\n"
        sock.sendall(b"bad\n")
        assert receive_all(sock) == b"written\n"


@pytest.mark.parametrize(
    "answer", ["text", 5, 1.5, ["text"], [b"bytes", None], [b"bytes", 5], object(), memoryview(b"a-b-")[::2]], ids=repr
)
def test_a_wrong_answer_ends_the_connection_and_none_of_it_is_sent(recorder, failures, answer):
    class Handler(recorder):
        def lines_received(self, lines):
            return answer

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        sock.sendall(b"x\n")
        assert receive_all(sock) == b""
        assert isinstance(take(Handler.lost), TypeError | BufferError)
        assert failures()


def test_a_log_that_raises_does_not_disturb_the_server(recorder):
    class Broken(logging.Handler):
        def emit(self, record):
            raise OurError

    log, broken = logging.getLogger("rioecho.server"), Broken()
    handler = failing(recorder, "lines_received", ValueError)
    log.addHandler(broken)
    try:
        with serving(handler) as server:
            for _ in range(2):
                with dial(server.addresses[0]) as sock:
                    sock.sendall(b"x\n")
                    assert receive_all(sock) == b""
    finally:
        log.removeHandler(broken)


# ---- blocking


def test_a_handler_that_blocks_delays_the_others_and_loses_nothing(recorder):
    entered, leave = threading.Event(), threading.Event()

    class Handler(recorder):
        def lines_received(self, lines):
            if b"block\n" in lines:
                entered.set()
                leave.wait(30)
            return lines

    with serving(Handler) as server, dial(server.addresses[0]) as one, dial(server.addresses[0]) as two:
        one.sendall(b"block\n")
        assert entered.wait(30)
        two.sendall(b"waits\n" * 1000)
        acknowledged(two)
        leave.set()
        assert receive(one, 6) == b"block\n"
        assert receive(two, 6000) == b"waits\n" * 1000


@pytest.mark.slow
def test_a_handler_that_blocks_longer_than_the_drain_timeout_is_left_behind(recorder):
    entered, leave = threading.Event(), threading.Event()

    class Handler(recorder):
        def lines_received(self, lines):
            entered.set()
            leave.wait(30)

    server = LineServer(Handler, host="127.0.0.1", drain_timeout=0.1)
    with server, dial(server.addresses[0]) as sock:
        sock.sendall(b"x\n")
        assert entered.wait(30)
        server.close()
        assert Handler.lost.empty()
        leave.set()
        assert take(Handler.lost) is None
    until(lambda: not any(thread.name.startswith("rioecho") for thread in threading.enumerate()))


# ---- calls of the server


def test_a_handler_stops_the_server(recorder):
    class Handler(recorder):
        def lines_received(self, lines):
            server.stop()
            return lines

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        sock.sendall(b"last words\n")
        assert receive_all(sock) == b"last words\n"
        sock.close()
        server.wait()
        assert take(Handler.lost) is None


@pytest.mark.parametrize("name", ["close", "wait"])
def test_a_handler_may_not_wait_for_itself(recorder, name):
    class Handler(recorder):
        def lines_received(self, lines):
            with pytest.raises(RuntimeError, match=r"stop\(\)"):
                getattr(server, name)()
            return lines

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        ask(sock)


def test_a_handler_reads_the_counts(recorder):
    class Handler(recorder):
        def lines_received(self, lines):
            return b"%(active)d %(bytes_in)d\n" % {key.encode(): n for key, n in server.stats().items()}

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        sock.sendall(b"x\n")
        assert receive(sock, 4) == b"1 2\n"


def test_a_thread_with_the_number_of_a_worker_that_has_ended_may_close_the_server(recorder):
    worker = []

    class Handler(recorder):
        def connection_made(self, conn):
            worker.append(threading.get_ident())

    server = LineServer(Handler, host="127.0.0.1")
    with server:
        with dial(server.addresses[0]) as sock:
            ask(sock)
        server.stop()
        server.wait()
        until(lambda: not any(thread.name.startswith("rioecho") for thread in threading.enumerate()))
        assert worker[0] not in server._engine.threads  # where the number is reused is up to the system
        Running(server.close).result()


def test_a_handler_runs_a_server_of_its_own():
    def handler(lines):
        with serving(lambda lines: [line.upper() for line in lines]) as inner, dial(inner.addresses[0]) as sock:
            data = b"".join(lines)
            sock.sendall(data)
            return receive(sock, len(data))

    with serving(handler) as server, dial(server.addresses[0]) as sock:
        sock.sendall(b"x\n")
        assert receive(sock, 2) == b"X\n"


def test_handlers_close_each_other(recorder):
    class Handler(recorder):
        def lines_received(self, lines):
            for each in everyone:
                if each is not self:
                    each.conn.close() if b"close\n" in lines else each.conn.abort()
            return lines

    for word in (b"close\n", b"abort\n"):
        with serving(Handler) as server:
            socks = [dial(server.addresses[0]) for _ in range(5)]
            everyone = [take(Handler.made) for _ in socks]
            socks[0].sendall(word)
            assert receive(socks[0], 6) == word
            for _ in socks[1:]:
                assert isinstance(take(Handler.lost), type(None) if word == b"close\n" else ConnectionAbortedError)
            ask(socks[0], word)
            for sock in socks:
                sock.close()
            assert take(Handler.lost) is None
            assert all(each.losses == 1 for each in everyone)


# ---- lives


@pytest.mark.long
def test_a_handler_that_nobody_else_refers_to_lives_as_long_as_its_connection():
    class Handler:
        def lines_received(self, lines):
            return lines

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        for _ in range(5):
            gc.collect()
            ask(sock)


@pytest.mark.long
def test_a_server_that_is_dropped_in_a_cycle_with_its_handler_is_freed():
    class Handler(Recorder):
        server = None

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        Handler.server = server
        ask(sock)
    del server
    Handler.server = None
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, LineServer) and each.handler is Handler]


# ---- options of the socket


@pytest.mark.long
@needs_proc
def test_a_close_that_waits_for_the_peer_delays_no_other_thread(recorder):
    """SO_LINGER, which is that of the listening socket, has close(2) wait for seconds while the peer does not read."""

    class Handler(recorder):
        def connection_made(self, conn):
            stuff(conn)
            super().connection_made(conn)

    def sockets():
        return {name for name in descriptors("self").values() if name.startswith("socket:")}

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 10))
    with serving(Handler, port=None, sockets=[listener], idle_timeout=0.1) as server:
        before = sockets()
        with dial(server.addresses[0]) as sock:
            conn = take(Handler.made).conn
            (theirs,) = sockets() - before - {f"socket:[{os.fstat(sock.fileno()).st_ino}]"}
            until(lambda: theirs not in sockets())  # but close(2) has not returned
            started = time.monotonic()
            assert conn.get_extra_info("socket") is None
            assert time.monotonic() - started < 5
            reset(sock)
            assert isinstance(take(Handler.lost), TimeoutError)


# ---- commands


def test_a_handler_runs_a_command(recorder):
    def handler(lines):
        return subprocess.run(["cat"], input=b"".join(lines), capture_output=True, check=True).stdout

    with serving(handler) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        ask(sock)


# ---- a busy thread


@pytest.mark.long
def test_a_busy_thread_and_the_server_both_go_on(recorder):
    stop = threading.Event()

    def count():
        n = 0
        while not stop.is_set():
            n += 1
        return n

    with serving(recorder) as server, dial(server.addresses[0]) as sock:
        counting = Running(count)
        begin = time.monotonic()
        for _ in range(20):
            ask(sock)
        assert time.monotonic() - begin < 30
        stop.set()
        assert counting.result() > 0
