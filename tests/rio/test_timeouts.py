"""A timeout limits the whole call, on the monotonic clock; 0 does not block; signals do not renew it."""

import os
import socket
import threading
import time

import pytest

from rioecho import Rio
from support.delivery import Wire, fileno

#: Seconds within which a call with a short timeout must return. The wrong timeout would be longer, and a busy machine
#: needs less.
SOON = 10

CALLS = {
    "readline": lambda rio, **timeout: rio.readline(**timeout),
    "readline with a limit": lambda rio, **timeout: rio.readline(10**6, **timeout),
    "read, some": lambda rio, **timeout: rio.read(60_000, **timeout),
    "read, more than the buffer": lambda rio, **timeout: rio.read(10**9, **timeout),
    "read to the end": lambda rio, **timeout: rio.read(**timeout),
    "readexactly": lambda rio, **timeout: rio.readexactly(60_000, **timeout),
    "readuntil": lambda rio, **timeout: rio.readuntil(b"\r\n", **timeout),
    "readlines1": lambda rio, **timeout: rio.readlines1(**timeout),
    "fill": lambda rio, **timeout: rio.fill(60_000, **timeout),
    "skipline": lambda rio, **timeout: rio.skipline(**timeout),
    "iteration": lambda rio, timeout=None: next(rio),
    "readlines": lambda rio, timeout=None: rio.readlines(),
    "readinto": lambda rio, timeout=None: rio.readinto(bytearray(60_000)),
    "readinto, more than the buffer": lambda rio, timeout=None: rio.readinto(bytearray(10**6)),
}


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


@pytest.fixture
def dripping(background):
    """Return a function that makes the peer send a byte every 5 ms, ``dripping(wire)``."""
    stop = threading.Event()

    def drip(wire):
        while not stop.wait(0.005):
            wire.feed(b"x")

    yield lambda wire: background(drip, wire)
    stop.set()


def elapsed(function, *arguments, error=TimeoutError, **options):
    """Return the time in seconds until a call raises."""
    start = time.monotonic()
    with pytest.raises(error):
        function(*arguments, **options)
    return time.monotonic() - start


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("kind", ["pipe", "socketpair", "tcp", "pty"])
def test_a_timeout_of_zero_does_not_block_and_raises_blocking_io_error(wire, call, kind, blocking):
    rio = Rio(wire(kind, blocking=blocking).near, timeout=0)
    # The minimum, because a busy machine may delay some of the calls.
    assert min(elapsed(call, rio, timeout=0, error=BlockingIOError) for _ in range(5)) < 0.05


@pytest.mark.sampled(8)
def test_a_timeout_ends_the_call_and_not_too_early(pair, call):
    rio = Rio(pair.near, timeout=0.03)
    assert 0.03 <= elapsed(call, rio, timeout=0.03) < SOON


@pytest.mark.sampled(4)
def test_a_peer_that_drips_does_not_renew_the_timeout(pair, call, dripping):
    dripping(pair)
    rio = Rio(pair.near, timeout=0.06)
    assert 0.06 <= elapsed(call, rio, timeout=0.06) < SOON


INSATIABLE = ["readline", "read, more than the buffer", "read to the end", "readuntil", "readlines", "skipline"]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", INSATIABLE)
@pytest.mark.parametrize("kind", ["pipe", "socketpair", "tcp"])
def test_a_flood_does_not_keep_a_call_beyond_its_timeout(wire, kind, name, background):
    flooded = wire(kind)
    stop = threading.Event()
    os.set_blocking(fileno(flooded.far), False)

    def flood():
        while not stop.is_set():
            try:
                os.write(fileno(flooded.far), b"x" * 65536)
            except BlockingIOError:
                os.sched_yield()

    thread = background(flood)
    rio = Rio(flooded.near, timeout=0.05, max_line=None, bufsize=1024)
    rio.fill(1, timeout=20)  # the flood has begun
    assert 0.05 <= elapsed(CALLS[name], rio, timeout=0.05) < SOON
    assert rio.buffered > 1024
    stop.set()
    thread.join(20)


def test_an_expired_timeout_does_not_prevent_returning_buffered_bytes(pair):
    rio = Rio(pair.near)
    pair.feed(b"line\nmore")
    rio.fill(9, timeout=20)
    assert rio.readline(timeout=0) == b"line\n"
    assert rio.read(4, timeout=1e-9) == b"more"


