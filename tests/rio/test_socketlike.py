"""A Rio over an object that has I/O methods of its own, which nothing may bypass."""

import errno
import io
import os
import signal
import socket
import threading
import time
from functools import partial

import pytest

import rioecho
from rioecho import ConcurrentCall, Rio

REST = 3  # seconds after which a test fails


class Counting(socket.socket):
    """A socket that counts what its methods move, and one that can stand for any other hook."""

    received = sent = 0

    def recv_into(self, *args):
        count = super().recv_into(*args)
        self.received += count
        return count

    def send(self, *args):
        count = super().send(*args)
        self.sent += count
        return count


class OnlyRecv(socket.socket):
    def recv(self, *args):
        return super().recv(*args).upper()


class Bare:
    """An object with ``recv`` and ``send`` and nothing else. ``answer`` changes what they return."""

    def __init__(self, sock, answer=lambda result: result):
        self.sock = sock
        self.answer = answer

    def recv(self, n):
        return self.answer(self.sock.recv(n))

    def send(self, data):
        return self.answer(self.sock.send(data))


class Timed(Bare):
    """The same with a timeout, like a paramiko channel without a descriptor. ``set_to`` lists what was set."""

    def __init__(self, sock, answer=lambda result: result):
        super().__init__(sock, answer)
        self.set_to = []

    def settimeout(self, seconds):
        self.set_to.append(seconds)
        self.sock.settimeout(seconds)

    def gettimeout(self):
        return self.sock.gettimeout()


@pytest.fixture
def ends():
    """Return the two ends of a connection."""
    a, b = socket.socketpair()
    yield a, b
    a.close()
    b.close()


@pytest.fixture
def wrap(ends):
    """Return a function that makes an object of a class for one end. It is closed after the test."""
    made = []

    def make(kind):
        a, _ = ends
        sock = kind(fileno=a.detach()) if issubclass(kind, socket.socket) else kind(a)
        made.append(sock)
        return sock

    yield make
    for each in made:
        if isinstance(each, socket.socket):
            each.close()


# ---- which methods are used


@pytest.mark.parametrize("make", [Rio, lambda sock: rioecho.makefile(sock, "rwb")], ids=["Rio", "makefile"])
def test_overridden_methods_of_a_socket_are_called(ends, wrap, make):
    sock = wrap(Counting)
    file = make(sock)
    ends[1].sendall(b"hello\n")
    assert file.readline() == b"hello\n"
    assert sock.received == 6
    file.write(b"answer")
    file.flush()
    assert sock.sent == 6
    assert ends[1].recv(10) == b"answer"
    file.close()


def test_of_recv_and_recv_into_a_rio_calls_the_one_that_is_overridden(ends, wrap):
    sock = wrap(OnlyRecv)
    ends[1].sendall(b"a line\n")
    assert Rio(sock).readline() == b"A LINE\n"
    with rioecho.makefile(sock, "rb") as file:  # a SocketIO calls recv_into
        ends[1].sendall(b"a line\n")
        assert file.readline() == b"a line\n"


def test_the_lower_one_in_the_order_of_classes_is_called(ends, wrap):
    class Both(OnlyRecv):
        def recv_into(self, buffer):
            buffer[:4] = b"own\n"
            return 4

    class Below(Both):
        def recv(self, n):
            return b"lowest\n"

    assert Rio(wrap(Below)).readline() == b"lowest\n"


def test_a_method_that_is_set_on_the_object_is_called(ends, wrap):
    class Open(socket.socket):
        """A socket whose objects take attributes."""

    sock = wrap(Open)

    def put(view):
        view[:5] = b"mine\n"
        return 5

    sock.recv_into = put
    assert Rio(sock).readline() == b"mine\n"


def test_a_subclass_that_overrides_no_method_of_these_is_used_by_its_descriptor(ends, wrap):
    class Named(socket.socket):
        def settimeout(self, seconds):
            super().settimeout(seconds)

    sock = wrap(Named)
    assert repr(Rio(sock)) == f"<rioecho.Rio fd={sock.fileno()}>"


