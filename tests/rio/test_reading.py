"""The result of each reading method, also at EOF and at its limit."""

import io
import pickle

import pytest

from rioecho import IncompleteRead, LineTooLong, Rio

TEXT = b"one\ntwo\r\n\nfour"


@pytest.fixture(params=[1, 4, 64])
def rio(request, stream):
    """Return a Rio whose input is TEXT, followed by EOF."""
    stream.feed(TEXT)
    stream.end()
    return Rio(stream.near, bufsize=request.param, timeout=10)


@pytest.fixture
def live(stream):
    """Return a Rio over a connection on which nothing has been received yet."""
    return Rio(stream.near, bufsize=16, timeout=10)


def test_readline_returns_lines_with_newlines_then_the_unterminated_one_then_nothing(rio):
    assert [rio.readline() for _ in range(6)] == [b"one\n", b"two\r\n", b"\n", b"four", b"", b""]


def test_readline_with_a_limit_returns_a_line_in_pieces(rio):
    assert [rio.readline(limit) for limit in (2, 2, 5, 0, 1, 3, 9)] == [
        b"on",
        b"e\n",
        b"two\r\n",
        b"",
        b"\n",
        b"fou",
        b"r",
    ]
    assert rio.readline(3) == b""


@pytest.mark.parametrize("limit", [-1, -5, None, -(10**30)])
def test_a_negative_limit_or_none_is_no_limit_as_in_io(rio, limit):
    assert rio.readline(limit) == b"one\n"
    assert rio.read(limit) == TEXT[4:]


def test_iteration_stops_at_eof_and_can_be_restarted(rio):
    assert next(rio) == b"one\n"
    assert iter(rio) is rio
    assert list(rio) == [b"two\r\n", b"\n", b"four"]
    assert list(rio) == []


def test_read_returns_exactly_n_bytes_and_fewer_only_at_eof(rio):
    assert [rio.read(n) for n in (0, 1, 5, 7)] == [b"", b"o", b"ne\ntw", b"o\r\n\nfou"]
    assert [rio.read(n) for n in (100, 100, 0)] == [b"r", b"", b""]


def test_read_without_a_size_returns_everything_up_to_eof(rio):
    assert rio.read() == TEXT
    assert rio.read() == b""


def test_readexactly_raises_at_eof_with_the_bytes_received(rio):
    assert rio.readexactly(9) == TEXT[:9]
    with pytest.raises(IncompleteRead) as caught:
        rio.readexactly(9)
    assert (caught.value.partial, caught.value.expected) == (TEXT[9:], 9)
    assert isinstance(caught.value, EOFError)
    with pytest.raises(IncompleteRead) as caught:
        rio.readexactly(1)
    assert caught.value.partial == b""
    assert rio.readexactly(0) == b""


def test_readuntil_includes_the_separator_and_raises_at_eof_with_the_remaining_bytes(rio):
    assert rio.readuntil() == b"one\n"
    assert rio.readuntil(b"\r\n\n") == b"two\r\n\n"
    with pytest.raises(IncompleteRead) as caught:
        rio.readuntil(b"or")
    assert (caught.value.partial, caught.value.expected) == (b"four", None)
    assert rio.read() == b""


def test_readuntil_finds_a_separator_that_overlaps_itself(live, stream):
    stream.feed(b"ABABABACABABAB")
    assert live.readuntil(b"ABABAC") == b"ABABABAC"
    for byte in b"AC":
        with pytest.raises(BlockingIOError):
            live.readuntil(b"ABABAC", timeout=0)
        stream.feed(bytes([byte]))
    assert live.readuntil(b"ABABAC") == b"ABABABAC"


def test_readuntil_scans_the_buffer_again_for_another_separator(live, stream):
    stream.feed(b"a;b,c")
    for sep in (b"\r\n", b"\n", b"c,"):
        with pytest.raises(BlockingIOError):
            live.readuntil(sep, timeout=0)
    assert live.readuntil(b",") == b"a;b,"
    stream.feed(b"\r")
    with pytest.raises(BlockingIOError):
        live.readuntil(b"\r\n", timeout=0)
    stream.feed(b"\n")
    assert live.readuntil(b"\r\n") == b"c\r\n"


