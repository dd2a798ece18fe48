"""The contract of LineServer, checked as its user reads it: answers, calls, writes, ends, limits, counts and logs."""

import array
import asyncio
import functools
import gc
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import weakref

import pytest

from rioecho import EchoServer, LineServer, LineTooLong
from support.peers import SECONDS, Running, dial, exchange, lines, needs_ipv6, receive, receive_all, reset
from support.procfs import until

PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"


class Life:
    """Records what a handler is told, in order; ``handler()`` is a class whose answer ``answer(conn, input)`` makes."""

    def __init__(self):
        self.events = queue.SimpleQueue()

    def handler(self, answer=lambda conn, lines: lines, *, made=lambda conn: None, lost=lambda conn, reason: None):
        life = self

        class Handler:
            def connection_made(self, conn):
                self.conn = conn
                life.events.put(("made", conn))
                made(conn)

            def lines_received(self, lines):
                life.events.put(("input", lines))
                return answer(self.conn, lines)

            data_received = lines_received

            def connection_lost(self, reason):
                life.events.put(("lost", reason))
                lost(self.conn, reason)

        return Handler

    def next(self, kind):
        """Return what the next event, which must be of this kind, came with."""
        event = self.events.get(timeout=SECONDS)
        assert event[0] == kind, event
        return event[1]

    def lost(self):
        """Return the reason of the next end; skip other events."""
        while True:
            kind, value = self.events.get(timeout=SECONDS)
            if kind == "lost":
                return value

    def silent(self):
        assert self.events.empty(), self.events.get()


@pytest.fixture
def life():
    return Life()


def serve(handler, **options):
    return LineServer(handler, host=options.pop("host", "127.0.0.1"), **options)


def call(server, data):
    """Send data, half-close, and return all that comes back."""
    with dial(server.addresses[0]) as client:
        return exchange(client, data)


def still_serves(server, line=b"still there?\n", echo=b"still there?\n"):
    assert call(server, line) == echo


def ended(client):
    """Receive to the end, which may be a reset."""
    try:
        return receive_all(client)
    except ConnectionResetError:
        return None


def upper(lines):
    return [line.upper() for line in lines]


def nothing(conn, lines):
    return None


# Answers

ANSWERS = {
    "bytes": (lambda lines: b"".join(lines), b"a\nb\n"),
    "list": (lambda lines: list(lines), b"a\nb\n"),
    "the list itself": (lambda lines: lines, b"a\nb\n"),
    "tuple": (lambda lines: tuple(lines), b"a\nb\n"),
    "generator": (lambda lines: (line for line in lines), b"a\nb\n"),
    "iterator": (lambda lines: iter(lines), b"a\nb\n"),
    "map": (lambda lines: map(bytes.upper, lines), b"A\nB\n"),
    "dict": (lambda lines: dict.fromkeys(lines), b"a\nb\n"),
    "None": (lambda lines: None, b""),
    "empty bytes": (lambda lines: b"", b""),
    "empty list": (lambda lines: [], b""),
    "list of empty bytes": (lambda lines: [b"", b""], b""),
    "no newline": (lambda lines: b"x" * len(lines), b"xx"),
    "subclass of bytes": (lambda lines: [type("B", (bytes,), {})(line) for line in lines], b"a\nb\n"),
    "subclass of list": (lambda lines: type("L", (list,), {})(lines), b"a\nb\n"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_function_answers_with(name):
    answer, expected = ANSWERS[name]
    with serve(answer) as server:
        assert call(server, b"a\nb\n") == expected


@pytest.mark.parametrize("name", ANSWERS)
def test_a_class_answers_with(name, life):
    answer, expected = ANSWERS[name]
    with serve(life.handler(lambda conn, lines: answer(lines))) as server:
        assert call(server, b"a\nb\n") == expected
    assert life.lost() is None


@pytest.mark.parametrize("answer", [b"x", [b"x"], (b"x",), [b"", b"x"], None, b""], ids=repr)
def test_raw_framing_answers_with(answer):
    with serve(lambda data: answer, framing="raw") as server:
        assert call(server, b"abc") in ((b"x",) if answer else (b"",))


def wrong_generator(lines):
    yield b"begun "
    raise KeyError("in the generator")


WRONG_ANSWERS = {
    "str": lambda lines: "text",
    "int": lambda lines: 7,
    "float": lambda lines: 1.5,
    "object": lambda lines: object(),
    "True": lambda lines: True,
    "list of str": lambda lines: [b"begun", "text"],
    "list of None": lambda lines: [None],
    "list of int": lambda lines: [65, 66],
    "list of lists": lambda lines: [[b"a"]],
    "a bad iterator": lambda lines: IteratesBadly(),
}


class IteratesBadly:
    def __iter__(self):
        return 3


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_an_answer_of_a_wrong_type_ends_its_connection(name, life, caplog):
    wrong = WRONG_ANSWERS[name]
    with serve(life.handler(lambda conn, lines: wrong(lines) if lines == [b"wrong\n"] else lines)) as server:  # noqa: SIM117
        with dial(server.addresses[0]) as client, dial(server.addresses[0]) as other:
            other.sendall(b"one\n")
            assert receive(other, 4) == b"one\n"
            client.sendall(b"wrong\n")
            assert not ended(client)
            assert isinstance(life.lost(), TypeError)
            other.sendall(b"two\n")
            assert receive(other, 4) == b"two\n"
    assert "Traceback" in caplog.text
    assert "TypeError" in caplog.text


def test_an_iterator_that_raises_ends_its_connection(life, caplog):
    with serve(life.handler(lambda conn, lines: wrong_generator(lines))) as server:
        assert call(server, b"x\n") in (b"", b"begun ")
        assert isinstance(life.lost(), KeyError)
    assert "in the generator" in caplog.text


@pytest.mark.parametrize(
    "handler",
    [b"".join, functools.partial(map, bytes.upper), type("C", (), {"__call__": lambda self, lines: lines})(), upper],
    ids=["method of a builtin", "partial", "callable object", "function"],
)
def test_any_other_callable_is_a_function(handler):
    with serve(handler) as server:
        assert call(server, b"abc\n").lower() == b"abc\n"


def test_a_large_answer_arrives_whole():
    big = os.urandom(3_000_000)
    with serve(lambda lines: [big]) as server:
        assert call(server, b"x\n") == big


def test_an_answer_of_many_parts_arrives_whole():
    parts = lines(20_000)
    with serve(lambda lines: parts) as server:
        assert call(server, b"x\n") == b"".join(parts)


def test_the_answer_to_all_lines_of_one_read_comes_once():
    calls = []
    with serve(lambda lines: calls.append(len(lines)) or b"%d\n" % len(lines)) as server:
        assert call(server, b"x\n" * 500) == b"".join(b"%d\n" % n for n in calls)
    assert sum(calls) == 500
    assert len(calls) < 100


# Lines


def test_lines_are_a_list_of_bytes(life):
    with serve(life.handler()) as server:
        call(server, b"one\r\n\n\0\xff\nlast")
    life.next("made")
    got = []
    while (event := life.events.get(timeout=SECONDS))[0] == "input":
        assert type(event[1]) is list
        assert all(type(line) is bytes for line in event[1])
        got += event[1]
    assert got == [b"one\r\n", b"\n", b"\0\xff\n", b"last"]
    assert event == ("lost", None)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 4096, 65_536, 300_000])
