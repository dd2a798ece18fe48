"""Rare ends of the calls of a Rio, and rare objects: without a time limit, without a wait, many at once."""

import ctypes
import functools
import os
import random
import signal
import socket

import pytest

import rioecho
from rioecho import Rio, Woken
from support.delivery import SocketLike

REST = 5  # seconds after which a test fails
BIG = 1 << 22  # number of bytes, more than a socket takes while nobody reads


@pytest.fixture
def ends():
    """Return the two ends of a connection."""
    a, b = socket.socketpair()
    with a, b:
        yield a, b


@pytest.fixture
def overridden(ends):
    with SocketLike(fileno=ends[0].detach()) as sock:
        yield sock


class Bare:
    """An object with ``recv()``, ``send()`` and, if it has one, a descriptor."""

    def __init__(self, sock):
        self.sock = sock

    def recv(self, n):
        return self.sock.recv(n)

    def send(self, data):
        return self.sock.send(data)


# ---- writing


def test_an_exception_that_takes_no_attributes_is_raised_as_it_is(ends):
    class Fixed(Exception):
        characters_written = property(lambda self: -1)

    def lines():
        yield b"one\n"
        raise Fixed

    rio = Rio(ends[0])
    with pytest.raises(Fixed):
        rio.writelines(lines())
    rio.flush()
    assert ends[1].recv(100) == b"one\n"


def test_write_eof_of_a_socket_that_is_not_connected_is_its_error():
    with socket.socket() as sock:
        rio = Rio(sock)
        with pytest.raises(OSError, match="not connected"):
            rio.write_eof()


def test_read_ahead_of_an_object_that_cannot_be_given_a_time_limit_is_a_value_error(ends):
    class Numbered(Bare):
        def fileno(self):
            return self.sock.fileno()

    rio = Rio(Numbered(ends[0]))
    with pytest.raises(ValueError, match="settimeout"):
        rio.writen(b"x", read_ahead=5)
    assert rio.writen(b"x") == 1


def test_a_reset_that_a_write_reads_ahead_is_told_to_the_reader_too(overridden):
    class Reset(SocketLike):
        resets = 1

        def recv_into(self, *args):
            if self.resets:
                self.resets -= 1
                raise ConnectionResetError(104, "reset")
            return 0

    overridden.__class__ = Reset
    rio = Rio(overridden, timeout=REST)
    with pytest.raises(ConnectionResetError):
        rio.writen(b"x" * BIG, read_ahead=10)
    with pytest.raises(ConnectionResetError):
        rio.read()


# ---- objects that do not wait


class Polled:
    """An object that never waits, whatever timeout it is given, and that has a descriptor to poll."""

    def __init__(self, sock):
        self.sock = sock
        self.fileno = sock.fileno

    def recv(self, n):
        return self.sock.recv(n, socket.MSG_DONTWAIT)

    def send(self, data):
        return self.sock.send(data, socket.MSG_DONTWAIT)

    def settimeout(self, seconds):
        pass

    def gettimeout(self):
        return None


def test_output_that_is_stuck_keeps_no_line_from_an_object_that_never_waits(ends, background):
    rio = Rio(Polled(ends[0]), bufsize=BIG)
    rio.write(b"x" * (BIG - 1))
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.01)
    background(lambda: ends[1].sendall(b"a line\n"))
    assert rio.readline() == b"a line\n"

    def drain():
        left = BIG - 1
        while left:
            left -= len(ends[1].recv(1 << 20))

    background(drain)
    rio.flush(timeout=REST)


def test_a_call_of_an_object_that_never_waits_is_woken(ends, background):
    bell, hammer = os.pipe()
    try:
        rio = Rio(Polled(ends[0]), wake_fd=bell)
        background(lambda: os.write(hammer, b"!"))
        with pytest.raises(Woken):
            rio.readline()
        ends[1].sendall(b"a line\n")
        os.read(bell, 1)
        assert rio.readline() == b"a line\n"
    finally:
        os.close(bell)
        os.close(hammer)


def test_a_method_in_a_dictionary_of_another_class_is_called(overridden):
    class Attributes(dict):
        """What a program may put in the place of an object's dictionary."""

    class Open(socket.socket):
        """A socket whose objects take attributes."""

    with Open(fileno=overridden.detach()) as sock:
        assert "over" not in repr(Rio(sock))
        sock.__dict__ = Attributes(other=1)
        assert "over" not in repr(Rio(sock))
        sock.__dict__ = Attributes(recv=lambda n: b"mine\n")
        assert Rio(sock).readline() == b"mine\n"


def test_a_file_of_an_object_that_has_only_a_descriptor_reads_that(ends):
    class Numbered:
        _io_refs = 0

        def __init__(self, sock):
            self.fileno = sock.fileno
            self.gettimeout = sock.gettimeout

        def _decref_socketios(self):
            self._io_refs -= 1

    ends[1].sendall(b"a line\n")
    source = Numbered(ends[0])
    with rioecho.makefile(source, "rb") as file:
        assert file.readline() == b"a line\n"
    assert source._io_refs == 0


def test_many_objects_keep_their_own_timeouts(ends):
    class Timed(Bare):
        own = None

        def settimeout(self, seconds):
            self.own = seconds

        def gettimeout(self):
            return self.own

        def recv(self, n):
            assert self.own == 0
            raise BlockingIOError

    sources = [Timed(ends[0]) for _ in range(1500)]
    rios = []
    for number, source in enumerate(sources):
        source.own = number + 1
        rios.append(Rio(source))
    chance = random.Random(1)
    chance.shuffle(rios)
    while rios:
        with pytest.raises(BlockingIOError):
            rios[-1].readline(timeout=0)
        del rios[chance.randrange(len(rios)) :][10:]
        rios.pop()
    assert [source.own for source in sources] == list(range(1, 1501))


# ---- signals


class Interruption(Exception):
    """What a signal handler raises."""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs pthread_sigmask(2)")
def test_a_handler_that_raises_where_signals_are_about_to_be_blocked_leaves_them_unblocked(ends):
    class Timed(Bare):
        """An object of which a file can be made."""

        _io_refs = 0

        def __init__(self, sock):
            super().__init__(sock)
            self.gettimeout = sock.gettimeout
            self.settimeout = sock.settimeout

        def _decref_socketios(self):
            self._io_refs -= 1

    def handler(signum, frame):
        raise Interruption

    source = Timed(ends[0])
    file = rioecho.makefile(source, "rwb")
    file.write(b"question\n")
    before = signal.signal(signal.SIGUSR1, handler)
    raised = ctypes.CDLL(None)["raise"]
    raised.restype = ctypes.c_void_p  # 0 is None
    try:
        source.gettimeout = functools.partial(raised, int(signal.SIGUSR1))  # its handler runs when Python code does
        with pytest.raises(Interruption):
            file.readline()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    source.gettimeout = ends[0].gettimeout
    ends[1].sendall(b"answer\n")
    assert file.readline() == b"answer\n"
    file.close()
    assert ends[1].recv(100) == b"question\n"
