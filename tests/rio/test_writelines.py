"""writelines() is one call: one timeout and one writer; an error says how much was accepted."""

import socket
import threading

import pytest

from rioecho import ConcurrentCall, Rio


@pytest.mark.long
def test_writelines_has_one_timeout_for_all_items(background):
    a, b = socket.socketpair()
    with a, b:
        b.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        stop = threading.Event()

        def drip():
            while not stop.wait(0.02):
                a.recv(2000)

        thread = background(drip)
        rio = Rio(b, timeout=0.2, bufsize=1000)
        with pytest.raises(TimeoutError) as caught:
            rio.writelines([b"x" * 900] * 3000)
        assert 0 < caught.value.characters_written < 900 * 3000
        stop.set()
        thread.join(20)
        a.close()
        with pytest.raises(OSError):  # noqa: PT011 - what is buffered cannot be sent any more
            rio.close()


def test_an_iterable_that_itself_writes_gets_concurrent_call(stream):
    rio = Rio(stream.near, timeout=20)

    def lines():
        yield b"one\n"
        with pytest.raises(ConcurrentCall):
            rio.write(b"between")
        with pytest.raises(ConcurrentCall):
            rio.writen(b"between")
        yield b"two\n"

    rio.writelines(lines())
    rio.flush()
    assert stream.take_exactly(8) == b"one\ntwo\n"


def test_an_iterable_may_read(stream):
    rio = Rio(stream.near, timeout=20)
    stream.feed(b"one\ntwo\n")
    stream.far.shutdown(socket.SHUT_WR)
    rio.writelines(rio)
    rio.flush()
    assert stream.take_exactly(8) == b"one\ntwo\n"


def test_another_thread_cannot_write_between_two_items(stream):
    rio = Rio(stream.near, timeout=20)
    refused = []

    def write():
        try:
            rio.writen(b"between")
        except ConcurrentCall as error:
            refused.append(error)

    def lines():
        yield b"one"
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(20)
        yield b"two"

    rio.writelines(lines())
    rio.flush()
    assert refused
    assert stream.take_exactly(6) == b"onetwo"


@pytest.mark.parametrize("items", [[b"ab", b"c", "text"], (n for n in [b"abc", None])], ids=["list", "generator"])
def test_an_error_in_the_middle_says_how_much_was_accepted(stream, items):
    rio = Rio(stream.near, timeout=20)
    with pytest.raises(TypeError) as caught:
        rio.writelines(items)
    assert caught.value.characters_written == 3
    rio.flush()
    assert stream.take_exactly(3) == b"abc"
