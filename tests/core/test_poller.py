"""The poller (_core/poller.pxd) over epoll(7), kqueue(2) and poll(2): they report the same events, and are fair."""

import contextlib
import errno
import fcntl
import os
import random
import resource
import select
import signal
import socket
import sys
import sysconfig
import time

import pytest

from support.outside import compile_outside, needs_compiler
from support.peers import Running, reset
from support.pollers import POLLERS

pytestmark = needs_compiler

OUTSIDE = """\
# cython: language_level=3, freethreading_compatible=True
import os

from rioecho._core.poller cimport (
    READY_MAX, poller_add, poller_close, poller_create, poller_modify, poller_named, poller_remove, poller_t,
    poller_wait, ready_t
)

MOST = READY_MAX


cdef class Poller:
    cdef poller_t p
    cdef ready_t ready[READY_MAX]

    def __cinit__(self, name):
        check(poller_create(&self.p, poller_named(name)))

    def __dealloc__(self):
        poller_close(&self.p)

    def close(self):
        poller_close(&self.p)

    @property
    def fd(self):
        return self.p.epoll if self.p.epoll >= 0 else self.p.kqueue.fd

    def add(self, int fd, short events, size_t data):
        check(poller_add(&self.p, fd, events, <void *>data))

    def try_add(self, int fd, short events, size_t data):
        return poller_add(&self.p, fd, events, <void *>data)

    def modify(self, int fd, short events, size_t data):
        check(poller_modify(&self.p, fd, events, <void *>data))

    def remove(self, int fd):
        check(poller_remove(&self.p, fd))

    def wait(self, int milliseconds=0):
        cdef int n, err = 0
        with nogil:
            n = poller_wait(&self.p, self.ready, milliseconds, &err)
        if n < 0:
            check(err)
        assert n <= READY_MAX
        return [(<size_t>self.ready[i].data, self.ready[i].events) for i in range(n)]


cdef check(int err):
    if err:
        raise OSError(err, os.strerror(err))
"""

IN, OUT, ERR, HUP = select.POLLIN, select.POLLOUT, select.POLLERR, select.POLLHUP


@pytest.fixture(scope="module", autouse=True)
def many_descriptors_allowed():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return compile_outside(OUTSIDE, tmp_path_factory.mktemp("poller"), inner=True)


@pytest.fixture(params=POLLERS)
def name(request):
    return request.param


@pytest.fixture
def poller(module, name):
    made = module.Poller(name)
    assert (made.fd < 0) == (name == "poll")
    yield made
    made.close()


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.fixture
def copies():
    """Return a function that duplicates a descriptor n times, ``copies(fd, n)``. The test's end closes the copies."""
    with contextlib.ExitStack() as stack:

        def copy(fd, n):
            made = [os.dup(fd) for _ in range(n)]
            for each in made:
                stack.callback(close_if_open, each)
            return made

        yield copy


def close_if_open(fd):
    with contextlib.suppress(OSError):
        os.close(fd)


def poll_one(fd, events):
    """Return the events that poll(2) reports for one descriptor."""
    ready = select.poll()
    ready.register(fd, events)
    return dict(ready.poll(0)).get(fd, 0)


@pytest.mark.long
@pytest.mark.sampled(1)
def test_the_pointer_is_returned_with_the_events(poller, pair):
    ours, theirs = pair
    poller.add(ours.fileno(), IN, 0xABCDEF0123)
    assert poller.wait() == []
    theirs.send(b"x")
    assert poller.wait() == [(0xABCDEF0123, IN)]


def test_only_the_requested_events_are_reported(poller, pair):
    ours, theirs = pair
    theirs.send(b"x")
    poller.add(ours.fileno(), OUT, 1)
    assert poller.wait() == [(1, OUT)]
    poller.modify(ours.fileno(), IN | OUT, 1)
    assert poller.wait() == [(1, IN | OUT)]
    poller.modify(ours.fileno(), 0, 1)
    assert poller.wait() == []


def test_modify_replaces_the_pointer(poller, pair):
    ours, _ = pair
    poller.add(ours.fileno(), OUT, 1)
    poller.modify(ours.fileno(), OUT, 2)
    assert poller.wait() == [(2, OUT)]


