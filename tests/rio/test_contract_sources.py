"""A Rio over every kind of thing that has bytes: it is a byte stream, or a clear error that changes nothing."""

import io
import os
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tty
from multiprocessing import Pipe

import pytest

import rioecho
from rioecho import IncompleteRead, Rio
from support.delivery import wait_for_reader


@pytest.fixture
def pipe():
    """Return the ends of a pipe as file objects without a buffer, which are closed after the test."""
    source, sink = os.pipe()
    with open(source, "rb", 0) as source, open(sink, "wb", 0) as sink:
        yield source, sink


@pytest.fixture
def ends():
    """Return two connected sockets, which are closed after the test."""
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(10)
        yield near, far


# Packets and messages.


class Own(socket.socket):
    """Overrides a method that a Rio would call."""

    def recv_into(self, *arguments):
        raise AssertionError("called")


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("way", ["int", "object", "subclass", "rb", "r", "wb", "raw file"])
def test_packets_are_a_type_error_whatever_is_passed(kind, way):
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    with near, far:
        far.send(b"x" * 100)
        with pytest.raises(TypeError) as caught:
            if way == "int":
                Rio(near.fileno())
            elif way == "object":
                Rio(near, timeout=1)
            elif way == "subclass":
                with Own(fileno=os.dup(near.fileno())) as own:
                    Rio(own)
            elif way == "raw file":
                with socket.SocketIO(near, "r") as raw:
                    Rio(raw)
            else:
                rioecho.makefile(near, way, encoding=None if "b" in way else "utf-8")
        assert str(caught.value)
        assert near.recv(1000) == b"x" * 100


def test_a_datagram_socket_of_the_internet_is_a_type_error_unconnected_too():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(TypeError):
        Rio(sock)


def test_a_connection_of_multiprocessing_is_a_type_error_and_stays_usable():
    near, far = Pipe()
    with near, far:
        far.send_bytes(b"message")
        with pytest.raises(TypeError):
            Rio(near)
        with pytest.raises(TypeError):
            Rio(near, closefd=True)
        assert near.recv_bytes() == b"message"


@pytest.mark.parametrize("name", ["recv_streaming", "recv_msg"])
def test_objects_of_messages_are_known_by_a_method_that_streams_lack(name):
    # recv_streaming() is of websockets' Connection, whose recv(n) waits n seconds, recv_msg() of pynng's Socket.
    own = {"recv": lambda self, timeout=None: "text", "send": lambda self, message: None, name: lambda self: None}
    with pytest.raises(TypeError, match="Connection carries messages"):
        Rio(type("Connection", (), own)())


@pytest.mark.parametrize("methods", [("recv", "send"), ("recv_into", "send"), ("recv", "recv_into", "send")])
@pytest.mark.parametrize("base", [object, socket.socket])
def test_an_object_with_coroutine_functions_is_a_type_error(base, methods):
    async def method(self, *arguments):
        raise AssertionError("called")

    source = type("Asynchronous", (base,), dict.fromkeys(methods, method))()
    try:
        with pytest.raises(TypeError, match="coroutine"):
            Rio(source)
        if base is socket.socket and "recv_into" in methods:  # what a file calls
            with pytest.raises(TypeError, match="coroutine"):
                rioecho.makefile(source, "rb")
    finally:
        if base is socket.socket:
            source.close()


# Socket-like objects.


