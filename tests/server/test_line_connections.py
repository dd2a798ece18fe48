"""The connection that a handler of LineServer gets: write(), close(), abort() and get_extra_info(), from any thread."""

import array
import contextlib
import errno
import os
import queue
import resource
import socket
import threading

import pytest

from support.handlers import a_recorder, serving, take
from support.peers import SECONDS, Running, acknowledged, ask, dial, exchange, receive, receive_all
from support.procfs import until

MANY = 32 << 20  # bytes that no pair of socket buffers holds


@pytest.fixture
def recorder():
    return a_recorder()


@contextlib.contextmanager
def connected(recorder, **options):
    """Yield a server, a client's socket, and the connection of its handler."""
    with serving(recorder, **options) as server, dial(server.addresses[0]) as sock:
        yield server, sock, take(recorder.made).conn


# ---- write()


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        (b"bytes", b"bytes"),
        (b"", b""),
        (bytearray(b"bytearray"), b"bytearray"),
        (bytearray(), b""),
        (memoryview(b"memoryview"), b"memoryview"),
        (memoryview(b"a-b-c-")[::2], b"abc"),
        (memoryview(b"abcd").cast("B", (2, 2)), b"abcd"),
        (memoryview(array.array("H", [0x6161, 0x6262])), b"aabb"),
        (array.array("H", []), b""),
    ],
    ids=repr,
)
@pytest.mark.parametrize("place", ["handler", "thread"])
def test_any_bytes_can_be_written(recorder, data, sent, place):
    class Handler(recorder):
        def lines_received(self, lines):
            assert self.conn.write(data) == len(sent)
            return lines

    with connected(Handler if place == "handler" else recorder) as (_, sock, conn):
        if place == "thread":
            assert conn.write(data) == len(sent)
            assert receive(sock, len(sent)) == sent
            ask(sock)
        else:
            sock.sendall(b"x\n")
            assert receive(sock, len(sent) + 2) == sent + b"x\n"


@pytest.mark.parametrize("data", ["text", None, 5, [b"bytes"]], ids=repr)
def test_only_bytes_can_be_written(recorder, data):
    with connected(recorder) as (_, sock, conn):
        with pytest.raises(TypeError, match="bytes-like"):
            conn.write(data)
        ask(sock)


def test_what_is_written_may_be_changed_at_once(recorder):
    with connected(recorder) as (_, sock, conn):
        data = bytearray(b"before")
        conn.write(data)
        data[:] = b"after!"
        assert receive(sock, 6) == b"before"


def test_writes_in_a_call_go_before_what_it_returns(recorder):
    class Handler(recorder):
        def lines_received(self, lines):
            for part in (b"1", b"2" * 100_000, b"3"):  # the second is sent during the call
                self.conn.write(part)
            return [b"4", b"5\n"]

    with connected(Handler, write_limit=0) as (_, sock, _conn):
        sock.sendall(b"x\n")
        assert receive(sock, 100_005) == b"1" + b"2" * 100_000 + b"345\n"


def test_what_another_thread_writes_during_a_call_goes_before_what_the_call_writes_later(recorder):
    class Handler(recorder):
        def lines_received(self, lines):
            self.conn.write(b"1")
            Running(self.conn.write, b"2").result()
            self.conn.write(b"3")
            Running(self.conn.write, b"4").result()
            return b"5\n"

    with connected(Handler) as (_, sock, _conn):
        sock.sendall(b"x\n")
        assert receive(sock, 6) == b"12345\n"


def test_writes_to_another_connection_keep_their_order(recorder):
    class Handler(recorder):
        other = None

        def lines_received(self, lines):
            for line in lines:
                if self.other is not None:
                    self.other.write(line)
            return lines if self.other is None else None

    with serving(Handler, write_limit=0) as server, dial(server.addresses[0]) as one, dial(server.addresses[0]) as two:
        first, second = take(Handler.made), take(Handler.made)
        if first.conn.peer != one.getsockname():
            first, second = second, first
        first.other = second.conn
        data = b"".join(b"%d\n" % i for i in range(20_000))
        one.sendall(data)
        assert receive(two, len(data)) == data
        ask(two)