@pytest.mark.parametrize("lacking", ["send", "recv"])
def test_an_object_with_half_of_the_methods_is_refused_with_the_name_of_the_other(lacking):
    methods = {"recv": lambda self, n: b"", "sendall": lambda self, data: None, "send": lambda self, data: len(data)}
    del methods[lacking]
    half = type("Half", (), methods)()
    with pytest.raises(TypeError, match=rf"^Half has no {lacking}\(\)"):
        Rio(half)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_an_object_that_carries_packets_is_refused(kind):
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    with a, b, Counting(fileno=a.detach()) as sock, pytest.raises(TypeError, match="packets"):
        Rio(sock)


def test_the_raw_file_of_a_socket_is_used_by_the_methods_of_that(ends, wrap):
    sock = wrap(Counting)
    with sock.makefile("rb", 0) as raw:
        ends[1].sendall(b"hello\n")
        assert Rio(raw).readline() == b"hello\n"
    assert sock.received == 6


# ---- objects without a descriptor or a timeout


def test_a_bare_object_is_a_stream(ends, wrap):
    source = wrap(Bare)
    rio = Rio(source)
    ends[1].sendall(b"one\ntwo")
    rio.write(b"tied")
    assert rio.readline() == b"one\n"
    assert ends[1].recv(10) == b"tied"
    assert rio.buffered == 3
    assert rio.readable()
    assert rio.writable()
    assert not rio.isatty()
    assert rio.timeout is None
    with pytest.raises(io.UnsupportedOperation):
        rio.fileno()
    ends[1].shutdown(socket.SHUT_WR)
    assert rio.read() == b"two"
    assert rio.detach() == (source, b"")


def test_a_timeout_for_an_object_that_has_none_is_a_value_error(ends, wrap):
    source = wrap(Bare)
    with pytest.raises(ValueError, match="settimeout"):
        Rio(source, timeout=1)
    rio = Rio(source)
    for call in (
        lambda: rio.readline(timeout=1),
        lambda: rio.readline(timeout=0),
        lambda: rio.writen(b"x", timeout=1),
        lambda: setattr(rio, "timeout", 1),
    ):
        with pytest.raises(ValueError, match="settimeout"):
            call()
    rio.timeout = None
    ends[1].sendall(b"still\n")
    assert rio.readline() == b"still\n"


def test_an_owner_closes_the_object_by_its_own_method(ends):
    class Closing(Bare):
        closed = False

        def close(self):
            self.closed = True

    source = Closing(ends[0])
    with Rio(source, closefd=True) as rio:
        rio.write(b"last")
    assert source.closed
    assert ends[1].recv(10) == b"last"


# ---- time


@pytest.mark.parametrize("kind", [Counting, Timed])
@pytest.mark.parametrize("own", [None, 0, 5])
def test_a_timeout_limits_the_call_and_the_object_keeps_its_own(ends, wrap, kind, own):
    source = wrap(kind)
    source.settimeout(own)
    rio = Rio(source)
    assert rio.timeout == own
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.05)
    assert 0.05 <= time.monotonic() - start < REST
    with pytest.raises(BlockingIOError):
        rio.readline(timeout=0)
    assert source.gettimeout() == own
    ends[1].sendall(b"a line\n")
    assert rio.readline(timeout=REST) == b"a line\n"
    with pytest.raises(TimeoutError) as caught:
        rio.writen(b"x" * (1 << 22), timeout=0.05)
    assert 0 < caught.value.characters_written < 1 << 22
    assert source.gettimeout() == own


def test_a_timeout_is_for_the_whole_call(ends, wrap, background):
    rio = Rio(wrap(Counting))
    stop = threading.Event()

    def drip():
        while not stop.wait(0.005):
            ends[1].sendall(b"x")

    background(drip)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.1)
    stop.set()
    assert 0.1 <= time.monotonic() - start < REST
    assert rio.read_buffered().strip(b"x") == b""


def test_the_timeout_of_a_file_is_the_object_s_and_is_not_set(ends, wrap):
    sock = wrap(Counting)
    with rioecho.makefile(sock, "rb") as file:
        sock.settimeout(0.02)
        sock.__class__ = NeverSet
        with pytest.raises(TimeoutError, match=r"^timed out$"):
            file.readline()
        ends[1].sendall(b"late\n")
        assert file.readline() == b"late\n"


class NeverSet(Counting):
    def settimeout(self, seconds):
        raise AssertionError("settimeout() was called")


