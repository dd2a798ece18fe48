"""Run by test_failing_allocations.py in a child process: a server in which the k-th allocation fails, for many k.

``server_memory_scenarios.py ENGINE ALLOCATOR STEP WIDTH``: ALLOCATOR is "python" (CPython's own test helper makes its
allocators fail) or "libc" (allocations.c is preloaded); every STEP-th k is taken, until a run has fewer allocations;
WIDTH allocations fail, the k-th and the next ones, so that what an error leads to finds no memory either.

From the accept of the first client to the end of the last one, a failed allocation may end one connection or make the
server pause; a later client is served, the stop ends in time, and no descriptor, thread or child is left behind. The
clients live in a process of their own, for they need memory too. Prints how many allocations were made to fail.
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

from rioecho import EchoServer

ROUNDS = 3  # clients that talk and go, before one that stays to the stop
TRIES = 40  # of each: a failed allocation ends no more than one connection
SECONDS = 10.0
HELLO = b"hello, and a line that is long enough to need a buffer of its own\n" * 20
REST = b"no newline"
OWN_THREADS = 2  # this one, and faulthandler's


class Python:
    """CPython's allocators: of its objects, of its memory blocks, and the raw one, which C uses."""

    def __init__(self):
        self._testcapi = import_module("_testcapi")

    def arm(self, k, width):
        self._k = k
        self._testcapi.set_nomemory(k, k + width)

    def disarm(self):
        self._testcapi.remove_mem_hooks()

    def fired(self):
        """Report whether an allocation has failed: if not, one will, for the count goes on."""
        try:
            for _ in range(min(self._k, 1 << 20)):
                object()
        except MemoryError:
            return False
        return True


class Libc:
    """The C library's, below all others (PYTHONMALLOC=malloc)."""

    def __init__(self):
        shim = ctypes.CDLL(None)
        self.arm, self.disarm, self.fired = shim.allocation_arm, shim.allocation_disarm, shim.allocation_fired


def talk(address):
    """One client: True when it was served, False when its connection was ended."""
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
    """A client that is connected at the stop."""
    for _ in range(TRIES):
        sock = socket.create_connection(address, timeout=SECONDS)
        try:
            sock.sendall(b"here\n" + REST)
            if sock.recv(5, socket.MSG_WAITALL) == b"here\n":
                return sock
        except ConnectionError:
            pass
        sock.close()
    raise AssertionError("no client is served any more")


def clients(commands, replies):
    """The process of the clients: one run for each port that is written to it."""
    while port := os.read(commands, 16):
        address = ("127.0.0.1", int(port))
        for _ in range(ROUNDS):
            assert any(talk(address) for _ in range(TRIES)), "no client is served any more"
        with stay(address) as sock:
            os.write(replies, b"+")
            try:
                rest = b"".join(iter(lambda s=sock: s.recv(100), b""))
            except ConnectionError:
                rest = b""
            assert rest in (REST, b""), rest
    os._exit(0)


def start_clients():
    """Fork them: the pipes to write ports to, and to read from when the last client is there."""
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
    """One server, in which the k-th allocation fails. What this thread does meanwhile must not need memory."""
    server = EchoServer(host="127.0.0.1", engine=engine, drain_timeout=SECONDS / 4)
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
    assert n == 1, "the clients have given up"
    start = time.monotonic()
    server.close()
    assert time.monotonic() - start < SECONDS / 2
    stats = server.stats()
    assert stats["accepted"] == stats["closed"], stats
    assert stats["active"] == 0, stats
    return fired


def settle():
    """Wait until the threads that have ended are gone; return the descriptors that are open then."""
    deadline = time.monotonic() + SECONDS
    while len(os.listdir("/proc/self/task")) > OWN_THREADS:
        assert time.monotonic() < deadline, "a thread is left behind"
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
    run(engine, allocator, 1 << 30, 1, command, replies)  # what is allocated once is there now
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
        assert os.waitpid(-1, os.WNOHANG) is None, "a child is left behind"
    assert threading.active_count() == 1
    print(f"{engine}, {kind}: {made} runs, with a failure at every {step}. of {k} allocations")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