def test_readlines_returns_all_lines_or_stops_after_the_hint(rio):
    assert rio.readlines(5) == [b"one\n", b"two\r\n"]
    assert rio.readlines() == [b"\n", b"four"]
    assert rio.readlines() == []


def test_readlines1_returns_the_complete_lines_of_one_read_and_waits_for_the_first(live, stream):
    stream.feed(b"one\ntwo\nthr")
    assert live.readlines1() == [b"one\n", b"two\n"]
    with pytest.raises(BlockingIOError):
        live.readlines1(timeout=0)
    stream.feed(b"ee\n\nfour")
    assert live.readlines1() == [b"three\n", b"\n"]
    stream.end()
    assert [live.readlines1(), live.readlines1()] == [[b"four"], []]


def test_readlines1_does_not_read_while_a_line_is_buffered(live, stream):
    stream.feed(b"one\ntwo\n")
    live.fill(8)
    stream.feed(b"three\n")
    assert live.readlines1() == [b"one\n", b"two\n"]
    assert live.buffered == 0


def test_read1_returns_the_buffered_bytes_after_at_most_one_read(live, stream):
    stream.feed(b"0123456789")
    assert live.read1(0) == b""
    assert live.read1(4) == b"0123"
    stream.feed(b"abc")
    assert live.read1() == b"456789"
    assert live.read1() == b"abc"
    stream.end()
    assert live.read1() == b""


@pytest.mark.parametrize("size", [12, 100])
def test_readinto1_stores_the_available_bytes_and_readinto_fills_the_buffer(live, stream, size):
    buffer = bytearray(size)
    stream.feed(b"0123456789")
    assert live.readinto1(buffer) == 10
    stream.feed(b"x" * size)
    assert live.readinto(buffer) == size
    stream.feed(b"end")
    stream.end()
    assert (live.readinto(buffer), live.readinto(buffer)) == (3, 0)
    assert live.readinto1(buffer) == 0


def test_peek_returns_the_buffered_bytes_after_at_most_one_read_and_consumes_nothing(live, stream):
    stream.feed(b"0123")
    assert [live.peek(), live.peek(2), live.peek(1 << 17)] == [b"0123"] * 3
    stream.feed(b"45")
    assert live.peek() == b"0123", "there are buffered bytes, so it must not read"
    assert live.read(6) == b"012345"
    stream.end()
    assert live.peek() == b""


def test_fill_waits_for_n_bytes_even_beyond_bufsize_and_returns_fewer_at_eof(live, stream):
    assert live.fill(0) == 0
    stream.feed(b"x" * 100)
    assert live.fill() >= 1
    assert 90 <= live.fill(90) == live.buffered == len(live.peek())
    assert live.fill(5) == live.buffered
    stream.end()
    assert live.fill(1000) == 100
    assert live.read() == b"x" * 100
    assert live.fill(1) == 0


def test_queries_of_the_buffer_do_not_use_the_descriptor(live, stream):
    stream.feed(b"one\ntwo")
    assert (live.buffered, live.has_line(), live.read_buffered()) == (0, False, b"")
    live.fill(7)
    stream.feed(b"\n")
    assert (live.buffered, live.has_line()) == (7, True)
    assert live.readline() == b"one\n"
    assert (live.buffered, live.has_line(), live.read_buffered()) == (3, False, b"two")
    assert (live.buffered, live.readline()) == (0, b"\n")


def test_skipline_returns_the_number_of_discarded_bytes(rio):
    assert [rio.skipline() for _ in range(5)] == [4, 5, 1, 4, 0]