def test_without_a_limit_the_timeout_is_not_set(ends, wrap):
    source = wrap(Timed)
    rio = Rio(source)
    ends[1].sendall(b"1\n")
    rio.readline()
    rio.writen(b"2")
    assert source.set_to == []


@pytest.mark.long
def test_an_object_that_others_made_non_blocking_is_polled(ends, wrap, background):
    sock = wrap(Counting)
    os.set_blocking(sock.fileno(), False)
    rio = Rio(sock)
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.02)
    os.set_blocking(sock.fileno(), False)
    timer = threading.Timer(0.2, ends[1].sendall, [b"a line\n"])
    timer.start()
    used = time.process_time()
    assert rio.readline() == b"a line\n"
    assert time.process_time() - used < 0.1
    timer.join(REST)


def test_an_object_that_was_set_by_another_meanwhile_keeps_that(ends, wrap, background):
    source = wrap(Timed)
    rio = Rio(source)
    seen = threading.Event()
    original = source.recv

    def recv(n):
        seen.set()
        return original(n)

    source.recv = recv
    rio = Rio(source)
    thread = background(lambda: rio.readline(timeout=REST))
    seen.wait(REST)
    source.settimeout(7)
    ends[1].sendall(b"a line\n")
    thread.join(REST)
    assert source.gettimeout() == 7


# ---- both directions


@pytest.mark.long
def test_output_that_is_stuck_keeps_no_line_from_a_read_and_the_wait_costs_no_time(ends, wrap, background):
    rio = Rio(wrap(Counting), bufsize=1 << 20)
    rio.write(b"x" * 1_000_000)
    timer = threading.Timer(0.3, ends[1].sendall, [b"a line\n"])
    timer.start()
    used = time.process_time()
    assert rio.readline() == b"a line\n"
    assert time.process_time() - used < 0.15
    timer.join(REST)
    with pytest.raises(TimeoutError):
        rio.readline(timeout=0.05)
    taken = bytearray()
    while len(taken) < 100_000:
        taken += ends[1].recv(1 << 16)
    with pytest.raises(TimeoutError):  # sends what the peer has made room for
        rio.readline(timeout=0.05)
    ends[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            taken += ends[1].recv(1 << 16)
    ends[1].setblocking(True)

    def drain():
        while len(taken) < 1_000_000:
            taken.extend(ends[1].recv(1 << 16))

    thread = background(drain)
    rio.flush(timeout=REST)
    thread.join(REST)
    assert taken == b"x" * 1_000_000


def test_one_reader_and_one_writer_work_at_the_same_time(ends, wrap, background):
    source = wrap(Timed)
    rio = Rio(source, timeout=REST)
    total = 2 << 20

    def echo():
        left = total
        while left:
            data = ends[1].recv(1 << 16)
            left -= len(data)
            ends[1].sendall(data)

    background(echo)
    got = []
    reader = background(lambda: got.append(rio.readexactly(total)))
    for _ in range(total // 1024):
        rio.write(b"x" * 1000)
        rio.writen(b"y" * 24)
    reader.join(REST)
    assert got == [(b"x" * 1000 + b"y" * 24) * (total // 1024)]
    assert source.gettimeout() is None


def test_a_call_of_the_same_side_from_within_the_object_is_refused(ends):
    class Inside(Bare):
        def recv(self, n):
            with pytest.raises(ConcurrentCall):
                rio.readline()
            rio.write(b"other side, ")
            rio.writen(b"sent\n")
            return super().recv(n)

        def send(self, data):
            with pytest.raises(ConcurrentCall):
                rio.writen(data)
            return super().send(data)

    rio = Rio(Inside(ends[0]))
    ends[1].sendall(b"a line\n")
    assert rio.readline() == b"a line\n"
    assert ends[1].recv(100) == b"other side, sent\n"


def test_a_reset_that_a_write_was_told_of_is_no_end_for_the_reader(ends):
    class Reset(Timed):
        def send(self, data):
            raise ConnectionResetError(errno.ECONNRESET, "reset")

    rio = Rio(Reset(ends[0]))
    ends[1].sendall(b"half")
    ends[1].shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError):
        rio.writen(b"x")
    with pytest.raises(ConnectionResetError):
        rio.read()
    assert rio.read_buffered() == b"half"


# ---- errors


def test_an_error_of_sending_that_a_read_meets_is_kept_for_the_next_write(ends):
    class Failing(Timed):
        def send(self, data):
            raise LookupError("no such stream")

    rio = Rio(Failing(ends[0]))
    rio.write(b"x")
    ends[1].sendall(b"a line\n")
    assert rio.readline() == b"a line\n"
    with pytest.raises(LookupError):
        rio.flush()
    with pytest.raises(LookupError):
        rio.close()


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (lambda result: b"x" * 100_000, OSError, "returned 100000 bytes, not 65536 at most"),
        (lambda result: "text", TypeError, "bytes-like"),
    ],
)
def test_what_recv_must_not_return_is_a_clear_error(ends, answer, error, text):
    ends[1].sendall(b"x")
    with pytest.raises(error, match=text):
        Rio(Bare(ends[0], answer)).readline()


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (lambda result: None, TypeError, r"send\(\) of Bare returned None"),
        (lambda result: result + 1, OSError, r"send\(\) of Bare returned 4, not 0 to 3"),
        (lambda result: -1, OSError, r"send\(\) of Bare returned -1, not 0 to 3"),
        (lambda result: 0, BrokenPipeError, r"send\(\) of Bare sends nothing"),
        (lambda result: "3", TypeError, "int"),
    ],
)
def test_what_send_must_not_return_is_a_clear_error(ends, answer, error, text):
    with pytest.raises(error, match=text):
        Rio(Bare(ends[0], answer)).writen(b"abc")


