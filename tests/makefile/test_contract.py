"""The promises of the documentation of makefile(), each by the program of a user."""

import contextlib
import io
import os
import socket
import ssl
import threading
import time
import urllib.request

import pytest

import rioecho
from rioecho import Rio
from support.procfs import needs_proc, sleeps, until

TEXTS = pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "utf-16-le", "cp1252"])


@pytest.fixture
def ends():
    """Return two connected sockets, which are closed after the test."""
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(10)
        yield near, far


def join(thread):
    thread.join(20)
    assert not thread.is_alive()


# What a file is.


@pytest.mark.parametrize("mode", ["rb", "wb"])
def test_the_raw_file_of_a_binary_file_has_the_socket(ends, mode):
    near, _ = ends
    with rioecho.makefile(near, mode) as file:
        assert type(file.raw) is socket.SocketIO
        assert file.raw._sock is near
        assert file.raw.fileno() == file.fileno() == file.name == near.fileno()
        assert file.mode == file.raw.mode == mode
        assert not file.raw.closed
        raw = file.raw
    assert raw.closed
    assert near.fileno() > 0


def test_the_socket_of_the_raw_file_can_be_read_beside_the_file(ends):
    near, far = ends
    far.sendall(b"HTTP/1.1 101 UPGRADED\r\n\r\n")
    with rioecho.makefile(near, "rb") as file:
        assert file.readline() == b"HTTP/1.1 101 UPGRADED\r\n"
        assert file.readline() == b"\r\n"
        far.sendall(b"frame")
        assert file.raw._sock.recv(10) == b"frame"
        file.raw._sock.sendall(b"answer")
        assert far.recv(10) == b"answer"


def test_a_binary_file_is_a_buffered_file_of_io(ends):
    with rioecho.makefile(ends[0], "rwb") as file:
        assert isinstance(file, Rio)
        assert isinstance(file, io.BufferedIOBase)
        assert isinstance(file, io.IOBase)
        assert not isinstance(file, io.TextIOBase)
    assert issubclass(Rio, io.BufferedIOBase)


@TEXTS
def test_a_text_file_is_one_of_io_in_every_encoding(ends, encoding):
    near, far = ends
    with rioecho.makefile(near, "rw", encoding=encoding) as file:
        assert isinstance(file, io.TextIOBase)
        assert isinstance(file, io.IOBase)
        assert isinstance(file.buffer, Rio)
        assert file.mode == "rw"
        assert (file.encoding, file.errors, file.newlines) == (encoding, "strict", None)
        assert (file.readable(), file.writable(), file.seekable(), file.isatty()) == (True, True, False, False)
        far.sendall("a\r\nb\n".encode(encoding))
        assert file.readline() == "a\n"
        assert file.readline() == "b\n"
        assert file.newlines == ("\n", "\r\n")


def test_detach_of_a_text_file_gives_a_rio_that_goes_on(ends):
    near, far = ends
    far.sendall(b"text\nbytes\n")
    file = rioecho.makefile(near, "rw", encoding="utf-8")
    assert file.readline() == "text\n"
    file.write("sent\n")
    rio = file.detach()
    assert isinstance(rio, Rio)
    assert far.recv(10) == b"sent\n"
    assert rio.readline() == b"bytes\n"
    with pytest.raises(ValueError, match="detached"):
        file.readline()
    rio.close()


def test_a_text_file_can_be_iterated_over_to_its_end(ends):
    near, far = ends
    far.sendall(b"one\ntwo\nthree")
    far.shutdown(socket.SHUT_WR)
    with rioecho.makefile(near, encoding="utf-8") as file:
        assert next(file) == "one\n"
        assert list(file) == ["two\n", "three"]
        assert file.read() == file.readline() == ""
        assert list(file) == []


# Timeouts.


@pytest.mark.slow
def test_the_timeout_is_for_one_wait_and_a_slow_download_ends_well(ends, background):
    near, far = ends
    near.settimeout(2)

    def drip():
        for _ in range(8):
            time.sleep(0.3)
            far.sendall(b"x" * 100)

    background(drip)
    with rioecho.makefile(near, "rb") as file:
        start = time.monotonic()
        assert file.read(800) == b"x" * 800
        assert time.monotonic() - start > 2


@pytest.mark.slow
def test_urlopen_with_a_timeout_reads_a_slow_page(background, monkeypatch):
    monkeypatch.setattr(socket.socket, "makefile", rioecho.makefile)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 60\r\n\r\n")
                for _ in range(6):
                    time.sleep(0.4)
                    client.sendall(b"0123456789")

        background(serve)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=2) as page:
            assert page.read() == b"0123456789" * 6


