"""A socket file over TLS has the standard library's life time, and loses no data on a timeout."""

import gc
import socket

import pytest

import rioecho
from support.conversations import LONG, contexts  # noqa: F401, a fixture


@pytest.fixture(params=[rioecho.makefile, socket.socket.makefile], ids=["rioecho", "stdlib"])
def makefile(request):
    """Run the test with either function, for their common behaviour."""
    return request.param


@pytest.fixture
def encrypted(wire, contexts, background):  # noqa: F811
    """Yield both ends of a TLS connection."""
    ends = wire("tcp")
    server, client = contexts
    ends.near.settimeout(LONG)
    ends.far.settimeout(LONG)
    far = []
    thread = background(lambda: far.append(server.wrap_socket(ends.far, server_side=True)))
    with client.wrap_socket(ends.near, server_hostname="localhost") as near:
        thread.join(LONG)
        with far[0]:
            yield near, far[0]


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


def test_over_tls_the_text_of_a_timeout_is_the_same(encrypted, makefile):
    near, _ = encrypted
    with makefile(near, "rb") as file:
        near.settimeout(0.02)
        with pytest.raises(TimeoutError) as caught:
            file.readline()
    assert str(caught.value) == "The read operation timed out"
