"""LineServer: what its handlers get, what becomes of their answers, and the limits of the server."""

import contextlib
import gc
import logging
import os
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import weakref

import pytest

from rioecho import LineServer, LineTooLong
from support.handlers import Recorder, a_recorder, serving, take
from support.peers import Running, acknowledged, ask, dial, exchange, lines, receive, receive_all, reset
from support.procfs import until

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


@pytest.fixture
def recorder():
    return a_recorder()


# ---- lines and answers


def test_a_function_gets_whole_lines_and_its_answer_is_sent():
    data = lines(2000)
    with serving(lambda lines: [line.upper() for line in lines]) as server, dial(server.addresses[0]) as sock:
        assert exchange(sock, b"".join(data)) == b"".join(data).upper()


@pytest.mark.parametrize("framing", ["line", "raw"])
def test_a_class_gets_everything_in_order(recorder, framing):
    data = b"".join(lines(2000)) + b"the unterminated last line"
    with serving(recorder, framing=framing) as server, dial(server.addresses[0]) as sock:
        assert exchange(sock, data) == data
        handler = take(recorder.made)
        assert take(recorder.lost) is None
    assert b"".join(handler.received) == data
    if framing == "line":
        assert handler.received == data.splitlines(keepends=True) or all(
            line.count(b"\n") == 1 for line in handler.received[:-1]
        )


def test_a_line_that_arrives_byte_by_byte_is_given_once(recorder):
    with serving(recorder) as server, dial(server.addresses[0]) as sock:
        for byte in b"slow\nly\n":
            sock.sendall(bytes([byte]))
            acknowledged(sock)
        assert receive(sock, 8) == b"slow\nly\n"
        assert take(recorder.made).received == [b"slow\n", b"ly\n"]


@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        (None, b""),
        (b"", b""),
        (b"bytes", b"bytes"),
        (bytearray(b"bytearray"), b"bytearray"),
        (memoryview(b"memoryview"), b"memoryview"),
        ([b"a", b"", bytearray(b"b"), memoryview(b"c")], b"abc"),
        ((b"a", b"b"), b"ab"),
        ([], b""),
        (iter([b"a", b"b"]), b"ab"),
        ({b"a": 1, b"b": 2}, b"ab"),
    ],
    ids=repr,
)
def test_an_answer_is_bytes_or_an_iterable_of_bytes_or_none(answer, sent):
    with serving(lambda lines: answer) as server, dial(server.addresses[0]) as sock:
        sock.sendall(b"x\n")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == sent


def test_what_a_generator_writes_goes_before_what_it_yields(recorder):
    class Handler(recorder):
        def lines_received(self, lines):
            yield b"2"
            self.conn.write(b"1")
            yield b"3\n"

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        sock.sendall(b"x\n")
        assert receive(sock, 4) == b"123\n"


def test_the_greeting_is_sent_before_the_client_has_sent_anything(recorder):
    class Handler(recorder):
        def connection_made(self, conn):
            super().connection_made(conn)
            conn.write(b"220 ready\n")

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        assert receive(sock, 10) == b"220 ready\n"
        ask(sock)


# ---- lines that are too long


MAX = 100


@pytest.mark.parametrize(
    "pieces",
    [[b"x" * MAX + b"\n"], [b"x" * (MAX + 1)], [b"x" * MAX, b"y\n"], [b"x" * 60, b"y" * 60], [b"x" * 300 + b"\nz\n"]],
    ids=["whole", "partial", "completed", "partial twice", "with another behind it"],
)
@pytest.mark.parametrize("before", [b"", b"good\n"], ids=["alone", "after a line"])
def test_a_line_too_long_ends_the_connection_after_the_answers_before_it(recorder, pieces, before):
    with serving(recorder, max_line=MAX) as server, dial(server.addresses[0]) as sock:
        handler = take(recorder.made)
        pieces = [before + pieces[0], *pieces[1:]]
        for piece in pieces:
            sock.sendall(piece)
            acknowledged(sock)
        assert receive_all(sock) == before
        reason = take(recorder.lost)
        assert isinstance(reason, LineTooLong)
        assert reason.limit == MAX
        assert reason.buffered > MAX
        assert handler.losses == 1
        assert handler.received == ([before] if before else [])
        sock.close()
        until(lambda: server.stats()["active"] == 0)
        assert server.stats()["errors"] == 1


@pytest.mark.parametrize("pieces", [[b"x" * (MAX - 1) + b"\n"], [b"x" * MAX], [b"x" * 50, b"x" * 49 + b"\n"]])
def test_a_line_of_the_greatest_length_is_served(recorder, pieces):
    with serving(recorder, max_line=MAX) as server, dial(server.addresses[0]) as sock:
        for piece in pieces:
            sock.sendall(piece)
            acknowledged(sock)
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"".join(pieces)
        assert take(recorder.lost) is None


