"""Fixtures for every test file. What tests import by name is in support/."""

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rioecho import LineTooLong
from support.delivery import Wire
from support.sampling import mark_the_rest_slow

DESCRIPTORS = Path("/dev/fd")

# A shell starts what it puts in the background with SIGINT ignored, nohup with SIGHUP, and children inherit that; they
# do not inherit a handler.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items):
    mark_the_rest_slow(items)


def open_descriptors():
    """The numbers of this process's open descriptors, that of the listing itself left out."""
    numbers = set()
    for number in map(int, os.listdir(DESCRIPTORS)):
        try:
            os.fstat(number)
        except OSError:
            continue
        numbers.add(number)
    return numbers


@pytest.fixture(autouse=True)
def no_descriptor_leaks():
    """Every descriptor that a test opened is closed when it ends."""
    if not DESCRIPTORS.is_dir():
        yield
        return
    before = open_descriptors()
    yield
    if open_descriptors() - before:
        gc.collect()
    leaked = open_descriptors() - before
    assert not leaked, f"descriptors left open: {sorted(leaked)}"


@pytest.fixture
def wire(request):
    """Open wires by kind, `wire("tcp")`, and close what the test leaves open."""
    opened = []

    def open_wire(kind, *, blocking=True, output=False):
        opened.append(Wire(kind, blocking=blocking, output=output))
        return opened[-1]

    yield open_wire
    for each in opened:
        each.close()


@pytest.fixture(params=["pipe", "socketpair", "tcp", "pty"])
def pair(request, wire):
    """A wire of each kind on which a reader can be made to wait."""
    return wire(request.param)


@pytest.fixture
def stream(wire):
    """A wire with both directions, on which what is sent has arrived at once."""
    return wire("socketpair")


@pytest.fixture
def background():
    """Run a function in a thread, `background(function, *args)`; the join is bounded and its error raised."""
    started = []

    def start(function, *arguments):
        errors = []

        def run():
            try:
                function(*arguments)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        started.append((thread, errors))
        thread.start()
        return thread

    yield start
    for thread, errors in started:
        thread.join(30)
        assert not thread.is_alive(), "a thread of the test did not end"
        if errors:
            raise errors[0]


class Alarm(Exception):
    """What the raising signal handler raises."""


def do_nothing(signum, frame):
    """Handle a signal that nobody waits for any more."""


@pytest.fixture
def on_alarm():
    """Have a handler run after some seconds, `on_alarm(handler, 0.01)`, or again and again, with an interval.

    A signal that comes just before a system call does not end its wait; so the timer rings until the handler has run.
    The cyclic collector rests meanwhile: in a callback that it calls, what the handler raises would reach nobody.
    """
    before = signal.getsignal(signal.SIGALRM)
    gc.disable()

    def arm(handler, first, interval=0.0):
        ran = []

        def once(signum, frame):
            if not ran:
                ran.append(True)
                signal.setitimer(signal.ITIMER_REAL, 0)
                handler(signum, frame)

        signal.signal(signal.SIGALRM, handler if interval else once)
        signal.setitimer(signal.ITIMER_REAL, first, interval or first)

    yield arm
    # A last signal may be on its way: it is for the test's handler, until the one that does nothing is in place, and
    # Python complains of a signal for which there is no handler any more.
    while signal.getsignal(signal.SIGALRM) is not do_nothing:
        with contextlib.suppress(Exception, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, do_nothing)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    gc.enable()


@pytest.fixture
def alarm(on_alarm):
    """Have a signal handler raise Alarm after some seconds: `alarm(0.002)`; `alarm.error` is what it raises."""

    def ring(signum, frame):
        raise Alarm

    def arm(seconds):
        on_alarm(ring, seconds)

    arm.error = Alarm
    return arm


@pytest.fixture
def storm(on_alarm):
    """Have a handler raise now and then, `storm(chance, interval)`, and make calls under it, `storm.attempt(call)`."""

    def start(chance, interval):
        def ring(signum, frame):
            if start.armed and chance.random() < 0.5:
                start.armed = False  # once for each attempt, so that nothing is raised outside of it
                raise Alarm

        on_alarm(ring, interval, interval)

    def attempt(call):
        """The result of the call and None, or None and its error. No result is lost between the call and here."""
        results = []
        try:
            start.armed = True
            results.extend(itertools.islice(iter(call, attempt), 1))  # C code only: no handler runs in between
            start.armed = False
        except Exception as error:
            start.armed = False
            if not isinstance(error, (TimeoutError, BlockingIOError, LineTooLong, Alarm)):
                raise
            if not results:
                return None, error
        return results[0], None

    start.armed = False
    start.attempt = attempt
    return start


@pytest.fixture
def child():
    """Run Python code in a child process, warnings as errors: what it printed. It must end with status 0."""

    def run(code, *arguments, timeout=60):
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-W", "error", "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run