def test_threads_write_whole_pieces_in_their_own_order(recorder):
    def push(conn, name):
        for i in range(300):
            conn.write(b"%d %d\n" % (name, i))

    with connected(recorder, write_limit=0) as (_, sock, conn):
        pushers = [Running(push, conn, name) for name in range(4)]
        echoes = b"".join(b"9 %d\n" % i for i in range(300))
        sock.sendall(echoes)
        got = receive(sock, len(echoes) + sum(len(b"0 %d\n" % i) for i in range(300)) * 4).splitlines()
        for pusher in pushers:
            pusher.result()
    for name in (b"0", b"1", b"2", b"3", b"9"):
        assert [line for line in got if line.startswith(name)] == [b"%s %d" % (name, i) for i in range(300)]


# ---- write_limit


@pytest.mark.long
def test_a_write_that_exceeds_the_limit_is_refused_whole(recorder):
    with connected(recorder, write_limit=1000) as (_, sock, conn):
        assert conn.write(b"x" * MANY) == MANY  # one larger write is taken when nothing waits
        with pytest.raises(BlockingIOError, match="write_limit"):
            conn.write(b"y")
        sock.sendall(b"question\n")
        assert receive(sock, MANY) == b"x" * MANY
        assert receive(sock, 9) == b"question\n"
        conn.write(b"z")
        assert receive(sock, 1) == b"z"


def test_in_a_call_what_the_peer_takes_does_not_count_for_the_limit(recorder):
    class Handler(recorder):
        def lines_received(self, lines):
            for i in range(100):
                self.conn.write(b"%02d" % i * 50)

    with connected(Handler, write_limit=150) as (_, sock, _conn):
        sock.sendall(b"x\n")
        assert receive(sock, 10_000) == b"".join(b"%02d" % i * 50 for i in range(100))


def test_in_a_call_a_write_that_exceeds_the_limit_is_refused(recorder):
    refused = threading.Event()

    class Handler(recorder):
        def lines_received(self, lines):
            self.written = 0
            try:
                while self.written < MANY:
                    self.written += self.conn.write(b"x" * 1000)
            except BlockingIOError:
                refused.set()
            return b"end\n"

    with serving(Handler, write_limit=100_000) as server, dial(server.addresses[0]) as sock:
        handler = take(Handler.made)
        sock.sendall(b"x\n")
        assert refused.wait(30)
        assert receive(sock, handler.written + 4) == b"x" * handler.written + b"end\n"