def test_a_line_too_long_ends_the_connection_of_a_function():
    with serving(lambda lines: lines, max_line=MAX) as server, dial(server.addresses[0]) as sock:
        sock.sendall(b"good\n" + b"x" * 200)
        assert receive_all(sock) == b"good\n"


# ---- ends


def test_a_reset_is_told_as_the_error(recorder):
    with serving(recorder) as server:
        sock = dial(server.addresses[0])
        ask(sock)
        reset(sock)
        assert isinstance(take(recorder.lost), ConnectionResetError)
        until(lambda: server.stats()["closed"] == 1)
    assert recorder.lost.empty()


def test_a_connection_that_ends_before_its_first_byte_is_told_of_its_end(recorder):
    with serving(recorder) as server:
        dial(server.addresses[0]).close()
        assert take(recorder.lost) is None


def test_an_idle_timeout_is_told_as_a_timeout_error(recorder):
    with serving(recorder, idle_timeout=0.1) as server, dial(server.addresses[0]) as sock:
        assert receive_all(sock) == b""
        assert isinstance(take(recorder.lost), TimeoutError)


@pytest.mark.slow
def test_a_client_that_only_listens_stays_connected_while_it_takes_what_is_pushed(recorder):
    with serving(recorder, idle_timeout=1) as server, dial(server.addresses[0]) as sock:
        handler = take(recorder.made)
        begin = time.monotonic()
        while time.monotonic() < begin + 2.5:
            handler.conn.write(b"tick\n")
            assert receive(sock, 5) == b"tick\n"
            time.sleep(0.05)  # the rate of the pushes
        assert recorder.lost.empty()
        assert isinstance(take(recorder.lost), TimeoutError)


@pytest.mark.slow
def test_a_peer_that_does_not_read_what_is_pushed_is_closed_at_the_idle_timeout(recorder):
    with serving(recorder, idle_timeout=0.5) as server, dial(server.addresses[0]):
        handler = take(recorder.made)
        handler.conn.write(b"x" * (32 << 20))
        assert isinstance(take(recorder.lost), TimeoutError)
        with pytest.raises(ConnectionError):
            handler.conn.write(b"y")


@pytest.mark.slow
def test_a_slow_reader_gets_all_of_what_was_written_before_the_close(recorder):
    size = 8 << 20

    class Handler(recorder):
        def lines_received(self, lines):
            self.conn.write(b"x" * size)
            self.conn.close()

    with serving(Handler, idle_timeout=1) as server, dial(server.addresses[0]) as sock:
        sock.sendall(b"go\n")
        got, begin = 0, time.monotonic()
        while part := sock.recv(64 << 10):
            got += len(part)
            time.sleep(0.02)  # slower than the idle timeout in all
        assert got == size
        assert time.monotonic() - begin > 1
        assert take(Handler.lost) is None


def test_the_stop_answers_whole_lines_and_not_the_beginning_of_another(recorder):
    with serving(recorder) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        sock.sendall(b"whole\nbeginning")
        acknowledged(sock)
        server.stop()
        assert receive_all(sock) == b"whole\n"
        assert take(recorder.made).received[-1] == b"whole\n"
        assert take(recorder.lost) is None


@pytest.mark.long
def test_the_drain_timeout_is_told_as_a_timeout_error(recorder):
    with serving(recorder, drain_timeout=0.3) as server, dial(server.addresses[0]):
        take(recorder.made).conn.write(b"x" * (32 << 20))
        server.stop()
        assert isinstance(take(recorder.lost), TimeoutError)


# ---- back-pressure


@pytest.mark.long
def test_a_connection_is_not_read_from_while_its_answers_wait(recorder):
    with serving(recorder) as server, dial(server.addresses[0]) as sock:
        handler = take(recorder.made)
        handler.conn.write(b"x" * (32 << 20))
        until(lambda: server.stats()["bytes_out"])
        sock.sendall(b"later\n")
        acknowledged(sock)
        with dial(server.addresses[0]) as other:  # the loop has looked at all of its connections since
            ask(other)
            ask(other)
        assert handler.received == []
        assert receive(sock, (32 << 20) + 6)[-6:] == b"later\n"


# ---- addresses


