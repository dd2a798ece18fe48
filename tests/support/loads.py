"""Shared by the tests of the load test: the command, a load loop on socket pairs, their peers, and a result."""

import contextlib
import socket

from rioecho._load.histogram import Histogram
from rioecho._load.loop import LoadLoop, messages
from support.peers import SECONDS, Command, Running, dial

MODULE = "rioecho.cli.bench"
#: Runs several command lines in one process, which is faster. Prints their messages on stderr, the statuses on stdout.
ONE_AFTER_THE_OTHER = """if True:
    import json, sys
    from rioecho.cli.bench import main
    for arguments in json.loads(sys.argv[1]):
        try:
            main(arguments)
        except SystemExit as exit:
            print(exit.code)
"""

#: As written by --json.
LATENCY = {"mean": 40.0, "p50": 33.0, "p90": 52.0, "p99": 99.0, "p99.9": 1200.0, "max": 5000.0}
RUN = {
    "target": "localhost:8000",
    "connections": 50,
    "message_bytes": 64,
    "pipeline": 1,
    "threads": 1,
    "duration_s": 10.0,
    "rate_asked": None,
    "messages": 100_000,
    "rate": 10_000.0,
    "mb_per_s": 0.64,
    "errors": 0,
    "latency_us": LATENCY,
    "latency_uncorrected_us": LATENCY,
}


def ended(*arguments, **options):
    """Run rioecho-bench; return its status, stdout and the lines of stderr."""
    with Command(MODULE, *arguments, **options) as bench:
        status = bench.status()
        return status, bench.out and bench.out.text, bench.err.text.splitlines()


@contextlib.contextmanager
def unanswered():
    """Yield an address that neither accepts nor refuses a connection: its listen queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as others:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        yield listener.getsockname()


def loop(ends, size=64, **options):
    options = {"duration": 0.2, "stall_timeout": SECONDS} | options
    return LoadLoop([end.fileno() for end in ends], messages(size), message_bytes=size, **options)


def latencies(load, *, corrected=True):
    h = Histogram()
    load.add_to(h, corrected=corrected)
    return h


def lateness(load):
    h = Histogram()
    load.add_lateness_to(h)
    return h


@contextlib.contextmanager
def peer(talk, pairs=1):
    """Run ``talk(*ends)`` in a thread with one end of each socket pair; yield the other ends. Closes all ends."""
    ours, theirs = zip(*(socket.socketpair() for _ in range(pairs)), strict=True)
    with contextlib.ExitStack() as opened:
        for end in (*ours, *theirs):
            opened.enter_context(end)
            end.settimeout(SECONDS)

        def run():
            try:
                talk(*theirs)
            finally:
                for end in theirs:
                    end.close()

        running = Running(run)
        yield ours
        for end in ours:
            end.close()
        running.result()


def echo(end):
    """Echo until the end of input."""
    with contextlib.suppress(ConnectionError):
        while data := end.recv(1 << 16):
            end.sendall(data)


def until_closed(end):
    with contextlib.suppress(ConnectionError):
        while end.recv(1 << 16):
            pass


def connected(server, n):
    opened = contextlib.ExitStack()
    return opened, [opened.enter_context(dial(server.addresses[i % len(server.addresses)])) for i in range(n)]
