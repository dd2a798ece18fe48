"""A call checks state only under its flag, so that Python code that runs in between cannot invalidate it.

Such code is a signal handler, a method of the source written in Python, another thread, a finalizer or the child of a
fork.
"""

import contextlib
import gc
import os
import pty
import random
import select
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
import tty
from functools import partial

import pytest

import rioecho
from rioecho import ConcurrentCall, Rio
from support import certificates
from support.delivery import SocketLike, wait_for_reader
from support.procfs import needs_proc, sleeps, until

REST = 30  # seconds after which a test fails

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
# These tests fork while threads are running; Python 3.12 and newer warn about that.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def terminal():
    """Return the descriptors of the master side and of the terminal itself, in raw mode."""
    far, near = pty.openpty()
    tty.setraw(near)
    yield far, near
    os.close(near)
    os.close(far)


class Source:
    """A descriptor whose ``fileno()`` runs Python code, ``meanwhile()``."""

    def __init__(self, fd):
        self.fd = fd
        self.meanwhile = lambda: None

    def fileno(self):
        self.meanwhile()
        return self.fd


def receive(fd, n):
    """Receive n bytes from a descriptor, and any others that are available."""
    parts = b""
    end = time.monotonic() + REST
    while time.monotonic() < end:
        if select.select([fd], [], [], 0 if len(parts) >= n else 0.1)[0]:
            parts += os.read(fd, 4096)
        elif len(parts) >= n:
            return parts
    return parts


def read_if_possible(rio):
    with contextlib.suppress(BlockingIOError, ConcurrentCall):
        rio.read1(timeout=0)


@pytest.mark.parametrize("size", [1, 1000])
def test_a_handler_that_empties_the_output_buffer_causes_no_extra_output_on_a_terminal(terminal, on_alarm, size):
    far, near = terminal
    rio = Rio(near, timeout=REST)
    on_alarm(lambda *_: read_if_possible(rio), 0.001, 0.001)
    for n in range(20):
        data = b"%c" % (97 + n) * size
        rio.write(data)
        rio.flush()
        assert receive(far, size) == data


@pytest.mark.parametrize("options", [{"timeout": REST}, {"timeout": None}], ids=["timeout", "no timeout"])
def test_a_fileno_that_empties_the_output_buffer_causes_no_extra_output(terminal, options):
    far, near = terminal
    source = Source(near)
    rio = Rio(source, **options)
    reading = []

    def read():
        if not reading:
            reading.append(True)
            read_if_possible(rio)
            reading.clear()

    for n in range(20):
        data = b"%c" % (97 + n) * 100
        rio.write(data)
        source.meanwhile = read
        rio.flush()
        source.meanwhile = lambda: None
        assert receive(far, 100) == data


@pytest.mark.parametrize("kind", ["terminal", "socket"])
def test_a_reader_and_a_writer_in_two_threads_send_each_byte_once(terminal, stream, background, kind):
    far, near = terminal if kind == "terminal" else (stream.far.fileno(), stream.near.fileno())
    source = Source(near)
    rio = Rio(source, timeout=REST)
    source.meanwhile = lambda: time.sleep(0)  # lets the other thread run
    stop = threading.Event()

    def read():
        while not stop.is_set():
            read_if_possible(rio)

    reader = background(read)
    sent, got = b"", b""
    for n in range(200):
        data = b"%c" % (97 + n % 26) * (n % 7 + 1)
        rio.write(data)
        rio.flush()
        sent += data
        got += receive(far, len(sent) - len(got))
        assert got == sent
    stop.set()
    reader.join(REST)


def test_the_end_of_a_terminal_s_input_does_not_wait_for_a_write_that_does(background):
    far, near = pty.openpty()  # in lines, so that control-D is the end
    rio = Rio(near)
    data = b"x" * 200_000
    writer = background(rio.writen, data)
    while select.select([], [near], [], 0)[1]:  # until it is full, and the writer waits
        os.sched_yield()
    ends = []
    reader = background(lambda: ends.append(rio.readline()))
    os.write(far, b"\x04")
    reader.join(REST / 3)
    ended = list(ends)
    assert receive(far, len(data)) == data
    writer.join(REST)
    os.close(near)
    os.close(far)
    assert ended == [b""]


@pytest.mark.parametrize("end", ["__del__", "close", "detach"])
def test_a_rio_cannot_be_closed_while_a_read_blocks(stream, background, end):
    rio = Rio(stream.near.detach(), closefd=True)
    lines = []
    thread = background(lambda: lines.append(rio.readline()))
    wait_for_reader(rio)
    for _ in range(3):
        if end == "__del__":
            rio.__del__()  # a finalizer cannot raise
            continue
        with pytest.raises(ConcurrentCall, match="reading"):
            getattr(rio, end)()
    stream.feed(b"x" * 100_000 + b"\n")
    thread.join(REST)
    assert lines == [b"x" * 100_000 + b"\n"]
    assert not rio.closed
    rio.close()