def test_a_unix_socket_has_its_path_as_the_peer(recorder, tmp_path):
    path = str(tmp_path / "socket")
    with LineServer(recorder, port=None, unix=path), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        ask(sock)
        conn = take(recorder.made).conn
        assert conn.peer == path
        assert conn.get_extra_info("peername") == path
        assert conn.get_extra_info("sockname") == path


def test_the_peer_is_the_address_of_the_proxy_header(recorder):
    class Handler(recorder):
        def connection_made(self, conn):
            super().connection_made(conn)
            conn.write(b"hello %s\n" % conn.peer[0].encode())

    with serving(Handler, proxy_protocol=True) as server, dial(server.addresses[0]) as sock:
        header = b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 80\r\n"
        sock.sendall(header[:10])
        acknowledged(sock)
        assert Handler.made.empty()
        sock.sendall(header[10:] + b"line\n")
        assert receive(sock, 16 + 5) == b"hello 192.0.2.7\nline\n"
        assert take(Handler.made).conn.peer == ("192.0.2.7", 1234)


def test_no_handler_is_made_after_a_wrong_proxy_header(recorder):
    with serving(recorder, proxy_protocol=True) as server:
        with dial(server.addresses[0]) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert receive_all(sock) == b""
        until(lambda: server.stats()["refused"] + server.stats()["errors"])
    assert recorder.made.empty()
    assert recorder.lost.empty()


@pytest.mark.parametrize("proxied", [False, True])
def test_no_handler_is_made_for_one_connection_too_many_of_an_address(recorder, proxied):
    header = b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 80\r\n" if proxied else b""
    with serving(recorder, max_per_host=1, proxy_protocol=proxied) as server:
        with dial(server.addresses[0]) as first, dial(server.addresses[0]) as second:
            first.sendall(header)
            ask(first)
            with contextlib.suppress(ConnectionError):
                second.sendall(header)
                assert receive_all(second) == b""
            until(lambda: server.stats()["refused"] == 1)
        until(lambda: server.stats()["active"] == 0)
    assert recorder.made.qsize() == recorder.lost.qsize() == 1


def test_sockets_that_are_passed_in_are_served(recorder):
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    with LineServer(recorder, port=None, sockets=[listener]), dial(address) as sock:
        ask(sock)
        assert take(recorder.made).conn.peer == sock.getsockname()


# ---- counts, logs, limits


def test_the_counts_are_those_of_the_traffic(recorder):
    with serving(lambda lines: b"!" * len(lines)) as server:
        with dial(server.addresses[0]) as sock:
            assert exchange(sock, b"a\nbc\nd") == b"!!!"
        until(lambda: server.stats()["active"] == 0)
        stats = server.stats()
    assert stats["accepted"] == stats["closed"] == 1
    assert stats["errors"] == stats["refused"] == 0
    assert (stats["bytes_in"], stats["bytes_out"], stats["lines"]) == (6, 3, 2)


@pytest.mark.parametrize("kind", ["class", "function"])
def test_the_log_is_that_of_an_echo_server(recorder, kind, caplog):
    caplog.set_level(logging.DEBUG, "rioecho.server")
    with serving(recorder if kind == "class" else lambda lines: lines) as server:
        with dial(server.addresses[0]) as sock:
            name = "({}, {})".format(*sock.getsockname())
            assert exchange(sock, b"a\nbc\nd") == b"a\nbc\nd"
        until(lambda: server.stats()["active"] == 0)
    messages = [record.getMessage() for record in caplog.records]
    assert f"Connected to {name}" in messages
    assert {f"server received {n} bytes" for n in (1, 2, 3)} <= set(messages)
    assert any("6 bytes" in message and name in message for message in messages)


def test_at_max_connections_others_wait(recorder):
    with serving(recorder, max_connections=1) as server, dial(server.addresses[0]) as first:
        ask(first)
        with dial(server.addresses[0]) as second:
            second.sendall(b"x\n")
            acknowledged(second)
            assert recorder.made.qsize() == 1
            first.close()
            assert receive(second, 2) == b"x\n"


def test_connections_that_hold_lines_wait_for_memory_and_lose_nothing(recorder):
    line = b"x" * 300_000 + b"\n"
    with serving(recorder, max_memory=1 << 20, max_line=1 << 19) as server, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(dial(server.addresses[0])) for _ in range(8)]
        running = [Running(exchange, sock, line * 3) for sock in socks]
        for each in running:
            assert each.result() == line * 3


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_share_the_connections_and_each_calls_in_its_own_thread(workers):
    threads = {}

    class Handler(Recorder):
        def connection_made(self, conn):
            threads.setdefault(threading.get_ident(), []).append(self)

        def lines_received(self, lines):
            assert self in threads[threading.get_ident()]
            return lines

    with serving(Handler, workers=workers) as server, contextlib.ExitStack() as stack:
        for _ in range(2 * workers):
            ask(stack.enter_context(dial(server.addresses[0])))
        assert [len(each) for each in threads.values()] == [2] * workers


