"""A socket file has the standard library's life time: the descriptor stays open until the last file is closed."""

import errno
import gc
import io
import socket
import subprocess
import sys

import pytest

import rioecho
from support.conversations import LONG, receive


@pytest.fixture
def stream(stream):
    """A wire whose near end has a timeout of LONG."""
    stream.near.settimeout(LONG)
    return stream


MODES = pytest.mark.parametrize("mode", ["rb", "wb", "rwb", "r", "w", "rw"])
RAW = pytest.mark.parametrize("buffering", [None, 0, 1, 100])


def is_open(wire):
    """Report whether the wire's near end is still open, which the far end can tell."""
    if wire.readable():
        assert wire.take() == b""
        return False
    return True


@MODES
def test_a_socket_closed_first_stays_open_until_its_file_is_closed(stream, makefile, mode):
    file = makefile(stream.near, mode)
    stream.near.close()
    assert is_open(stream)
    file.close()
    assert not is_open(stream)
    assert stream.near.fileno() == -1


@MODES
def test_a_file_closed_first_leaves_the_socket_open(stream, makefile, mode):
    file = makefile(stream.near, mode)
    file.close()
    assert is_open(stream)
    stream.feed(b"still there")
    assert stream.near.recv(100) == b"still there"
    stream.near.close()
    assert not is_open(stream)


@RAW
def test_a_file_works_while_its_socket_is_closed(stream, makefile, buffering):
    file = makefile(stream.near, "rwb", buffering)
    with file:
        stream.near.close()
        stream.feed(b"question\n")
        assert file.readline() == b"question\n"
        file.write(b"answer\n")
        file.flush()
        assert receive(stream, 7) == b"answer\n"
    assert not is_open(stream)


def test_the_last_of_many_files_closes_the_socket(stream, makefile):
    files = [makefile(stream.near, mode) for mode in ("rb", "wb", "r", "w", "rwb")]
    stream.near.close()
    for file in files:
        assert is_open(stream)
        file.close()
    assert not is_open(stream)


@MODES
def test_closing_again_does_nothing(stream, makefile, mode):
    first, second = makefile(stream.near, mode), makefile(stream.near, mode)
    stream.near.close()
    for _ in range(3):
        first.close()
        assert first.closed
    assert is_open(stream)  # the second close() of the first file must not count as the close of the second file
    second.close()
    assert not is_open(stream)


@MODES
def test_a_closed_file_refuses_everything_with_value_error(stream, makefile, mode):
    file = makefile(stream.near, mode)
    file.close()
    calls = [file.__enter__, file.flush]
    if "r" in mode:
        calls += [file.readline, file.__next__, file.read]
    if "w" in mode:
        calls += [lambda: file.write(b"x" if "b" in mode else "x")]
    if makefile is rioecho.makefile:  # the standard library's read-write pair allows some of these
        calls += [file.fileno, file.isatty, file.readable, file.writable, file.seekable]
    for call in calls:
        with pytest.raises(ValueError, match=r"closed|uninitialized"):
            call()


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_closing_sends_buffered_output(stream, makefile, mode):
    file = makefile(stream.near, mode)
    stream.near.close()
    file.write(b"the end" if "b" in mode else "the end")
    assert not stream.readable()
    file.close()
    assert receive(stream, 7) == b"the end"
    assert not is_open(stream)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["rb", "wb", "r", "w", "rw"])
def test_a_file_that_is_dropped_unclosed_sends_and_closes_without_a_warning(stream, makefile, mode):
    file = makefile(stream.near, mode)
    stream.near.close()
    if "w" in mode:
        file.write(b"the end" if "b" in mode else "the end")
    del file
    gc.collect()
    if "w" in mode:
        assert receive(stream, 7) == b"the end"
    assert not is_open(stream)


def test_a_dropped_read_write_rio_sends_its_output_unlike_the_standard_librarys_file(stream):
    file = rioecho.makefile(stream.near, "rwb")
    stream.near.close()
    file.write(b"the end")
    del file
    gc.collect()
    assert receive(stream, 7) == b"the end"
    assert not is_open(stream)


