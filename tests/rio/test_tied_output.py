"""Buffered output is sent before a read waits, with one send; output that cannot be sent does not block reading."""

import socket
import struct
import sys
import threading

import pytest

from rioecho import Rio
from support.delivery import tcp_pair

needs_counts = pytest.mark.skipif(sys.platform != "linux", reason="the kernel does not count the segments it sends")


@pytest.fixture
def counted():
    """Return a TCP connection, whose ``sends()`` counts the small sends of ``near``: each is a segment."""
    near, far = tcp_pair()
    with near, far:
        far.settimeout(20)
        yield near, far


def sends(near):
    """Return tcpi_data_segs_out, without the retransmissions."""
    info = near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return struct.unpack_from("I", info, 156)[0] - struct.unpack_from("I", info, 100)[0]


def stuck(rio):
    """Send until the socket buffer is full, and return the number of bytes sent."""
    sent = 0
    while True:
        try:
            sent += rio.writen(b"." * 4096, timeout=0)
        except BlockingIOError as error:
            if not error.characters_written:
                return sent
            sent += error.characters_written


@needs_counts
def test_a_batch_of_lines_is_echoed_with_one_send(counted):
    near, far = counted
    rio = Rio(near, timeout=20)
    batch = b"one\ntwo\nthree\n" + b"x\n" * 1000
    far.sendall(batch)
    far.shutdown(socket.SHUT_WR)
    for line in rio:
        rio.write(line)
    rio.flush()
    # No read had to wait in between.
    assert far.recv(1 << 16) == batch
    assert sends(near) == 1


@needs_counts
def test_buffered_output_is_sent_before_each_wait_and_no_sooner(counted, background):
    near, far = counted
    rio = Rio(near, timeout=20)
    answers = []

    def echo():
        for line in rio:
            rio.write(line)
        rio.flush()

    thread = background(echo)
    batches = [b"one\ntwo\nthree\n", b"four\n", b"x\n" * 1000]
    for batch in batches:
        far.sendall(batch)
        answers.append(far.recv(1 << 16))
    far.shutdown(socket.SHUT_WR)
    thread.join(20)
    assert answers == batches
    assert sends(near) == 3


def test_a_read_that_does_not_wait_sends_nothing(stream):
    rio = Rio(stream.near, timeout=20)
    stream.feed(b"one\ntwo\n")
    rio.write(b"held")
    assert [rio.readline(), rio.readline()] == [b"one\n", b"two\n"]
    assert not stream.readable()
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    assert stream.readable(20)
    assert stream.take() == b"held"


@needs_counts
def test_writen_sends_buffered_output_and_its_data_together_and_in_order(counted):
    near, far = counted
    rio = Rio(near, bufsize=100)
    rio.write(b"one ")
    rio.writen(b"two")
    assert far.recv(100) == b"one two"
    assert sends(near) == 1
    rio.write(b"x" * 99)
    rio.writen(b"yy")
    assert far.recv(101, socket.MSG_WAITALL) == b"x" * 99 + b"yy"
    assert sends(near) == 3


@needs_counts
def test_the_buffer_is_sent_when_it_is_full_at_flush_and_at_close(counted):
    near, far = counted
    rio = Rio(near, bufsize=10)
    sizes, counts = [], []
    for data in (b"0123", b"456789", b"ab", b"c" * 10):
        sizes.append(rio.write(data))
        counts.append(sends(near))
    assert sizes == [4, 6, 2, 10]
    assert counts == [0, 1, 1, 3]
    rio.write(b"flush")
    rio.flush()
    assert sends(near) == 4
    rio.write(b"close")
    rio.close()
    assert sends(near) == 5
    assert far.recv(32, socket.MSG_WAITALL) == b"0123456789ab" + b"c" * 10 + b"flushclose"


READS = {
    "readline": lambda rio: rio.readline(),
    "iteration": lambda rio: next(rio),
    "read": lambda rio: rio.read(9),
    "read, large": lambda rio: rio.read(200)[:9],
    "readexactly": lambda rio: rio.readexactly(9),
    "readuntil": lambda rio: rio.readuntil(b"\n"),
    "readlines1": lambda rio: rio.readlines1()[0],
    "read1": lambda rio: rio.read1(9),
    "peek": lambda rio: rio.peek()[:9],
    "fill": lambda rio: rio.fill(9) and rio.read(9),
    "skipline": lambda rio: b"question\n"[: rio.skipline()],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_read_that_waits_sends_first_so_a_dialogue_needs_no_flush(stream, read, background):
    rio = Rio(stream.near, bufsize=64, timeout=20)

    def answer():
        assert stream.take_exactly(6) == b"prompt"
        stream.feed(b"question\n" + b"x" * 191)

    background(answer)
    rio.write(b"prompt")
    assert read(rio) == b"question\n"


def test_stuck_output_does_not_block_reading_and_is_sent_later(stream, background):
    rio = Rio(stream.near, bufsize=1 << 16, timeout=20)
    sent = stuck(rio)
    rio.write(b"held output")
    stream.feed(b"one\n")
    assert rio.readline() == b"one\n"
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.01)
    stream.feed(b"two\n")
    assert rio.readline() == b"two\n"
    got = []

    def drain():
        got.append(stream.take_exactly(sent + 11))
        stream.feed(b"three\n")

    background(drain)
    assert rio.readline() == b"three\n", "the output was sent while the read waited"
    assert got == [b"." * sent + b"held output"]


