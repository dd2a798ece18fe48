"""A file that is open for reading and writing has one position: a Rio uses it as io.BufferedRandom does."""

import errno
import io
import os
import resource
import threading
import time

import pytest

from rioecho import ConcurrentCall, LineTooLong, Rio, echo
from support.properties import EXAMPLES, given, settings, st

CONTENT = b"line1\nline2\nline3\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def opened(path):
    """Return a function that opens the file without a buffer, ``opened(flags)``: a descriptor."""
    descriptors = []

    def open_file(flags=os.O_RDWR):
        descriptors.append(os.open(path, flags))
        return descriptors[-1]

    yield open_file
    for fd in descriptors:
        os.close(fd)


@pytest.mark.parametrize("write", ["writen", "write", "writelines"])
@pytest.mark.parametrize("bufsize", [1, 4, 65536])
def test_a_write_lands_where_the_caller_has_read_to(opened, path, write, bufsize):
    rio = Rio(opened(), bufsize=bufsize)
    assert rio.readline() == b"line1\n"
    getattr(rio, write)([b"LINE2\n"] if write == "writelines" else b"LINE2\n")
    assert path.read_bytes() == b"line1\nLINE2\nline3\n"
    assert rio.readline() == b"line3\n"
    assert rio.readline() == b""


def test_a_read_sees_what_was_written_in_what_had_been_read_ahead(opened, path):
    rio = Rio(opened())
    assert rio.peek() == CONTENT
    other = opened()
    os.pwrite(other, b"LINE", 6)
    rio.write(b"L")
    assert rio.buffered == 0
    assert rio.read() == b"ine1\nLINE2\nline3\n"


def test_appending_goes_to_the_end_whatever_was_read(opened, path):
    rio = Rio(opened(os.O_RDWR | os.O_APPEND))
    rio.readline()
    rio.write(b"line4\n")
    assert path.read_bytes() == CONTENT + b"line4\n"
    assert rio.read() == b""


def test_a_file_open_for_one_direction_has_a_buffer_as_before(opened, path):
    rio = Rio(opened(os.O_WRONLY))
    rio.write(b"LINE")
    assert path.read_bytes() == CONTENT
    rio.flush()
    assert path.read_bytes() == b"LINE1\nline2\nline3\n"
    assert Rio(opened(os.O_RDONLY)).readlines1() == [b"LINE1\n", b"line2\n", b"line3\n"]


def test_lines_held_after_an_error_are_read_again_and_not_skipped_by_a_write(opened, path):
    rio = Rio(opened(), max_line=3)
    with pytest.raises(LineTooLong):
        rio.readline()
    rio.write(b"L")
    assert path.read_bytes() == b"L" + CONTENT[1:]
    assert rio.skipline() == 5