@pytest.mark.parametrize("encoding", [None, "utf-8", "latin-1", "utf-16-le"])
def test_the_text_of_a_timeout_is_that_of_the_socket_module(ends, encoding):
    near, far = ends
    near.settimeout(0.01)
    mode = "rwb" if encoding is None else "rw"
    with contextlib.closing(rioecho.makefile(near, mode, encoding=encoding)) as file:
        with pytest.raises(TimeoutError) as caught:
            file.readline()
        assert str(caught.value) == "timed out"
        assert caught.value.args == ("timed out",)
        assert caught.value.errno is None
        assert caught.type is socket.timeout
        with pytest.raises(TimeoutError) as caught:
            while True:
                file.write(b"x" * 65536 if encoding is None else "x" * 65536)
        assert str(caught.value) == "timed out"
        drain = threading.Thread(target=lambda: [None for _ in iter(lambda: far.recv(1 << 20), b"")])
        drain.start()
        near.settimeout(10)
        file.flush()
    near.shutdown(socket.SHUT_WR)
    join(drain)


def test_settimeout_counts_for_the_next_call_of_an_open_file(ends):
    near, far = ends
    with rioecho.makefile(near, encoding="utf-8") as file:
        near.settimeout(0.01)
        far.sendall(b"hal")
        with pytest.raises(TimeoutError, match=r"^timed out$"):
            file.readline()
        near.settimeout(0)
        with pytest.raises(BlockingIOError):
            file.readline()
        near.settimeout(None)
        threading.Timer(0.03, far.sendall, (b"f\n",)).start()
        assert file.readline() == "half\n"


@pytest.mark.parametrize("encoding", [None, "utf-8", "ascii", "latin-1"])
def test_a_socket_that_does_not_block_raises_and_cuts_no_line(ends, encoding):
    near, far = ends
    near.setblocking(False)
    mode = "rb" if encoding is None else "r"
    with rioecho.makefile(near, mode, encoding=encoding) as file:
        for piece in (b"", b"ha", b"lf"):
            far.sendall(piece)
            for call in (file.readline, lambda: next(file), file.read, file.readlines):
                with pytest.raises(BlockingIOError):
                    call()
        far.sendall(b"\n")
        line = file.readline()
        assert line == (b"half\n" if encoding is None else "half\n")
        far.shutdown(socket.SHUT_WR)
        assert not file.readline()
        assert not file.read()


def test_reads_after_many_timeouts_lose_nothing_with_two_files(ends):
    near, far = ends
    near.settimeout(0.002)
    with rioecho.makefile(near, "rb") as source, rioecho.makefile(near, "wb") as sink:
        for byte in b"slow line\n":
            with pytest.raises(TimeoutError):
                source.readline()
            far.sendall(bytes([byte]))
            sink.write(bytes([byte]))
        assert source.readline() == b"slow line\n"
        sink.flush()
        assert far.recv(100) == b"slow line\n"


# Closing.


@needs_proc
@pytest.mark.parametrize("mode", ["rb", "rwb", "r", "rw"])
def test_close_after_a_shutdown_waits_for_the_thread_that_reads(mode):
    near, far = socket.socketpair()
    number = near.fileno()
    arguments = {} if "b" in mode else {"encoding": "utf-8"}
    file = rioecho.makefile(near, mode, **arguments)
    entered = threading.Event()
    lines = []

    def read():
        entered.set()
        lines.append(file.readline())

    reader = threading.Thread(target=read)
    reader.start()
    entered.wait(10)
    until(lambda: sleeps(reader), "the reader to wait")
    near.shutdown(socket.SHUT_RDWR)
    near.close()
    file.close()
    join(reader)
    assert file.closed
    assert lines in ([b""], [""]) or not lines
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    far.close()


def test_the_last_of_two_files_closes_a_closed_socket():
    near, far = socket.socketpair()
    far.settimeout(10)
    with far:
        text, binary = rioecho.makefile(near, "w", encoding="utf-8"), rioecho.makefile(near, "rb")
        near.close()
        assert near.fileno() > 0
        text.write("last words\n")
        text.close()
        assert far.recv(100) == b"last words\n"
        far.sendall(b"answer\n")
        assert binary.readline() == b"answer\n"
        binary.close()
        assert near.fileno() == -1
        assert far.recv(1) == b""


def test_each_file_of_a_socket_has_a_buffer_of_its_own(ends):
    near, far = ends
    with rioecho.makefile(near, "rb") as one, rioecho.makefile(near, "rb") as two:
        far.sendall(b"1\n2\n")
        assert one.readline() == b"1\n"
        far.sendall(b"3\n")
        assert two.readline() == b"3\n"
        assert one.readline() == b"2\n"