def test_an_echo_of_a_flood_does_not_deadlock_on_its_own_unsent_output(stream, background):
    size = 4 << 20
    rio = Rio(stream.near, bufsize=1 << 14, timeout=20)
    data = b"x" * 1023 + b"\n"
    receiving = threading.Event()

    def send():
        for _ in range(size // 1024):
            stream.far.sendall(data)
        stream.end()

    def receive():
        receiving.set()
        assert stream.take_exactly(size) == data * (size // 1024)

    background(send)
    background(receive)
    assert receiving.wait(20)
    for line in rio:
        rio.write(line)
    rio.flush()
    rio.close()


def test_an_error_of_sending_is_raised_by_the_next_write_and_not_by_a_read(stream):
    rio = Rio(stream.near, timeout=20)
    stream.far.shutdown(socket.SHUT_RD)
    stream.feed(b"one\n")
    rio.write(b"nobody listens")
    assert rio.readline() == b"one\n"
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    stream.feed(b"two\n")
    assert rio.readline() == b"two\n"
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    stream.feed(b"three\n")
    assert rio.readline() == b"three\n"
    with pytest.raises(BrokenPipeError) as caught:
        rio.writen(b"more")
    assert caught.value.characters_written == 0
    stream.feed(b"four\n")
    assert rio.readline() == b"four\n"
    with pytest.raises(BrokenPipeError):
        rio.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda rio: rio.write(b"x"),
        lambda rio: rio.writen(b"x"),
        lambda rio: rio.writelines([b"x"]),
        lambda rio: rio.flush(),
        lambda rio: rio.close(),
        lambda rio: rio.detach(),
    ],
    ids=["write", "writen", "writelines", "flush", "close", "detach"],
)
def test_a_stored_error_is_raised_once_by_the_next_writing_call(stream, call):
    rio = Rio(stream.near, timeout=20)
    stream.far.shutdown(socket.SHUT_RD)
    rio.write(b"x")
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    with pytest.raises(BrokenPipeError):
        call(rio)
    if not rio.closed:
        assert rio.write(b"x") == 1, "the error is raised once, and a write to the buffer does not send"
        with pytest.raises(BrokenPipeError):
            rio.close()


@pytest.mark.parametrize("kind", ["socketpair", "tcp"])
def test_a_reset_during_sending_is_not_reported_as_eof(wire, kind, on_alarm):
    both = wire(kind)
    rio = Rio(both.near, bufsize=1 << 16, timeout=20)
    stuck(rio)
    rio.write(b"held")

    # The handler runs between the read's attempt to read and its attempt to send.
    on_alarm(lambda *_: both.reset() if kind == "tcp" else both.close_far(), 0.02)
    with pytest.raises(ConnectionResetError):
        while rio.readline():
            pass
    with pytest.raises(OSError):  # noqa: PT011 - the kept one, or that of the next attempt
        rio.close()


def test_output_written_by_a_signal_handler_is_sent_while_a_read_waits(stream, on_alarm, background):
    rio = Rio(stream.near, timeout=20)
    on_alarm(lambda *_: rio.write(b"tick"), 0.01)

    def answer():
        assert stream.take_exactly(4) == b"tick"
        stream.feed(b"tock\n")

    background(answer)
    assert rio.readline() == b"tock\n"


def test_a_reset_that_a_write_was_told_of_is_no_end_for_the_reader(wire):
    both = wire("tcp")
    rio = Rio(both.near, timeout=20)
    both.feed(b"a line\nhalf a file")
    rio.fill(18)
    both.reset()
    with pytest.raises((ConnectionResetError, BrokenPipeError)) as caught:
        while True:
            rio.writen(b"x")
    assert caught.type is ConnectionResetError
    assert rio.readline() == b"a line\n"
    with pytest.raises(ConnectionResetError):
        rio.read()
    assert rio.read_buffered() == b"half a file"
