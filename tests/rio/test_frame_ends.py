"""The end of a ``frame()`` that something else brings about: a signal, another thread, a generator that is dropped."""

import contextlib
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import threading

import pytest

import rioecho
from rioecho import ConcurrentCall, Feed, Rio
from support.delivery import SocketLike

SECONDS = 20
DATA = b"one\ntwo\nthree\nfour\n"


class Interrupted(Exception):
    """Raised by the signal handler of a test, or to leave a block."""


@pytest.fixture
def ends():
    near, far = socket.socketpair()
    near.settimeout(SECONDS)
    with near, far:
        yield near, far


MADE = {
    "Rio": lambda near: Rio(near),
    "file of makefile": lambda near: rioecho.makefile(near, "rb"),
    "socket-like": lambda near: Rio(SocketLike(fileno=near.detach()), timeout=SECONDS, closefd=True),
}


@pytest.fixture(params=MADE)
def reader(request, ends):
    ends[1].sendall(DATA)
    with MADE[request.param](ends[0]) as reader:
        yield reader


def lines_in_a_frame(reader):
    """Yield two lines, read in a frame."""
    with reader.frame():
        yield reader.readline()
        yield reader.readline()


def in_thread(call, *arguments):
    """Run a call in another thread and return what it returns, or the exception."""
    got = []

    def run():
        try:
            got.append(call(*arguments))
        except Exception as error:
            got.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return got[0]


@contextlib.contextmanager
def during_a_call(rio, act):
    """Call ``act()`` from a signal handler, once, when it has interrupted a call of the block that reads."""
    acted = []

    def handler(*_):
        if not acted:
            try:
                rio.has_line()
            except ConcurrentCall:
                acted.append(True)
                act()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert acted


# ---- a frame that another thread, or nobody, leaves


def test_a_generator_that_is_closed_in_another_thread_undoes_its_frame(reader):
    generator = lines_in_a_frame(reader)
    assert next(generator) == b"one\n"
    assert in_thread(generator.close) is None
    assert in_thread(reader.readexactly, 8) == b"one\ntwo\n"


def test_a_generator_that_ends_in_another_thread_completes_its_frame(reader):
    generator = lines_in_a_frame(reader)
    assert [next(generator), next(generator)] == [b"one\n", b"two\n"]
    assert in_thread(next, generator, "ended") == "ended"
    assert in_thread(reader.readline) == b"three\n"


@pytest.mark.parametrize("where", [lambda call: call(), in_thread], ids=["here", "another thread"])
def test_a_generator_that_is_dropped_undoes_its_frame(reader, where):
    generators = [lines_in_a_frame(reader)]
    assert next(generators[0]) == b"one\n"
    where(generators.clear)
    assert in_thread(reader.readexactly, 8) == b"one\ntwo\n"


def test_a_generator_in_a_cycle_undoes_its_frame_when_it_is_collected(reader):
    generator = lines_in_a_frame(reader)
    assert next(generator) == b"one\n"
    cycle = [generator]
    cycle.append(cycle)
    del generator, cycle
    gc.collect()
    assert in_thread(reader.readexactly, 8) == b"one\ntwo\n"


def test_a_frame_whose_thread_has_ended_can_be_left_in_another(reader):
    frame = reader.frame()

    def read():
        frame.__enter__()
        return reader.readline()

    assert in_thread(read) == b"one\n"
    frame.__exit__(Interrupted, Interrupted(), None)
    assert reader.readline() == b"one\n"


def test_a_frame_cannot_be_left_during_a_call(ends):
    near, far = ends
    rio = Rio(near)
    frame = rio.frame()
    frame.__enter__()

    def leave():
        with pytest.raises(ConcurrentCall):
            frame.__exit__(None, None, None)
        far.sendall(b"one\n")

    with during_a_call(rio, leave):
        assert rio.readline() == b"one\n"
    frame.__exit__(Interrupted, Interrupted(), None)
    assert rio.readline() == b"one\n"


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("method", ["readlines", "read", "readuntil", "skip"])
def test_a_frame_that_is_dropped_during_a_call_is_undone_after_it(ends, method, nested):
    near, far = ends
    far.sendall(b"one\ntwo\nthree\n")
    rio = Rio(near)
    outer = rio.frame()
    if nested:
        outer.__enter__()
        assert rio.readline() == b"one\n"
    frames = [rio.frame()]
    frames[0].__enter__()
    while rio.buffered != 6:
        rio.readline()

    def drop():
        frames.clear()
        far.sendall(b"four\n")
        far.shutdown(socket.SHUT_WR)

    with during_a_call(rio, drop):
        if method == "readlines":
            assert rio.readlines() == [b"three\n", b"four\n"]
        elif method == "skip":
            assert rio.skip(99) == 11
        elif method == "read":
            assert rio.read() == b"three\nfour\n"
        else:
            assert rio.readuntil(b"four\n") == b"three\nfour\n"
    if nested:
        assert rio.readline() == b"two\n"
        with pytest.raises(Interrupted):
            raise leaving(outer)
    assert in_thread(rio.read) == b"one\ntwo\nthree\nfour\n"