def test_recv_into_must_not_return_more_than_fits(ends, wrap):
    class Liar(socket.socket):
        def recv_into(self, view):
            return len(view) + 1

    with pytest.raises(OSError, match="returned 65537, not 0 to 65536"):
        Rio(wrap(Liar)).readline()


def test_none_is_no_data(ends):
    rio = Rio(Bare(ends[0], lambda result: None))
    ends[1].sendall(b"x")
    with pytest.raises(BlockingIOError):
        rio.readline()


def test_an_error_of_the_object_is_raised_unchanged(ends):
    error = RuntimeError("mine")

    class Failing(Timed):
        def recv(self, n):
            raise error

    with pytest.raises(RuntimeError) as caught:
        Rio(Failing(ends[0])).readline(timeout=1)
    assert caught.value is error


def test_a_connection_that_timed_out_in_tcp_is_not_taken_for_the_end_of_the_wait(ends):
    class Dead(Timed):
        def recv(self, n):
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    with pytest.raises(TimeoutError, match="Connection timed out"):
        Rio(Dead(ends[0])).readline(timeout=REST)


def test_a_signal_handler_that_raises_in_a_wait_loses_nothing(ends, wrap, alarm):
    source = wrap(Timed)
    source.settimeout(9)
    rio = Rio(source)
    ends[1].sendall(b"half a li")
    rio.fill(9)
    alarm(0.02)
    with pytest.raises(alarm.error):
        rio.readline(timeout=REST)
    assert source.gettimeout() == 9
    ends[1].sendall(b"ne\n")
    assert rio.readline() == b"half a line\n"


@pytest.mark.parametrize("error", [TimeoutError("mine"), InterruptedError("mine")])
def test_what_a_signal_handler_raises_is_not_taken_for_the_object_s(ends, wrap, on_alarm, error):
    rio = Rio(wrap(Timed))

    def handler(signum, frame):
        raise error

    on_alarm(handler, 0.02)
    with pytest.raises(type(error)) as caught:
        rio.readline(timeout=REST)
    assert caught.value is error