@pytest.mark.parametrize("mode", ["rb", "wb", "rwb", "r", "w", "rw"])
def test_a_closed_file_says_what_the_standard_librarys_says(ends, mode):
    file = rioecho.makefile(ends[0], mode, encoding=None if "b" in mode else "utf-8")
    file.close()
    for call in (file.fileno, file.isatty, file.__enter__, file.readlines, lambda: iter(file)):
        with pytest.raises(ValueError, match=r"^I/O operation on closed file\.$"):
            call()


# Arguments.


@pytest.mark.parametrize("size", [-2, -(1 << 40)])
def test_sizes_that_io_refuses_are_refused_and_change_nothing(ends, size):
    near, far = ends
    far.sendall(b"line\nrest")
    with rioecho.makefile(near, "rb") as file:
        with pytest.raises(ValueError, match="read length must be non-negative or -1"):
            file.read(size)
        assert file.readline(size) == b"line\n"
        assert file.read1(size) == b"rest"


@pytest.mark.parametrize("kind", ["file", "rio"])
def test_with_a_buffer_of_1_the_next_protocol_finds_its_bytes(ends, kind):
    near, far = ends
    near.settimeout(0.3)
    far.sendall(b"220 ready\r\nNEXT!")
    file = rioecho.makefile(near, "rb", 1) if kind == "file" else Rio(near, bufsize=1)
    assert file.readline() == b"220 ready\r\n"
    file.close()
    assert near.recv(9) == b"NEXT!"


def test_with_a_buffer_of_1_every_reading_method_leaves_what_is_behind(ends):
    near, far = ends
    near.settimeout(5)
    far.sendall(b"line\nsized!exact!until;into!NEXT!")
    with rioecho.makefile(near, "rb", 1) as file:
        assert next(file) == b"line\n"
        assert file.read(6) == b"sized!"
        assert file.readexactly(6) == b"exact!"
        assert file.readuntil(b";") == b"until;"
        room = bytearray(5)
        assert file.readinto(room) == 5
        assert near.recv(9) == b"NEXT!"


# Overridden methods.


class Counting(socket.socket):
    """Counts what passes its methods."""

    received = sent = 0

    def recv_into(self, *arguments):
        count = super().recv_into(*arguments)
        self.received += count
        return count

    def send(self, data, *arguments):
        count = super().send(data, *arguments)
        self.sent += count
        return count


@pytest.mark.parametrize("encoding", [None, "utf-8", "utf-16-le"])
def test_the_methods_of_a_subclass_see_every_byte(ends, encoding):
    near, far = ends
    with Counting(fileno=near.detach()) as sock:
        sock.settimeout(5)
        mode = "rwb" if encoding is None else "rw"
        hello = b"hello\n" if encoding is None else "hello\n"
        sent = hello if encoding is None else hello.encode(encoding)
        far.sendall(sent)
        with rioecho.makefile(sock, mode, encoding=encoding) as file:
            assert file.readline() == hello
            assert sock.received == len(sent)
            file.write(hello)
            file.flush()
            assert sock.sent == len(sent)
        assert sock.gettimeout() == 5
        assert far.recv(100) == sent


def test_a_subclass_that_raises_its_own_error_is_heard(ends):
    class Broken(socket.socket):
        def recv_into(self, *arguments):
            raise ConnectionAbortedError("by the subclass")

    near, far = ends
    with Broken(fileno=near.detach()) as sock, rioecho.makefile(sock, "rb") as file:
        far.sendall(b"bytes\n")
        with pytest.raises(ConnectionAbortedError, match=r"^by the subclass$"):
            file.readline()


# Text.


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_line_that_came_before_a_write_is_read_after_it(ends, encoding):
    near, far = ends
    near.settimeout(2)
    far.sendall(b"l1\nl2\n")
    with rioecho.makefile(near, "rw", encoding=encoding) as file:
        assert file.readline() == "l1\n"
        file.write("x\n")
        file.flush()
        assert far.recv(10) == b"x\n"
        assert file.readline() == "l2\n"