@pytest.mark.parametrize("mode", ["wb", "rwb"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # CPython 3.13 and newer report it
def test_a_dropped_file_that_cannot_send_is_closed(wire, mode):
    stream = wire("socketpair")
    file = rioecho.makefile(stream.near, mode)
    number = stream.near.fileno()
    stream.near.close()
    file.write(b"nobody will read this")
    stream.close_far()
    del file
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        socket.socket(fileno=number)


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_a_close_that_cannot_send_raises_and_closes_the_file(stream, makefile, mode):
    file = makefile(stream.near, mode)
    stream.near.close()
    file.write(b"x" if "b" in mode else "x")
    stream.close_far()
    with pytest.raises(BrokenPipeError):
        file.close()
    assert file.closed
    assert stream.near.fileno() == -1


@pytest.mark.parametrize("mode", ["rb", "r"])
def test_a_socket_that_is_detached_under_its_file_is_an_oserror(stream, makefile, mode):
    with makefile(stream.near, mode) as file:
        with socket.socket(fileno=stream.near.detach()), pytest.raises(OSError) as caught:  # noqa: PT011
            file.readline()
        assert caught.value.errno == errno.EBADF


def test_a_socket_that_is_shut_down_ends_the_file(stream, makefile):
    with makefile(stream.near, "rwb") as file:
        stream.near.shutdown(socket.SHUT_RDWR)
        assert file.read() == b""
        file.write(b"x")
        with pytest.raises(BrokenPipeError):
            file.flush()
        with pytest.raises(BrokenPipeError):
            file.close()


WRONG = {
    "buffer size of type str": (("rb", "many"), {}),
    "buffer size of type float": (("rb", 1.5), {}),
    "unknown encoding": (("r",), {"encoding": "klingon"}),
    "encoding of type int": (("rw",), {"encoding": 1}),
    "invalid newline": (("w",), {"newline": "x"}),
    "errors of type int": (("r",), {"errors": 1}),
    "unbuffered text": (("r", 0), {}),
    "invalid mode": (("x",), {}),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_leaves_no_file_that_holds_the_socket_open(stream, makefile, wrong):
    positional, named = WRONG[wrong]
    with pytest.raises((LookupError, TypeError, ValueError)):
        makefile(stream.near, *positional, **named)
    gc.collect()
    assert is_open(stream)
    stream.near.close()
    assert not is_open(stream)


@pytest.mark.parametrize("wrong", [wrong for wrong, (arguments, _) in WRONG.items() if 0 not in arguments])
def test_the_error_of_a_wrong_argument_does_not_keep_the_socket_open(stream, wrong):
    positional, named = WRONG[wrong]
    with pytest.raises((LookupError, TypeError, ValueError)) as held:
        rioecho.makefile(stream.near, *positional, **named)
    stream.near.close()
    assert not is_open(stream)
    assert held.value


@pytest.mark.parametrize("mode", ["rb", "r"])
def test_a_file_over_a_closed_socket_is_an_oserror(stream, makefile, mode):
    stream.near.close()
    with pytest.raises(OSError, match="Bad file descriptor"), makefile(stream.near, mode) as file:
        file.readline()


def test_detach_returns_the_socket_io_and_the_unread_bytes(stream):
    file = rioecho.makefile(stream.near, "rwb")
    stream.near.close()
    stream.feed(b"line\nmore")
    assert file.readline() == b"line\n"
    raw, leftover = file.detach()
    assert file.closed
    assert type(raw) is socket.SocketIO
    assert leftover == b"more"
    assert is_open(stream)
    raw.close()
    assert not is_open(stream)


def test_the_text_layer_can_be_detached_and_replaced(stream):
    text = rioecho.makefile(stream.near, "rw", encoding="ascii")
    rio = text.detach()
    assert type(rio) is rioecho.Rio
    with io.TextIOWrapper(rio, "utf-8") as file:
        stream.feed("größe\n".encode())
        assert file.readline() == "größe\n"


DROPPED = """if True:
    import gc, rioecho, socket, sys
    near, far = socket.socketpair()
    file = {"rioecho": rioecho.makefile, "stdlib": socket.socket.makefile}[sys.argv[1]](near, sys.argv[2])
    file.write(b"to nobody")
    far.close()
    del file
    gc.collect()
    near.close()
    print("went on")
"""


@pytest.mark.long
def test_in_development_mode_a_dropped_file_that_only_writes_tells_of_an_error():
    for makefile in ("rioecho", "stdlib"):
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-c", DROPPED, makefile, "wb"], capture_output=True, text=True, timeout=LONG
        )
        assert done.stdout == "went on\n", done.stderr
        assert "BrokenPipeError" in done.stderr