@pytest.mark.parametrize("size", [8, 9, 10])
def test_max_line_counts_the_newline(stream, size):
    rio = Rio(stream.near, bufsize=4, max_line=9, timeout=10)
    line = b"x" * (size - 1) + b"\n"
    stream.feed(line)
    if size <= 9:
        assert rio.readline() == line
        return
    with pytest.raises(LineTooLong) as caught:
        rio.readline()
    assert caught.value.limit == 9
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("size", [8, 9, 10])
def test_an_unterminated_line_of_up_to_max_line_bytes_is_the_last_line(stream, size):
    rio = Rio(stream.near, bufsize=4, max_line=9, timeout=10)
    stream.feed(b"x" * size)
    stream.end()
    if size <= 9:
        assert list(rio) == [b"x" * size]
    else:
        with pytest.raises(LineTooLong):
            rio.readline()
        assert rio.read() == b"x" * size


@pytest.mark.parametrize("limit", [8, 9, 10])
def test_the_limit_of_readuntil_counts_the_separator_and_may_exceed_max_line(stream, limit):
    rio = Rio(stream.near, bufsize=4, max_line=5, timeout=10)
    stream.feed(b"1234567\r\n")
    if limit >= 9:
        assert rio.readuntil(b"\r\n", limit) == b"1234567\r\n"
        return
    with pytest.raises(LineTooLong) as caught:
        rio.readuntil(b"\r\n", limit)
    assert caught.value.limit == limit
    assert rio.readuntil(b"\r\n", 9) == b"1234567\r\n"


def test_an_explicit_limit_of_readline_may_exceed_max_line(stream):
    rio = Rio(stream.near, max_line=4, timeout=10)
    stream.feed(b"12345678\n")
    assert rio.readline(100) == b"12345678\n"


def test_without_a_max_line_a_line_may_have_any_length(stream, background):
    line = b"x" * (3 << 20) + b"\n"
    background(stream.far.sendall, line)
    assert Rio(stream.near, max_line=None, timeout=10).readline() == line


def test_the_default_max_line_is_a_mebibyte(stream, background):
    background(stream.far.sendall, b"x" * ((1 << 20) - 1) + b"\n" + b"x" * (1 << 20) + b"\n")
    rio = Rio(stream.near, timeout=10)
    assert len(rio.readline()) == 1 << 20
    with pytest.raises(LineTooLong):
        rio.readline()
    assert rio.skipline() == (1 << 20) + 1


def test_pickle_loads_from_an_open_connection(live, stream):
    for value in ({"a": [1, 2]}, b"x" * 100_000, "text"):
        stream.feed(pickle.dumps(value))
        assert pickle.load(live) == value  # noqa: S301, the test's own data


def test_a_text_wrapper_reads_and_writes_through_a_rio(stream):
    stream.feed("eins\nzwei\nfünf".encode())
    stream.end()
    rio = Rio(stream.near, bufsize=4, timeout=10)
    assert isinstance(rio, io.BufferedIOBase)
    with io.TextIOWrapper(rio, encoding="utf-8", newline="\n") as text:
        assert list(text) == ["eins\n", "zwei\n", "fünf"]
        text.write("sechs\n")
    assert stream.take_exactly(6) == b"sechs\n"
    assert rio.closed


@pytest.mark.parametrize("held", [0, 1, 100])
@pytest.mark.parametrize("size", [1000, 32767, 32768, 32769, 150_000])
@pytest.mark.parametrize("n", [200_000, 1 << 20, 10**9])
def test_a_large_read_that_reaches_eof_returns_each_byte_once(stream, background, held, size, n):
    data = bytes(i * 7 % 251 for i in range(size))

    def send():
        stream.far.sendall(data)
        stream.end()

    rio = Rio(stream.near, bufsize=64, timeout=20)
    sending = background(send)
    if held:
        assert rio.fill(held) >= held
    got = rio.read(n)
    sending.join(20)
    assert got == data
    assert len(got) == size
    assert rio.buffered == 0
    assert rio.read(n) == rio.readline() == b""


def test_bytes_like_objects_of_every_size_are_written_in_order(stream):
    rio = Rio(stream.near, bufsize=16, timeout=10)
    parts = [b"a", b"", bytearray(b"bc"), b"d" * 7, memoryview(b"ef"), b"g" * 3, b"h" * 16, b"i"]
    assert [rio.write(part) for part in parts] == [len(part) for part in parts]
    rio.flush()
    whole = b"".join(bytes(part) for part in parts)
    assert stream.far.recv(100) == whole
