"""Threads that use one file take turns, as on the standard library's, and close() waits for another thread's call."""

import os
import signal
import socket

import pytest

import rioecho
from support.conversations import LONG, contexts, receive  # noqa: F401, a fixture
from support.procfs import needs_proc, sleeps, until

pytestmark = needs_proc  # to see that a thread waits

STDLIB = socket.socket.makefile


@pytest.fixture
def stream(stream):
    """A wire whose near end has a timeout of LONG."""
    stream.near.settimeout(LONG)
    return stream


READING = {
    "readline": lambda file: file.readline(),
    "iteration": lambda file: next(file, b""),
    "read": lambda file: file.read(5),
    "read1": lambda file: file.read1(5),
    "readinto": lambda file: file.readinto(bytearray(5)),
    "large read": lambda file: file.read(1 << 20),
    "read all": lambda file: file.read(),
    "peek": lambda file: file.peek(),
}
LARGE = b"0123456789abcdef" * (1 << 16)  # more than the kernel holds


def begin(background, call, *arguments):
    """Start a thread, and return it when its call waits."""
    thread = background(call, *arguments)
    until(lambda: sleeps(thread), "a call that waits")
    return thread


# ---- closing


@pytest.mark.sampled(4)
@pytest.mark.parametrize("timeout", [None, LONG])
@pytest.mark.parametrize("reading", READING.values(), ids=READING)
def test_close_waits_for_the_reader_that_a_shutdown_wakes(stream, makefile, background, reading, timeout):
    stream.near.settimeout(timeout)
    file = makefile(stream.near, "rb")
    begin(background, reading, file)
    stream.near.shutdown(socket.SHUT_RDWR)
    stream.near.close()
    file.close()
    assert file.closed
    assert stream.near.fileno() == -1


def test_close_waits_until_the_line_has_come(stream, makefile, background):
    file = makefile(stream.near, "rb")
    lines = []
    reader = begin(background, lambda: lines.append(file.readline()))
    closer = background(file.close)
    until(lambda: sleeps(closer, locked=True), "close() to wait")
    assert not lines
    stream.feed(b"line\n")
    reader.join(LONG)
    closer.join(LONG)
    assert lines == [b"line\n"]
    assert file.closed


def test_close_sends_first_what_the_reader_waits_for_an_answer_to(stream, makefile, background):
    file = makefile(stream.near, "rwb")
    lines = []
    reader = begin(background, lambda: lines.append(file.readline()))
    file.write(b"quit\n")
    closer = background(file.close)
    assert receive(stream, 5) == b"quit\n"
    stream.feed(b"bye\n")
    reader.join(LONG)
    closer.join(LONG)
    assert lines == [b"bye\n"]
    assert file.closed


def test_an_error_of_sending_first_is_raised_when_all_is_closed(stream, background):
    file = rioecho.makefile(stream.near, "rwb")
    begin(background, file.readline)
    stream.near.close()
    file.write(b"quit\n")
    with socket.socket(fileno=os.dup(file.fileno())) as same:
        same.shutdown(socket.SHUT_WR)
        errors = []

        def close():
            with pytest.raises(BrokenPipeError) as caught:
                file.close()
            errors.append(caught.value)

        closer = background(close)
        until(lambda: sleeps(closer, locked=True), "close() to wait")
        stream.end()
        closer.join(LONG)
    assert errors
    assert file.closed
    assert stream.near.fileno() == -1


@pytest.mark.parametrize("timeout", [None, LONG])
def test_close_waits_for_a_writer(stream, makefile, background, timeout):
    stream.near.settimeout(timeout)
    file = makefile(stream.near, "wb")
    begin(background, file.write, LARGE)
    closer = background(file.close)
    until(lambda: sleeps(closer, locked=True), "close() to wait")
    assert receive(stream, len(LARGE)) == LARGE
    closer.join(LONG)
    assert file.closed


def test_two_threads_can_close_one_file(stream, makefile, background):
    file = makefile(stream.near, "rb")
    reader = begin(background, file.readline)
    closers = [background(file.close) for _ in range(3)]
    stream.feed(b"line\n")
    for thread in (reader, *closers):
        thread.join(LONG)
    assert file.closed


def test_close_and_readers_may_wait_together(stream, makefile, background):
    file = makefile(stream.near, "rb")
    begin(background, file.readline)
    closer = background(file.close)
    until(lambda: sleeps(closer, locked=True), "close() to wait")
    found = []

    def read():
        try:
            found.append(file.readline())
        except ValueError:  # closed
            found.append(b"")

    readers = [background(read) for _ in range(3)]
    until(lambda: all(sleeps(each, locked=True) for each in readers), "the readers to wait")
    stream.feed(b"line\n")
    stream.end()
    for thread in (closer, *readers):
        thread.join(LONG)
    assert file.closed
    assert found == [b""] * 3


def test_detach_waits_for_a_reader_and_loses_nothing(stream, background):
    file = rioecho.makefile(stream.near, "rb")
    begin(background, file.readline)
    found = []
    detacher = background(lambda: found.append(file.detach()))
    until(lambda: sleeps(detacher, locked=True), "detach() to wait")
    stream.feed(b"line\nmore")
    detacher.join(LONG)
    raw, leftover = found[0]
    with raw:
        assert leftover == b"more"


