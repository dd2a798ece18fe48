"""A socket file has its socket's timeout. Unlike the standard library's, a Rio stays usable after a timeout."""

import io
import socket
import threading

import pytest

import rioecho
from support.conversations import receive
from support.procfs import needs_proc, sleeps, until

STDLIB = socket.socket.makefile
SHORT = 0.02  # timeout in seconds, meant to expire


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "reading",
    [
        lambda file: file.readline(),
        lambda file: file.readline(100),
        lambda file: file.read(11),
        lambda file: next(file),
        lambda file: file.readuntil(b"\n"),
        lambda file: b"".join(file.readlines(1)),
        lambda file: b"".join(file.readlines1()),
    ],
    ids=["readline", "readline(limit)", "read", "iteration", "readuntil", "readlines", "readlines1"],
)
def test_after_a_timeout_the_same_call_returns_the_whole_line(stream, reading):
    stream.near.settimeout(SHORT)
    with rioecho.makefile(stream.near, "rb") as file:
        for _ in range(3):
            stream.feed(b"par")
            with pytest.raises(TimeoutError):
                reading(file)
        stream.feed(b"t\n")
        assert reading(file) == b"parparpart\n"


def test_the_standard_librarys_file_is_unusable_after_a_timeout(stream):
    stream.near.settimeout(SHORT)
    with STDLIB(stream.near, "rb") as file:
        stream.feed(b"part")
        with pytest.raises(TimeoutError):
            file.readline()
        stream.feed(b" and rest\n")
        with pytest.raises(OSError, match="timed out object"):
            file.readline()


@pytest.mark.parametrize("makefile", [rioecho.makefile, STDLIB], ids=["rioecho", "stdlib"])
def test_the_timeout_is_looked_up_at_every_call(stream, makefile):
    with makefile(stream.near, "rb") as file:
        stream.feed(b"a line\n")
        assert file.readline() == b"a line\n"
        stream.near.settimeout(SHORT)
        with pytest.raises(TimeoutError):
            file.readline()


def test_a_timeout_can_be_changed_and_removed_while_the_file_is_open(stream, background):
    with rioecho.makefile(stream.near, "rb") as file:
        for timeout in (SHORT, 60, None, 0):
            stream.near.settimeout(timeout)
            assert file.timeout == timeout
        with pytest.raises(BlockingIOError):
            file.readline()
        stream.near.settimeout(None)
        background(stream.feed, b"a line\n")
        assert file.readline() == b"a line\n"


def test_the_timeout_of_a_call_overrides_the_sockets(stream):
    stream.near.settimeout(60)
    with rioecho.makefile(stream.near, "rb") as file:
        with pytest.raises(TimeoutError):
            file.readline(timeout=SHORT)
        file.timeout = SHORT
        with pytest.raises(TimeoutError):
            file.readline()
    assert stream.near.gettimeout() == 60


def drip(sock, piece, times, every):
    """Send the same bytes some times, in a thread, with pauses."""
    pause = threading.Event()

    def send():
        for _ in range(times):
            pause.wait(every)
            sock.sendall(piece)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("makefile", [rioecho.makefile, STDLIB], ids=["rioecho", "stdlib"])
def test_the_timeout_is_for_each_wait_and_not_for_the_whole_call(makefile, background):
    def read(call, expected):
        near, far = socket.socketpair()
        near.settimeout(2)
        with near, far, makefile(near, "rb") as file:
            thread = drip(far, b"x" * 100, 8, 0.4)
            ended = threading.Thread(target=lambda: (thread.join(), far.sendall(b"\n"), far.shutdown(socket.SHUT_WR)))
            ended.start()
            assert call(file) == expected
            ended.join()

    data = b"x" * 800
    threads = [
        background(read, call, expected)
        for call, expected in [
            (lambda file: file.read(800), data),
            (lambda file: file.read(), data + b"\n"),
            (lambda file: file.read(1 << 20), data + b"\n"),
            (lambda file: file.readline(), data + b"\n"),
            (lambda file: file.readline(800), data),
            (lambda file: file.readinto(bytearray(800)), 800),
            (lambda file: file.readlines(), [data + b"\n"]),
            (list, [data + b"\n"]),
        ]
    ]
    for thread in threads:
        thread.join(30)