@pytest.mark.parametrize("owns", ["fd", "socket", "makefile"])
def test_a_finalizer_called_by_a_handler_during_a_read_has_no_effect(stream, on_alarm, owns):
    if owns == "makefile":
        rio = rioecho.makefile(stream.near, "rwb")
    else:
        rio = Rio(stream.near if owns == "socket" else stream.near.detach(), closefd=True)
    met = []

    def ring(*_):
        rio.__del__()
        met.append(rio.closed)
        stream.feed(b"line\n")

    on_alarm(ring, 0.005)
    assert rio.readline() == b"line\n"
    assert met == [False]
    rio.close()


def test_a_finalizer_closes_once_and_has_no_effect_after_close_or_detach(stream):
    fd = os.dup(stream.near.fileno())
    rio = Rio(fd, closefd=True)
    with pytest.warns(ResourceWarning, match="unclosed"):
        rio.__del__()
    assert rio.closed
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    rio.__del__()
    for end in (Rio.close, Rio.detach):
        rio = Rio(stream.near, closefd=end is Rio.detach)
        end(rio)
        rio.__del__()
        del rio
        gc.collect()
    assert os.fstat(stream.near.fileno())


def test_a_rio_without_references_continues_its_read(stream, background):
    lines = []
    fd = stream.near.detach()
    started = threading.Event()

    def read():
        started.set()
        lines.append(Rio(fd, closefd=True).readline())  # only the call keeps it alive

    def drop():
        with pytest.warns(ResourceWarning, match="unclosed"):
            read()

    thread = background(drop)
    started.wait(REST)
    gc.collect()
    stream.feed(b"line\n")
    thread.join(REST)
    assert lines == [b"line\n"]


# ---- forks


