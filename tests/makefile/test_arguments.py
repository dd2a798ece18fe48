"""rioecho.makefile has the signature, the modes and the arguments of socket.makefile."""

import inspect
import io
import pickle
import socket
import subprocess
import sys

import pytest

import rioecho
from rioecho.text import TextFile
from support.conversations import LONG, receive

#: The standard library's function, before a test replaces it.
STDLIB = socket.socket.makefile


@pytest.fixture
def stream(stream):
    """A wire whose near end has a timeout of LONG."""
    stream.near.settimeout(LONG)
    return stream


def test_the_signature_is_that_of_the_standard_library():
    def parameters(function):
        return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()][1:]

    assert parameters(rioecho.makefile) == parameters(STDLIB)


@pytest.mark.parametrize("thing", [5, None, io.BytesIO()], ids=["an int", "None", "a file"])
def test_what_is_no_socket_is_a_type_error(thing):
    with pytest.raises(TypeError, match=r"socket\.socket"):
        rioecho.makefile(thing, "rb")


# ---- modes


BINARY = ["b", "rb", "br", "wb", "bw", "rwb", "rbw", "wrb", "wbr", "brw", "bwr"]
TEXT = ["", "r", "w", "rw", "wr"]


def abilities(file):
    return {name: getattr(file, name)() for name in ("readable", "writable", "seekable", "isatty")}


@pytest.mark.parametrize("mode", BINARY)
def test_a_binary_mode_returns_a_rio_with_the_abilities_of_the_mode(stream, mode):
    with rioecho.makefile(stream.near, mode) as file, STDLIB(stream.near, mode) as other:
        assert type(file) is rioecho.Rio
        assert isinstance(file, io.BufferedIOBase)
        assert file.fileno() == stream.near.fileno()
        assert abilities(file) == abilities(other)


@pytest.mark.parametrize("mode", TEXT)
def test_a_text_mode_returns_a_text_file_over_a_rio(stream, mode):
    with rioecho.makefile(stream.near, mode) as file, STDLIB(stream.near, mode) as other:
        assert type(file) is TextFile
        assert isinstance(file, io.TextIOBase)
        assert type(file.buffer) is rioecho.Rio
        assert file.mode == other.mode == mode
        assert abilities(file) == abilities(other)
        assert (file.encoding, file.errors, file.newlines) == (other.encoding, other.errors, other.newlines)


def test_the_default_mode_is_to_read_text(stream, makefile):
    with makefile(stream.near) as file:
        assert file.mode == "r"
        assert file.readable()
        assert not file.writable()


@pytest.mark.parametrize("mode", ["x", "a", "r+", "rb+", "U", "rt", "R", " r"])
@pytest.mark.parametrize("buffering", [None, 0])
def test_any_other_mode_is_a_value_error_with_the_standard_librarys_message(stream, mode, buffering):
    with pytest.raises(ValueError, match="invalid mode") as expected:
        STDLIB(stream.near, mode, buffering)
    with pytest.raises(ValueError, match="invalid mode") as caught:
        rioecho.makefile(stream.near, mode, buffering)
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize("call", ["read", "read1", "readline", "readlines", "__next__"])
def test_a_write_only_file_cannot_be_read(stream, makefile, call):
    stream.feed(b"a line\n")
    with makefile(stream.near, "wb") as file, pytest.raises(io.UnsupportedOperation):
        getattr(file, call)()


@pytest.mark.parametrize("call", ["peek", "readuntil", "readlines1", "skipline", "fill"])
def test_a_write_only_rio_cannot_be_read_by_its_own_methods_either(stream, call):
    stream.feed(b"a line\n")
    with rioecho.makefile(stream.near, "wb") as file, pytest.raises(io.UnsupportedOperation):
        getattr(file, call)()


def test_a_read_only_file_cannot_be_written(stream, makefile):
    with makefile(stream.near, "rb") as file:
        for call, data in [("write", b"x"), ("writelines", [b"x"])]:
            with pytest.raises(io.UnsupportedOperation):
                getattr(file, call)(data)
        file.flush()
    assert not stream.readable()


def test_text_files_enforce_their_mode_too(stream, makefile):
    with makefile(stream.near, "r") as reader, pytest.raises(io.UnsupportedOperation):
        reader.write("x")
    with makefile(stream.near, "w") as writer, pytest.raises(io.UnsupportedOperation):
        writer.readline()


@pytest.mark.parametrize("call", ["seek", "tell", "truncate"])
def test_a_socket_file_has_no_position(stream, makefile, call):
    with makefile(stream.near, "rb") as file, pytest.raises(io.UnsupportedOperation):
        getattr(file, call)(*[0] * (call == "seek"))


# ---- buffering


@pytest.mark.parametrize("mode", BINARY)
def test_unbuffered_mode_returns_the_standard_librarys_socket_io(stream, makefile, mode):
    stream.feed(b"bytes")
    with makefile(stream.near, mode, 0) as file:
        assert type(file) is socket.SocketIO
        if file.readable():
            assert file.read(2) == b"by"
        if file.writable():
            assert file.write(b"x") == 1
            assert receive(stream, 1) == b"x"