def test_unread_input_is_reported_again(poller, pair):
    ours, theirs = pair
    poller.add(ours.fileno(), IN, 1)
    theirs.send(b"xy")
    for _ in range(3):
        assert poller.wait() == [(1, IN)]
    ours.recv(1)
    assert poller.wait() == [(1, IN)]
    ours.recv(1)
    assert poller.wait() == []


def test_a_removed_descriptor_is_not_reported(poller, pair):
    ours, theirs = pair
    for sock in pair:
        poller.add(sock.fileno(), OUT, sock.fileno())
    poller.remove(ours.fileno())
    assert poller.wait() == [(theirs.fileno(), OUT)]
    poller.remove(theirs.fileno())
    assert poller.wait() == []


def test_adding_twice_is_eexist_and_changes_nothing(poller, pair):
    ours, _ = pair
    poller.add(ours.fileno(), OUT, 1)
    with pytest.raises(FileExistsError):
        poller.add(ours.fileno(), IN, 2)
    assert poller.wait() == [(1, OUT)]


def test_modifying_or_removing_an_unknown_descriptor_is_enoent(poller, pair):
    ours, theirs = pair
    poller.add(ours.fileno(), OUT, 1)
    for call in (lambda: poller.modify(theirs.fileno(), IN, 2), lambda: poller.remove(theirs.fileno())):
        with pytest.raises(FileNotFoundError):
            call()
    poller.remove(ours.fileno())
    with pytest.raises(FileNotFoundError):
        poller.remove(ours.fileno())
    assert poller.wait() == []


@pytest.mark.parametrize("fd", [-1, -2, -(1 << 31)])
def test_a_negative_descriptor_is_ebadf(poller, pair, fd):
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        poller.add(fd, IN, 1)
    assert caught.value.errno == errno.EBADF
    for call in (lambda: poller.modify(fd, IN, 2), lambda: poller.remove(fd)):
        with pytest.raises(OSError, match=r"Bad file descriptor|No such file"):
            call()
    poller.add(pair[0].fileno(), OUT, 1)
    assert poller.wait() == [(1, OUT)]


def test_a_hang_up_is_always_reported(poller):
    reader, writer = os.pipe()
    poller.add(reader, 0, 1)
    assert poller.wait() == []
    os.close(writer)
    assert poller.wait() == [(1, HUP)]
    poller.remove(reader)
    os.close(reader)


def test_an_error_is_always_reported(poller):
    reader, writer = os.pipe()
    poller.add(writer, 0, 1)
    assert poller.wait() == []
    os.close(reader)
    assert poller.wait() == [(1, ERR)]
    poller.remove(writer)
    os.close(writer)


def test_a_reset_is_reported_as_an_error_with_input(poller):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours:
        poller.add(ours.fileno(), IN, 1)
        reset(theirs)
        ((data, events),) = poller.wait(10_000)
        assert data == 1
        assert events & IN
        assert events & ERR
        poller.remove(ours.fileno())


def test_a_half_close_is_reported_as_input_and_not_as_a_hang_up(poller, name, pair):
    ours, theirs = pair
    poller.add(ours.fileno(), IN, 1)
    theirs.shutdown(socket.SHUT_WR)
    assert poller.wait() == [(1, IN)]
    poller.modify(ours.fileno(), 0, 1)
    assert poller.wait() == ([(1, HUP)] if name == "kqueue" else [])
    assert poller.wait() == []
    poller.modify(ours.fileno(), IN, 1)
    assert poller.wait() == [(1, IN)]


def test_without_a_requested_event_a_reset_is_reported_and_input_is_not(poller):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours:
        theirs.sendall(b"before")
        poller.add(ours.fileno(), 0, 1)
        for _ in range(3):
            assert poller.wait(10) == []
            theirs.sendall(b"more")
        reset(theirs)
        told = []
        while not told:  # with kqueue the input that arrives may end a wait
            told = poller.wait(10_000)
        assert [data for data, _ in told] == [1]
        assert told[0][1] & (ERR | HUP)
        assert not told[0][1] & (IN | OUT)
        poller.remove(ours.fileno())


def test_a_timeout_of_zero_does_not_block(poller, pair):
    poller.add(pair[0].fileno(), IN, 1)
    start = time.monotonic()
    for _ in range(1000):
        assert poller.wait(0) == []
    assert time.monotonic() - start < 5


def test_a_wait_without_events_lasts_for_its_timeout(poller, pair):
    for _ in range(2):
        start = time.monotonic()
        assert poller.wait(20) == []
        assert time.monotonic() - start >= 0.019
        poller.add(pair[0].fileno(), IN, 1)
        poller.remove(pair[0].fileno())