@pytest.mark.parametrize("longest", [3, 200, 9000])
def test_lines_cut_anywhere_arrive_whole(life, size, longest):
    sent = lines(200 if size > 7 else 5, longest)
    data = b"".join(sent)
    got = []
    with serve(life.handler(lambda conn, lines: got.extend(lines) or lines)) as server:
        with dial(server.addresses[0]) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(data), size):
                client.sendall(data[at : at + size])
            assert receive(client, len(data)) == data
        assert life.lost() is None
    assert got == sent


@pytest.mark.parametrize("data", [b"", b"x", b"\n", b"\n\n\n", b"a\nb", b"a\n\n", b"\r", b"\r\n", b"\0"], ids=repr)
def test_what_is_left_at_the_end_of_input_is_the_last_line(data, life):
    got = []
    with serve(life.handler(lambda conn, lines: got.extend(lines) or lines)) as server:
        assert call(server, data) == data
        assert life.lost() is None
    assert got == data.splitlines(keepends=True) if b"\r" not in data else b"".join(got) == data


@pytest.mark.parametrize("size", [1, 7, 4096, 65_536, 1 << 20])
def test_raw_data_arrives_as_bytes(size, life):
    got = []
    data = os.urandom(size)
    with serve(life.handler(lambda conn, data: got.append(data) or data), framing="raw") as server:
        assert call(server, data) == data
        assert life.lost() is None
    assert all(type(part) is bytes and part for part in got)
    assert b"".join(got) == data


def test_raw_data_is_passed_on_without_a_newline(life):
    with serve(life.handler(), framing="raw") as server, dial(server.addresses[0]) as client:
        client.sendall(b"no newline")
        assert receive(client, 10) == b"no newline"


def test_the_beginning_of_a_line_waits_for_the_rest(life):
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        life.next("made")
        client.sendall(b"one\ntw")
        assert life.next("input") == [b"one\n"]
        assert receive(client, 4) == b"one\n"
        client.sendall(b"o\n")
        assert life.next("input") == [b"two\n"]


def test_lines_may_be_kept_and_changed_by_the_handler(life):
    kept = []

    def keep(conn, lines):
        kept.append(list(lines))
        lines.clear()
        lines.append(b"other\n")
        return lines

    with serve(life.handler(keep)) as server, dial(server.addresses[0]) as client:
        for n in range(20):
            client.sendall(b"%d\n" % n)
            assert receive(client, 6) == b"other\n"
    assert kept == [[b"%d\n" % n] for n in range(20)]


# The limit of a line


@pytest.mark.parametrize("terminated", [True, False])
def test_a_line_at_the_limit_is_handled(terminated, life):
    line = b"x" * 99 + b"\n" if terminated else b"x" * 100
    with serve(life.handler(), max_line=100) as server:
        assert call(server, line) == line
        assert life.lost() is None


@pytest.mark.parametrize(
    "data", [b"y" * 101, b"y" * 101 + b"\n", b"y" * 5000 + b"\nz\n", b"y" * 300_000], ids=lambda data: str(len(data))
)
@pytest.mark.parametrize("before", [b"", b"one\n", b"one\ntwo\n"], ids=repr)
def test_a_longer_line_ends_the_connection_after_the_lines_before_it(data, before, life):
    with serve(life.handler(), max_line=100) as server:
        with dial(server.addresses[0]) as client:
            client.sendall(before)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert ended(client) == before
        reason = life.lost()
        assert isinstance(reason, LineTooLong)
        assert reason.limit == 100
        until(lambda: server.stats()["closed"] == 1)
        assert server.stats()["errors"] == 1
        still_serves(server)