@pytest.mark.parametrize(
    ("timeout", "inherited"), [(None, None), (0.25, 0.25), (0, 0.0)], ids=["none", "seconds", "non-blocking"]
)
def test_the_timeout_of_a_python_socket_is_inherited(stream, timeout, inherited):
    stream.near.settimeout(timeout)
    assert Rio(stream.near).timeout == inherited
    assert Rio(stream.near.fileno()).timeout is None
    assert Rio(stream.near, timeout=7).timeout == 7
    assert Rio(stream.near, timeout=None).timeout is None


def test_an_inherited_timeout_limits_the_whole_call(stream, dripping):
    stream.near.settimeout(0.05)
    dripping(stream)
    assert 0.05 <= elapsed(Rio(stream.near).readline) < SOON


def test_the_timeout_of_a_call_overrides_that_of_the_rio(stream):
    rio = Rio(stream.near, timeout=0)
    assert 0.02 <= elapsed(rio.readline, timeout=0.02) < SOON
    assert min(elapsed(rio.readline, error=BlockingIOError) for _ in range(5)) < 0.05
    rio = Rio(stream.near, timeout=0.001)
    stream_end = threading.Timer(0.05, stream.end)
    stream_end.start()
    assert rio.readline(timeout=None) == b""
    stream_end.join()


WRITES = {
    "writen": lambda rio, data: rio.writen(data, timeout=0.05),
    "write": lambda rio, data: rio.write(data),
    "writelines": lambda rio, data: rio.writelines([data] * 100),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_slow_reader_does_not_renew_the_timeout_of_a_write(pair, write, background, wire):
    outward = wire(pair.kind, output=True)
    rio = Rio(outward.near, timeout=0.05)
    stop = threading.Event()

    def sip():
        while not stop.wait(0.005):
            if outward.readable():
                outward.take(2000)

    thread = background(sip)
    assert 0.05 <= elapsed(write, rio, b"x" * (8 << 20)) < SOON
    stop.set()
    thread.join(20)


def test_a_flush_has_a_timeout(pair, wire):
    outward = wire(pair.kind, output=True)
    rio = Rio(outward.near, bufsize=8 << 20, timeout=20)
    rio.write(b"x" * (4 << 20))
    assert 0.03 <= elapsed(rio.flush, timeout=0.03) < SOON
    assert min(elapsed(rio.flush, timeout=0, error=BlockingIOError) for _ in range(5)) < 1
    rio.timeout = 0
    with pytest.raises(BlockingIOError):
        rio.close()


@pytest.mark.sampled(2)
def test_signal_handlers_run_and_the_call_continues_with_the_time_left(pair, call, on_alarm):
    rings = []
    on_alarm(lambda *_: rings.append(None), 0.005, 0.005)
    rio = Rio(pair.near, timeout=0.1)
    assert 0.1 <= elapsed(call, rio, timeout=0.1) < SOON
    assert rings


def test_signal_handlers_run_in_a_read_without_a_timeout(pair, on_alarm):
    rings = []

    def ring(signum, frame):
        rings.append(None)
        if len(rings) == 3:
            pair.feed(b"line\n")

    rio = Rio(pair.near)
    on_alarm(ring, 0.003, 0.003)
    assert rio.readline() == b"line\n"
    assert len(rings) >= 3


def test_signal_handlers_run_in_a_write_without_a_timeout(pair, wire, on_alarm, background):
    outward = wire(pair.kind, output=True)
    rio = Rio(outward.near)
    data = b"x" * (1 << 20)
    rings, taken = [], []

    def ring(signum, frame):
        rings.append(None)
        if len(rings) == 3:
            background(lambda: taken.append(outward.take_exactly(len(data))))

    on_alarm(ring, 0.003, 0.003)
    assert rio.writen(data) == len(data)
    assert len(rings) >= 3


def test_a_handler_runs_even_if_the_call_never_waits(wire, alarm):
    zeros = os.open("/dev/zero", os.O_RDONLY)
    try:
        rio = Rio(zeros, max_line=None, timeout=60)
        with pytest.raises(alarm.error):
            alarm(0.01)
            rio.skipline()
    finally:
        os.close(zeros)


def test_shutting_down_the_peer_ends_a_wait(background):
    wire = Wire("socketpair")
    try:
        rio = Rio(wire.near, timeout=20)
        background(wire.far.shutdown, socket.SHUT_RDWR)
        assert rio.readline() == b""
    finally:
        wire.close()
