"""Run by test_green_sockets.py in a child process: a Rio over the sockets of a library that switches greenlets.

Usage: ``green_programs.py LIBRARY PROGRAM``. A greenlet that waits must let the others run, so each program has a
greenlet that counts, and would stop counting if a Rio blocked the thread.
"""

import random
import signal
import socket
import ssl
import sys
import time
from types import SimpleNamespace

import rioecho
from rioecho import ConcurrentCall, Rio

LONG = 60.0  # seconds after which a program fails
LINES = 100_000


def green_gevent():
    import gevent
    import gevent.monkey
    import gevent.socket

    def throw_after(seconds):
        timer = gevent.Timeout(seconds)
        timer.start()
        return timer

    return SimpleNamespace(
        spawn=gevent.spawn,
        wait=lambda thread: thread.get(timeout=LONG),
        kill=gevent.kill,
        sleep=gevent.sleep,
        socket=gevent.socket.socket,
        throw_after=throw_after,
        cancel=lambda timer: timer.close(),
        Thrown=gevent.Timeout,
        patch=gevent.monkey.patch_all,
    )


def green_eventlet():
    import eventlet
    import eventlet.green.socket

    return SimpleNamespace(
        spawn=eventlet.spawn,
        wait=lambda thread: thread.wait(),
        kill=eventlet.kill,
        sleep=eventlet.sleep,
        socket=eventlet.green.socket.socket,
        throw_after=eventlet.Timeout,
        cancel=lambda timer: timer.cancel(),
        Thrown=eventlet.Timeout,
        patch=eventlet.monkey_patch,
    )


class Ticks:
    """A greenlet that counts while others wait."""

    def __init__(self, green):
        self.green = green
        self.count = 0
        self.thread = green.spawn(self.run)

    def run(self):
        while True:
            self.green.sleep(0.001)
            self.count += 1

    def during(self, call, *arguments, **options):
        """Make a call that waits, and check that others ran meanwhile."""
        before = self.count
        try:
            return call(*arguments, **options)
        finally:
            assert self.count > before, "no other greenlet ran while this one waited"


def pair(green):
    """Return two connected sockets of the library."""
    plain = socket.socketpair()
    return [green.socket(each.family, each.type, each.proto, fileno=each.detach()) for each in plain]