def test_with_no_limit_a_line_of_megabytes_is_handled(life):
    line = b"x" * 3_000_000 + b"\n"
    with serve(life.handler(), max_line=0) as server:
        assert call(server, line) == line


# The order of calls


def test_the_calls_come_in_order(life):
    with serve(life.handler()) as server:
        call(server, b"x\n")
        life.next("made")
        assert life.next("input") == [b"x\n"]
        assert life.next("lost") is None
        until(lambda: server.stats()["active"] == 0)
    life.silent()


def test_connection_made_does_not_wait_for_input(life):
    with serve(life.handler()) as server, dial(server.addresses[0]):
        life.next("made")


def test_a_handler_needs_no_other_method():
    class Only:
        def lines_received(self, lines):
            return lines

    with serve(Only) as server:
        still_serves(server)
        with dial(server.addresses[0]) as client:
            reset(client)
        still_serves(server)


def test_each_connection_has_its_own_object(life):
    class Count:
        def __init__(self):
            self.n = 0

        def lines_received(self, lines):
            self.n += len(lines)
            return b"%d\n" % self.n

    with serve(Count) as server:
        for _ in range(3):
            with dial(server.addresses[0]) as client:
                for n in range(1, 4):
                    client.sendall(b"x\n")
                    assert receive(client, 2) == b"%d\n" % n


def test_a_function_serves_all_connections():
    seen = set()
    with serve(lambda lines: seen.add(threading.get_ident()) or lines) as server:
        for _ in range(3):
            still_serves(server)
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_methods_found_on_the_object_are_called():
    class Dynamic:
        def __init__(self):
            self.lines_received = upper

    class Static:
        lines_received = staticmethod(upper)

    with serve(Static) as server:
        assert call(server, b"a\n") == b"A\n"


def test_handler_and_connection_are_freed_at_the_end():
    seen = []

    class Handler:
        def connection_made(self, conn):
            self.conn = conn
            seen.extend([weakref.ref(self)])

        def lines_received(self, lines):
            return lines

    with serve(Handler) as server:
        for _ in range(5):
            still_serves(server)
        until(lambda: server.stats()["active"] == 0)
        gc.collect()
        assert [ref() for ref in seen] == [None] * 5


# Handlers that raise

FAULTS = [ValueError("the fault"), OSError(5, "the fault"), ConnectionResetError("the fault"), MemoryError("the fault"),
          SystemExit("the fault"), KeyboardInterrupt("the fault"), StopIteration("the fault"),
          BlockingIOError("the fault"), GeneratorExit("the fault"), BaseException("the fault")]  # fmt: skip


def raising(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("framing", ["line", "raw"])
def test_a_handler_that_raises_ends_its_connection_only(error, framing, life, caplog):
    def answer(conn, data):
        if b"fail" in b"".join(data) if framing == "line" else b"fail" in data:
            raise error
        return data

    with serve(life.handler(answer), framing=framing) as server:
        with dial(server.addresses[0]) as client, dial(server.addresses[0]) as other:
            other.sendall(b"one\n")
            assert receive(other, 4) == b"one\n"
            client.sendall(b"fail\n")
            assert not ended(client)
            assert life.lost() is error
            other.sendall(b"two\n")
            assert receive(other, 4) == b"two\n"
            assert server.stats()["active"] >= 1
        until(lambda: server.stats()["closed"] == 2)
        assert server.stats()["errors"] == 1
    assert "Traceback" in caplog.text
    assert "the fault" in caplog.text


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_connection_made_that_raises_ends_its_connection(error, life, caplog):
    with serve(life.handler(made=raising(error))) as server:
        with dial(server.addresses[0]) as client:
            assert not ended(client)
        assert life.lost() is error
        until(lambda: server.stats()["closed"] == 1)
    life.silent()
    assert "the fault" in caplog.text


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_connection_lost_that_raises_is_logged(error, life, caplog):
    with serve(life.handler(lost=raising(error))) as server:
        still_serves(server)
        still_serves(server)
        life.lost()
        life.lost()
        until(lambda: server.stats()["closed"] == 2)
    life.silent()
    assert caplog.text.count("Traceback") == 2


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_class_that_cannot_be_made_ends_its_connection(error, caplog):
    fail = [True]

    class Handler:
        def __init__(self):
            if fail:
                raise error

        def lines_received(self, lines):
            return lines

    with serve(Handler) as server:
        with dial(server.addresses[0]) as client:
            assert not ended(client)
        fail.clear()
        still_serves(server)
        until(lambda: server.stats()["closed"] == 2)
        assert server.stats()["errors"] == 1
    assert "the fault" in caplog.text


def test_what_was_answered_before_a_handler_raised_is_sent(life):
    def answer(conn, lines):
        if b"fail\n" in lines:
            conn.write(b"sorry\n")
            raise ValueError
        return lines

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"fail\n" + b"more\n" * 1000)
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"sorry\n"


# Writing


