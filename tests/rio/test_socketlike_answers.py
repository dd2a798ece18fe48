"""What an object with I/O methods of its own may answer: no data, no room, the end, and errors of many classes.

Between two calls the object has the timeout that its owner gave it, whatever its ``settimeout()`` does.
"""

import os
import pickle
import socket
import ssl
import sys
import threading
import time

import pytest

import rioecho
from rioecho import Rio
from support.delivery import SocketLike
from support.procfs import sleeps, until

REST = 5  # seconds after which a test fails
BIG = 1 << 22  # number of bytes, more than a socket takes while nobody reads


@pytest.fixture
def ends():
    """Return the two ends of a connection."""
    a, b = socket.socketpair()
    with a, b:
        yield a, b


class Timed:
    """An object with a timeout and without a descriptor, over a socket."""

    def __init__(self, sock):
        self.sock = sock

    def recv(self, n):
        return self.sock.recv(n)

    def send(self, data):
        return self.sock.send(data)

    def settimeout(self, seconds):
        self.sock.settimeout(seconds)

    def gettimeout(self):
        return self.sock.gettimeout()


@pytest.fixture
def overridden(ends):
    with SocketLike(fileno=ends[0].detach()) as sock:
        yield sock


# ---- how an object says that it has nothing


def test_none_from_recv_into_is_no_data(ends):
    class Raw(Timed):
        def recv_into(self, view):
            return None

    rio = Rio(Raw(ends[0]))
    with pytest.raises(BlockingIOError, match="Raw has no data"):
        rio.readline()


def test_an_error_that_is_no_blocking_io_error_but_means_it_becomes_one(ends):
    class Encrypted(Timed):
        def recv(self, n):
            raise ssl.SSLWantReadError("the operation did not complete")

    with pytest.raises(BlockingIOError, match="did not complete"):
        Rio(Encrypted(ends[0])).readline()


def test_a_timeout_that_the_ssl_module_does_not_call_one_is_a_timeout_error(ends):
    class Encrypted(Timed):
        """Raises as a TLS socket of gevent does."""

        def recv(self, n):
            raise ssl.SSLError("The read operation timed out")

    with pytest.raises(TimeoutError, match="timed out") as caught:
        Rio(Encrypted(ends[0])).readline()
    assert isinstance(caught.value.__cause__, ssl.SSLError)


def test_an_object_that_keeps_its_view_of_the_memory_loses_no_byte(ends):
    class Keeping(Timed):
        def recv_into(self, view):
            self.kept = pickle.PickleBuffer(view)
            return self.sock.recv_into(view)

    source = Keeping(ends[0])
    rio = Rio(source)
    ends[1].sendall(b"a line\n")
    with pytest.raises(BufferError):
        rio.readline()
    source.kept.release()
    assert rio.read_buffered() == b"a line\n"


def test_a_file_of_an_object_without_send_cannot_write(ends):
    class Receiver:
        _io_refs = 0

        def __init__(self, sock):
            self.recv_into = sock.recv_into
            self.gettimeout = sock.gettimeout

        def _decref_socketios(self):
            self._io_refs -= 1

    file = rioecho.makefile(Receiver(ends[0]), "rwb")
    ends[1].sendall(b"a line\n")
    assert file.readline() == b"a line\n"
    file.write(b"x")
    with pytest.raises(AttributeError, match=r"Receiver has no send\(\)"):
        file.flush()
    with pytest.raises(AttributeError):
        file.close()


# ---- the object's timeout


def test_a_settimeout_that_raises_ends_the_call_and_the_next_one_works(ends):
    class Failing(Timed):
        error = OSError("not now")

        def settimeout(self, seconds):
            error, self.error = self.error, None
            if error is not None:
                raise error
            super().settimeout(seconds)

    source = Failing(ends[0])
    source.sock.settimeout(9)
    rio = Rio(source)
    ends[1].sendall(b"a line\n")
    with pytest.raises(OSError, match="not now"):
        rio.readline(timeout=REST)
    assert source.gettimeout() == 9
    assert rio.readline(timeout=REST) == b"a line\n"
    assert source.gettimeout() == 9


def test_an_object_that_was_closed_during_a_read_loses_no_byte(ends):
    class Closing(Timed):
        closed = False

        def recv(self, n):
            data = super().recv(n)
            self.closed = True
            return data

        def settimeout(self, seconds):
            if self.closed:
                raise OSError("closed")
            super().settimeout(seconds)

    rio = Rio(Closing(ends[0]))
    ends[1].sendall(b"a line\n")
    assert rio.readline(timeout=REST) == b"a line\n"