def test_a_write_that_fails_loses_nothing_and_goes_on_in_the_right_place(opened, path):
    rio = Rio(opened())
    assert rio.read(6) == b"line1\n"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        for write, sent in ((rio.writen, 4), (rio.write, 0)):
            with pytest.raises(OSError, match="File too large") as caught:
                write(b"abcdefgh")
            assert (caught.value.errno, caught.value.characters_written) == (errno.EFBIG, sent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"line1\nabcd2\nline3\n"
    rio.write(b"efgh")
    rio.close()
    assert path.read_bytes() == b"line1\nabcdefghne3\n"


def test_a_position_that_cannot_be_moved_back_fails_the_write_and_keeps_what_is_held(opened, path):
    fd = opened()
    rio = Rio(fd)
    rio.readline()
    os.lseek(fd, 0, os.SEEK_SET)  # by somebody else: the bytes held are not before this position
    with pytest.raises(OSError, match="Invalid argument") as caught:
        rio.write(b"x")
    assert caught.value.characters_written == 0
    assert path.read_bytes() == CONTENT
    assert rio.read(12) == b"line2\nline3\n"


@pytest.mark.parametrize("read", [0, 6])
def test_a_write_is_refused_while_bytes_are_held_that_unread_has_put_in_front(opened, path, read):
    rio = Rio(opened())
    rio.read(read)
    for data in (b"other\n", b"more\n"):
        rio.unread(data)
        with pytest.raises(io.UnsupportedOperation, match=r"unread\(\)") as caught:
            rio.write(b"LINE!\n")
        assert caught.value.characters_written == 0
    assert rio.readline() == b"more\n"
    with pytest.raises(io.UnsupportedOperation, match=r"unread\(\)"):
        rio.writen(b"LINE!\n")
    assert path.read_bytes() == CONTENT
    assert rio.readline() == b"other\n"
    rio.write(b"LINE!\n")
    assert path.read_bytes() == CONTENT[:read] + b"LINE!\n" + CONTENT[read + 6 :]
    assert rio.read() == CONTENT[read + 6 :]


@pytest.mark.usefixtures("often")
def test_a_reader_and_a_writer_in_two_threads_disturb_nothing(opened, path, background):
    lines = [b"%07d\n" % i for i in range(1000)]
    path.write_bytes(b"".join(lines))
    rio = Rio(opened(), bufsize=100)
    got, wrote = [], []
    done = threading.Event()

    def write():
        while not done.is_set():
            wrote.append(rio.write(b"written\n"))
            time.sleep(0)  # let the other thread have its turn: else one of them does everything

    thread = background(write)
    try:
        while line := rio.readline():
            got.append(line)
            time.sleep(0)
    finally:
        done.set()
        thread.join(20)
    content = path.read_bytes()[: len(lines) * 8]
    # Each line was either read or overwritten, never both and never neither.
    kept = [line for line in content.splitlines(keepends=True) if line != b"written\n"]
    assert kept == [line for line in got if line != b"written\n"]
    assert not set(got) - set(lines)
    assert len(wrote) >= len(lines) - len(got)


def test_a_read_from_inside_a_read_of_the_same_thread_is_refused(opened):
    errors = []

    class Source:
        def fileno(self):
            if armed:
                armed.clear()
                try:
                    rio.readline()
                except ConcurrentCall as error:
                    errors.append(error)
            return fd

    fd, armed = opened(), []
    rio = Rio(Source())
    armed.append(True)
    assert rio.readline() == b"line1\n"
    assert len(errors) == 1


def test_a_write_from_inside_a_read_of_the_same_thread_is_refused(opened, path):
    errors = []

    class Source:
        def fileno(self):
            if armed:
                armed.clear()
                try:
                    rio.write(b"x")
                except ConcurrentCall as error:
                    errors.append(error)
            return fd

    fd, armed = opened(), []
    rio = Rio(Source(), timeout=5)
    armed.append(True)
    assert rio.readline() == b"line1\n"
    assert len(errors) == 1
    assert path.read_bytes() == CONTENT


def test_a_file_is_not_echoed_into_itself(opened, path):
    with pytest.raises(io.UnsupportedOperation, match="one position"):
        echo(opened())
    assert path.read_bytes() == CONTENT


CALLS = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 12)),
    st.tuples(st.just("readline"), st.just(-1)),
    st.tuples(st.just("write"), st.text("ab\n", max_size=9).map(str.encode)),
    st.tuples(st.just("readlines"), st.integers(1, 20)),
    st.tuples(st.just("readinto"), st.integers(0, 12)),
    st.tuples(st.just("peek"), st.just(0)),
    st.tuples(st.just("flush"), st.none()),
)


def outcome(file, name, argument):
    if name == "readinto":
        room = bytearray(argument)
        return bytes(room[: file.readinto(room)])
    if name == "peek":
        file.peek()
        return None  # how much is shown is not part of the contract
    if name == "flush":
        return file.flush()
    return getattr(file, name)(argument)


@pytest.mark.long
@settings(max_examples=EXAMPLES)
@given(
    content=st.text("xyz\n", max_size=40).map(str.encode),
    calls=st.lists(CALLS, max_size=12),
    bufsize=st.sampled_from([1, 3, 16, 65536]),
)
def test_any_sequence_of_calls_does_what_a_buffered_random_does(tmp_path_factory, content, calls, bufsize):
    folder = tmp_path_factory.getbasetemp()
    for name in ("ours", "theirs"):
        (folder / name).write_bytes(content)
    with open(folder / "theirs", "r+b") as theirs, open(folder / "ours", "r+b", buffering=0) as raw:
        ours = Rio(raw, bufsize=bufsize)
        for name, argument in calls:
            assert outcome(ours, name, argument) == outcome(theirs, name, argument), (name, argument)
        theirs.flush()
        assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