@pytest.mark.parametrize(
    "data",
    [b"abc", bytearray(b"abc"), memoryview(b"abc"), array.array("B", b"abc"), b""],
    ids=lambda data: f"{type(data).__name__} {len(data)}",
)
@pytest.mark.parametrize("inside", [True, False])
def test_write_takes_anything_bytes_like_and_returns_its_size(data, inside, life):
    sizes = []
    answer = (lambda conn, lines: sizes.append(conn.write(data))) if inside else nothing
    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        client.sendall(b"x\n")
        life.next("input")
        if not inside:
            sizes.append(conn.write(data))
        assert receive(client, len(data)) == bytes(data)
        until(lambda: sizes == [len(data)])


def test_write_counts_the_bytes_of_wider_items(life):
    data = array.array("I", [1, 2, 3])
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        assert life.next("made").write(data) == 12
        assert receive(client, 12) == data.tobytes()


@pytest.mark.parametrize("data", ["text", 3, None, [b"x"], object()], ids=lambda data: type(data).__name__)
@pytest.mark.parametrize("inside", [True, False])
def test_write_of_anything_else_is_a_type_error(data, inside, life):
    with serve(life.handler(lambda conn, lines: conn.write(data) if inside else lines)) as server:  # noqa: SIM117
        with dial(server.addresses[0]) as client:
            conn = life.next("made")
            if not inside:
                with pytest.raises(TypeError):
                    conn.write(data)
            client.sendall(b"x\n")
            if inside:
                assert isinstance(life.lost(), TypeError)
            else:
                assert receive(client, 2) == b"x\n"


def test_what_a_call_writes_is_sent_before_what_it_returns(life):
    def answer(conn, lines):
        conn.write(b"first ")
        conn.write(b"second ")
        return [b"third\n"]

    with serve(life.handler(answer, made=lambda conn: conn.write(b"hello ") and None)) as server:
        assert call(server, b"x\n") == b"hello first second third\n"


def test_a_greeting_needs_no_input(life):
    with serve(life.handler(made=lambda conn: conn.write(b"220 ready\r\n"))) as server:  # noqa: SIM117
        with dial(server.addresses[0]) as client:
            assert receive(client, 11) == b"220 ready\r\n"


def test_a_generator_may_write_too(life):
    def answer(conn, lines):
        for line in lines:
            conn.write(b"w")
            yield line

    with serve(life.handler(answer)) as server:
        assert sorted(call(server, b"a\n")) == sorted(b"wa\n")


def test_writes_of_a_thread_arrive_in_order(life):
    parts = lines(2000)
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        for part in parts:
            conn.write(part)
        assert receive(client, sum(map(len, parts))) == b"".join(parts)


def test_writes_of_many_threads_are_not_mixed(life):
    with serve(life.handler(), write_limit=0) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        talks = [Running(lambda n=n: [conn.write(b"%d %04d\n" % (n, i)) for i in range(500)]) for n in range(4)]
        client.sendall(b"x\n")
        data = receive(client, 4 * 500 * 7 + 2)
        for talk in talks:
            talk.result()
    got = data.splitlines()
    for n in range(4):
        assert [int(line[2:]) for line in got if line.startswith(b"%d " % n)] == list(range(500))


def test_one_connection_may_write_to_another():
    members = set()

    class Chat:
        def connection_made(self, conn):
            self.conn = conn
            members.add(conn)

        def lines_received(self, lines):
            for other in members - {self.conn}:
                other.write(b"".join(lines))

        def connection_lost(self, reason):
            members.discard(self.conn)

    with serve(Chat) as server:
        with dial(server.addresses[0]) as one, dial(server.addresses[0]) as two:
            until(lambda: len(members) == 2)
            for _ in range(50):
                one.sendall(b"from one\n")
                assert receive(two, 9) == b"from one\n"
                two.sendall(b"from two\n")
                assert receive(one, 9) == b"from two\n"
        until(lambda: not members)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_handler_may_write_to_a_connection_of_another_worker(workers):
    conns = []

    class Tell:
        def connection_made(self, conn):
            conns.append(conn)

        def lines_received(self, lines):
            for conn in conns:
                conn.write(b"".join(lines))

    with serve(Tell, workers=workers) as server:
        clients = [dial(server.addresses[0]) for _ in range(6)]
        until(lambda: len(conns) == 6)
        clients[0].sendall(b"to all\n")
        for client in clients:
            assert receive(client, 7) == b"to all\n"
            client.close()


@pytest.mark.parametrize("end", ["eof", "reset", "abort", "close", "raise", "stop"])
def test_a_write_after_the_end_is_a_connection_error(end, life):
    def answer(conn, lines):
        if end == "raise":
            raise ValueError
        getattr(conn, end, lambda: None)()

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        if end == "reset":
            reset(client)
        elif end == "stop":
            server.stop()
        else:
            client.sendall(b"x\n")
            if end == "eof":
                client.shutdown(socket.SHUT_WR)
            ended(client)
        life.lost()
        with pytest.raises(ConnectionError):
            conn.write(b"late")
        with pytest.raises(ConnectionError):
            conn.write(b"late")
        conn.close()
        conn.abort()
    with pytest.raises(ConnectionError):
        conn.write(b"late")


def test_a_write_in_connection_lost_is_a_connection_error(life):
    seen = queue.SimpleQueue()

    def lost(conn, reason):
        try:
            conn.write(b"late")
        except ConnectionError as error:
            seen.put(error)

    with serve(life.handler(lost=lost)) as server:
        still_serves(server)
        seen.get(timeout=SECONDS)


# The limit of what waits


def stuff(conn, piece=b"x" * 10_000):
    """Write until BlockingIOError; return the number of bytes that were taken."""
    taken = 0
    for _ in range(100_000):
        try:
            taken += conn.write(piece)
        except BlockingIOError:
            return taken
    raise AssertionError("no limit")


