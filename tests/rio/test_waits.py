"""What ends a wait besides the timeout: a time without a byte, a descriptor that wakes, the kernel's own limits."""

import contextlib
import io
import os
import socket
import struct
import sys
import threading
import time

import pytest

import rioecho
from rioecho import Rio, Woken
from support.delivery import fileno

SOON = 10


def elapsed(function, *arguments, error=TimeoutError, match="", **options):
    start = time.monotonic()
    with pytest.raises(error, match=match):
        function(*arguments, **options)
    return time.monotonic() - start


# ---- the kernel's limits


def limit(sock, option, seconds):
    """Set a limit, of a whole number of the kernel's ticks, to which it is rounded."""
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", 0, int(seconds * 1e6)))


class Named:
    """An object that only has a descriptor."""

    def __init__(self, sock):
        self.sock = sock

    def fileno(self):
        return self.sock.fileno()


@pytest.mark.long
@pytest.mark.parametrize("source", [lambda sock: sock.fileno(), Named], ids=["int", "an object with fileno()"])
def test_the_kernels_limits_of_a_socket_are_the_timeouts_of_reading_and_writing(stream, source):
    limit(stream.near, socket.SO_RCVTIMEO, 0.1)
    limit(stream.near, socket.SO_SNDTIMEO, 0.04)
    rio = Rio(source(stream.near))
    assert rio.timeout == 0.1
    assert 0.1 <= elapsed(rio.readline, match=r"0\.1 s") < SOON
    assert 0.04 <= elapsed(rio.writen, b"x" * 10**7, match=r"0\.04 s") < SOON
    assert 0.02 <= elapsed(rio.writen, b"x" * 10**7, timeout=0.02, match=r"0\.02 s") < SOON
    rio.timeout = 0.03
    assert 0.03 <= elapsed(rio.writen, b"x" * 10**7, match=r"0\.03 s") < SOON


def test_a_limit_of_the_kernel_longer_than_the_clock_lasts_is_none_that_ends_a_wait(stream):
    stream.near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 10**11, 0))
    rio = Rio(stream.near.fileno())
    assert rio.timeout > 10**9
    threading.Timer(0.01, stream.far.sendall, [b"line\n"]).start()
    assert rio.readline() == b"line\n"


def test_an_explicit_timeout_replaces_the_kernels_limits(stream):
    limit(stream.near, socket.SO_RCVTIMEO, 0.01)
    rio = Rio(stream.near.fileno(), timeout=None)
    assert rio.timeout is None
    threading.Timer(0.1, stream.far.sendall, [b"late\n"]).start()
    assert rio.readline() == b"late\n"


def test_the_timeout_of_a_python_socket_replaces_the_kernels_limits(stream):
    limit(stream.near, socket.SO_RCVTIMEO, 0.01)
    assert Rio(stream.near).timeout is None


# ---- no byte for too long


def test_a_read_ends_when_no_byte_comes_for_the_idle_timeout(pair):
    rio = Rio(pair.near, timeout=20, idle_timeout=0.05)
    pair.feed(b"held")
    assert 0.05 <= elapsed(rio.readline, match="no byte came for 0.05 s") < SOON
    pair.feed(b" and more\n")
    assert rio.readline() == b"held and more\n"


@pytest.mark.long
def test_a_peer_that_drips_renews_the_idle_timeout_and_not_the_timeout(stream, background):
    stop = threading.Event()

    def drip():
        while not stop.wait(0.005):
            stream.feed(b"x")

    background(drip)
    rio = Rio(stream.near, timeout=0.3, idle_timeout=5)
    assert 0.3 <= elapsed(rio.readline, match=r"timed out after 0\.3 s") < SOON
    rio.timeout = None
    rio.idle_timeout = 5
    assert len(rio.read(rio.buffered + 5)) > 5
    stop.set()


def test_a_write_ends_when_no_byte_goes_for_the_idle_timeout(stream):
    rio = Rio(stream.near, idle_timeout=0.05)
    with pytest.raises(TimeoutError, match=r"no byte went for 0\.05 s") as caught:
        rio.writen(b"x" * 10**7)
    sent = caught.value.characters_written
    assert 0 < sent < 10**7
    assert len(stream.take_exactly(sent)) == sent