def leaving(frame):
    error = Interrupted()
    frame.__exit__(Interrupted, error, None)
    return error


class Telling(SocketLike):
    """A socket that tells when a second read has begun."""

    def __init__(self, **options):
        super().__init__(**options)
        self.reads = 0
        self.second = threading.Event()

    def recv_into(self, *arguments):
        self.reads += 1
        if self.reads == 2:
            self.second.set()
        return super().recv_into(*arguments)


@pytest.mark.parametrize("kind", ["Rio", "file of makefile"])
def test_a_frame_that_another_thread_drops_during_a_call_is_undone_after_it(ends, kind):
    near, far = Telling(fileno=ends[0].detach()), ends[1]
    far.sendall(b"one\n")
    with near:
        reader = Rio(near) if kind == "Rio" else rioecho.makefile(near, "rb")
        frames, got = [reader.frame()], []

        def read():
            frames[0].__enter__()
            got.append(reader.readline())
            got.append(reader.readline())

        thread = threading.Thread(target=read)
        thread.start()
        assert near.second.wait(SECONDS)
        frames.clear()
        far.sendall(b"two\n")
        thread.join(SECONDS)
        assert got == [b"one\n", b"two\n"]
        assert reader.readexactly(8) == b"one\ntwo\n"


# ---- threads that wait for their turn


def test_close_of_a_file_waits_for_the_frame_of_another_thread(ends):
    near, far = ends
    far.sendall(b"one\ntwo\n")
    file = rioecho.makefile(near, "rb")
    with file.frame():
        assert file.readline() == b"one\n"
        thread = threading.Thread(target=file.close)
        thread.start()
        thread.join(0.05)
        assert not file.closed
        assert file.readline() == b"two\n"
    thread.join(SECONDS)
    assert file.closed


def test_threads_that_read_frames_from_a_file_take_turns(ends):
    near, far = ends
    pairs = 300
    far.sendall(b"".join(b"%d\n%d\n" % (i, i) for i in range(pairs)))
    file = rioecho.makefile(near, "rb")
    got = []

    def read():
        for _ in range(pairs // 3):
            with file.frame():
                got.append((file.readline(), file.readline()))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(got) == sorted((b"%d\n" % i, b"%d\n" % i) for i in range(pairs))


# ---- signal handlers that raise anywhere


@pytest.mark.parametrize("make", ["Rio", "Feed"])
@pytest.mark.parametrize("interruptions", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_handler_that_raises_at_any_point_of_a_frame_leaves_all_bytes_to_another_thread(ends, make, interruptions):
    near, far = ends
    data = DATA * 20
    if make == "Rio":
        reader = Rio(near)
        far.sendall(data)
        reader.fill(len(data))
    else:
        reader = Feed()
        reader.feed(data)
    chance = random.Random(1)
    count = 0

    def raise_in_frames(number, frame):
        nonlocal count
        count += 1
        if count < interruptions:
            # The interval is for a signal that CPython notices only with the next one.
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 2e-4), 1e-3)
        if frame.f_code is frames.__code__:  # else the test itself would be interrupted
            raise Interrupted

    def frames():
        while count < interruptions:
            with reader.frame():
                reader.readline()
                with reader.frame():
                    line = reader.readline()
                    reader.unread(line)
                with reader.frame():
                    reader.skip(3)
                raise Interrupted

    before = signal.signal(signal.SIGALRM, raise_in_frames)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-3)
        while count < interruptions:
            with contextlib.suppress(Interrupted):
                frames()
            assert reader.buffered == len(data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert in_thread(reader.read_buffered) == data


# ---- very many frames

# In a thread with a small stack, on which freeing one block from within another would not end.
NESTED = """if True:
    import socket, threading
    from rioecho import Rio

    def nest():
        near, far = socket.socketpair()
        rio = Rio(near)
        frames = [rio.frame() for _ in range(20_000)]
        for frame in frames:
            frame.__enter__()
        rio.close()
        del frame, frames, rio
        print("freed")

    threading.stack_size(256 << 10)
    thread = threading.Thread(target=nest)
    thread.start()
    thread.join()
"""


@pytest.mark.slow
def test_a_rio_that_is_closed_in_very_many_frames_is_freed():
    done = subprocess.run([sys.executable, "-P", "-c", NESTED], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr, done.returncode) == ("freed\n", "", 0)


# ---- large reads


def test_an_interrupted_large_read_is_continued_in_a_frame_and_after_it(ends):
    near, far = ends
    data = os.urandom(300_000)
    rio = Rio(near, timeout=0)
    sender = threading.Thread(target=far.sendall, args=(data,))
    sender.start()
    rio.fill(1, timeout=SECONDS)
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            rio.readexactly(len(data) + 1)
        with pytest.raises(BlockingIOError), rio.frame():
            rio.readexactly(5)
            rio.readexactly(len(data))
    with pytest.raises(Interrupted), rio.frame():
        assert rio.readexactly(len(data), timeout=SECONDS) == data
        raise Interrupted
    assert rio.readexactly(len(data)) == data
    sender.join(SECONDS)