class Bytes:
    """Has recv and send, and neither a descriptor nor a timeout."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)
        self.sent = []

    def recv(self, n):
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if piece[n:]:
            self.pieces.insert(0, piece[n:])
        return piece[:n]

    def send(self, data):
        self.sent.append(bytes(data))
        return len(data)


class Timed(Bytes):
    """Has a timeout too, and times out where a piece is missing."""

    timeout = 7.5

    def __init__(self, *pieces):
        super().__init__(*pieces)
        self.seen = []

    def settimeout(self, seconds):
        self.timeout = seconds

    def gettimeout(self):
        return self.timeout

    def recv(self, n):
        self.seen.append(self.timeout)
        if self.pieces and self.pieces[0] is None:
            del self.pieces[0]
            if self.timeout == 0:
                raise BlockingIOError
            if self.timeout:
                time.sleep(self.timeout)
            raise TimeoutError("the object's own")
        return super().recv(n)


def test_an_object_without_a_descriptor_is_a_stream_without_a_fileno():
    source = Bytes(b"li", b"ne\nre", b"st")
    rio = Rio(source)
    assert rio.readline() == b"line\n"
    rio.write(b"buffered ")
    rio.writen(b"sent")
    assert b"".join(source.sent) == b"buffered sent"
    with pytest.raises(io.UnsupportedOperation):
        rio.fileno()
    assert rio.isatty() is False
    assert rio.seekable() is False
    assert rio.read() == b"rest"
    assert rio.detach() == (source, b"")


def test_an_object_without_settimeout_takes_no_timeout_and_keeps_its_bytes():
    source = Bytes(b"line\n")
    with pytest.raises(ValueError, match="timeout"):
        Rio(source, timeout=1).readline()
    rio = Rio(source)
    with pytest.raises(ValueError, match="timeout"):
        rio.readline(timeout=1)
    assert rio.readline(timeout=None) == b"line\n"


@pytest.mark.long
def test_an_object_waits_by_its_own_timeout_which_is_put_back():
    source = Timed(b"ha", None, b"lf\n", b"next\n")
    rio = Rio(source, timeout=0.3)
    with pytest.raises(TimeoutError):
        rio.readline()
    assert source.timeout == 7.5
    assert rio.buffered == 2
    assert rio.readline() == b"half\n"
    assert source.timeout == 7.5
    assert all(0 < seconds <= 0.3 for seconds in source.seen if seconds != 7.5)


def test_an_objects_timeout_is_inherited():
    assert Rio(Timed()).timeout == 7.5
    assert Rio(Timed(), timeout=None).timeout is None


def test_a_timeout_of_zero_does_not_wait_for_an_object():
    source = Timed(b"ha", None, b"lf\n")
    rio = Rio(source)
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    assert source.timeout == 7.5
    assert rio.readline(timeout=0) == b"half\n"


def test_the_end_of_an_object_is_the_end():
    rio = Rio(Bytes(b"ab"))
    with pytest.raises(IncompleteRead) as caught:
        rio.readexactly(3)
    assert caught.value.partial == b"ab"
    assert caught.value.expected == 3
    assert rio.readline() == b""


def test_an_object_with_half_of_the_methods_and_no_descriptor_is_a_type_error():
    class Half:
        def recv(self, n):
            return b""

    for source in (Half(), object(), None, "text", b"bytes", 1.5):
        with pytest.raises(TypeError):
            Rio(source)


# File objects with a buffer.


def test_a_reader_that_has_read_ahead_is_refused_with_the_way_out():
    source, sink = os.pipe()
    with open(source, "rb") as file, open(sink, "wb", 0) as far:
        far.write(b"l1\nl2\n")
        assert file.readline() == b"l1\n"
        with pytest.raises(ValueError, match=r"fileno\(\)") as caught:
            Rio(file, timeout=0.5)
        assert "bufsize=0" in str(caught.value) or "buffering=0" in str(caught.value)
        assert file.readline() == b"l2\n"


@pytest.mark.parametrize("text", [False, True])
def test_the_output_of_a_child_is_refused_with_the_way_out(text):
    with subprocess.Popen([sys.executable, "-c", "print('line')"], stdout=subprocess.PIPE, text=text) as child:
        with pytest.raises(ValueError, match=r"fileno\(\)") as caught:
            Rio(child.stdout)
        assert "bufsize=0" in str(caught.value)
        assert Rio(child.stdout.fileno()).readline() == b"line\n"
    with subprocess.Popen([sys.executable, "-c", "print('line')"], stdout=subprocess.PIPE, bufsize=0) as child:
        assert Rio(child.stdout, timeout=30).readline() == b"line\n"


def test_standard_input_is_refused_with_a_buffer_and_taken_by_its_descriptor():
    program = """