@pytest.mark.skipif(not FREE_THREADED, reason="with the GIL handlers take turns, even those that wait cross it")
def test_without_the_gil_the_handlers_of_two_workers_run_at_once():
    flags = [False, False]
    here = iter([0, 1])

    class Handler:
        def connection_made(self, conn):
            self.i = next(here)

        def lines_received(self, lines):
            flags[self.i] = True
            deadline = time.monotonic() + 20
            while not flags[1 - self.i]:  # without a call that releases a GIL
                assert time.monotonic() < deadline
            return lines

    with serving(Handler, workers=2) as server, dial(server.addresses[0]) as one, dial(server.addresses[0]) as two:
        one.sendall(b"1\n")
        two.sendall(b"2\n")
        assert receive(one, 2) + receive(two, 2) == b"1\n2\n"


def test_handlers_of_two_workers_cross_a_barrier():
    barrier = threading.Barrier(2, timeout=20)

    def handler(lines):
        barrier.wait()
        return lines

    with serving(handler, workers=2) as server, dial(server.addresses[0]) as one, dial(server.addresses[0]) as two:
        one.sendall(b"1\n")
        two.sendall(b"2\n")
        assert receive(one, 2) + receive(two, 2) == b"1\n2\n"


def test_the_loop_does_not_hold_the_gil_while_it_waits(recorder):
    with serving(recorder, idle_timeout=0) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        # If the loop held the GIL in its wait, which has no end, this thread would never run again.
        for _ in range(100):
            ask(sock)
            begin = time.thread_time()
            while time.thread_time() < begin + 0.001:
                pass


def test_a_handler_and_its_lines_are_freed_at_the_end():
    class Line(Recorder):
        pass

    with serving(Line) as server:
        with dial(server.addresses[0]) as sock:
            ask(sock)
            reference = weakref.ref(take(Line.made))
        take(Line.lost)
        until(lambda: gc.collect() * 0 == 0 and reference() is None)


@pytest.mark.long
def test_a_handler_is_kept_while_its_connection_is_open():
    class Handler:
        def lines_received(self, lines):
            gc.collect()
            return lines

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        gc.collect()
        ask(sock)


# ---- arguments


class NoMethod:
    pass


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((None,), {}, TypeError),
        ((NoMethod,), {}, TypeError),
        ((Recorder,), {"engine": "thread"}, TypeError),
        ((Recorder,), {"udp": True}, TypeError),
        ((Recorder,), {"write_limit": -1}, ValueError),
        ((Recorder,), {"write_limit": "1"}, TypeError),
        ((Recorder,), {"framing": "word"}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, error):
    with pytest.raises(error):
        LineServer(*arguments, **options)


IDLE = 2000  # connections
MEASURE = f"""if True:
    import ctypes, gc, resource, socket, sys
    from rioecho import EchoServer, LineServer

    class Handler:
        def lines_received(self, lines):
            return lines

    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in "a b c d e f g used i j".split()]

    def used():
        gc.collect()
        return info().used

    def connect(n):
        for i in range(n):
            with socket.create_connection(server.addresses[0]) as sock:
                sock.sendall(b"x\\n")
                assert sock.recv(2) == b"x\\n"
                fds[i] = sock.detach()

    info = ctypes.CDLL(None).mallinfo2
    info.restype = Info
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    servers = {{
        "echo": lambda: EchoServer(host="127.0.0.1"),
        "function": lambda: LineServer(lambda lines: lines, host="127.0.0.1"),
        "class": lambda: LineServer(Handler, host="127.0.0.1"),
    }}
    with servers[sys.argv[1]]() as server:
        fds = [0] * {IDLE}
        connect(200)
        before = used()
        connect({IDLE})
        print((used() - before) / {IDLE})
"""


def cost(kind):
    """Return the number of bytes that an idle connection of a server costs, and the test's descriptor with it."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEASURE, kind],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONMALLOC": "malloc"},
    )
    if "mallinfo2" in done.stderr:
        pytest.skip("this C library has no mallinfo2")
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mallinfo2 is glibc's")
@pytest.mark.skipif("RIOECHO_BUILD" in os.environ, reason="a sanitizer has an allocator of its own")
def test_an_idle_connection_costs_what_an_echo_does_and_with_a_class_400_bytes_more():
    echo = cost("echo")
    assert cost("function") < echo + 8
    assert cost("class") < echo + 400