@pytest.mark.long
def test_over_tls_close_waits_too(encrypted, makefile, background):
    near, far = encrypted
    file = makefile(near, "rb")
    begin(background, file.readline)
    closer = background(file.close)
    until(lambda: sleeps(closer, locked=True), "close() to wait")
    far.sendall(b"line\n")
    closer.join(LONG)
    assert file.closed


# ---- signals


def test_closing_in_a_handler_that_interrupted_a_read_is_a_runtime_error(stream, makefile, on_alarm):
    file = makefile(stream.near, "rb")
    met = []

    def ring(signum, frame):
        with pytest.raises(RuntimeError) as caught:
            file.close()
        met.append(caught.value)
        stream.feed(b"line\n")

    on_alarm(ring, 0.005)
    assert file.readline() == b"line\n"
    assert met
    file.close()


@pytest.mark.parametrize("call", [lambda file: file.close(), lambda file: file.readline()], ids=["close", "readline"])
def test_handlers_run_while_a_call_waits_for_its_turn(stream, background, on_alarm, call):
    file = rioecho.makefile(stream.near, "rb")
    begin(background, file.readline)
    ran = []

    def ring(signum, frame):
        ran.append(True)
        stream.feed(b"first\nsecond\n")

    on_alarm(ring, 0.01)
    call(file)
    assert ran


@pytest.mark.parametrize("call", [lambda file: file.close(), lambda file: file.readline()], ids=["close", "readline"])
def test_a_handler_that_raises_ends_the_wait_and_changes_nothing(stream, background, alarm, call):
    file = rioecho.makefile(stream.near, "rb")
    lines = []
    reader = begin(background, lambda: lines.append(file.readline()))
    alarm(0.01)
    with pytest.raises(alarm.error):
        call(file)
    assert not file.closed
    stream.feed(b"first\nsecond\n")
    reader.join(LONG)
    assert lines == [b"first\n"]
    assert file.readline() == b"second\n"
    file.close()


# ---- taking turns


@pytest.mark.parametrize("timeout", [None, LONG])
def test_threads_that_read_one_file_get_each_line_once(stream, background, timeout):
    # Unlike those of the standard library's file, which may cut a line in two for two threads.
    stream.near.settimeout(timeout)
    file = rioecho.makefile(stream.near, "rb")
    found = [[] for _ in range(4)]
    threads = [background(each.extend, iter(file.readline, b"")) for each in found]
    sent = [b"%06d\n" % number for number in range(2000)]
    for start in range(0, len(sent), 100):
        stream.feed(b"".join(sent[start : start + 100]))
    stream.end()
    for thread in threads:
        thread.join(LONG)
    assert sorted(line for each in found for line in each) == sent
    assert all(each == sorted(each) for each in found)
    file.close()


@pytest.mark.parametrize("bufsize", [1, 100, 8192])
def test_threads_that_write_one_file_do_not_mix_their_lines(stream, makefile, background, bufsize):
    file = makefile(stream.near, "wb", bufsize)

    def log(letter):
        for _ in range(500):
            file.write(letter * 50 + b"\n")
            file.flush()

    threads = [background(log, letter) for letter in (b"a", b"b", b"c")]
    lines = receive(stream, 3 * 500 * 51).splitlines()
    for thread in threads:
        thread.join(LONG)
    assert {letter: lines.count(letter * 50) for letter in (b"a", b"b", b"c")} == {b"a": 500, b"b": 500, b"c": 500}
    file.close()


def test_a_second_writer_waits_while_the_peer_does_not_read(stream, makefile, background):
    file = makefile(stream.near, "wb")
    first = begin(background, file.write, LARGE)
    second = background(lambda: (file.write(b"second"), file.flush()))
    until(lambda: sleeps(second, locked=True), "the second writer to wait")
    assert receive(stream, len(LARGE) + 6) == LARGE + b"second"
    first.join(LONG)
    second.join(LONG)
    file.close()


def test_over_tls_threads_that_write_one_file_take_turns(encrypted, makefile, background):
    near, far = encrypted
    file = makefile(near, "wb")

    def log(letter):
        for _ in range(200):
            file.write(letter * 50 + b"\n")
            file.flush()

    threads = [background(log, letter) for letter in (b"a", b"b", b"c")]
    lines = []
    with STDLIB(far, "rb") as received:
        for _ in range(600):
            lines.append(received.readline())
    for thread in threads:
        thread.join(LONG)
    assert sorted(lines) == [letter * 50 + b"\n" for letter in (b"a", b"b", b"c") for _ in range(200)]
    file.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_the_child_of_a_fork_does_not_wait_for_the_parents_threads(stream, background):
    file = rioecho.makefile(stream.near, "rb")
    reader = begin(background, file.readline)
    waiting = [background(file.readline) for _ in range(2)]
    until(lambda: all(sleeps(each, locked=True) for each in waiting), "two readers to wait")
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(int(LONG))
            file.has_line()
            file.close()
            os._exit(0)
        finally:
            os._exit(2)
    _, status = os.waitpid(pid, 0)
    stream.feed(b"1\n2\n3\n")
    for thread in (reader, *waiting):
        thread.join(LONG)
    assert os.waitstatus_to_exitcode(status) == 0