def test_to_a_peer_that_does_not_read_a_write_fails_at_the_limit(life):
    with serve(life.handler(), write_limit=100_000) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        taken = stuff(conn)
        with pytest.raises(BlockingIOError):
            conn.write(b"x" * 100_000)
        assert len(receive(client, taken)) == taken
        until(lambda: _takes(conn, b"y" * 99_000))
        assert receive(client, 99_000) == b"y" * 99_000


def _takes(conn, data):
    try:
        return conn.write(data) == len(data)
    except BlockingIOError:
        return False


def test_in_a_call_a_write_fails_at_the_limit(life):
    taken = []
    with serve(life.handler(lambda conn, lines: taken.append(stuff(conn))), write_limit=100_000) as server:  # noqa: SIM117
        with dial(server.addresses[0]) as client:
            client.sendall(b"x\n")
            until(lambda: taken)
            assert receive(client, taken[0]) == b"x" * taken[0]


def test_one_write_larger_than_the_limit_is_taken_if_none_waits(life):
    big = os.urandom(5_000_000)
    with serve(life.handler(), write_limit=1000) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        assert conn.write(big) == len(big)
        with pytest.raises(BlockingIOError):
            conn.write(big)
        assert receive(client, len(big)) == big


def test_with_no_limit_writes_wait_without_end(life):
    piece = os.urandom(1 << 20)
    with serve(life.handler(), write_limit=0) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        for _ in range(16):
            conn.write(piece)
        assert receive(client, 16 << 20) == piece * 16


def test_a_peer_that_does_not_read_is_not_read_from(life):
    with serve(life.handler(nothing), write_limit=100_000) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        conn.write(b"x" * 20_000_000)  # more than the socket buffers take
        until(lambda: not _takes(conn, b"x"))
        filled(client)
        assert server.stats()["bytes_in"] < 5_000_000
        client.close()
        life.lost()


def filled(client):
    """Send until nothing more is taken for a while."""
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        for _ in range(2000):
            client.send(b"more\n" * 10_000)


# Closing


def test_close_in_a_call_takes_effect_after_its_answer(life):
    def answer(conn, lines):
        conn.close()
        conn.close()
        return b"bye\n"

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"quit\n")
        assert receive_all(client) == b"bye\n"
        assert life.lost() is None


def test_after_close_no_further_input_is_handled(life):
    calls = []

    def answer(conn, lines):
        calls.append(lines)
        conn.close()
        return b"bye\n"

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"quit\n")
        assert receive_all(client) == b"bye\n"
        client.sendall(b"more\n" * 100_000)
        client.close()
        assert life.lost() is None
        until(lambda: server.stats()["active"] == 0)
        assert calls == [[b"quit\n"]]
        assert server.stats()["errors"] == 0


def test_close_in_connection_made_sends_the_greeting(life):
    def made(conn):
        conn.write(b"busy\n")
        conn.close()

    with serve(life.handler(made=made)) as server, dial(server.addresses[0]) as client:
        assert receive_all(client) == b"busy\n"
        life.next("made")
        assert life.next("lost") is None


def test_close_from_another_thread_sends_what_was_written(life):
    data = os.urandom(1_000_000)
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        conn.write(data)
        conn.close()
        conn.close()
        assert receive_all(client) == data
        assert life.lost() is None


def test_close_lingers_so_that_the_peer_receives_the_answer(life):
    def answer(conn, lines):
        conn.close()
        return b"z" * 200_000

    with serve(life.handler(answer)) as server, dial(server.addresses[0]) as client:
        client.sendall(b"x\n" + b"unread\n" * 5000)
        assert receive_all(client) == b"z" * 200_000


def test_a_peer_that_does_not_close_is_cut_off_at_the_drain_timeout(life):
    with serve(life.handler(lambda conn, lines: conn.close()), drain_timeout=0.3) as server:  # noqa: SIM117
        with dial(server.addresses[0]) as client:
            client.sendall(b"x\n")
            assert client.recv(1) == b""
            until(lambda: server.stats()["active"] == 0)


@pytest.mark.parametrize("inside", [True, False])
def test_abort_resets_at_once(inside, life):
    with serve(life.handler(lambda conn, lines: conn.abort() if inside else lines)) as server:
        with dial(server.addresses[0]) as client:
            conn = life.next("made")
            if inside:
                client.sendall(b"x\n")
            else:
                conn.abort()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            assert isinstance(life.lost(), ConnectionAbortedError)
            conn.abort()
            conn.close()
        until(lambda: server.stats()["active"] == 0)
    life.silent()


def test_abort_in_connection_made_resets(life):
    with serve(life.handler(made=lambda conn: conn.abort())) as server:
        with pytest.raises(ConnectionResetError), dial(server.addresses[0]) as client:
            client.recv(1)
        assert isinstance(life.lost(), ConnectionAbortedError)
    life.silent()


def test_abort_with_data_waiting_resets(life):
    with serve(life.handler(), write_limit=100_000) as server, dial(server.addresses[0]):
        conn = life.next("made")
        stuff(conn)
        conn.abort()
        assert isinstance(life.lost(), ConnectionAbortedError)


def test_abort_after_close_resets(life):
    with serve(life.handler(), write_limit=100_000) as server, dial(server.addresses[0]):
        conn = life.next("made")
        stuff(conn)
        conn.close()
        conn.abort()
        life.lost()
        until(lambda: server.stats()["active"] == 0)
    life.silent()


