"""Random timeouts, signals and interruptions: the bytes read are those sent, in order.

RIOECHO_SOAK sets the duration in seconds, which the tests share.
"""

import os
import random
import signal
import threading
import time
from functools import partial

import pytest

from rioecho import Rio

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("RIOECHO_SOAK", "3"))
BLOCK = random.Random(0).randbytes(1 << 16).replace(b"\0", b"\n")


def stream_of(n, at=0):
    """Return n bytes of an endless stream, from position ``at``."""
    start = at % len(BLOCK)
    return (BLOCK * ((start + n) // len(BLOCK) + 1))[start : start + n]


def taken(result):
    """Return the bytes of a method's result, which may be a list of lines."""
    return b"".join(result) if isinstance(result, list) else result


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "not blocking"])
@pytest.mark.parametrize("kind", ["pipe", "socketpair", "tcp"])
def test_reads_under_a_storm_lose_nothing(wire, kind, blocking, storm, background):
    pair = wire(kind, blocking=blocking)
    stop = threading.Event()
    sent = 0

    def send():
        nonlocal sent
        chance = random.Random(1)
        while not stop.is_set():
            n = chance.choice([1, 10, 1000, 30_000])
            pair.feed(stream_of(n, sent))
            sent += n
            if chance.random() < 0.1:
                stop.wait(0.001)
        pair.end()

    sender = background(send)
    rio = Rio(pair.near, bufsize=1000, max_line=300)
    storm(random.Random(2), 0.0005)
    chance = random.Random(3)
    end = time.monotonic() + SECONDS / 10
    at = 0

    def check(got):
        nonlocal at
        assert got == stream_of(len(got), at)
        at += len(got)

    while time.monotonic() < end:
        n, rio.timeout = chance.choice([1, 50, 1500, 70_000]), chance.choice([0, 0.0005, 0.003])
        method = chance.choice(
            [rio.readline, rio.readlines1, rio.read1, rio.read_buffered, rio.peek]
            + [partial(each, n) for each in (rio.read, rio.readexactly, rio.readline, rio.readlines, rio.fill)]
            + [partial(rio.readuntil, BLOCK[:2], n), partial(rio.readuntil, b"\n\n", n)]
        )
        result, _ = storm.attempt(method)
        if method == rio.peek:
            assert (result or b"") == stream_of(len(result or b""), at)
        elif result is not None and not isinstance(result, int):
            check(taken(result))
    signal.setitimer(signal.ITIMER_REAL, 0)
    rio.timeout = 20
    stop.set()
    check(rio.read())
    sender.join(20)
    assert at == sent


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "not blocking"])
@pytest.mark.parametrize("kind", ["pipe", "socketpair"])
def test_writes_under_a_storm_send_each_byte_once(wire, kind, blocking, storm, background):
    outward = wire(kind, blocking=blocking, output=True)
    finished = threading.Event()
    written = 0

    def receive():
        chance = random.Random(1)
        at = 0
        while not (finished.is_set() and at == written):
            if not outward.readable(0.01):
                continue
            got = outward.take(chance.choice([1, 100, 5000, 60_000]))
            assert got == stream_of(len(got), at)
            at += len(got)

    receiver = background(receive)
    rio = Rio(outward.near, bufsize=1000)
    chance = random.Random(3)
    storm(random.Random(2), 0.0005)
    end = time.monotonic() + SECONDS / 10
    while time.monotonic() < end and receiver.is_alive():
        rio.timeout = chance.choice([0, 0.0005, 0.003])
        data = stream_of(chance.choice([1, 50, 999, 1000, 1001, 70_000]), written)
        half = len(data) // 2
        call = chance.choice([partial(rio.write, data), partial(rio.writen, data), rio.flush, None])
        if call is None:
            call = partial(rio.writelines, [data[:half], data[half:]])
        _, error = storm.attempt(call)
        if error is not None:
            written += getattr(error, "characters_written", 0)
        elif call != rio.flush:
            written += len(data)
    signal.setitimer(signal.ITIMER_REAL, 0)
    rio.flush(timeout=20)
    finished.set()
    receiver.join(20)
