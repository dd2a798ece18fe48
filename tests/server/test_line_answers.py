"""What a LineServer makes of the answers of its handler, and the lines that it passes to it."""

import functools
import os
import socket

import pytest

from rioecho import LineTooLong
from support.handlers import Life, call, ended, serve, still_serves, upper
from support.peers import SECONDS, dial, lines, receive
from support.procfs import until


@pytest.fixture
def life():
    return Life()


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
        assert call(server, b"x\n") == b""  # nothing of the answer, also not what came before the error
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