def test_abort_in_connection_lost_does_nothing(life):
    with serve(life.handler(lost=lambda conn, reason: (conn.abort(), conn.close()))) as server:
        still_serves(server)
        assert life.lost() is None
    life.silent()


# Ends that the peer makes


def test_the_reason_of_a_reset_is_the_error(life):
    with serve(life.handler()) as server:
        with dial(server.addresses[0]) as client:
            client.sendall(b"x\n")
            receive(client, 2)
            reset(client)
        assert isinstance(life.lost(), ConnectionError)
        until(lambda: server.stats()["closed"] == 1)
        assert server.stats()["errors"] == 1
    life.silent()


def test_a_reset_before_the_first_byte_is_no_error_in_the_counts(life):
    with serve(life.handler()) as server:
        with dial(server.addresses[0]) as client:
            life.next("made")
            reset(client)
        life.lost()
        until(lambda: server.stats()["closed"] == 1)
        assert server.stats()["errors"] == 0
    life.silent()


def test_all_is_answered_before_the_close_after_a_half_close(life):
    data = b"".join(lines(3000))
    with serve(life.handler()) as server:
        assert call(server, data) == data
        assert life.lost() is None


def test_an_idle_connection_ends_at_its_timeout(life):
    with serve(life.handler(), idle_timeout=0.2) as server, dial(server.addresses[0]) as client:
        client.sendall(b"beginning")
        ended(client)
        reason = life.lost()
        assert reason is None or isinstance(reason, TimeoutError), reason
        assert b"beginning" not in [line for kind, line in iter_events(life) if kind == "input"]


def iter_events(life):
    while not life.events.empty():
        yield life.events.get()


@pytest.mark.slow
def test_a_write_is_progress(life):
    with serve(life.handler(), idle_timeout=0.6) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        begun = time.monotonic()
        while time.monotonic() < begun + 1.5:
            conn.write(b"tick\n")
            assert receive(client, 5) == b"tick\n"
            threading.Event().wait(0.05)


# The connection's facts


def test_peer_is_the_address_of_the_client(life):
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        assert conn.peer == client.getsockname()
    assert life.lost() is None
    assert conn.peer[0] == "127.0.0.1"


@needs_ipv6
def test_peer_over_ipv6_is_host_and_port(life):
    with serve(life.handler(), host="::1") as server, dial(server.addresses[0]) as client:
        assert life.next("made").peer == client.getsockname()[:2]


def test_peer_of_a_unix_socket_is_its_path(life, tmp_path):
    path = tmp_path / "socket"
    with serve(life.handler(), port=None, unix=path, unix_mode=0o600) as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SECONDS)
            client.connect(os.fspath(path))
            assert path.stat().st_mode & 0o777 == 0o600
            assert life.next("made").peer == os.fspath(path)
            assert exchange(client, b"x\nlast") == b"x\nlast"
        assert server.stats()["accepted"] == 1
    assert not path.exists()


@pytest.mark.parametrize(
    ("header", "peer"),
    [
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 4321 80\r\n", ("192.0.2.7", 4321)),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 4321 80\r\n", ("2001:db8::7", 4321)),
        (PROXY_V2 + b"\x21\x11\x00\x0c" + bytes([192, 0, 2, 7, 192, 0, 2, 1]) + b"\x10\xe1\0\x50", ("192.0.2.7", 4321)),
        (b"PROXY UNKNOWN\r\n", None),
    ],
    ids=["v1 IPv4", "v1 IPv6", "v2", "unknown"],
)
@pytest.mark.parametrize("piece", [1, 1000])
def test_peer_is_the_proxy_headers_address(header, peer, piece, life):
    with serve(life.handler(made=lambda conn: conn.write(b"hello\n")), proxy_protocol=True) as server:  # noqa: SIM117
        with dial(server.addresses[0]) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(header), piece):
                client.sendall(header[at : at + piece])
            assert receive(client, 6) == b"hello\n"
            conn = life.next("made")
            assert conn.peer == (peer or client.getsockname())
            client.sendall(b"x\n")
            assert life.next("input") == [b"x\n"]
            assert receive(client, 2) == b"x\n"


def test_a_wrong_proxy_header_ends_the_connection_without_a_handler(life):
    with serve(life.handler(), proxy_protocol=True) as server:
        with dial(server.addresses[0]) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert not ended(client)
        until(lambda: server.stats()["active"] == 0)
        until(lambda: server.stats()["closed"] == 1)
    assert "input" not in [kind for kind, _ in iter_events(life)]


def test_extra_info_is_of_the_connection(life):
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        conn = life.next("made")
        assert conn.get_extra_info("peername") == client.getsockname()
        assert conn.get_extra_info("sockname") == client.getpeername()
        sock = conn.get_extra_info("socket")
        assert sock.getpeername() == client.getsockname()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert conn.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert conn.get_extra_info("cipher") is None
        assert conn.get_extra_info("cipher", 7) == 7
        del sock
    assert life.lost() is None
    for name in ("socket", "sockname"):
        assert conn.get_extra_info(name, "none") == "none"
        assert conn.get_extra_info(name) is None


# Threads and re-entrance