def test_a_timeout_that_cannot_be_put_back_is_put_back_by_the_next_call(ends):
    class Stubborn(Timed):
        refuses = True

        def settimeout(self, seconds):
            if seconds == 9 and self.refuses:
                raise RuntimeError("not now")
            super().settimeout(seconds)

    source = Stubborn(ends[0])
    source.sock.settimeout(9)
    rio = Rio(source)
    ends[1].sendall(b"a line\n")
    with pytest.raises(RuntimeError, match="not now"):
        rio.readline(timeout=REST)
    assert rio.read_buffered() == b"a line\n"
    source.refuses = False
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.01)
    assert source.gettimeout() == 9


def wait_for_timeout(source, seconds):
    """Wait until a call in another thread has set the object's timeout to about this many seconds."""
    deadline = time.monotonic() + REST
    while not seconds - 1 < (source.gettimeout() or 0) <= seconds:
        assert time.monotonic() < deadline
        os.sched_yield()


def test_the_timeout_of_an_object_is_its_own_while_a_call_has_set_another_one(ends, background):
    source = Timed(ends[0])
    source.settimeout(9)
    rio = Rio(source)
    thread = background(lambda: rio.readline(timeout=REST))
    wait_for_timeout(source, REST)
    assert Rio(source).timeout == 9
    ends[1].sendall(b"a line\n")
    thread.join(REST)
    assert source.gettimeout() == 9


def test_a_file_that_writes_beside_a_read_with_a_time_limit_keeps_the_object_s_own(overridden, ends, background):
    overridden.settimeout(0.02)
    rio = Rio(overridden)
    thread = background(lambda: rio.readline(timeout=REST))
    wait_for_timeout(overridden, REST)
    with rioecho.makefile(overridden, "wb") as file:
        with pytest.raises(TimeoutError):
            file.write(b"x" * BIG)
        ends[1].sendall(b"a line\n")
        thread.join(REST)
    assert overridden.gettimeout() == 0.02


def test_a_file_that_reads_beside_a_write_with_a_time_limit_keeps_the_object_s_own(overridden, ends, background):
    overridden.settimeout(0.02)
    rio = Rio(overridden)
    thread = background(lambda: rio.writen(b"x" * BIG, timeout=REST))
    wait_for_timeout(overridden, REST)
    with rioecho.makefile(overridden, "rb") as file, pytest.raises(TimeoutError):
        file.readline()
    left = BIG
    while left:
        left -= len(ends[1].recv(1 << 20))
    thread.join(REST)
    assert overridden.gettimeout() == 0.02


def test_a_read_that_begins_beside_a_write_with_less_time_waits_for_its_own(overridden, ends, background):
    rio = Rio(overridden)
    over = threading.Event()

    def write():
        with pytest.raises(TimeoutError):
            rio.writen(b"x" * BIG, timeout=0.1)
        over.set()

    background(write)
    wait_for_timeout(overridden, 0.1)

    def answer():
        assert over.wait(REST)
        ends[1].sendall(b"a line\n")

    background(answer)
    assert rio.readline(timeout=REST) == b"a line\n"


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_thread_of_a_child_process_waits_as_long_as_it_is_told_though_the_main_thread_has_not_read(ends):
    rio = Rio(Timed(ends[0]))
    pid = os.fork()
    if pid == 0:
        status = []

        def read():
            for _ in range(2):
                try:
                    rio.readline(timeout=0.01)
                except TimeoutError:
                    status.append("timed out")

        try:
            thread = threading.Thread(target=read)
            thread.start()
            thread.join(REST)
        finally:
            os._exit(0 if status == ["timed out"] * 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_threads_that_read_one_file_of_an_object_take_turns(overridden, ends, background):
    got = []
    with rioecho.makefile(overridden, "rb") as file:
        readers = [background(lambda: got.append(file.readline())) for _ in range(2)]
        for reader in readers:
            until(lambda reader=reader: sleeps(reader) or sleeps(reader, locked=True), "a reader to wait")
        ends[1].sendall(b"one\n")
        ends[1].sendall(b"two\n")
        for reader in readers:
            reader.join(REST)
    assert sorted(got) == [b"one\n", b"two\n"]
