"""The book's functions at C level, called from a module compiled against the installed package."""

import errno
import os
import re
import signal
import socket
import struct
import termios
import threading
import time
import tty
from pathlib import Path

import pytest

import rioecho
from support.outside import compile_outside, needs_compiler
from support.procfs import sleeps, until

EXAMPLES = Path(__file__).parents[2] / "examples"

OUTSIDE = """\
# cython: language_level=3, freethreading_compatible=True
import os

from libc.errno cimport errno
from rioecho.rio cimport rio_t, rio_readinitb, rio_readlineb, rio_readnb, rio_readn, rio_writen


cdef class Book:
    cdef rio_t rio

    def __init__(self, int fd):
        with nogil:
            rio_readinitb(&self.rio, fd)

    def readlineb(self, size_t maxlen):
        cdef bytearray room = bytearray(b"?" * maxlen)
        cdef char *p = room
        cdef ssize_t n
        cdef int err = 0
        with nogil:
            n = rio_readlineb(&self.rio, p, maxlen)
            if n < 0:
                err = errno
        return answer(n, err, room)

    def readnb(self, size_t size):
        cdef bytearray room = bytearray(size)
        cdef char *p = room
        cdef ssize_t n
        cdef int err = 0
        with nogil:
            n = rio_readnb(&self.rio, p, size)
            if n < 0:
                err = errno
        return answer(n, err, room)[:max(n, 0)]


def readn(int fd, size_t size):
    cdef bytearray room = bytearray(size)
    cdef char *p = room
    cdef ssize_t n
    cdef int err = 0
    with nogil:
        n = rio_readn(fd, p, size)
        if n < 0:
            err = errno
    return answer(n, err, room)[:max(n, 0)]


def writen(int fd, bytearray data):
    cdef char *p = data
    cdef size_t size = len(data)
    cdef ssize_t n
    cdef int err = 0
    with nogil:
        n = rio_writen(fd, p, size)
        if n < 0:
            err = errno
    answer(n, err, None)
    return n


cdef answer(ssize_t n, int err, room):
    if n == -1:
        raise OSError(err, os.strerror(err))
    assert n >= 0
    # Include the NUL that rio_readlineb appends to a line, for the tests to check.
    return bytes(room[:n + 1]) if n and room is not None else b""
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory):
    """Return a module compiled against nothing of rioecho but the installed package."""
    return compile_outside(OUTSIDE, tmp_path_factory.mktemp("outside"))


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.mark.long
@needs_compiler
def test_an_outside_module_reads_lines_with_the_book_s_functions(outside, pair) -> None:
    ours, theirs = pair
    book = outside.Book(ours.fileno())
    theirs.sendall(b"one\ntwo\n\nrest")
    theirs.shutdown(socket.SHUT_WR)
    assert book.readlineb(100) == b"one\n\0"
    assert book.readlineb(100) == b"two\n\0"
    assert book.readlineb(100) == b"\n\0"
    assert book.readlineb(100) == b"rest\0"
    assert book.readlineb(100) == b""
    assert book.readlineb(100) == b""


@needs_compiler
def test_a_line_longer_than_maxlen_is_returned_in_pieces(outside, pair) -> None:
    ours, theirs = pair
    book = outside.Book(ours.fileno())
    theirs.sendall(b"abcdefghij\nk\n")
    assert book.readlineb(5) == b"abcd\0"
    assert book.readlineb(5) == b"efgh\0"
    assert book.readlineb(5) == b"ij\n\0"
    assert book.readlineb(5) == b"k\n\0"


@needs_compiler
def test_a_line_without_room_for_a_byte_is_minus_one_with_einval(outside, pair) -> None:
    ours, theirs = pair
    book = outside.Book(ours.fileno())
    theirs.sendall(b"ab\n")
    with pytest.raises(OSError, match="Invalid argument"):
        book.readlineb(1)
    assert book.readlineb(10) == b"ab\n\0"


@needs_compiler
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_a_signal_does_not_end_a_read_at_c_level(outside, pair) -> None:
    ours, theirs = pair
    results = []
    thread = threading.Thread(target=lambda: results.append(outside.readn(ours.fileno(), 4)))
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        thread.start()
        for data in (b"ab", b"cd"):
            until(lambda: sleeps(thread), "the read to wait")
            signal.pthread_kill(thread.ident, signal.SIGUSR1)
            theirs.sendall(data)
        thread.join(20)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert results == [b"abcd"]


@needs_compiler
def test_lines_and_counted_bytes_can_be_mixed_at_c_level(outside, pair) -> None:
    ours, theirs = pair
    book = outside.Book(ours.fileno())
    body = bytes(range(256)) * 100  # more than RIO_BUFSIZE, and more than one fill
    theirs.sendall(b"25600\n" + body + b"end")
    theirs.shutdown(socket.SHUT_WR)
    assert book.readlineb(64) == b"25600\n\0"
    assert book.readnb(25600) == body
    assert book.readnb(10) == b"end"
    assert book.readnb(10) == b""


@needs_compiler
def test_the_unbuffered_functions_transfer_exactly_the_requested_bytes(outside, pair) -> None:
    ours, theirs = pair
    assert outside.writen(ours.fileno(), bytearray(b"ping pong")) == 9
    assert outside.readn(theirs.fileno(), 4) == b"ping"
    ours.shutdown(socket.SHUT_WR)
    assert outside.readn(theirs.fileno(), 100) == b" pong"
    assert outside.readn(theirs.fileno(), 100) == b""


@needs_compiler
@pytest.mark.parametrize("call", ["readn", "writen", "readnb", "readlineb"])
def test_an_error_at_c_level_is_minus_one_with_errno(outside, call: str) -> None:
    bad = -1
    calls = {
        "readn": lambda: outside.readn(bad, 1),
        "writen": lambda: outside.writen(bad, bytearray(b"x")),
        "readnb": lambda: outside.Book(bad).readnb(1),
        "readlineb": lambda: outside.Book(bad).readlineb(10),
    }
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls[call]()


@needs_compiler
def test_writing_to_a_closed_peer_is_epipe_at_c_level(outside, pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError):
        outside.writen(ours.fileno(), bytearray(b"x"))


@needs_compiler
@pytest.mark.parametrize("call", ["readn", "readnb", "readlineb"])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "not blocking"])
def test_a_terminal_without_data_is_waited_for_at_c_level_until_it_hangs_up(outside, call: str, blocking: bool) -> None:
    far, near = os.openpty()
    try:
        tty.setraw(near)
        settings = termios.tcgetattr(near)
        settings[6][termios.VMIN] = settings[6][termios.VTIME] = 0
        termios.tcsetattr(near, termios.TCSANOW, settings)
        os.set_blocking(near, blocking)
        book = outside.Book(near)
        calls = {"readn": lambda: outside.readn(near, 4), "readnb": lambda: book.readnb(4)}
        read = calls.get(call, lambda: book.readlineb(10).rstrip(b"\0"))
        results = []
        thread = threading.Thread(target=lambda: [results.append(read()) for _ in range(3)], daemon=True)
        thread.start()
        for data in (b"ab", b"c\n", b"def\n"):
            os.write(far, data)
        while len(results) < 2 and thread.is_alive():
            thread.join(0.001)
        assert results == [b"abc\n", b"def\n"]
        os.close(far)
        far = -1
        thread.join(20)
        assert results == [b"abc\n", b"def\n", b""]
    finally:
        os.close(near)
        if far >= 0:
            os.close(far)


def limit(sock: socket.socket, option: int, seconds: float) -> None:
    """Set the time limit that a socket has in the kernel."""
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))


@needs_compiler
@pytest.mark.parametrize("call", ["readn", "readnb", "readlineb"])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "not blocking"])
def test_the_kernel_s_time_limit_of_a_read_is_minus_one_with_eagain_and_no_buffered_byte_is_lost(
    outside, pair, call: str, blocking: bool
) -> None:
    ours, theirs = pair
    ours.setblocking(blocking)
    limit(ours, socket.SO_RCVTIMEO, 0.1)
    book = outside.Book(ours.fileno())
    calls = {
        "readn": lambda: outside.readn(ours.fileno(), 4),
        "readnb": lambda: book.readnb(4),
        "readlineb": lambda: book.readlineb(10),
    }
    start = time.monotonic()
    with pytest.raises(BlockingIOError) as caught:
        calls[call]()
    assert caught.value.errno == errno.EAGAIN
    assert time.monotonic() - start >= 0.1
    theirs.sendall(b"abc\nrest")
    assert calls[call]().rstrip(b"\0") == b"abc\n"


@needs_compiler
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "not blocking"])
def test_the_kernel_s_time_limit_of_a_write_is_minus_one_with_eagain(outside, pair, blocking: bool) -> None:
    ours, _ = pair
    ours.setblocking(blocking)
    limit(ours, socket.SO_SNDTIMEO, 0.1)
    start = time.monotonic()
    with pytest.raises(BlockingIOError) as caught:
        outside.writen(ours.fileno(), bytearray(1 << 24))
    assert caught.value.errno == errno.EAGAIN
    assert time.monotonic() - start >= 0.1


@pytest.mark.long
@needs_compiler
def test_signals_do_not_renew_the_kernel_s_time_limit(outside, pair, on_alarm) -> None:
    ours, _ = pair
    limit(ours, socket.SO_RCVTIMEO, 0.2)
    on_alarm(lambda *_: None, 0.03, interval=0.03)
    with pytest.raises(BlockingIOError):
        outside.readn(ours.fileno(), 1)


@needs_compiler
def test_a_socket_without_a_limit_is_waited_for_although_another_direction_has_one(outside, pair) -> None:
    ours, theirs = pair
    limit(ours, socket.SO_SNDTIMEO, 0.01)
    sending = threading.Timer(0.1, theirs.sendall, (b"data",))
    sending.start()
    assert outside.readn(ours.fileno(), 4) == b"data"
    sending.join(20)


@pytest.mark.long
@needs_compiler
def test_the_example_counts_lines_of_any_length(tmp_path: Path, pair) -> None:
    example = compile_outside((EXAMPLES / "count_lines.pyx").read_text(), tmp_path)
    ours, theirs = pair
    theirs.sendall(b"one\n\n" + b"x" * 1023 + b"\n" + b"y" * 5000 + b"\nthe last")
    theirs.shutdown(socket.SHUT_WR)
    assert example.count_lines(ours.fileno()) == 5
    assert example.count_lines(ours.fileno()) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        example.count_lines(-1)


def test_the_contract_of_every_function_is_in_the_pxd_files_of_the_package() -> None:
    package = Path(rioecho.__file__).parent
    for name in ("__init__.pxd", "rio.pxd", "_rio/capi.pxd"):
        text = (package / name).read_text()
        mentioned = re.findall(r"[\w/]+\.(?:pxd|pyx)\b", text)
        assert [file for file in mentioned if not (package / file).is_file() or file.endswith(".pyx")] == []
    lines = (package / "_rio" / "capi.pxd").read_text().splitlines()
    functions = [number for number, line in enumerate(lines) if re.match(r"cdef .*\(", line)]
    assert len(functions) == 5
    for number in functions:
        assert re.match(r"# \w", lines[number - 1]), lines[number]