@pytest.mark.parametrize("milliseconds", [-1, 30_000])
def test_a_wait_ends_when_something_is_ready(poller, pair, milliseconds):
    ours, theirs = pair
    poller.add(ours.fileno(), IN, 1)
    waiting = Running(poller.wait, milliseconds)
    theirs.send(b"x")
    assert waiting.result() == [(1, IN)]


def test_a_signal_interrupts_the_wait_with_eintr(poller, pair, on_alarm):
    poller.add(pair[0].fileno(), IN, 1)
    on_alarm(lambda *_: None, 0.005, 0.005)
    with pytest.raises(InterruptedError):
        poller.wait(30_000)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert poller.wait(0) == []


@pytest.mark.parametrize("extra", [-1, 0, 1, 257])
def test_each_of_more_descriptors_than_one_call_returns_is_reported_in_turn(module, poller, pair, copies, extra):
    fds = copies(pair[0].fileno(), module.MOST + extra)
    for fd in fds:
        poller.add(fd, OUT, fd)
    turns = -(-len(fds) // module.MOST)
    for _ in range(20):
        told = [data for _ in range(turns) for data, events in poller.wait()]
        # No ready descriptor waits longer than it takes to report all others.
        assert set(told) == set(fds)


def test_each_is_reported_in_turn_while_others_are_added_and_removed(module, poller, pair, copies):
    chance = random.Random(1)
    fds = copies(pair[0].fileno(), 3 * module.MOST)
    there, spare = set(fds[: 2 * module.MOST]), fds[2 * module.MOST :]
    stays = set(fds[: module.MOST // 2])
    for fd in there:
        poller.add(fd, OUT, fd)
    last = dict.fromkeys(stays, 0)
    for turn in range(1, 101):
        told = [data for data, _ in poller.wait()]
        assert len(set(told)) == len(told) == module.MOST
        assert set(told) <= there
        last |= dict.fromkeys(stays.intersection(told), turn)
        for _ in range(10):
            goes = chance.choice(sorted(there - stays))
            poller.remove(goes)
            there.discard(goes)
            comes = spare.pop(0)
            poller.add(comes, OUT, comes)
            there.add(comes)
            spare.append(goes)
    assert min(last.values()) > 90


def test_a_reused_number_is_another_descriptor(poller, pair):
    ours, _ = pair
    for turn in range(1, 50):
        reader, writer = os.pipe()
        poller.add(reader, IN, turn)
        os.write(writer, b"x")
        assert poller.wait() == [(turn, IN)]
        poller.remove(reader)
        os.close(reader)
        number = os.dup(ours.fileno())  # nothing to read
        assert number == reader
        poller.add(number, IN, turn + 1000)
        assert poller.wait() == []
        poller.modify(number, OUT, turn + 2000)
        assert poller.wait() == [(turn + 2000, OUT)]
        poller.remove(number)
        os.close(number)
        os.close(writer)
    assert poller.wait() == []


def test_a_removed_descriptor_is_not_reported_while_its_file_is_open(poller, pair, copies):
    ours, theirs = pair
    (fd,) = copies(ours.fileno(), 1)
    poller.add(fd, IN, 1)
    poller.remove(fd)
    os.close(fd)  # the open file description is still that of `ours`, as it may be that of a forked child
    theirs.send(b"x")
    assert poller.wait() == []
    (again,) = copies(ours.fileno(), 1)
    assert again == fd
    poller.add(again, IN, 2)
    assert poller.wait() == [(2, IN)]


def test_a_high_descriptor_number_among_low_ones(poller, pair):
    ours, theirs = pair
    high = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 997)
    try:
        poller.add(high, OUT, 1)
        poller.add(theirs.fileno(), OUT, 2)
        assert sorted(poller.wait()) == [(1, OUT), (2, OUT)]
        poller.remove(high)
        assert poller.wait() == [(2, OUT)]
        poller.add(high, OUT, 3)
        assert sorted(poller.wait()) == [(2, OUT), (3, OUT)]
    finally:
        os.close(high)


@pytest.mark.parametrize("seed", range(4))
def test_hundreds_of_descriptors_added_changed_and_removed_at_random(module, poller, name, copies, seed):
    chance = random.Random(seed)
    # kqueue(2) has no hang-up beside requested events, without one reports an end once, and counts each of two events.
    masks, seen, full = (0, IN, OUT, IN | OUT), -1, module.MOST
    if name == "kqueue":
        masks, seen, full = (IN, OUT, IN | OUT), IN | OUT, module.MOST // 2
    with contextlib.ExitStack() as stack:
        files = []
        for prepare in (
            lambda a, b: None,
            lambda a, b: b.send(b"x"),
            lambda a, b: b.shutdown(socket.SHUT_WR),
            lambda a, b: b.close(),
        ):
            a, b = (stack.enter_context(each) for each in socket.socketpair())
            prepare(a, b)
            files.append(a.fileno())
        unused = [fd for file in files for fd in copies(file, 90)]
        there = {}  # descriptor -> events and data
        for turn in range(3000):
            what = chance.random()
            events = chance.choice(masks)
            if not there or (what < 0.5 and unused):
                fd = unused.pop(chance.randrange(len(unused)))
                poller.add(fd, events, turn)
                there[fd] = events, turn
            elif what < 0.75:
                fd = chance.choice(list(there))
                poller.modify(fd, events, turn)
                there[fd] = events, turn
            else:
                fd = chance.choice(list(there))
                poller.remove(fd)
                del there[fd]
                unused.append(fd)
            if turn % 100 == 99:
                expected = sorted(
                    (data, told) for fd, (events, data) in there.items() if (told := poll_one(fd, events) & seen)
                )
                told = [(data, events & seen) for data, events in poller.wait()]
                if len(expected) <= full:
                    assert sorted(told) == expected
                elif name == "kqueue":
                    assert len(told) >= full
                    assert {data for data, _ in told} <= {data for data, _ in expected}
                else:
                    assert len(told) == module.MOST
                    assert set(told) < set(expected)
        for fd in there:
            poller.remove(fd)
        assert poller.wait() == []


def test_closing_twice_has_no_effect(module, name, pair):
    made = module.Poller(name)
    made.add(pair[0].fileno(), OUT, 1)
    made.close()
    others = os.pipe()  # reuses the numbers of the closed descriptors
    made.close()
    for fd in others:
        os.close(fd)  # fails if the second close() has closed it


def test_a_forked_child_closes_no_descriptor_that_reuses_its_number(module, name, pair):
    made = module.Poller(name)
    made.add(pair[0].fileno(), OUT, 1)
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            others = os.pipe()  # a kqueue is not inherited: one of them may have its number
            made.close()
            for fd in others:
                os.fstat(fd)
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert made.wait() == [(1, OUT)]
    made.close()


def test_the_descriptor_is_close_on_exec_and_closed_at_the_end(module):
    made = module.Poller(None)  # the best of the system
    fd = made.fd
    assert not os.get_inheritable(fd)
    made.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "race", reason="the hook of allocations is not for it")
def test_without_memory_nothing_is_added_and_nothing_is_lost(module, name, pair):
    """Each allocation of the tables fails once."""
    if sysconfig.get_config_var("Py_GIL_DISABLED") or sys.version_info >= (3, 14):
        pytest.skip("this Python has no hook for failing allocations in C")
    testcapi = pytest.importorskip("_testcapi", reason="this Python has no hook for failing allocations")
    errors = set()
    for k in range(12):  # some are those of the call
        made = module.Poller(name)
        failed = None
        testcapi.set_nomemory(k, k + 1)
        try:
            failed = made.try_add(pair[0].fileno(), OUT, 1)
        except MemoryError:
            pass
        finally:
            testcapi.remove_mem_hooks()
        errors.add(failed)
        if failed != 0:
            made.add(pair[0].fileno(), OUT, 1)
        made.add(pair[1].fileno(), OUT, 2)
        assert sorted(made.wait()) == [(1, OUT), (2, OUT)]
        made.close()
    assert errors - {None} == ({0} if name == "epoll" else {0, errno.ENOMEM})


def test_a_descriptor_that_is_not_open_is_refused_and_may_be_added_once_it_is(poller, name, pair, copies):
    if name == "poll":
        pytest.skip("poll(2) reports it as an event")
    (fd,) = copies(pair[0].fileno(), 1)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        poller.add(fd, IN | OUT, 1)
    assert poller.wait() == []
    assert copies(pair[0].fileno(), 1) == [fd]
    poller.add(fd, OUT, 2)
    assert poller.wait() == [(2, OUT)]