def in_child(work):
    """Fork and run ``work`` in the child, which must return in time without an exception and with signals unblocked."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.alarm(int(REST))
            assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
            work()
            assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@needs_fork
@forks
def test_the_reader_and_writer_of_the_parent_do_not_block_the_child_of_a_fork(wire, background):
    both = wire("socketpair")
    rio = Rio(both.near, timeout=REST, bufsize=4096)
    lines = []
    reader = background(lambda: lines.append(rio.readline()))
    data = b"x" * (8 << 20)
    writer = background(rio.writen, data)
    wait_for_reader(rio)
    while True:
        try:
            rio.writelines([])
            rio.write(b"")
        except ConcurrentCall:
            break

    def work():
        assert rio.read_buffered() == b""
        with pytest.raises(BlockingIOError):
            rio.readline(timeout=0)
        rio.close()
        assert rio.closed

    in_child(work)
    assert both.take_exactly(len(data)) == data
    both.feed(b"line\n")
    reader.join(REST)
    writer.join(REST)
    assert lines == [b"line\n"]


@needs_fork
@forks
@pytest.mark.parametrize("flag", ["reading", "writing"])
def test_a_call_interrupted_by_a_fork_in_a_handler_is_in_progress_in_the_child(wire, on_alarm, flag):
    both = wire("socketpair")
    rio = Rio(both.near, timeout=REST)
    call = partial(rio.readline) if flag == "reading" else partial(rio.writen, b"x" * (8 << 20))
    met = []

    def work():
        with pytest.raises(ConcurrentCall, match=flag):
            call()
        with pytest.raises(ConcurrentCall, match=flag):
            rio.close()

    def ring(*_):
        in_child(work)
        met.append(True)
        raise KeyError

    on_alarm(ring, 0.01)
    with pytest.raises(KeyError):
        call()
    assert met


@pytest.fixture(scope="module")
def contexts(certificate):
    """Return the SSL contexts of a server and of a client."""
    return certificates.contexts(certificate)


class SlowSocket(ssl.SSLSocket):
    """A TLS socket whose methods are Python code: one can be made to wait, in the middle of an operation of a Rio."""

    inside = None
    go = None
    asked = staticmethod(lambda: None)
    error = None

    def fileno(self):
        self.asked()
        return super().fileno()

    def settimeout(self, value):
        super().settimeout(value)
        if value != 0 and self.error is not None:
            error, self.error = self.error, None
            raise error
        if value == 0 and self.inside is not None and threading.current_thread() is not threading.main_thread():
            self.inside.set()
            self.go.wait(REST)


@pytest.fixture
def slow_tls(contexts, background):
    """Return the two sockets of a TLS connection: the Rio's, a SlowSocket, and the peer's."""
    server, client = contexts
    client.sslsocket_class = SlowSocket
    near, far = socket.socketpair()
    ends = []
    thread = background(lambda: ends.append(server.wrap_socket(far, server_side=True)))
    near = client.wrap_socket(near, server_hostname="localhost")
    client.sslsocket_class = ssl.SSLSocket
    thread.join(REST)
    near.settimeout(2 * REST)  # longer than that of a Rio, whose calls then set it to 0 for each record
    near.go = threading.Event()
    yield near, ends[0]
    near.go.set()
    near.close()
    ends[0].close()


@needs_fork
@forks
@pytest.mark.parametrize("closefd", [False, True], ids=["borrowed", "owned"])
def test_the_child_of_a_fork_does_not_use_tls_that_another_thread_was_using(slow_tls, background, closefd):
    near, far = slow_tls
    rio = Rio(near, timeout=REST, closefd=closefd)
    rio.write(b"held")
    near.inside = threading.Event()
    lines = []
    far.sendall(b"li")
    thread = background(lambda: lines.append(rio.readline()))
    near.inside.wait(REST)

    def work():
        for timeout in (0, 0.01, None):
            with pytest.raises(OSError, match="inside this TLS connection"):
                rio.read(1, timeout=timeout)
            with pytest.raises(OSError, match="inside this TLS connection"):
                rio.writen(b"x", timeout=timeout)
        with pytest.raises(OSError, match="inside this TLS connection"):
            Rio(near).read(1, timeout=None)
        assert rio.timeout == REST
        rio.close()
        assert rio.closed
        assert (near.fileno() == -1) == closefd

    in_child(work)
    near.go.set()
    assert far.recv(4) == b"held"
    far.sendall(b"ne\n")
    thread.join(REST)
    assert lines == [b"line\n"]
    rio.close()


@needs_fork
@forks
@needs_proc
def test_the_child_of_a_fork_does_not_send_beside_a_tls_read_of_the_parent(slow_tls, background):
    near, far = slow_tls
    rio = Rio(near, timeout=None)
    lines = []
    thread = background(lambda: lines.append(rio.readline()))
    until(lambda: sleeps(thread), "the read")

    def work():
        with pytest.raises(ConnectionAbortedError, match="inside this TLS connection"):
            rio.writen(b"x", timeout=REST)
        rio.close()

    in_child(work)
    rio.writen(b"question\n")
    assert far.recv(100) == b"question\n"
    far.sendall(b"line\n")
    thread.join(REST)
    assert lines == [b"line\n"]


class Held(SocketLike):
    """A socket whose reads wait until they are let go."""

    def __init__(self, **options):
        super().__init__(**options)
        self.begun, self.go = threading.Event(), threading.Event()

    def recv_into(self, *args):
        self.begun.set()
        self.go.wait(REST)
        return super().recv_into(*args)


@pytest.mark.long
@needs_fork
@forks
def test_the_child_of_a_fork_is_not_kept_waiting_by_a_write_of_the_parent_that_reads_ahead(stream, background):
    with Held(fileno=os.dup(stream.near.fileno())) as near:
        rio = Rio(near, timeout=REST)

        def write():
            with pytest.raises(TimeoutError):
                rio.writen(b"x" * 10**7, read_ahead=10, timeout=0.5)

        writer = background(write)
        assert near.begun.wait(REST)

        def work():
            near.begun = threading.Event()
            threading.Thread(target=rio.readline, daemon=True).start()
            assert near.begun.wait(REST)
            with pytest.raises(ConcurrentCall):
                rio.readline()

        in_child(work)
        near.go.set()
        writer.join(REST)


@needs_fork
@forks
def test_a_tls_call_interrupted_by_a_fork_continues(slow_tls, on_alarm):
    near, far = slow_tls
    rio = Rio(near, timeout=REST)

    def work():
        with pytest.raises(ConcurrentCall):
            rio.readline()

    def ring(*_):
        in_child(work)
        far.sendall(b"line\n")

    on_alarm(ring, 0.01)
    assert rio.readline() == b"line\n"


@needs_fork
def test_a_fork_while_the_first_rio_over_a_tls_socket_is_made_lets_both_go_on(slow_tls):
    near, _ = slow_tls
    pids = []
    calls = []

    def fork():
        calls.append(None)
        if len(calls) == 3:  # the two before are those of every Rio
            pids.append(os.fork())

    near.asked = fork
    status = 1
    try:
        assert Rio(near, timeout=REST).timeout == REST
        assert Rio(near, timeout=1).timeout == 1
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        if pids == [0]:
            sys.stderr.flush()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0


def test_what_the_end_of_a_tls_call_raises_comes_after_its_bytes_are_booked(slow_tls):
    near, far = slow_tls
    rio = Rio(near, timeout=REST)
    far.sendall(b"line\n")
    near.error = KeyError("reading")
    with pytest.raises(KeyError, match="reading"):
        rio.readline()
    assert rio.readline(timeout=0) == b"line\n"
    near.error = KeyError("nothing to read")
    with pytest.raises(KeyError, match="nothing"):
        rio.readline()
    assert near.gettimeout() == 2 * REST


def test_a_tls_call_keeps_its_timeout_while_another_is_in_progress(slow_tls, background):
    near, far = slow_tls
    first, second = Rio(near, timeout=REST), Rio(near, timeout=REST)
    near.inside = threading.Event()
    lines = []
    far.sendall(b"li")
    thread = background(lambda: lines.append(first.readline()))
    near.inside.wait(REST)
    before = time.monotonic()
    with pytest.raises(TimeoutError):
        second.read(1, timeout=0.05)
    with pytest.raises(TimeoutError):
        second.writen(b"x", timeout=0.05)
    assert time.monotonic() - before < REST / 2
    assert second.timeout == REST
    near.inside = None
    near.go.set()
    far.sendall(b"ne\n")
    thread.join(REST)
    assert lines == [b"line\n"]


SHARING = """if True:
    import gc, socket, ssl, threading, time, weakref

    class Slow(weakref.WeakValueDictionary):
        def __init__(self):
            time.sleep(0.05)  # lets the other threads run
            super().__init__()

    weakref.WeakValueDictionary = Slow
    import rioecho
    near, far = socket.socketpair()
    sock = ssl.create_default_context().wrap_socket(near, server_hostname="x", do_handshake_on_connect=False)
    gate = threading.Barrier(4)
    rios = []

    def make():
        gate.wait()
        rios.append(rioecho.Rio(sock))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(type(each).__name__ == "Tls" for each in gc.get_objects()))
    sock.close()
    far.close()
