"""A file object with a buffer is accepted where it can be shown to hold nothing; else the error says what to do."""

import codecs
import gzip
import io
import os
import socket
import subprocess
import sys
import tempfile

import pytest

import rioecho
from rioecho import Rio, echo

CONTENT = b"line1\nline2\n"
ADVICE = r"pass its fileno\(\).*buffering=0.*bufsize=0"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("mode", ["rb", "r+b", "r", "r+"])
def test_a_file_that_has_read_nothing_is_taken(path, mode):
    with open(path, mode) as file:
        assert Rio(file).readline() == b"line1\n"


@pytest.mark.parametrize("mode", ["rb", "r", "r+"])
def test_a_file_that_has_read_ahead_is_refused(path, mode):
    with open(path, mode) as file:
        file.readline()
        with pytest.raises(ValueError, match=ADVICE):
            Rio(file)
        assert file.readline().strip() in (b"line2", "line2")
        assert Rio(file).read() == b""  # it has read everything, and holds nothing


def test_flushing_gives_what_a_binary_file_open_for_both_has_read_ahead_back(path):
    with open(path, "r+b") as file:
        file.readline()
        assert Rio(file).readline() == b"line2\n"


def test_a_text_file_that_is_being_iterated_over_is_refused(path):
    with open(path) as file:
        next(file)
        with pytest.raises(ValueError, match=ADVICE):
            Rio(file)


@pytest.mark.parametrize("mode", ["wb", "w", "a", "r+b", "r+"])
def test_what_a_file_has_not_written_yet_is_written_first(path, mode):
    with open(path, mode) as file:
        file.write("first " if isinstance(file, io.TextIOBase) else b"first ")
        Rio(file).writen(b"second")
    assert b"first second" in path.read_bytes()


def test_the_error_of_flushing_is_raised():
    near, far = os.pipe()
    os.close(near)
    file = os.fdopen(far, "wb")
    file.write(b"data")
    with pytest.raises(BrokenPipeError):
        Rio(file)
    with pytest.raises(BrokenPipeError):
        file.close()


@pytest.mark.parametrize("mode", ["rb", "r"])
def test_a_reader_of_a_pipe_cannot_show_that_it_holds_nothing(mode):
    near, far = os.pipe()
    with os.fdopen(near, mode) as file:
        os.write(far, CONTENT)
        os.close(far)
        with pytest.raises(ValueError, match=ADVICE):
            Rio(file)
        assert Rio(file.fileno()).readline() == b"line1\n"


def test_the_output_of_a_child_is_taken_without_a_buffer_only():
    command = [sys.executable, "-c", "print('hello')"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        with pytest.raises(ValueError, match=ADVICE):
            Rio(child.stdout)
        child.stdout.read()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, bufsize=0) as child:
        assert Rio(child.stdout).readline() == b"hello\n"
        assert Rio(child.stdin).writable()


def test_the_input_of_a_child_is_taken_with_a_buffer():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdin.write(b"one ")
        Rio(child.stdin).writen(b"two")
        child.stdin.close()
        assert child.stdout.read() == b"one two"


def test_a_named_temporary_file_is_what_it_wraps():
    with tempfile.NamedTemporaryFile() as file:
        file.write(CONTENT)
        file.seek(0)
        assert Rio(file).readline() == b"line1\n"
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write(CONTENT.decode())
        file.seek(0)
        file.readline()
        with pytest.raises(ValueError, match=ADVICE):
            Rio(file)


def test_files_that_change_the_bytes_are_refused(path, tmp_path):
    packed = tmp_path / "packed"
    with gzip.open(packed, "wb") as file:
        file.write(CONTENT)
    with gzip.open(packed) as file, pytest.raises(ValueError, match="GzipFile may hold bytes"):
        Rio(file)
    with gzip.open(packed, "rt") as file, pytest.raises(ValueError, match="may hold bytes"):
        Rio(file)
    with codecs.open(path) if sys.version_info < (3, 14) else open(path) as file:
        if not isinstance(file, io.IOBase):
            with pytest.raises(ValueError, match="StreamReaderWriter may hold bytes"):
                Rio(file)


def test_unbuffered_files_are_taken(path, stream):
    with open(path, "rb", buffering=0) as file:
        file.read(3)
        assert Rio(file).readline() == b"e1\n"
    with socket.SocketIO(stream.near, "rw") as raw:
        stream.feed(b"one\n")
        assert Rio(raw, timeout=5).readline() == b"one\n"


def test_an_object_that_has_only_a_descriptor_is_taken(stream):
    class Device:
        fileno = staticmethod(stream.near.fileno)

    stream.feed(b"one\n")
    assert Rio(Device(), timeout=5).readline() == b"one\n"


def test_another_rio_is_taken_if_it_holds_nothing(stream):
    first = Rio(stream.near, timeout=5)
    stream.feed(b"one\ntwo\n")
    assert first.readline() == b"one\n"
    with pytest.raises(ValueError, match=r"holds 4 bytes.*detach\(\)"):
        Rio(first)
    assert first.readline() == b"two\n"
    first.write(b"held")
    second = Rio(first, timeout=5)
    assert stream.take() == b"held"
    stream.feed(b"three\n")
    assert second.readline() == b"three\n"


def test_the_files_of_makefile_are_checked_too(stream):
    with rioecho.makefile(stream.near, "rb") as file:
        stream.feed(b"one\ntwo\n")
        assert file.readline() == b"one\n"
        with pytest.raises(ValueError, match="holds 4 bytes"):
            Rio(file)
    with stream.near.makefile("rb") as file, pytest.raises(ValueError, match=ADVICE):
        Rio(file)
    with stream.near.makefile("wb") as file:
        file.write(b"first ")
        Rio(file).writen(b"second")
        assert stream.take_exactly(12) == b"first second"


def test_an_echo_checks_its_source_too(stream):
    with stream.near.makefile("rb") as file, pytest.raises(ValueError, match=ADVICE):
        echo(file)
    with pytest.raises(TypeError, match="use a Rio"):
        echo(Rio(stream.near))