def test_without_a_limit_everything_is_taken(recorder):
    with connected(recorder, write_limit=0) as (_, sock, conn):
        for _ in range(4):
            conn.write(b"x" * (MANY // 4))
        assert receive(sock, MANY) == b"x" * MANY


# ---- close()


def test_close_in_a_call_takes_effect_after_its_answer(recorder):
    class Handler(recorder):
        def lines_received(self, lines):
            self.received += lines
            self.conn.close()
            self.conn.close()
            self.conn.write(b"1")
            return b"2\n"

    with connected(Handler) as (_, sock, conn):
        sock.sendall(b"x\n")
        assert receive_all(sock) == b"12\n"
        assert take(Handler.lost) is None
        with pytest.raises(ConnectionError):
            conn.write(b"late")


@pytest.mark.long
def test_close_of_another_thread_sends_what_was_written_before_it(recorder):
    with connected(recorder) as (_, sock, conn):
        conn.write(b"x" * MANY)
        conn.close()
        with pytest.raises(ConnectionError):
            conn.write(b"late")
        assert receive_all(sock) == b"x" * MANY
        assert take(recorder.lost) is None
    assert recorder.lost.empty()


def test_close_lingers_so_that_a_peer_that_still_sends_gets_the_answer(recorder):
    class Handler(recorder):
        def lines_received(self, lines):
            self.received += lines
            self.conn.close()
            return b"bye\n"

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        handler = take(Handler.made)
        sock.sendall(b"first\n")
        assert take(Handler.lost) is None
        for _ in range(20):
            sock.sendall(b"more\n" * 1000)
            acknowledged(sock)
        assert receive_all(sock) == b"bye\n"
        assert handler.received == [b"first\n"]
        assert server.stats()["active"] == 1
        sock.close()
        until(lambda: server.stats()["active"] == 0)
        assert server.stats()["errors"] == 0


@pytest.mark.long
def test_a_linger_ends_at_the_drain_timeout(recorder):
    with connected(recorder, drain_timeout=0.2) as (server, sock, conn):
        conn.close()
        assert receive_all(sock) == b""
        until(lambda: server.stats()["active"] == 0)
        assert take(recorder.lost) is None


def test_close_in_connection_made_refuses_a_client(recorder):
    class Handler(recorder):
        def connection_made(self, conn):
            super().connection_made(conn)
            conn.write(b"full\n")
            conn.close()

    with connected(Handler) as (_, sock, _conn):
        assert receive_all(sock) == b"full\n"
        assert take(Handler.lost) is None


# ---- abort()


@pytest.mark.parametrize("place", ["call", "thread", "another handler"])
def test_abort_resets_the_connection(recorder, place):
    victims = []

    class Handler(recorder):
        def lines_received(self, lines):
            victims[0].abort()

    with connected(Handler) as (server, sock, conn):
        conn.write(b"x")
        assert receive(sock, 1) == b"x"
        victims.append(conn)
        if place == "thread":
            conn.abort()
        elif place == "call":
            sock.sendall(b"x\n")
        else:
            with dial(server.addresses[0]) as other:
                other.sendall(b"x\n")
                until(lambda: server.stats()["closed"] == 1)
        with pytest.raises(ConnectionResetError):
            receive_all(sock)
        assert isinstance(take(Handler.lost), ConnectionAbortedError)
        with pytest.raises(ConnectionError):
            conn.write(b"late")
        assert server.stats()["errors"] == 0


def test_abort_after_close_ends_a_connection_whose_peer_does_not_read(recorder):
    with connected(recorder) as (server, _, conn):
        conn.write(b"x" * MANY)
        conn.close()
        until(lambda: server.stats()["bytes_out"])
        conn.abort()
        assert isinstance(take(recorder.lost), ConnectionAbortedError)
        until(lambda: server.stats()["active"] == 0)


def test_abort_with_a_duplicate_of_the_socket_resets_too(recorder):
    with connected(recorder) as (_, sock, conn):
        duplicate = conn.get_extra_info("socket")
        conn.abort()
        with pytest.raises(ConnectionResetError):
            receive_all(sock)
        take(recorder.lost)
        assert duplicate.fileno() == -1


# ---- after the end


def test_a_connection_that_is_kept_after_its_end_is_harmless(recorder):
    with serving(recorder) as server:
        with dial(server.addresses[0]) as sock:
            ask(sock)
            conn, name = take(recorder.made).conn, sock.getsockname()
        assert take(recorder.lost) is None
        for _ in range(2):
            with pytest.raises(ConnectionError):
                conn.write(b"late")
            with pytest.raises(ConnectionError):
                conn.write(b"")
            conn.close()
            conn.abort()
            assert conn.get_extra_info("socket") is None
            assert conn.get_extra_info("sockname", "none") == "none"
            assert conn.peer == name
            server.close()


def test_connection_lost_may_use_every_method(recorder):
    errors = []

    class Handler(recorder):
        def connection_lost(self, reason):
            try:
                self.conn.write(b"late")
            except ConnectionError as error:
                errors.append(error)
            self.conn.close()
            self.conn.abort()
            errors.append(self.conn.get_extra_info("socket"))
            errors.append(self.conn.peer)
            super().connection_lost(reason)

    with connected(Handler) as (_, sock, _conn):
        name = sock.getsockname()
        sock.close()
        assert take(Handler.lost) is None
    assert isinstance(errors[0], ConnectionError)
    assert errors[1:] == [None, name]


# ---- get_extra_info()


def test_extra_information_is_that_of_the_socket(recorder):
    with connected(recorder) as (_, sock, conn):
        assert conn.get_extra_info("peername") == conn.peer == sock.getsockname()
        assert conn.get_extra_info("sockname") == sock.getpeername()
        assert conn.get_extra_info("color") is None
        assert conn.get_extra_info("color", 5) == 5
        duplicate = conn.get_extra_info("socket")
        assert duplicate is conn.get_extra_info("socket")
        duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert duplicate.getpeername() == sock.getsockname()
        ask(sock)
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""
        take(recorder.lost)
        assert duplicate.fileno() == -1


def test_without_a_descriptor_left_the_socket_is_an_error_and_not_taken_for_ended(recorder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with connected(recorder) as (_, sock, conn):
        with open(os.devnull) as lowest:
            free = lowest.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            for name in ("socket", "sockname"):
                with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                    conn.get_extra_info(name)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert conn.get_extra_info("sockname") == sock.getpeername()


@pytest.mark.long
def test_sockets_are_asked_for_while_connections_end(recorder):
    looked = queue.SimpleQueue()

    def look():
        for _ in range(30):
            conn = take(recorder.made).conn
            looked.put(conn.get_extra_info("socket"))
            while (sock := conn.get_extra_info("socket")) is not None:
                with contextlib.suppress(OSError):  # it was closed with the connection
                    sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)

    with serving(recorder) as server:
        looking = Running(look)
        for _ in range(30):
            with dial(server.addresses[0]) as sock:
                assert take(looked) is not None
                assert exchange(sock, b"x\n") == b"x\n"
        looking.result()


def test_two_threads_that_ask_for_the_socket_at_once_get_the_same(recorder, monkeypatch):
    """A thread makes one while another, which has begun first, is in the constructor of its own."""
    made, others = [], []

    def making(**options):
        first, sock = not made, socket.socket(**options)
        made.append(sock)
        if first:
            thread = threading.Thread(target=lambda: others.append(conn.get_extra_info("socket")))
            thread.start()
            thread.join(SECONDS)
            assert not thread.is_alive()
        return sock

    monkeypatch.setattr("rioecho._server.lineconnection.socket", making)
    with connected(recorder) as (_, sock, conn):
        assert [conn.get_extra_info("socket")] == others
        ask(sock)
    assert len(made) == 2
    assert all(each.fileno() == -1 for each in made)


def test_what_was_written_to_a_connection_is_sent_although_its_input_ends_in_the_same_turn(recorder):
    """The order in one turn: a write by the handler of another connection, the end of the input, the posts."""
    blocked, others, lost = threading.Event(), [], queue.Queue()

    class Handler(recorder):
        def lines_received(self, lines):
            if lines == [b"block\n"]:
                blocked.set()
                take(go_on)
            elif lines == [b"tell\n"]:
                others.append(theirs.write(b"news\n"))

        def connection_lost(self, reason):
            lost.put((self.conn, reason))

    go_on = queue.Queue()
    with serving(Handler) as server, contextlib.ExitStack() as stack:
        blocking, telling, told = (stack.enter_context(dial(server.addresses[0])) for _ in range(3))
        conns = [take(Handler.made).conn for _ in range(3)]
        (theirs,) = (conn for conn in conns if conn.peer == told.getsockname())
        blocking.sendall(b"block\n")
        assert blocked.wait(SECONDS)
        telling.sendall(b"tell\n")
        acknowledged(telling)
        told.shutdown(socket.SHUT_WR)
        acknowledged(told)
        go_on.put(None)
        assert receive_all(told) == b"news\n"
        assert others == [5]
        assert take(lost) == (theirs, None)


@pytest.mark.parametrize("call", ["close", "abort", "write"])
def test_a_call_that_found_no_memory_is_made_again(recorder, call):
    testcapi = pytest.importorskip("_testcapi", reason="this Python has no _testcapi module")
    with connected(recorder) as (_, sock, conn):
        failed = 0
        for k in range(8):
            if call != "write" and failed:
                break
            method = getattr(conn, call)
            arguments = (b"line\n",) if call == "write" else ()
            testcapi.set_nomemory(k, k + 1)
            try:
                method(*arguments)
            except MemoryError:
                failed += 1
            else:
                break
            finally:
                testcapi.remove_mem_hooks()
        assert failed
        if call == "write":
            assert receive(sock, 5) == b"line\n"
            ask(sock)  # nothing has been written twice
        elif call == "close":
            conn.close()
            assert receive_all(sock) == b""
        else:
            conn.abort()
            with pytest.raises(ConnectionResetError):
                receive(sock, 1)