def expect(error, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except error as caught:
        return caught
    raise AssertionError(f"{error.__name__} was not raised")


def wait(green):
    """A call that waits lets other greenlets run, ends in time and puts the socket's timeout back."""
    a, b = pair(green)
    ticks = Ticks(green)
    for file in Rio(a), rioecho.makefile(a, "rwb"):
        start = time.monotonic()
        ticks.during(expect, TimeoutError, file.readline, timeout=0.05)
        assert 0.04 < time.monotonic() - start < LONG / 2
        assert a.gettimeout() is None
        expect(BlockingIOError, file.readline, timeout=0)
        later = green.spawn(lambda: (green.sleep(0.05), b.sendall(b"here\n")))
        assert ticks.during(file.readline) == b"here\n"
        green.wait(later)
        error = ticks.during(expect, TimeoutError, file.writen, b"x" * (8 << 20), timeout=0.05)
        taken = 0
        while taken < error.characters_written:
            taken += len(b.recv(1 << 20))
        assert taken == error.characters_written
        assert a.gettimeout() is None
    a.settimeout(0.05)
    assert str(ticks.during(expect, TimeoutError, file.readline)) == "timed out"
    file.close()
    a.close()
    b.close()


def lines(green):
    """Lines with time-outs in their middle, thrown exceptions and kills: nothing is lost."""
    a, b = pair(green)
    chance = random.Random(9)
    expected = [b"%d " % number + b"x" * chance.randrange(40) + b"\n" for number in range(LINES)]

    def send():
        data = b"".join(expected)
        at = 0
        while at < len(data):
            size = chance.choice([1, 7, 100, 4096, 30_000])
            b.sendall(data[at : at + size])
            at += size
            if chance.random() < 0.3:
                green.sleep(chance.random() * 0.002)
        b.shutdown(socket.SHUT_WR)

    sender = green.spawn(send)
    rio = Rio(a, bufsize=5000)
    got = []
    broken = {"timeout": 0, "thrown": 0, "would block": 0}
    while True:
        timer = green.throw_after(0.0005) if chance.random() < 0.2 else None
        try:
            line = rio.readline(timeout=chance.choice([None, LONG, 0.0003, 0.001, 0]))
        except TimeoutError:
            broken["timeout"] += 1
        except BlockingIOError:
            broken["would block"] += 1
            green.sleep(0)
        except green.Thrown:
            broken["thrown"] += 1
        else:
            if not line:
                break
            got.append(line)
        finally:
            if timer is not None:
                green.cancel(timer)
    green.wait(sender)
    assert got == expected
    assert all(broken.values()), broken
    assert a.gettimeout() is None
    a.close()
    b.close()


def both(green):
    """A reader greenlet and a writer greenlet share a Rio; a second reader is refused."""
    a, b = pair(green)
    ticks = Ticks(green)
    rio = Rio(a)
    for end in a, b:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    total = 3 << 20

    def echo():
        while data := b.recv(1 << 16):
            b.sendall(data)

    def write():
        for at in range(total // 1000):
            if at % 10:
                rio.write(b"%09d\n" % at * 100)
            else:
                rio.writen(b"%09d\n" % at * 100)
        rio.flush()

    def read():
        return [rio.readexactly(1000, timeout=LONG) for _ in range(total // 1000)]

    echoing = green.spawn(echo)
    reading = green.spawn(read)
    writing = green.spawn(write)
    green.sleep(0)
    assert not isinstance(expect(ConcurrentCall, rio.readline), OSError)
    assert green.wait(reading) == [b"%09d\n" % at * 100 for at in range(total // 1000)]
    green.wait(writing)
    reading = green.spawn(rio.readline)
    green.sleep(0.01)
    expect(ConcurrentCall, rio.readline)
    green.kill(reading)
    ticks.during(green.sleep, 0.02)
    rio.writen(b"after the kill\n")
    assert rio.readline(timeout=LONG) == b"after the kill\n"
    a.close()
    green.wait(echoing)
    b.close()


def tied(green):
    """A read sends what is unsent while it waits, and stuck output keeps no line from it."""
    a, b = pair(green)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    rio = Rio(a, bufsize=1 << 20)
    ticks = Ticks(green)
    rio.write(b"question\n")
    answering = green.spawn(lambda: b.sendall(b"answer to " + b.recv(100)))
    assert rio.readline(timeout=LONG) == b"answer to question\n"
    green.wait(answering)
    rio.write(b"x" * 900_000)
    later = green.spawn(lambda: (green.sleep(0.3), b.sendall(b"a line\n")))
    used = time.process_time()
    assert ticks.during(rio.readline) == b"a line\n"
    green.wait(later)
    assert time.process_time() - used < 0.2, "the wait was a busy loop"
    taking = green.spawn(lambda: sum(len(b.recv(1 << 16)) for _ in iter(lambda: rio.closed, True)))
    expect(TimeoutError, rio.readline, timeout=0.5)
    assert rio.write(b"") == 0
    rio.flush(timeout=LONG)
    green.kill(taking)
    a.close()
    b.close()


def patched(green):
    """The library replaces the socket module's classes, after the package was imported or before."""
    green.patch()
    ticks = Ticks(green)
    socket.socket.makefile = rioecho.makefile
    a, b = socket.socketpair()
    later = green.spawn(lambda: (green.sleep(0.05), b.sendall("größer\n".encode())))
    with a.makefile("r", encoding="utf-8") as file:
        a.settimeout(LONG)
        assert ticks.during(file.readline) == "größer\n"
    green.wait(later)
    with a.makefile("rb") as file:
        assert isinstance(file, Rio)
        a.close()
        later = green.spawn(lambda: (green.sleep(0.05), b.sendall(b"one\n")))
        assert ticks.during(file.readline) == b"one\n"
    green.wait(later)
    assert a.fileno() == -1
    assert b.recv(1) == b""
    b.close()


def sigpipe(green):
    """The sends of two greenlets wait at the same time, and each meets the end of its peer."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    pairs = [[green.socket(fileno=end.detach()) for end in socket.socketpair()] for _ in range(2)]
    failed = []

    def send(near):
        expect((BrokenPipeError, ConnectionResetError), Rio(near).writen, bytes(1 << 24))
        failed.append(near)

    sending = [green.spawn(send, near) for near, _ in pairs]
    for _, far in pairs:
        assert Rio(far).readexactly(1 << 20, timeout=LONG)
    for thread, (near, far) in zip(sending, pairs, strict=True):
        assert near not in failed
        far.close()
        green.wait(thread)
        expect(BrokenPipeError, Rio(near).writen, b"x")
    assert signal.SIGPIPE not in signal.sigpending() | signal.pthread_sigmask(signal.SIG_BLOCK, [])


def tls(green):
    """A TLS socket of the library."""
    certificate = sys.argv[3]
    green.patch()
    a, b = socket.socketpair()

    def serve():
        far = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        far.load_cert_chain(certificate)
        with far.wrap_socket(b, server_side=True) as sock:
            for _ in range(20):
                sock.sendall(b"echo " + sock.recv(1000))
                green.sleep(0.02)

    serving = green.spawn(serve)
    near = ssl.create_default_context(cafile=certificate)
    ticks = Ticks(green)
    with near.wrap_socket(a, server_hostname="localhost") as sock:
        rio = Rio(sock)
        expect(TimeoutError, rio.readline, timeout=0.01)
        for number in range(20):
            rio.write(b"%d\n" % number)
            expect((TimeoutError, BlockingIOError), rio.readline, timeout=0)
            line = rio.readline(timeout=LONG)
            assert line == b"echo %d\n" % number, line
        assert ticks.count > 10
        green.wait(serving)


if __name__ == "__main__":
    library, program = sys.argv[1:3]
    globals()[program](globals()["green_" + library]())
    print("done")
