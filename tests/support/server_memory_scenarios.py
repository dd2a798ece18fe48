"""A server in which the k-th allocation fails, for many k; run by test_failing_allocations.py in a child process.

``server_memory_scenarios.py ENGINE ALLOCATOR STEP WIDTH``: ENGINE may also be "handler", a LineServer with a class of
handlers, whose ``connection_lost()`` is called once for each that was made. ALLOCATOR is "python" (CPython's test hook
makes its allocators fail) or "libc" (allocations.c is preloaded). Every STEP-th k is tried, until a run has fewer
allocations. WIDTH consecutive allocations fail, so that the handling of the error has no memory either.

From the accept of the first client to the close of the last one, a failed allocation may close one connection or pause
accepting; a later client is served, the stop ends in time, and no descriptor, thread or child is leaked. The clients
run in a process of their own, because they need memory as well. Prints the number of runs with a failed allocation.
"""

import contextlib
import ctypes
import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from importlib import import_module

from rioecho import EchoServer, LineServer

ROUNDS = 3  # clients that exchange lines and close, before one that stays until the stop
TRIES = 40  # maximum number of attempts of a client: a failed allocation closes at most one connection
SECONDS = 10.0
HELLO = b"hello, and a line that is long enough to need a buffer of its own\n" * 20
REST = b"no newline"
OWN_THREADS = 2  # the main thread and that of faulthandler


class Handler:
    """Echoes lines, and counts its calls without memory of its own where it can."""

    made, lost, twice = [], [], []

    def __init__(self):
        self.is_lost = False

    def connection_made(self, conn):
        self.conn = conn
        self.made.append(self)

    def lines_received(self, lines):
        self.conn.get_extra_info("socket")
        self.conn.write(lines[0])
        return lines[1:]

    def connection_lost(self, reason):
        if self.is_lost:
            self.twice.append(self)
        self.is_lost = True


class Python:
    """Fails allocations of CPython's allocators: of objects, of memory blocks, and the raw one, which C code uses."""

    def __init__(self):
        self._testcapi = import_module("_testcapi")

    def arm(self, k, width):
        self._k = k
        self._testcapi.set_nomemory(k, k + width)

    def disarm(self):
        self._testcapi.remove_mem_hooks()

    def fired(self):
        """Report whether an allocation has failed: if not, one of those below will, because the count continues."""
        try:
            for _ in range(min(self._k, 1 << 20)):
                object()
        except MemoryError:
            return False
        return True


class Libc:
    """Fails allocations of the C library, which all others use (PYTHONMALLOC=malloc)."""

    def __init__(self):
        shim = ctypes.CDLL(None)
        self.arm, self.disarm, self.fired = shim.allocation_arm, shim.allocation_disarm, shim.allocation_fired


def talk(address):
    """Run one client; report whether it was served, rather than disconnected."""
    try:
        with socket.create_connection(address, timeout=SECONDS) as sock:
            sock.sendall(HELLO[:100])
            sock.sendall(HELLO[100:])
            got = b""
            while len(got) < len(HELLO):
                part = sock.recv(1 << 16)
                if not part:
                    return False
                got += part
            return got == HELLO
    except ConnectionError:
        return False


def stay(address):
    """Return a connected client that stays until the stop."""
    for _ in range(TRIES):
        sock = socket.create_connection(address, timeout=SECONDS)
        try:
            sock.sendall(b"here\n" + REST)
            if sock.recv(5, socket.MSG_WAITALL) == b"here\n":
                return sock
        except ConnectionError:
            pass
        sock.close()
    raise AssertionError("no client is served")


def clients(commands, replies):
    """Run the clients in their process, once for each port read from the pipe ``commands``."""
    while port := os.read(commands, 16):
        address = ("127.0.0.1", int(port))
        for _ in range(ROUNDS):
            assert any(talk(address) for _ in range(TRIES)), "no client is served"
        with stay(address) as sock:
            os.write(replies, b"+")
            try:
                rest = b"".join(iter(lambda s=sock: s.recv(100), b""))
            except ConnectionError:
                rest = b""
            assert rest in (REST, b""), rest
    os._exit(0)


def start_clients():
    """Fork the clients; return the process ID, a pipe for ports, and one that reports the last client's connection."""
    commands, command = os.pipe()
    replies, reply = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(command)
        os.close(replies)
        try:
            clients(commands, reply)
        except BaseException as error:
            print(f"a client: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os.close(commands)
    os.close(reply)
    return pid, command, open(replies, "rb", buffering=0)


def run(engine, allocator, k, width, command, replies):
    """Run one server in which the k-th allocation fails. This thread must not need memory in the meantime."""
    if engine == "handler":
        del Handler.made[:]
        server = LineServer(Handler, host="127.0.0.1", drain_timeout=SECONDS / 4, max_per_host=1000)
    else:
        server = EchoServer(host="127.0.0.1", engine=engine, drain_timeout=SECONDS / 4, max_per_host=1000)
    server.start()
    port = b"%d" % server.addresses[0][1]
    reply = bytearray(1)
    told = False
    allocator.arm(k, width)
    while True:
        try:
            if not told:
                os.write(command, port)
                told = True
            n = replies.readinto(reply)
            break
        except MemoryError:
            continue
    while True:
        try:
            server.stop()
            server.wait()
            break
        except MemoryError:
            continue
    fired = allocator.fired()
    allocator.disarm()
    assert n == 1, "the clients have failed"
    start = time.monotonic()
    server.close()
    assert time.monotonic() - start < SECONDS / 2
    stats = server.stats()
    assert stats["accepted"] == stats["closed"], stats
    assert stats["active"] == 0, stats
    assert not Handler.twice
    # A call itself may fail, too: before the first statement of the handler has run.
    assert sum(not handler.is_lost for handler in Handler.made) <= fired
    return fired


def settle():
    """Wait until all ended threads have exited; return the open descriptors."""
    deadline = time.monotonic() + SECONDS
    while len(os.listdir("/proc/self/task")) > OWN_THREADS:
        assert time.monotonic() < deadline, "a thread is left running"
        os.sched_yield()
    return set(os.listdir("/proc/self/fd"))


def main(engine, kind, step, width):
    allocator = Python() if kind == "python" else Libc()
    log = logging.getLogger("rioecho.server")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.addHandler(logging.NullHandler())
    pid, command, replies = start_clients()
    faulthandler.dump_traceback_later(570, exit=True)
    run(engine, allocator, 1 << 30, 1, command, replies)  # makes the allocations that happen only once
    before = settle()
    made = 0
    k = 1
    while True:
        try:
            fired = run(engine, allocator, k, width, command, replies)
            assert settle() == before, "a descriptor is left open"
        except BaseException as error:
            allocator.disarm()
            error.add_note(f"allocation {k}")
            raise
        if not fired:
            break
        made += 1
        k += step
    os.close(command)
    assert os.waitpid(pid, 0)[1] == 0
    with contextlib.suppress(ChildProcessError):
        assert os.waitpid(-1, os.WNOHANG) is None, "a child is left running"
    assert threading.active_count() == 1
    print(f"{engine}, {kind}: {made} runs, with a failure at every {step}. of {k} allocations")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