def test_the_idle_timeout_can_be_set_and_is_not_zero(stream):
    rio = Rio(stream.near, timeout=20)
    assert rio.idle_timeout is None
    rio.idle_timeout = 0.02
    assert rio.idle_timeout == 0.02
    assert 0.02 <= elapsed(rio.read, 5, match="idle") < SOON
    with pytest.raises(BlockingIOError):
        rio.read(5, timeout=0)
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="must be"):
            rio.idle_timeout = wrong
        with pytest.raises(ValueError, match="must be"):
            Rio(stream.near, idle_timeout=wrong)
    rio.idle_timeout = None
    assert rio.idle_timeout is None


# ---- a descriptor that wakes


@pytest.fixture
def bell():
    """Return a pipe: the end to give to a Rio, and the one that wakes it."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


def test_a_readable_wake_fd_ends_a_read_that_would_wait_and_nothing_is_lost(pair, bell):
    rio = Rio(pair.near, timeout=20, wake_fd=bell[0])
    pair.feed(b"line\nha")
    os.write(bell[1], b"!")
    assert rio.readline() == b"line\n"
    with pytest.raises(Woken):
        rio.readline()
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    os.read(bell[0], 1)
    pair.feed(b"lf\n")
    assert rio.readline() == b"half\n"
    assert issubclass(Woken, InterruptedError)


@pytest.mark.parametrize("timeout", [None, 20])
def test_one_write_wakes_any_number_of_readers(wire, bell, background, timeout):
    rios = [Rio(wire(kind).near, timeout=timeout, wake_fd=bell[0]) for kind in ("pipe", "socketpair", "tcp", "pty")]

    def read(rio):
        with pytest.raises(Woken):
            rio.readline()

    threads = [background(read, rio) for rio in rios]
    os.write(bell[1], b"!")
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_hang_up_of_wake_fd_counts_as_readable(stream, bell):
    rio = Rio(stream.near, timeout=20, wake_fd=bell[0])
    os.close(bell[1])
    with pytest.raises(Woken):
        rio.read(1)


def test_a_write_is_woken_and_says_how_much_it_sent(stream, bell):
    rio = Rio(stream.near, timeout=20, wake_fd=bell[0])
    os.write(bell[1], b"!")
    with pytest.raises(Woken) as caught:
        rio.writen(b"x" * 10**7)
    assert len(stream.take_exactly(caught.value.characters_written)) == caught.value.characters_written > 0


def test_a_closed_wake_fd_is_an_error_and_not_a_wake(stream):
    near, far = socket.socketpair()
    rio = Rio(stream.near, timeout=20, wake_fd=near)
    near.close()
    far.close()
    with pytest.raises(OSError, match="closed") as caught:
        rio.readline()
    assert not isinstance(caught.value, Woken)
    with pytest.raises(OSError):  # noqa: PT011 - EBADF
        Rio(stream.near, wake_fd=10**6)
    with pytest.raises((TypeError, ValueError)):
        Rio(stream.near, wake_fd="1")


class Timed(socket.socket):
    """A socket with a method of its own, so that a Rio uses its methods."""

    def recv_into(self, *arguments):
        return super().recv_into(*arguments)


class Untimed:
    def __init__(self, sock):
        self.recv, self.send = sock.recv, sock.send


@pytest.mark.long
def test_a_source_that_waits_itself_is_woken_and_has_an_idle_timeout(stream, bell):
    near = Timed(fileno=os.dup(fileno(stream.near)))
    with near:
        rio = Rio(near, timeout=20, wake_fd=bell[0], idle_timeout=0.05)
        assert 0.05 <= elapsed(rio.readline, match="no byte came") < SOON
        stream.feed(b"line\n")
        os.write(bell[1], b"!")
        assert rio.readline() == b"line\n"
        with pytest.raises(Woken):
            rio.readline()
        os.read(bell[0], 1)
        threading.Timer(0.1, os.write, [bell[1], b"!"]).start()
        rio.idle_timeout = None
        with pytest.raises(Woken):
            rio.readline()


def test_a_source_that_cannot_be_told_how_long_to_wait_takes_no_wake_fd(stream, bell):
    for options in ({"wake_fd": bell[0]}, {"idle_timeout": 1}):
        with pytest.raises(ValueError, match="settimeout"):
            Rio(Untimed(stream.near), **options)


def test_a_descriptor_that_wakes_and_was_closed_is_an_error_and_not_a_waking(stream):
    reader, writer = os.pipe()
    rio = Rio(stream.near, wake_fd=reader)
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match="wake_fd was closed") as error:
        rio.readline()
    assert not isinstance(error.value, Woken)
    stream.feed(b"line\n")
    assert rio.readline() == b"line\n"


def test_connect_takes_idle_timeout_and_wake_fd(bell):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        rio = rioecho.connect(*listener.getsockname(), idle_timeout=0.02, wake_fd=bell[0])
        with rio:
            assert rio.idle_timeout == 0.02
            os.write(bell[1], b"!")
            with pytest.raises(Woken):
                rio.readline()


# ---- reading while a write waits


def test_two_peers_that_both_send_first_go_on_with_read_ahead(stream, background):
    data = os.urandom(1 << 20) * 4
    near, far = Rio(stream.near, timeout=20), Rio(stream.far, timeout=20)

    def talk(rio):
        rio.writen(data, read_ahead=len(data))
        return rio.read(len(data))

    thread = background(lambda: talk(far) == data or pytest.fail("wrong bytes"))
    assert talk(near) == data
    thread.join(20)


@pytest.mark.long
@pytest.mark.parametrize(
    "call",
    [
        lambda rio, data, n: rio.writen(data, read_ahead=n),
        lambda rio, data, n: rio.write(data, read_ahead=n),
        lambda rio, data, n: rio.writelines([data[:500_000], data[500_000:]], read_ahead=n),
    ],
    ids=["writen", "write", "writelines"],
)
@pytest.mark.parametrize("kind", ["a socket", "methods"])
def test_no_more_is_read_ahead_than_was_allowed_and_it_is_read_next(stream, call, kind):
    near = Timed(fileno=os.dup(fileno(stream.near))) if kind == "methods" else stream.near
    stream.feed(b"0123456789")
    rio = Rio(near, timeout=0.3)
    with pytest.raises(TimeoutError):
        call(rio, b"x" * 10**7, 6)
    assert rio.buffered == 6
    assert rio.read(10) == b"0123456789"
    if rio.fileno() != stream.near.fileno():
        near.close()


def test_reading_ahead_stops_at_the_end_and_in_a_frame_goes_on(stream):
    stream.feed(b"abc")
    stream.far.shutdown(socket.SHUT_WR)
    rio = Rio(stream.near, timeout=0.1)
    with pytest.raises(TimeoutError), rio.frame():
        assert rio.read(1) == b"a"
        rio.writen(b"x" * 10**7, read_ahead=100)
    assert rio.read() == b"abc"
    for wrong, error in ((-1, ValueError), ("x", TypeError), (None, TypeError)):
        with pytest.raises(error, match="read_ahead"):
            rio.writen(b"", read_ahead=wrong)


# ---- closing the sending side


def test_write_eof_flushes_and_closes_the_sending_side_alone(stream):
    near, far = Rio(stream.near, timeout=20), Rio(stream.far, timeout=20)
    near.write(b"question")
    near.write_eof()
    assert far.read() == b"question"
    far.writen(b"answer\n")
    assert near.readline() == b"answer\n"
    for call in (lambda: near.writen(b"x"), lambda: near.write(b"x"), lambda: near.writelines([b"x"])):
        with pytest.raises(BrokenPipeError, match="write_eof"):
            call()
    near.write_eof()
    near.flush()
    near.close()


def test_write_eof_of_a_file_of_a_socket_with_methods_of_its_own_closes_its_sending_side(stream):
    with Timed(fileno=os.dup(fileno(stream.near))) as near, rioecho.makefile(near, "rwb") as file:
        file.write(b"question")
        file.write_eof()
        assert Rio(stream.far, timeout=20).read() == b"question"


def test_write_eof_that_cannot_flush_ends_nothing(stream):
    rio = Rio(stream.near, timeout=0, bufsize=8 << 20)
    rio.write(b"x" * (4 << 20))
    with pytest.raises(BlockingIOError):
        rio.write_eof()
    rio.write(b"still open")
    rio.timeout = 20
    thread = threading.Thread(target=rio.write_eof)
    thread.start()
    assert Rio(stream.far, timeout=20).read()[-10:] == b"still open"
    thread.join(20)


def test_write_eof_of_what_has_no_sending_side_of_its_own_is_unsupported(wire):
    for kind in ("pipe", "pty"):
        rio = Rio(wire(kind, output=True).near)
        with pytest.raises(io.UnsupportedOperation):
            rio.write_eof()
        rio.close()


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="eventfd(2) is Linux only")
@pytest.mark.parametrize("timeout", [None, SOON])
def test_an_eventfd_takes_the_bytes_of_a_write_together(timeout):
    fd = os.eventfd(0)
    with Rio(fd, closefd=True, timeout=timeout) as rio:
        assert rio.writen((5).to_bytes(8, sys.byteorder)) == 8
        assert int.from_bytes(rio.readexactly(8), sys.byteorder) == 5