@pytest.mark.parametrize("mode", TEXT)
def test_text_without_a_buffer_is_a_value_error(stream, makefile, mode):
    with pytest.raises(ValueError, match="unbuffered streams must be binary"):
        makefile(stream.near, mode, 0)


@pytest.mark.parametrize("buffering", [None, -1, -2, 1, 2, 7, 100_000, True])
@pytest.mark.parametrize("mode", ["rwb", "rw"])
def test_lines_are_read_and_written_through_a_buffer_of_any_size(stream, makefile, mode, buffering):
    convert = bytes if "b" in mode else bytes.decode
    stream.feed(b"one\ntwo\nthree")
    stream.end()
    with makefile(stream.near, mode, buffering) as file:
        assert list(file) == [convert(line) for line in (b"one\n", b"two\n", b"three")]
        file.writelines([convert(b"four\n"), convert(b"five\n" * 100)])
        file.flush()
        assert receive(stream, 505) == b"four\n" + b"five\n" * 100


def test_written_data_stays_in_the_buffer_until_it_is_full_or_flushed(stream, makefile):
    with makefile(stream.near, "wb", 10) as file:
        file.write(b"12345")
        assert not stream.readable()
        file.flush()
        assert receive(stream, 5) == b"12345"
        file.write(b"x" * 1000)
        assert receive(stream, 990)


def test_a_line_has_no_limit(stream, makefile, background):
    line = b"x" * (3 << 20) + b"\n"
    with makefile(stream.near, "rb") as file:
        background(stream.feed, line)
        assert file.readline() == line


def test_a_rio_sends_buffered_output_before_it_waits_for_an_answer(stream, background):
    for mode, question, answer in [("rwb", b"question\n", b"answer\n"), ("rw", "question\n", "answer\n")]:
        with rioecho.makefile(stream.near, mode) as file:
            file.write(question)
            background(lambda: stream.feed(receive(stream, 9).replace(b"question", b"answer")))
            assert file.readline() == answer


def test_objects_can_be_unpickled_from_a_connection_that_stays_open(stream, makefile):
    values = [{"number": number, "data": b"x" * number} for number in range(0, 3000, 300)]
    with makefile(stream.near, "rb") as file:
        for value in values:
            stream.feed(pickle.dumps(value))
            assert pickle.load(file) == value  # noqa: S301, data of this test


# ---- text


def test_text_is_encoded_and_decoded_with_the_given_arguments(stream, makefile):
    with makefile(stream.near, "rw", encoding="utf-16-le", errors="replace", newline="\r\n") as file:
        assert (file.encoding, file.errors) == ("utf-16-le", "replace")
        stream.feed("größe\nhalf\r\n".encode("utf-16-le") + b"\x00\xd8" + "\r\n".encode("utf-16-le"))
        assert file.readline() == "größe\nhalf\r\n"
        assert file.readline() == "\ufffd\r\n"
        file.write("größe\n")
        file.flush()
        assert receive(stream, 14) == "größe\r\n".encode("utf-16-le")


@pytest.mark.parametrize(
    ("newline", "lines"),
    [
        (None, ["a\n", "b\n", "c\n"]),
        ("", ["a\r", "b\r\n", "c\n"]),
        ("\n", ["a\rb\r\n", "c\n"]),
        ("\r", ["a\r", "b\r", "\nc\n"]),
        ("\r\n", ["a\rb\r\n", "c\n"]),
    ],
)
def test_newlines_are_translated_as_in_text_files(stream, makefile, newline, lines):
    stream.feed(b"a\rb\r\nc\n")
    stream.end()
    with makefile(stream.near, "r", newline=newline) as file:
        assert list(file) == lines


def test_a_character_that_arrives_in_parts_is_whole(stream, makefile, background):
    with makefile(stream.near, "r", encoding="utf-8") as file:
        stream.feed("ä€".encode()[:4])
        assert file.read(1) == "ä"
        background(stream.feed, "€".encode()[2:])
        assert file.read(1) == "€"


def test_text_that_cannot_be_decoded_is_an_error(stream, makefile):
    stream.feed(b"\xff\n")
    with makefile(stream.near, "r", encoding="utf-8") as file, pytest.raises(UnicodeDecodeError):
        file.readline()


def test_python_warns_of_a_missing_encoding_at_the_callers_line(makefile):
    code = f"""
        import rioecho, socket, warnings
        makefile = {"rioecho" if makefile is rioecho.makefile else "socket.socket"}.makefile
        near, far = socket.socketpair()
        with near, far, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            makefile(near, "rb").close()
            makefile(near, "r", encoding="utf-8").close()
            makefile(near, "r").close()
            print(*[(each.category.__name__, each.filename, each.lineno) for each in caught])
    """
    command = [sys.executable, "-X", "warn_default_encoding", "-W", "error", "-c", inspect.cleandoc(code)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert printed == "('EncodingWarning', '<string>', 8)\n"