@pytest.mark.slow
@pytest.mark.parametrize("makefile", [rioecho.makefile, STDLIB], ids=["rioecho", "stdlib"])
def test_the_timeout_is_for_each_wait_of_a_write(makefile, background):
    def write(call):
        near, far = socket.socketpair()
        near.settimeout(2)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        with far:

            def take():
                pause = threading.Event()
                for _ in range(8):
                    pause.wait(0.4)
                    far.recv(1 << 14)
                while far.recv(1 << 16):
                    pass

            taker = background(take)
            with near, makefile(near, "wb") as file:
                call(file)
            taker.join(30)

    data = bytes(1 << 17)
    threads = [
        background(write, call)
        for call in [
            lambda file: file.write(data),
            lambda file: file.writelines([data[:5000]] * 24),
            lambda file: (file.write(data[:60_000]), file.flush()),
        ]
    ]
    for thread in threads:
        thread.join(30)


@needs_proc
@pytest.mark.parametrize("makefile", [rioecho.makefile, STDLIB], ids=["rioecho", "stdlib"])
def test_another_threads_settimeout_counts_from_the_next_wait(makefile, stream, background):
    stream.near.settimeout(600)

    def read():
        with pytest.raises(TimeoutError, match=r"^timed out$"):
            file.readline()

    with makefile(stream.near, "rb") as file:
        thread = background(read)
        until(lambda: sleeps(thread), "the reader to wait")
        stream.near.settimeout(SHORT)
        stream.feed(b"part")
        thread.join(30)


def test_settimeout_takes_effect_after_the_socket_has_been_closed(stream):
    with rioecho.makefile(stream.near, "rb") as file:
        stream.near.close()
        stream.near.settimeout(SHORT)
        stream.feed(b"part")
        with pytest.raises(TimeoutError):
            file.readline()
        stream.feed(b"\n")
        assert file.readline() == b"part\n"


def test_a_non_blocking_socket_raises_and_keeps_the_bytes_received(stream):
    stream.near.setblocking(False)
    with rioecho.makefile(stream.near, "rb") as file:
        stream.feed(b"part")
        with pytest.raises(BlockingIOError):
            file.readline()
        stream.feed(b"\n")
        assert file.readline() == b"part\n"


@pytest.mark.slow
def test_a_flush_that_timed_out_can_be_continued(stream):
    data = bytes(range(256)) * 20_000
    stream.near.settimeout(SHORT)
    with rioecho.makefile(stream.near, "wb", len(data) + 1) as file:
        file.write(data)
        received = b""
        while True:
            try:
                file.flush()
                break
            except TimeoutError:
                received += stream.take(1 << 20)
        received += receive(stream, len(data) - len(received))
    assert received == data


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_in_another_encoding_the_part_of_the_line_before_a_timeout_is_dropped(stream, mode):
    stream.near.settimeout(SHORT)
    with rioecho.makefile(stream.near, mode, encoding="cp1252") as file:
        stream.feed(b"whole\nlost, ")
        assert file.readline() == "whole\n"
        with pytest.raises(TimeoutError):
            file.readline()
        stream.feed(b"kept\nnext\n")
        assert file.readline() == "kept\n"
        assert file.readline() == "next\n"


def test_in_text_mode_a_timeout_between_lines_loses_nothing(stream):
    stream.near.settimeout(SHORT)
    with rioecho.makefile(stream.near, "r", encoding="utf-8") as file:
        for number in range(3):
            with pytest.raises(TimeoutError):
                file.readline()
            stream.feed(b"%d\n" % number)
            assert file.readline() == f"{number}\n"


def test_the_rio_under_the_text_layer_keeps_the_whole_line(stream):
    stream.near.settimeout(SHORT)
    with io.TextIOWrapper(rioecho.makefile(stream.near, "rb"), encoding="utf-8") as file:
        stream.feed("grö".encode())
        with pytest.raises(TimeoutError):
            file.buffer.readline()
        stream.feed("ße\n".encode())
        assert file.buffer.readline().decode() == "größe\n"