import sys
from rioecho import Rio
for source in sys.stdin.buffer, sys.stdin:
    try:
        Rio(source)
    except ValueError as error:
        assert "fileno()" in str(error), error
    else:
        raise AssertionError("taken")
assert Rio(sys.stdin.buffer.raw).readline() == b"one\\n"
out = Rio(sys.stdout.fileno())
out.writen(b"done\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], input=b"one\ntwo\n", capture_output=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"done\n", b"")


def test_a_rio_over_a_rio_is_taken_if_it_holds_nothing(ends):
    near, far = ends
    first = Rio(near)
    assert Rio(first, timeout=5).timeout == 5
    far.sendall(b"1\n2\n")
    assert Rio(first, timeout=5).readline() == b"1\n"
    second = Rio(near.fileno(), timeout=5)
    far.sendall(b"3\n4\n")
    assert second.readline() == b"3\n"
    with pytest.raises(ValueError, match=r"fileno\(\)|detach\(\)"):
        Rio(second)
    assert second.readline() == b"4\n"


def test_a_rio_over_a_rio_with_unsent_output_keeps_the_order(ends):
    near, far = ends
    first = Rio(near)
    first.write(b"first ")
    try:
        second = Rio(first, timeout=5)
    except ValueError:
        first.flush()
    else:
        second.writen(b"second")
        assert far.recv(100) == b"first second"


def test_the_timeout_of_a_socket_below_a_file_is_inherited(ends):
    near, _ = ends
    near.settimeout(0.01)
    with near.makefile("wb") as sink, socket.SocketIO(near, "rw") as raw, rioecho.makefile(near, "rb") as file:
        for source in (raw, file, Rio(near), sink):
            assert Rio(source).timeout == 0.01
            assert Rio(source, timeout=None).timeout is None
            if source is not sink:
                with pytest.raises(TimeoutError):
                    Rio(source).readline()
    assert Rio(Rio(near, timeout=3)).timeout == 3


def test_a_buffered_file_is_taken_at_its_place():
    with tempfile.TemporaryFile() as file:
        file.write(b"line1\nline2\n")
        file.seek(6)
        assert Rio(file).readline() == b"line2\n"


def test_files_that_hold_their_bytes_themselves_are_refused(pipe):
    for source in (io.BytesIO(b"x"), io.StringIO("x")):
        with pytest.raises((TypeError, ValueError)):
            Rio(source)


# Terminals and FIFOs.


@pytest.fixture
def serial():
    """Return the far and near ends of a serial port that is set up as pyserial does: raw, VMIN=0, VTIME=0."""
    far, near = os.openpty()
    tty.setraw(near)
    settings = termios.tcgetattr(near)
    settings[6][termios.VMIN] = settings[6][termios.VTIME] = 0
    termios.tcsetattr(near, termios.TCSANOW, settings)
    yield far, near
    os.close(far)
    os.close(near)


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("timeout", [None, 5])
def test_a_serial_port_that_has_nothing_to_say_is_waited_for(serial, blocking, timeout):
    far, near = serial
    os.set_blocking(near, blocking)
    rio = Rio(near, timeout=timeout)
    for read in (rio.readline, lambda: next(rio), lambda: rio.readexactly(4), lambda: rio.readlines1()[0]):
        timer = threading.Timer(0.02, os.write, (far, b"OK\r\n"))
        timer.start()
        assert read() == b"OK\r\n"
        timer.join()
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.02)
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    assert os.get_blocking(near) is blocking