def test_handlers_of_a_worker_are_never_called_at_the_same_time():
    inside, most, guard = [], [], threading.Lock()

    def answer(lines):
        with guard:
            inside.append(1)
            most.append(len(inside))
        time.sleep(0.001)
        with guard:
            inside.pop()
        return lines

    with serve(answer) as server:
        talks = [Running(call, server, b"x\n" * 20) for _ in range(5)]
        for talk in talks:
            assert talk.result() == b"x\n" * 20
    assert max(most) == 1


def test_with_workers_a_connection_stays_in_its_thread(life):
    threads = {}

    class Handler:
        def lines_received(self, lines):
            threads.setdefault(id(self), set()).add(threading.get_ident())
            return lines

    with serve(Handler, workers=3) as server:
        clients = [dial(server.addresses[0]) for _ in range(9)]
        for _ in range(5):
            for client in clients:
                client.sendall(b"x\n")
                receive(client, 2)
        for client in clients:
            client.close()
    assert all(len(seen) == 1 for seen in threads.values())
    assert len(set.union(*threads.values())) == 3


@pytest.mark.parametrize("method", ["close", "wait"])
@pytest.mark.parametrize("where", ["made", "input", "lost"])
def test_the_end_of_the_server_cannot_be_awaited_in_a_handler(method, where, life):
    errors = queue.SimpleQueue()

    def wait(*_):
        with pytest.raises(RuntimeError):
            getattr(server, method)()
        errors.put(True)

    places = {"made": {"made": wait}, "input": {"answer": wait}, "lost": {"lost": wait}}[where]
    with serve(life.handler(**places)) as server:
        call(server, b"x\n")
        errors.get(timeout=SECONDS)


@pytest.mark.parametrize("where", ["made", "input", "lost"])
def test_stop_in_a_handler_stops_the_server(where, life):
    def stop(*_):
        server.stop()

    places = {"made": {"made": stop}, "input": {"answer": stop}, "lost": {"lost": stop}}[where]
    server = serve(life.handler(**places), drain_timeout=2)
    server.start()
    with dial(server.addresses[0]) as client:
        client.sendall(b"x\n")
        client.shutdown(socket.SHUT_WR)
        ended(client)
        server.wait()
    server.close()
    life.lost()
    life.silent()


def test_a_handler_may_run_a_child_process():
    def answer(lines):
        return subprocess.run([sys.executable, "-S", "-c", "print('child')"], capture_output=True, check=True).stdout

    with serve(answer) as server:
        assert call(server, b"x\n") == b"child\n"


def test_a_handler_may_be_a_client_of_another_server():
    with EchoServer(host="127.0.0.1") as inner, serve(lambda lines: call(inner, b"".join(lines))) as outer:
        assert call(outer, b"through\n") == b"through\n"


def test_a_handler_may_run_another_server():
    def answer(lines):
        with serve(upper) as inner:
            return call(inner, b"".join(lines))

    with serve(answer) as outer:
        assert call(outer, b"through\n") == b"THROUGH\n"


# Counts and logs


def test_counts_are_those_of_the_input_and_of_the_answers(life):
    with serve(lambda lines: b"ok\n" * len(lines)) as server:
        for _ in range(3):
            assert call(server, b"12345\n" * 4 + b"end") == b"ok\n" * 5
        until(lambda: server.stats()["closed"] == 3)
        stats = server.stats()
        assert {name: stats[name] for name in ("accepted", "active", "refused", "closed", "errors")} == {
            "accepted": 3, "active": 0, "refused": 0, "closed": 3, "errors": 0}  # fmt: skip
        assert stats["bytes_in"] == 3 * 27
        assert stats["bytes_out"] == 3 * 15
        assert stats["lines"] == 3 * 4  # newlines, as the echo server counts them


def test_what_is_written_counts_too(life):
    with serve(life.handler(nothing)) as server, dial(server.addresses[0]) as client:
        life.next("made").write(b"12345")
        receive(client, 5)
        assert server.stats()["bytes_out"] == 5


def test_logs_are_those_of_the_echo_server_and_without_payload(life, caplog):
    caplog.set_level(logging.DEBUG)
    with serve(life.handler()) as server:
        call(server, b"secret words\n")
        life.lost()
        until(lambda: server.stats()["active"] == 0)
        until(lambda: "Connected to (" in caplog.text and "server received 13 bytes" in caplog.text)
    assert "secret" not in caplog.text


def test_a_raised_error_is_logged_once(life, caplog):
    with serve(life.handler(raising(ZeroDivisionError("mine")))) as server:
        call(server, b"x\n")
        life.lost()
        until(lambda: server.stats()["active"] == 0)
    assert caplog.text.count("ZeroDivisionError") == 1
    assert "test_line_contract" in caplog.text


def test_metrics_show_the_counts():
    pytest.importorskip("prometheus_client")
    import urllib.request

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with serve(upper, metrics=port) as server:
        call(server, b"x\n")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as page:
            text = page.read().decode()
    assert "accepted" in text


# Limits


def test_at_max_connections_the_next_client_waits(life):
    with serve(life.handler(), max_connections=1) as server, dial(server.addresses[0]) as one:
        life.next("made")
        with dial(server.addresses[0]) as two:
            two.sendall(b"two\n")
            one.sendall(b"one\n")
            assert life.next("input") == [b"one\n"]
            assert receive(one, 4) == b"one\n"
            life.silent()
            one.close()
            assert receive(two, 4) == b"two\n"


