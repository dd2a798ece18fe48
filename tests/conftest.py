"""The fixtures of all tests. Helpers that tests import are in support/."""

import contextlib
import gc
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rioecho import LineTooLong
from support import certificates
from support.delivery import Wire
from support.sampling import mark_the_rest_slow

DESCRIPTORS = Path("/dev/fd")

# A shell starts background jobs with SIGINT ignored, nohup with SIGHUP. Child processes inherit an ignored signal but
# not a handler.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)


def pytest_configure(config):
    # Before the test modules are imported, whose decorators read it (support/properties.py).
    os.environ.setdefault("RIOECHO_EXAMPLES", "100" if "not slow" in config.option.markexpr else "400")


@pytest.hookimpl(tryfirst=True)  # before -m selects by marker
def pytest_collection_modifyitems(items):
    mark_the_rest_slow(items)


def pytest_collection_finish():
    # The collected tests are 200,000 objects, which every gc.collect() of a test would visit.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()  # LeakSanitizer would report what the interpreter then keeps at its end


def open_descriptors():
    """Return the numbers of this process's open descriptors, without that of the listing itself."""
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
    """Check that a test closes every descriptor that it opens."""
    if not DESCRIPTORS.is_dir():
        yield
        return
    before = open_descriptors()
    yield
    deadline = time.monotonic() + 5  # a thread may be about to close some
    while (leaked := open_descriptors() - before) and time.monotonic() < deadline:
        gc.collect()
    assert not leaked, f"descriptors left open: {sorted(leaked)}"


@pytest.fixture
def wire(request):
    """Return a function that opens a wire of a kind, ``wire("tcp")``. All wires are closed after the test."""
    opened = []

    def open_wire(kind, *, blocking=True, output=False):
        opened.append(Wire(kind, blocking=blocking, output=output))
        return opened[-1]

    yield open_wire
    for each in opened:
        each.close()


@pytest.fixture(params=["pipe", "socketpair", "tcp", "pty"])
def pair(request, wire):
    """Return a wire of each kind on which a read can block."""
    return wire(request.param)


@pytest.fixture
def stream(wire):
    """Return a bidirectional wire on which sent data arrives immediately."""
    return wire("socketpair")


@pytest.fixture(params=["iterative", "process", "thread", "event"])
def engine(request):
    """Return the name of each engine of EchoServer."""
    return request.param


@pytest.fixture
def background():
    """Return a function that runs another in a thread, ``background(function, *args)``.

    After the test the thread is joined, with a timeout, and its exception is raised.
    """
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
        assert not thread.is_alive(), "a thread of the test is still running"
        if errors:
            raise errors[0]


class Alarm(Exception):
    """Raised by a signal handler."""


def do_nothing(signum, frame):
    """Handle a signal that arrives after the test."""


@pytest.fixture
def on_alarm():
    """Return a function that runs a signal handler after some seconds, ``on_alarm(handler, 0.01)``.

    With an interval the handler runs repeatedly, and in itself no deeper than five times: a handler that waits would
    exceed the limit of recursion. Without an interval it runs once, in the call that the test makes next: not
    before two signals in a row have found the main thread in the same call, however long the test takes to get there,
    or before ten signals where there is no such call. The cyclic garbage collector is disabled: an exception that the
    handler raises in one of its callbacks would not reach the test.
    """
    before = signal.getsignal(signal.SIGALRM)
    gc.disable()

    def arm(handler, first, interval=0.0):
        places, ran = [], []
        depth = 0

        def repeatedly(signum, frame):
            nonlocal depth
            if depth < 5:
                depth += 1
                try:
                    handler(signum, frame)
                finally:
                    depth -= 1

        def once(signum, frame):
            places.append((id(frame), frame.f_lasti))
            if (len(places) > 10 or places[-1] in places[-2:-1]) and not ran:
                ran.append(True)
                signal.setitimer(signal.ITIMER_REAL, 0)
                handler(signum, frame)

        signal.signal(signal.SIGALRM, repeatedly if interval else once)
        signal.setitimer(signal.ITIMER_REAL, first if interval else first / 2, interval or first / 2)

    yield arm
    # A last signal may be pending. It may still run the test's handler, which may raise, so repeat until the handler is
    # replaced. The timer is stopped only then, because Python reports a pending signal that has no handler.
    while signal.getsignal(signal.SIGALRM) is not do_nothing:
        with contextlib.suppress(Exception, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, do_nothing)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    gc.enable()


@pytest.fixture
def alarm(on_alarm):
    """Return a function that raises ``alarm.error`` in a signal handler after some seconds, ``alarm(0.002)``."""

    def ring(signum, frame):
        raise Alarm

    def arm(seconds):
        on_alarm(ring, seconds)

    arm.error = Alarm
    return arm


@pytest.fixture
def storm(on_alarm):
    """Return a function that starts a signal handler that raises at random, ``storm(chance, interval)``.

    ``storm.attempt(call)`` makes a call that the handler may interrupt.
    """

    def start(chance, interval):
        def ring(signum, frame):
            if start.armed and chance.random() < 0.5:
                start.armed = False  # once for each attempt, and never outside of one
                raise Alarm

        on_alarm(ring, interval, interval)

    def attempt(call):
        """Make a call and return (result, None), or (None, exception) if the call did not return."""
        results = []
        try:
            start.armed = True
            # Only C code: no handler runs between the return of the call and the storing of its result.
            results.extend(itertools.islice(iter(call, attempt), 1))
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
def often():
    """Make threads switch so often that one that never waits does not delay the others."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def few_descriptors():
    """Return a context manager in which only n descriptors are left, ``few_descriptors(n)``."""

    @contextlib.contextmanager
    def limited(n):
        used = open_descriptors()
        free = itertools.islice((number for number in itertools.count() if number not in used), n, None)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next(free), before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    return limited


@pytest.fixture
def child():
    """Return a function that runs Python code in a child process and returns its output.

    Warnings are errors, and an exit status other than 0 fails the test.
    """

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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Return the path of a self-signed certificate for localhost and its key, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl command is not installed")
    place = tmp_path_factory.mktemp("certificate")
    cert, key = certificates.make(place)
    cert.write_bytes(cert.read_bytes() + key.read_bytes())
    return cert
