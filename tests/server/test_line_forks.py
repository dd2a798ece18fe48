"""Forked children of a LineServer, whose connections stay those of the parent."""

import logging
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import pytest

from support.handlers import a_recorder, serving, take
from support.outside import compile_outside, needs_compiler
from support.peers import SECONDS, ask, dial, receive

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

OUTSIDE = """\
# cython: language_level=3, freethreading_compatible=True
from rioecho._core.posix cimport read, write
from rioecho._server.lineconnection cimport Connection
from rioecho._server.loop cimport outlet_lock, outlet_unlock


def hold(Connection conn, int entered, int leave):
    cdef char byte = 0
    with nogil:
        outlet_lock(&conn.outlet)
        write(entered, &byte, 1)
        read(leave, &byte, 1)
        outlet_unlock(&conn.outlet)
"""


@pytest.fixture
def recorder():
    return a_recorder()


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    return compile_outside(OUTSIDE, tmp_path_factory.mktemp("outside"), inner=True)


def status_in_child(work):
    """Run a function in a forked child; return the exit status: 0 if it returns true, 1 if not, -9 if it hangs."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() else 1)
    deadline = time.monotonic() + SECONDS
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            ended = os.waitpid(pid, 0)
            break
        os.sched_yield()
    return os.waitstatus_to_exitcode(ended[1])


@pytest.mark.parametrize("end", ["exits", "returns", "raises"])
@pytest.mark.parametrize("kind", ["class", "function"])
def test_a_child_that_a_handler_forks_leaves_the_connections_to_the_parent(recorder, end, kind):
    statuses = []

    def forking(lines):
        if b"fork\n" in lines:
            pid = os.fork()
            if pid == 0:
                if end == "exits":
                    os._exit(0)
                if end == "raises":
                    logging.disable()
                    raise ValueError
                return b"from the child\n"
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return lines

    class Handler(recorder):
        def lines_received(self, lines):
            return forking(lines)

    with serving(Handler if kind == "class" else forking) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        ask(sock, b"fork\n")
        ask(sock)
        assert statuses == [1 if end == "raises" else 0]
        sock.close()
        if kind == "class":
            assert take(Handler.lost) is None


def test_a_child_that_connection_lost_forks_leaves_the_connections_to_the_parent(recorder):
    statuses = queue.Queue()

    class Handler(recorder):
        def connection_lost(self, reason):
            super().connection_lost(reason)
            if b"fork\n" in self.received:
                pid = os.fork()
                if pid:
                    statuses.put(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        with dial(server.addresses[0]) as other:
            ask(other, b"fork\n")
        assert take(statuses) == 0
        ask(sock)


def test_a_forked_child_sends_nothing_of_a_large_write(recorder):
    class Handler(recorder):
        def lines_received(self, lines):
            if b"fork\n" in lines:
                pid = os.fork()
                if pid == 0:
                    self.conn.write(b"child\n" * 20_000)
                    self.conn.write(b"child\n")
                    return None
                os.waitpid(pid, 0)
            return lines

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        ask(sock, b"fork\n")
        ask(sock)


@pytest.mark.slow
@needs_compiler
def test_a_child_forked_while_the_loop_closes_a_connection_does_not_wait_for_its_lock(recorder, outside):
    """A thread without the GIL holds the lock, as the loop of another worker does for a moment."""
    entered, leave = os.pipe(), os.pipe()
    with serving(recorder) as server, dial(server.addresses[0]) as sock:
        conn = take(recorder.made).conn
        holder = threading.Thread(target=outside.hold, args=(conn, entered[1], leave[0]))
        holder.start()
        try:
            os.read(entered[0], 1)
            calls = [lambda: conn.get_extra_info("socket") is None, lambda: conn.get_extra_info("sockname") is None]
            assert status_in_child(lambda: all(call() for call in calls * 2)) == 0
        finally:
            os.write(leave[1], b"x")
            holder.join()
        assert conn.get_extra_info("socket").getpeername() == sock.getsockname()
        ask(sock)
    for fd in (*entered, *leave):
        os.close(fd)


def test_a_forked_child_sees_the_connection_and_sends_nothing(recorder):
    def work():
        conn.write(b"from the child\n")
        conn.close()
        conn.abort()
        return conn.get_extra_info("socket").getpeername() == conn.peer

    with serving(recorder) as server, dial(server.addresses[0]) as sock:
        conn = take(recorder.made).conn
        assert status_in_child(work) == 0
        conn.write(b"from the parent\n")
        assert receive(sock, 16) == b"from the parent\n"
        ask(sock)


def put(queue, lines):
    queue.put(lines)


def test_a_handler_runs_a_process_of_multiprocessing(recorder):
    context = multiprocessing.get_context("fork")

    class Handler(recorder):
        def lines_received(self, lines):
            queue = context.SimpleQueue()
            process = context.Process(target=put, args=(queue, lines))
            process.start()
            answer = queue.get()
            process.join()
            if sys.version_info >= (3, 13):  # before, a child of a thread that C code has started ended by an error
                assert process.exitcode == 0
            queue.close()
            return answer

    with serving(Handler) as server, dial(server.addresses[0]) as sock:
        ask(sock)
        ask(sock)


@needs_compiler
@pytest.mark.long
def test_a_call_waits_for_the_lock_of_a_connection_that_another_thread_holds(recorder, outside):
    entered, leave = os.pipe(), os.pipe()
    with serving(recorder) as server, dial(server.addresses[0]) as sock:
        conn = take(recorder.made).conn
        holder = threading.Thread(target=outside.hold, args=(conn, entered[1], leave[0]))
        holder.start()
        os.read(entered[0], 1)
        # Another process, because the wait, for no longer than a system call usually, does not give up the GIL.
        with subprocess.Popen([sys.executable, "-c", f"import os; os.write({leave[1]}, b'x')"], pass_fds=leave[1:]):
            assert conn.get_extra_info("socket").getpeername() == sock.getsockname()
            holder.join()
    for fd in (*entered, *leave):
        os.close(fd)