def test_more_than_max_per_host_are_refused_without_a_handler(life):
    with serve(life.handler(), max_per_host=1) as server, dial(server.addresses[0]) as one:
        one.sendall(b"x\n")
        receive(one, 2)
        with dial(server.addresses[0]) as two:
            assert not ended(two)
        until(lambda: server.stats()["refused"] == 1)
        life.next("made")
        life.next("input")
        life.silent()


def test_at_max_memory_a_connection_with_a_whole_line_is_still_served(life):
    with serve(life.handler(), max_memory=1 << 20, max_line=0) as server, dial(server.addresses[0]) as hog:
        hog.setblocking(False)
        sent = 0
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            try:
                sent += hog.send(b"x" * 65_536)
            except BlockingIOError:
                threading.Event().wait(0.01)
        with dial(server.addresses[0]) as other:
            other.sendall(b"x\n")
            assert receive(other, 2) == b"x\n"
        hog.close()


# The stop


def test_the_stop_answers_what_has_arrived_and_ends_orderly(life):
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        client.sendall(b"one\n")
        receive(client, 4)
        client.sendall(b"two\nbeginning")
        server.stop()
        assert receive_all(client) == b"two\n"
        client.close()
    assert life.lost() is None
    life.silent()


def test_at_the_stop_the_beginning_of_a_line_is_not_handled(life):
    with serve(life.handler()) as server, dial(server.addresses[0]) as client:
        client.sendall(b"one\nbeginning")
        receive(client, 4)
        server.stop()
        assert receive_all(client) == b""
        client.close()
    assert b"beginning" not in [line for kind, line in iter_events(life) if kind == "input"]


def test_the_stop_takes_no_longer_than_the_drain_timeout(life):
    clients = []
    begun = []
    with serve(life.handler(), drain_timeout=0.5) as server:
        clients = [dial(server.addresses[0]) for _ in range(5)]
        for _ in clients:
            life.next("made")
        begun.append(time.monotonic())
    took = time.monotonic() - begun[0]
    assert took < 10
    for _ in clients:
        life.lost()
    for client in clients:
        client.close()
    life.silent()


def test_every_connection_made_is_lost_once_also_at_the_stop():
    made, lost = [], []

    class Handler:
        def connection_made(self, conn):
            made.append(self)

        def lines_received(self, lines):
            return lines

        def connection_lost(self, reason):
            lost.append(self)

    with serve(Handler, drain_timeout=1, workers=2) as server:
        clients = [dial(server.addresses[0]) for _ in range(40)]
        for n, client in enumerate(clients):
            client.sendall(b"x\n")
            if n % 4 == 0:
                client.close()
            elif n % 4 == 1:
                reset(client)
            elif n % 4 == 2:
                client.shutdown(socket.SHUT_WR)
    for client in clients:
        client.close()
    assert sorted(map(id, made)) == sorted(map(id, lost))


def test_a_server_serves_once():
    server = serve(upper)
    server.start()
    with pytest.raises(RuntimeError):
        server.start()
    server.close()
    server.close()
    with pytest.raises(RuntimeError):
        server.start()


def test_in_an_async_block_the_clients_may_run_on_the_loop():
    async def talk():
        async with serve(upper) as server:
            reader, writer = await asyncio.open_connection(*server.addresses[0])
            writer.write(b"a\n")
            assert await reader.readline() == b"A\n"
            writer.close()
            await writer.wait_closed()

    asyncio.run(talk())


# Sockets that others opened


def test_a_listening_socket_passed_in_is_served(life):
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    with serve(life.handler(), port=None, sockets=[listener]), dial(address) as client:
        assert exchange(client, b"x\n") == b"x\n"


@pytest.mark.parametrize("end", ["peer", "handler", "abort", "raise"])
def test_a_connected_socket_passed_in_is_served_to_its_end(end, life):
    def answer(conn, lines):
        if lines == [b"quit\n"]:
            if end == "raise":
                raise ValueError
            (conn.abort if end == "abort" else conn.close)()
        return lines

    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(SECONDS)
        server = serve(life.handler(answer), port=None, sockets=[theirs])
        server.start()
        ours.sendall(b"x\n")
        assert receive(ours, 2) == b"x\n"
        if end == "peer":
            ours.shutdown(socket.SHUT_WR)
        else:
            ours.sendall(b"quit\n")
        ended(ours)
        ours.close()
        server.wait()
        server.close()
    life.lost()
    life.silent()


# Arguments


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"engine": "event"}, TypeError),
        ({"udp": True}, TypeError),
        ({"framing": "frames"}, ValueError),
        ({"write_limit": -1}, ValueError),
        ({"write_limit": "1"}, TypeError),
        ({"write_limit": None}, TypeError),
        ({"max_line": -1}, ValueError),
        ({"idle_timeout": -1}, ValueError),
        ({"workers": 0}, ValueError),
        ({"unknown": 1}, TypeError),
    ],
    ids=repr,
)
def test_an_invalid_argument_is_refused(options, error):
    with pytest.raises(error):
        serve(upper, **options).close()


@pytest.mark.parametrize("handler", [None, 3, "text", b"", [], object()], ids=lambda handler: type(handler).__name__)
def test_a_handler_that_is_not_callable_is_refused(handler):
    with pytest.raises(TypeError):
        serve(handler).close()


@pytest.mark.parametrize("framing", ["line", "raw"])
def test_a_class_without_the_method_is_refused(framing):
    class Wrong:
        pass

    with pytest.raises(TypeError):
        serve(Wrong, framing=framing).close()