def test_every_line_whose_write_was_accepted_arrives(ends):
    near, far = ends
    near.settimeout(0.05)
    file = rioecho.makefile(near, "w", encoding="utf-8")
    done, got = [], bytearray()
    with contextlib.suppress(TimeoutError):
        for i in range(999):
            file.write(f"{i:07}\n" * 1000)
            done.append(i)

    def drain():
        while data := far.recv(65536):
            got.extend(data)

    thread = threading.Thread(target=drain)
    thread.start()
    near.settimeout(10)
    file.flush()
    file.close()
    near.shutdown(socket.SHUT_WR)
    join(thread)
    assert len(done) > 10
    assert [i for i in done if b"%07d" % i not in got] == []


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
def test_the_idiom_of_characters_written_sends_each_character_once(ends, newline):
    near, far = ends
    near.settimeout(0.02)
    text = "größe 語 😀\n" * 60000
    file = rioecho.makefile(near, "w", encoding="utf-8", newline=newline)
    with pytest.raises(TimeoutError) as caught:
        file.write(text)
    count = caught.value.characters_written
    assert type(count) is int
    assert 0 < count < len(text)
    got = bytearray()

    def drain():
        while data := far.recv(1 << 20):
            got.extend(data)

    thread = threading.Thread(target=drain)
    thread.start()
    near.settimeout(10)
    rest = text[count:]
    assert file.write(rest) == len(rest)
    file.close()
    near.shutdown(socket.SHUT_WR)
    join(thread)
    end = {"\r": "\r", "\r\n": "\r\n"}.get(newline, "\n")
    assert got.decode() == text.replace("\n", end)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_cannot_be_decoded_raises_until_the_buffer_has_it(ends, encoding):
    near, far = ends
    near.settimeout(2)
    far.sendall(b"good\nb\xffd\nnext\n")
    with rioecho.makefile(near, "r", encoding=encoding) as file:
        assert file.readline() == "good\n"
        for _ in range(3):
            with pytest.raises(UnicodeDecodeError) as caught:
                file.readline()
            assert caught.value.encoding == encoding
            with pytest.raises(UnicodeDecodeError):
                next(file)
        assert file.buffer.readline() == b"b\xffd\n"
        assert file.readline() == "next\n"


def test_latin_1_decodes_every_byte(ends):
    near, far = ends
    data = bytes(range(256)).replace(b"\r", b"") + b"\n"
    far.sendall(data)
    with rioecho.makefile(near, "r", encoding="latin-1") as file:
        assert file.readline() + file.readline() == data.decode("latin-1")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_text_that_cannot_be_encoded_sends_nothing(ends, encoding):
    near, far = ends
    with rioecho.makefile(near, "w", encoding=encoding) as file:
        with pytest.raises(UnicodeEncodeError):
            file.write("good \ud800")
        file.write("better\n")
    assert far.recv(100) == b"better\n"


def test_a_line_whose_newline_comes_in_two_parts_is_one_line(ends):
    near, far = ends
    near.settimeout(0.01)
    with rioecho.makefile(near, "r", encoding="utf-8") as file:
        far.sendall(b"line\r")
        with contextlib.suppress(TimeoutError):
            assert file.readline() == "line\n"
            far.sendall(b"\nnext\n")
            assert file.readline() == "next\n"
            return
        far.sendall(b"\nnext\n")
        assert file.readline() == "line\n"
        assert file.readline() == "next\n"


# TLS.


@pytest.fixture
def tls(certificate):
    """Return the client's and the server's end of a TLS connection."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)
    client_side = ssl.create_default_context(cafile=str(certificate))
    near, far = socket.socketpair()
    made = []
    thread = threading.Thread(target=lambda: made.append(server_side.wrap_socket(far, server_side=True)))
    thread.start()
    client = client_side.wrap_socket(near, server_hostname="localhost")
    join(thread)
    client.settimeout(10)
    made[0].settimeout(10)
    with client, made[0]:
        yield client, made[0]


def test_over_tls_both_modes_read_and_write(tls):
    client, server = tls
    with rioecho.makefile(client, "rw", encoding="utf-8") as text, rioecho.makefile(server, "rwb") as binary:
        text.write("größe\r\n")
        text.flush()
        assert binary.readline() == "größe\r\n".encode()
        binary.write(b"a\r\nb\n")
        binary.flush()
        assert [text.readline(), text.readline()] == ["a\n", "b\n"]
        client.settimeout(0.01)
        with pytest.raises(TimeoutError):
            text.readline()
        client.settimeout(10)
        server.sendall(b"later\n")
        assert text.readline() == "later\n"


def test_over_tls_raw_has_the_tls_socket(tls):
    client, _ = tls
    with rioecho.makefile(client, "rb") as file:
        assert file.raw._sock is client
        assert isinstance(file.raw, socket.SocketIO)


def test_over_tls_the_file_outlives_its_socket(tls):
    client, server = tls
    file = rioecho.makefile(client, "rb")
    client.close()
    server.sendall(b"line\n")
    assert file.readline() == b"line\n"
    file.close()