"""


def test_the_first_rios_over_a_tls_socket_share_it(child):
    assert child(SHARING) == "1\n"


# ---- properties during other calls


def check_properties(rio):
    """Check every property of a Rio, which another thread may close at any time."""
    assert rio.closed in (True, False)
    assert rio.timeout in (None, REST, 1.5)
    assert rio.max_line in (None, 1 << 20)
    assert repr(rio).startswith("<rioecho.Rio ")
    for look in (lambda: rio.buffered, rio.fileno, rio.readable, rio.writable, rio.seekable, rio.isatty):
        try:
            answer = look()
        except (ValueError, OSError):
            continue  # closed
        assert 0 <= answer <= 1 << 20, (look, answer)


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["socket", "makefile", "tls", "tls makefile"])
def test_properties_are_valid_while_other_threads_read_write_and_close(request, background, monkeypatch, kind):
    # Since Python 3.13 a file that cannot send its output in __del__() says so, once the peer has ended.
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))
    if kind.startswith("tls"):
        near, far = request.getfixturevalue("slow_tls")
    else:
        near, far = socket.socketpair()
        request.addfinalizer(near.close)
        request.addfinalizer(far.close)
    near.settimeout(REST)
    stop = threading.Event()
    current = [None]
    # The thread that closes the Rio opens the next one over the same socket.
    reopening = threading.Lock()

    def reopen():
        rio = Rio(near, timeout=REST) if "makefile" not in kind else rioecho.makefile(near, "rwb")
        current[0] = rio

    def use(call):
        def run():
            chance = random.Random(hash(call))
            while not stop.is_set():
                try:
                    call(current[0], chance)
                except (ConcurrentCall, ValueError, BlockingIOError):
                    os.sched_yield()
                except OSError:
                    if not stop.is_set():
                        raise

        return background(run)

    def read(rio, chance):
        rio.read(chance.choice([1, 10, 3000]), timeout=REST)

    def write(rio, chance):
        rio.write(b"x" * chance.choice([1, 100, 3000]))
        rio.timeout = chance.choice([REST, 1.5])

    def look(rio, chance):
        check_properties(rio)

    def close(rio, chance):
        if chance.random() < 0.01:
            with reopening:
                chance.choice([rio.close, rio.detach, rio.__del__])()
                if rio.closed:
                    reopen()

    def echo():
        far.settimeout(0.05)
        while not stop.is_set():
            with contextlib.suppress(OSError):
                far.sendall(far.recv(1 << 16) + b"x" * 1000)

    reopen()
    peer = background(echo)
    threads = [use(each) for each in (read, write, look, look, close)]
    time.sleep(float(os.environ.get("RIOECHO_SOAK_SECONDS", "0.3")))
    stop.set()
    far.settimeout(REST)
    peer.join(REST)
    far.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(REST)
    with contextlib.suppress(OSError):
        current[0].close()
    assert all(issubclass(kind_of_error, OSError) for kind_of_error in told)
