"""A socket file over TLS has the standard library's life time, and loses no data on a timeout."""

import contextlib
import gc
import socket
import threading

import pytest

import rioecho
from support.conversations import LONG, contexts  # noqa: F401, a fixture


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.parametrize("mode", ["rb", "wb", "rwb", "r", "w", "rw"])
def test_over_tls_the_rules_are_the_same(encrypted, makefile, mode):
    near, far = encrypted
    near.settimeout(LONG)
    file = makefile(near, mode)
    near.close()
    with file:
        if "r" in mode:
            far.sendall(b"question\n")
            assert file.readline() in (b"question\n", "question\n")
        if "w" in mode:
            file.write(b"answer\n" if "b" in mode else "answer\n")
    assert near.fileno() == -1
    assert far.recv(100) == (b"answer\n" if "w" in mode else b"")
    assert far.recv(100) == b""


def test_over_tls_a_dropped_file_sends_and_closes(encrypted, makefile):
    near, far = encrypted
    file = makefile(near, "wb")
    near.close()
    file.write(b"the end")
    del file
    gc.collect()
    assert far.recv(100) == b"the end"
    assert far.recv(100) == b""


def test_over_tls_a_file_closed_first_leaves_the_socket_open(encrypted, makefile):
    near, far = encrypted
    with makefile(near, "rb") as file:
        far.sendall(b"line\n")
        assert file.readline() == b"line\n"
    far.sendall(b"more")
    assert near.recv(100) == b"more"


def test_over_tls_the_part_of_a_line_before_a_timeout_is_kept(encrypted):
    near, far = encrypted
    with rioecho.makefile(near, "rb") as file:
        near.settimeout(0.02)
        far.sendall(b"part")
        with pytest.raises(TimeoutError):
            file.readline()
        far.sendall(b" and rest\n")
        near.settimeout(LONG)
        assert file.readline() == b"part and rest\n"


def test_over_tls_a_timeout_has_the_ssl_modules_text(encrypted, makefile):
    near, far = encrypted
    near.settimeout(0.02)
    with makefile(near, "rb") as file, pytest.raises(TimeoutError) as caught:
        file.readline()
    assert str(caught.value) == "The read operation timed out"
    file = makefile(near, "wb")
    with pytest.raises(TimeoutError) as caught:
        file.write(bytes(1 << 23))
    assert str(caught.value) == "The write operation timed out"
    far.close()
    with contextlib.suppress(OSError):  # the standard library's has kept a part
        file.close()


@pytest.mark.parametrize("mode", ["rb", "wb"])
def test_over_tls_raw_is_a_file_of_the_socket(encrypted, makefile, mode):
    near, _ = encrypted
    with makefile(near, mode) as file:
        assert type(file.raw) is socket.SocketIO
        assert file.raw._sock is near
        assert (file.mode, file.name) == (mode, near.fileno())


@pytest.mark.parametrize("mode", ["rb", "wb", "rwb"])
def test_over_tls_a_file_of_a_closed_socket_is_an_oserror_when_used(encrypted, makefile, mode):
    near, _ = encrypted
    near.close()
    with makefile(near, mode) as file:
        if "r" in mode:
            with pytest.raises(OSError, match="Bad file descriptor"):
                file.readline()
    assert file.closed


@pytest.mark.slow
def test_over_tls_the_timeout_is_for_each_wait(encrypted, makefile, background):
    near, far = encrypted
    near.settimeout(2)

    def drip():
        pause = threading.Event()
        for _ in range(8):
            pause.wait(0.4)
            far.sendall(b"x" * 100)

    with makefile(near, "rb") as file:
        background(drip)
        assert file.read(800) == b"x" * 800
