"""Text files with an error handler: what it puts in place of bytes or of characters, also where that is much."""

import codecs
import itertools
import socket
import threading

import pytest

import rioecho
from support.conversations import LONG, receive


@pytest.fixture
def lines_for_bytes():
    """Return the name of an error handler that puts lines in the place of bytes that are no UTF-8."""
    codecs.register_error("rioecho.test.lines", lambda error: ("one\ntwo\nend", error.end))
    return "rioecho.test.lines"


@pytest.mark.parametrize("newline", [None, "", "\n", "\r\n"])
@pytest.mark.parametrize("data", [b"a\xffb\nc\n", b"\xff", b"\xff\n\xff\xffc"])
def test_no_character_of_lines_that_an_error_handler_puts_in_is_lost(data, newline, lines_for_bytes):
    calls = [("readline",), ("readlines",), ("readlines", 2), ("read",), ("read", 5)]
    for size, *steps in itertools.product(range(1, 12), calls, calls):
        near, far = socket.socketpair()
        with near, far:
            far.sendall(data)
            far.shutdown(socket.SHUT_WR)
            with rioecho.makefile(near, "r", encoding="utf-8", newline=newline, errors=lines_for_bytes) as file:
                got = file.read(size)
                assert len(got) == min(size, len(data.decode("utf-8", lines_for_bytes)))
                for name, *arguments in steps:
                    got += "".join(getattr(file, name)(*arguments))
                got += file.read()
        assert got == data.decode("utf-8", lines_for_bytes), (size, steps)


def test_the_rest_of_lines_that_a_sized_read_cuts_is_lines(lines_for_bytes):
    for rest in (
        lambda file: [next(file), next(file), next(file)],
        lambda file: file.readlines(),
        lambda file: file.readlines(2) + file.readlines(5) + file.readlines(),
    ):
        near, far = socket.socketpair()
        with near, far, rioecho.makefile(near, "r", encoding="utf-8", errors=lines_for_bytes) as file:
            far.sendall(b"a\xffb\n")
            far.shutdown(socket.SHUT_WR)
            assert file.read(2) == "ao"
            assert rest(file) == ["ne\n", "two\n", "endb\n"]


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        ("xmlcharrefreplace", "語" * 20_000),  # one run of characters for the handler, longer than the buffer
        ("namereplace", "語" * 3_000),  # the text fits in the buffer, what is put in its place does not
        ("namereplace", ("words " + "語" * 300) * 30),
    ],
)
def test_a_text_that_an_error_handler_makes_longer_is_written_whole(stream, errors, text):
    expected = text.encode("ascii", errors)
    received = []
    thread = threading.Thread(target=lambda: received.append(receive(stream, len(expected))))
    thread.start()
    with rioecho.makefile(stream.near, "w", 8192, encoding="ascii", errors=errors) as file:
        assert file.write(text) == len(text)
    thread.join(LONG)
    assert received == [expected]


class Cut(socket.socket):
    """A socket that takes ``left`` bytes, and then no more before that is changed."""

    left = 0

    def send(self, data):
        if self.left == 0:
            raise BlockingIOError
        put = super().send(data[: self.left])
        self.left -= put
        return put


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_write_that_is_cut_at_any_byte_accepts_whole_characters(stream, newline):
    text = "ä\n€\n\n😀\nxy"
    padding = "." * 8192  # with which the text does not fit in the buffer
    data = (text + padding).replace("\n", newline).encode()
    with Cut(fileno=stream.near.detach()) as sock:
        sock.setblocking(False)
        with rioecho.makefile(sock, "w", 8192, encoding="utf-8", newline=newline) as file:
            for cut in range(1, len(data) - len(padding)):
                sock.left = cut
                with pytest.raises(BlockingIOError) as caught:
                    file.write(text + padding)
                accepted = caught.value.characters_written
                expected = (text + padding)[:accepted].replace("\n", newline).encode()
                assert cut <= len(expected) <= cut + 3
                sock.left = len(data)
                file.flush()
                assert receive(stream, len(expected)) == expected
                sock.left = 1
                with pytest.raises(BlockingIOError):
                    file.buffer.writen(b"..")
                assert receive(stream, 1) == b"."  # nothing else was left in the buffer


def test_in_another_encoding_an_error_handler_of_the_program_is_called_too(stream, lines_for_bytes):
    with rioecho.makefile(stream.near, "r", encoding="cp1252", errors=lines_for_bytes) as file:
        stream.feed(b"a\x81\x80")
        stream.end()
        assert file.read() == "aone\ntwo\nend€"


def test_repr_is_there_after_the_socket_file_was_detached(stream):
    file = rioecho.makefile(stream.near, "r", encoding="utf-8")
    assert repr(file) == f"<rioecho.TextFile name={stream.near.fileno()} mode='r' encoding='utf-8'>"
    file.detach().close()
    assert repr(file) == "<rioecho.TextFile mode='r' encoding='utf-8'>"
    with pytest.raises(ValueError, match="detached"):
        file.detach()