@pytest.mark.parametrize("blocking", [True, False])
def test_control_d_is_an_end_after_which_reading_goes_on(blocking):
    far, near = os.openpty()
    settings = termios.tcgetattr(near)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(near, termios.TCSANOW, settings)
    os.set_blocking(near, blocking)
    rio = Rio(near, timeout=5)
    os.write(far, b"one\n\x04two\nrest\x04")
    assert rio.isatty()
    assert rio.readline() == b"one\n"
    assert rio.readline() == b""
    assert rio.readline() == b"two\n"
    os.write(far, b"\x04")
    assert rio.readline() == b"rest"
    os.close(far)
    os.close(near)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_fifo_is_waited_for_until_a_writer_has_come_and_gone(tmp_path, blocking):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(source, blocking)
    rio = Rio(source, timeout=0.03, closefd=True)
    with pytest.raises(TimeoutError):
        rio.readline()
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)

    def write():
        wait_for_reader(rio)
        with open(path, "wb", 0) as sink:
            sink.write(b"line\nrest")

    writer = threading.Thread(target=write)
    writer.start()
    assert rio.readline(timeout=10) == b"line\n"
    writer.join()
    assert rio.readline() == b"rest"
    assert rio.readline() == b""
    rio.close()


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("kind", ["socketpair", "pipe", "tcp", "pty"])
def test_o_nonblock_makes_no_difference(wire, kind, blocking):
    link = wire(kind)
    number = link.near.fileno() if hasattr(link.near, "fileno") else link.near
    os.set_blocking(number, blocking)
    rio = Rio(number, timeout=0.02)
    with pytest.raises(TimeoutError):
        rio.readline()
    with pytest.raises(BlockingIOError):
        rio.read1(timeout=0)
    link.feed(b"half")
    with pytest.raises(TimeoutError):
        rio.readline()
    threading.Timer(0.01, link.feed, (b" line\n",)).start()
    assert rio.readline(timeout=None) == b"half line\n"
    assert os.get_blocking(number) is blocking


# Files that are open for reading and writing.


def test_a_write_goes_where_the_reader_stands():
    with tempfile.TemporaryFile() as file:
        file.write(b"line1\nline2\n")
        file.flush()
        file.seek(0)
        rio = Rio(file.fileno())
        assert rio.readline() == b"line1\n"
        try:
            rio.writen(b"LINE2\n")
        except io.UnsupportedOperation:
            assert os.pread(file.fileno(), 99, 0) == b"line1\nline2\n"
        else:
            assert os.pread(file.fileno(), 99, 0) == b"line1\nLINE2\n"
        assert rio.readline() == b""


@pytest.mark.parametrize("bufsize", [1, 5, 65536])
def test_reads_and_writes_of_a_file_are_those_of_a_buffered_random(tmp_path, bufsize):
    text = b"".join(b"%03d\n" % i for i in range(20))
    results = []
    for way in ("io", "rio"):
        path = tmp_path / way
        path.write_bytes(text)
        with open(path, "r+b", 0) as raw:
            file = io.BufferedRandom(raw) if way == "io" else Rio(raw, bufsize=bufsize)
            seen = [file.readline(), file.write(b"X"), file.read(3), file.write(b"YY"), file.flush(), file.readline()]
            seen += [file.peek()[:1], file.write(b"Z"), file.write(b"W"), file.read(5), file.readline(), file.flush()]
            seen += [len(file.read()), file.write(b"end"), file.flush(), file.read()]
            results.append((seen, path.read_bytes()))
            file.detach()
    assert results[0] == results[1]


# A buffer of one byte.


def test_with_bufsize_1_the_rest_of_a_pipe_is_for_the_next_program(pipe):
    source, sink = pipe
    sink.write(b"header\nbody for the child\n")
    assert Rio(source, bufsize=1, timeout=5).readline() == b"header\n"
    sink.close()
    done = subprocess.run(["/bin/cat"], stdin=source, stdout=subprocess.PIPE, timeout=30)
    assert done.stdout == b"body for the child\n"


def test_with_bufsize_1_lines_and_frames_leave_the_rest_in_the_kernel(ends):
    near, far = ends
    near.settimeout(5)
    far.sendall(b"a\r\n.b;12345rest")
    rio = Rio(near, bufsize=1)
    assert rio.readline() == b"a\r\n"
    assert rio.readuntil(b";") == b".b;"
    assert rio.read(5) == b"12345"
    assert rio.buffered == 0
    assert near.recv(10) == b"rest"