@pytest.fixture
def on_signal():
    """Return a function that installs a handler of SIGUSR1."""
    before = signal.getsignal(signal.SIGUSR1)
    yield partial(signal.signal, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


class Handler:
    """A signal handler of several kinds, which raises ``error`` after ``first()``."""

    def __init__(self, error, first=lambda: None):
        self.error = error
        self.first = first

    def __call__(self, signum, frame):
        self.first()
        raise self.error

    def method(self, signum, frame):
        self(signum, frame)

    def further(self, more, signum, frame):
        self(signum, frame)

    def function(self):
        return lambda signum, frame: self(signum, frame)


HANDLERS = {
    "function": Handler.function,
    "method": lambda handler: handler.method,
    "partial": lambda handler: partial(handler.further, "more"),
    "object": lambda handler: handler,
}


@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("kind_of_error", [TimeoutError, BlockingIOError])
def test_what_a_handler_raises_at_the_end_of_the_wait_is_not_taken_for_the_object_s(
    ends, on_signal, kind, kind_of_error
):
    error = kind_of_error("mine")

    class Late(Timed):
        def recv(self, n):
            try:
                return super().recv(n)
            except TimeoutError:
                signal.raise_signal(signal.SIGUSR1)
                raise

    rio = Rio(Late(ends[0]))
    on_signal(HANDLERS[kind](Handler(error)))
    with pytest.raises(type(error)) as caught:
        rio.readline(timeout=0.01)
    assert caught.value is error


@pytest.mark.parametrize("kind_of_error", [TimeoutError, BlockingIOError])
def test_what_a_handler_raises_in_a_read_beside_a_write_is_not_taken_for_the_object_s(
    ends, on_signal, background, kind_of_error
):
    error = kind_of_error("mine")

    class Both(Timed):
        sends = threading.Event()
        may_send = threading.Event()

        def recv(self, n):
            if not self.may_send.is_set():
                signal.raise_signal(signal.SIGUSR1)
            return super().recv(n)

        def send(self, data):
            self.sends.set()
            assert self.may_send.wait(REST)
            return super().send(data)

    def answer():
        source.may_send.set()
        ends[1].sendall(b"a line\n")

    source = Both(ends[0])
    rio = Rio(source)
    on_signal(Handler(error, answer))
    writer = background(lambda: rio.writen(b"x", timeout=REST))  # which limits the read too, so it may end early
    assert source.sends.wait(REST)
    with pytest.raises(type(error)) as caught:
        rio.readline(timeout=REST + 9)
    assert caught.value is error
    assert rio.readline(timeout=REST) == b"a line\n"
    writer.join(REST)
    assert ends[1].recv(2) == b"x"


def test_a_handler_that_raises_while_the_timeout_is_put_back_loses_no_byte(ends):
    class Raising(Timed):
        def settimeout(self, seconds):
            super().settimeout(seconds)
            if seconds is None:
                raise KeyboardInterrupt

    source = Raising(ends[0])
    rio = Rio(source)
    ends[1].sendall(b"a line\n")
    with pytest.raises(KeyboardInterrupt):
        rio.readline(timeout=1)
    assert rio.read_buffered() == b"a line\n"
    assert source.gettimeout() is None
    with pytest.raises(KeyboardInterrupt) as caught:
        rio.writen(b"sent", timeout=1)
    assert caught.value.characters_written == 4


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_process_goes_on_where_its_parent_waited(ends, wrap, background):
    source = wrap(Timed)
    rio = Rio(source)
    thread = background(lambda: rio.readline(timeout=REST))
    while source.gettimeout() is None:
        os.sched_yield()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            rio.readline(timeout=0.01)
        except TimeoutError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    ends[1].sendall(b"the parent's\n")
    thread.join(REST)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_process_sends_what_its_parent_was_sending(ends, wrap, background):
    parent = os.getpid()
    begun, finish = threading.Event(), threading.Event()

    class Held(Timed):
        def send(self, data):
            if os.getpid() == parent:
                begun.set()
                assert finish.wait(REST)
            return super().send(data)

    rio = Rio(wrap(Held))
    rio.write(b"question\n")
    thread = background(rio.flush)
    assert begun.wait(REST)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if rio.readline(timeout=REST) == b"answer\n":
                status = 0
        finally:
            os._exit(status)
    ends[1].settimeout(REST)
    assert ends[1].recv(100) == b"question\n"
    ends[1].sendall(b"answer\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finish.set()
    thread.join(REST)
    assert ends[1].recv(100) == b"question\n"


def test_repr_names_the_object_and_closefd_needs_one_that_can_be_closed(stream):
    source = Bare(stream.near)
    assert repr(Rio(source)) == f"<rioecho.Rio over {source!r}>"
    with pytest.raises(TypeError, match="closefd"):
        Rio(source, closefd=True)
    stream.feed(b"line\n")
    assert Rio(source).readline() == b"line\n"
