"""Run by test_memory.py in a child process: runs a command repeatedly, and each time the k-th allocation fails.

Usage: ``memory_commands.py COMMAND STRIDE FOLDER``. Each run either succeeds, or prints one line with the reason and
exits with a status other than 0. No descriptor stays open, and a wrong echo is never accepted. The servers are
processes of their own, because the allocations of this process are counted.
"""

import contextlib
import faulthandler
import gc
import json
import os
import re
import signal
import subprocess
import sys
import traceback
import types
from importlib import import_module

from rioecho.bench import Histogram
from rioecho.cli import NO_MEMORY, Parser, bench, client, compare

_testcapi = import_module("_testcapi")  # CPython's own test helpers

LINES = b"".join(b"%d " % i * (i % 7) + b"\n" for i in range(300)) + b"x" * 700 + b"\nthe rest"
#: Servers that exit at the EOF of stdin. The second sends a wrong 11th byte on each connection.
HONEST = """if True:
    import sys
    from rioecho import EchoServer
    with EchoServer(0, "127.0.0.1") as server:
        print(*server.addresses[0], flush=True)
        sys.stdin.read()
"""
LIAR = """if True:
    import contextlib, socket, sys, threading
    def serve(sock):
        seen = 0
        with sock, contextlib.suppress(ConnectionError):
            while data := bytearray(sock.recv(1 << 16)):
                if seen <= 10 < seen + len(data):
                    data[10 - seen] ^= 1
                seen += len(data)
                sock.sendall(data)
    def accept():
        while True:
            threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0))
    print(*listener.getsockname(), flush=True)
    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()
"""
#: A server that closes each connection after two messages of 64 bytes.
BRIEF = """if True:
    import contextlib, socket, sys, threading
    def serve(sock):
        with sock, contextlib.suppress(ConnectionError):
            for _ in range(2):
                sock.sendall(sock.recv(64, socket.MSG_WAITALL))
    def accept():
        while True:
            threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    print(*listener.getsockname(), flush=True)
    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()
"""


class Left(BaseException):
    """Raised in place of os._exit()."""


def leave_at_once(status):
    raise Left(status)


class FailingParser(Parser):
    """Starts the failing allocations after argparse, which is not tested here and in which CPython 3.13 crashes."""

    k = 0

    def parse_args(self, *arguments):
        options = super().parse_args(*arguments)
        _testcapi.set_nomemory(self.k, self.k + 1)
        return options


class Run:
    """One run of a command with files as its standard streams, in which the k-th allocation fails; its outcome."""

    def __init__(self, main, arguments, source, k):
        self.status, self.began, self.escaped = 1, True, None
        streams = [os.dup(fd) for fd in range(3)]
        self.files = [os.memfd_create(name) for name in ("in", "out", "err")]
        os.write(self.files[0], source)
        os.lseek(self.files[0], 0, os.SEEK_SET)
        for fd, file in enumerate(self.files):
            os.dup2(file, fd)
        try:
            self.run(main, arguments, k)
        except NO_MEMORY:
            self.began = False
        finally:
            try:
                _testcapi.remove_mem_hooks()
            except MemoryError:  # the k-th allocation may be this one; only one fails
                _testcapi.remove_mem_hooks()
            gc.collect()
            for fd, stream in enumerate(streams):
                os.dup2(stream, fd)
                os.close(stream)
            self.out, self.err = (os.pread(fd, 1 << 24, 0) for fd in self.files[1:])
            for fd in self.files:
                os.close(fd)

    def run(self, main, arguments, k):
        try:
            FailingParser.k = k
            main(arguments)
        except SystemExit as error:
            self.status = error.code
        except Left as error:
            (self.status,) = error.args
        except BaseException as error:
            _testcapi.remove_mem_hooks()
            names = ["run", *(frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))]
            # Before the command has begun, it cannot catch an error.
            self.began = not isinstance(error, NO_MEMORY) or names[-1] not in ("run", "main")
            self.escaped = error

    def check(self, statuses):
        """Assert that the run returned one of these statuses, with one line of output if it is not 0."""
        if not self.began:
            self.status = 1
            return
        if self.escaped is not None:
            raise self.escaped
        assert self.status in statuses, (self.status, self.err)
        # CPython prints a MemoryError in a finalizer and continues.
        err = re.sub(r"Exception ignored in: .*\n(?:Traceback .*\n(?: .*\n)*)?MemoryError.*\n", "", self.err.decode())
        # The progress, which a slow machine gets to see, is no complaint.
        progress = re.compile("warning: |/s  p50|^connecting: ")
        lines = [line for line in err.splitlines() if not progress.search(line)]
        # Printing the line may itself run out of memory, which adds "out of memory".
        complaints = [line for line in lines if line != "out of memory"]
        assert len(complaints) <= 1, self.err
        assert all(line.startswith("rioecho-") for line in complaints), self.err
        assert lines or not self.status, self.err


def client_scenario(address, k):
    run = Run(client.main, [*address], LINES, k)
    run.check({0, 1})
    assert LINES.startswith(run.out), "what came out is not what went in"
    assert run.status or run.out == LINES
    return run


def client_lied_to(address, k):
    run = Run(client.main, [*address], LINES, k)
    run.check({3, 1})
    assert LINES[:10].startswith(run.out), "a wrong echo came out"
    return run


def bench_arguments(address):
    return [":".join(address), "-c3", "--threads=2", "-d0.004", "--warmup=0", "--pipeline=2", "--json"]


def bench_scenario(address, k):
    run = Run(bench.main, bench_arguments(address), b"", k)
    run.check({0, 1})
    if not run.status:
        result = json.loads(run.out)
        assert result["errors"] == 0
        assert result["connections"] == 3
    return run


def bench_lied_to(address, k):
    run = Run(bench.main, bench_arguments(address), b"", k)
    run.check({3, 1, 0})
    if run.status == 0:  # the time was too short to send anything
        assert json.loads(run.out)["messages"] == 0
    return run


def bench_reconnecting(address, k):
    options = "-c3 --threads=2 -d0.01 --warmup=0 --rate=2k --reconnect --ramp=1ms --json"
    run = Run(bench.main, [":".join(address), *options.split()], b"", k)
    run.check({0, 1})
    if not run.status:
        result = json.loads(run.out)
        assert result["errors"] == 0
        counted = sum(n for _, n in result["histogram"]["counts"])
        assert abs(counted + result["lost"] - 20) <= 1, result  # each message that was due
    return run


def saved(address, folder):
    """Return the paths of two results of --json, measured at the first call."""
    paths = [os.path.join(folder, name) for name in ("a.json", "b.json")]
    for path in paths:
        if not os.path.exists(path):
            run = Run(bench.main, [*bench_arguments(address), "-d1"], b"", 1 << 30)  # long enough to echo something
            run.check({0})
            assert json.loads(run.out)["messages"] > 0
            small = Histogram()  # fewer allocations than those of the run
            for us in (20, 30, 40):
                small.record(us)
            with open(path, "w") as file:
                json.dump(json.loads(run.out) | {"histogram": small.to_json()}, file)
    return paths


def bench_merging(address, k):
    paths = saved(address, FOLDER)
    run = Run(bench.main, ["merge", *paths, "--json"], b"", k)
    run.check({0, 1})
    if not run.status:
        assert json.loads(run.out)["connections"] == 6
    return run


def bench_comparing(address, k):
    run = Run(bench.main, ["compare", *saved(address, FOLDER), "--fail-above", "1000000%"], b"", k)
    run.check({0, 1})
    assert run.status or run.out.count(b"\n") == 4
    return run


#: For files of the scenarios.
FOLDER = ""
SCENARIOS = {
    "client": (HONEST, client_scenario),
    "client, a wrong echo": (LIAR, client_lied_to),
    "bench": (HONEST, bench_scenario),
    "bench, a wrong echo": (LIAR, bench_lied_to),
    "bench, reconnecting": (BRIEF, bench_reconnecting),
    "bench, merging": (HONEST, bench_merging),
    "bench, comparing": (HONEST, bench_comparing),
}


def forget_last_error():
    """Clear the frames kept alive by the traceback of CPython's preallocated MemoryError, which is never freed."""
    for each in gc.get_objects():
        if isinstance(each, types.TracebackType):
            with contextlib.suppress(RuntimeError):  # the frame is running
                each.tb_frame.clear()


@contextlib.contextmanager
def server(code):
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        yield process.stdout.readline().decode().split()
        process.stdin.close()


def main(name, stride, folder):
    global FOLDER
    FOLDER = folder
    stderr = os.dup(2)  # the command uses descriptor 2
    faulthandler.enable(stderr)
    faulthandler.dump_traceback_later(100, exit=True, file=stderr)
    os._exit = leave_at_once
    client.Parser = bench.Parser = compare.Parser = FailingParser
    unraisable = []
    sys.unraisablehook = unraisable.append
    code, scenario = SCENARIOS[name]
    with server(code) as address:
        for _ in range(3):  # create everything that is created at first use only
            scenario(address, 1 << 30)
        descriptors = set(os.listdir("/proc/self/fd"))
        failed = unchanged = leaks = 0
        k = 1
        whole = scenario(address, 1 << 30)
        while unchanged < 20:  # this many unchanged runs in a row: k is beyond the last allocation
            run = scenario(address, k)
            # A load test that was too short to find the wrong echo is unchanged, too.
            changed = run.status not in (0, whole.status) or run.escaped is not None
            failed += changed
            unchanged = 0 if changed else unchanged + 1
            left = set(os.listdir("/proc/self/fd")) - descriptors
            if left:
                forget_last_error()
                left = set(os.listdir("/proc/self/fd")) - descriptors
            leaks += bool(left)
            descriptors |= left
            k += stride
    # CPython leaks a reference to the arguments of a call if it has no memory for it. Leaks of rioecho occur in many
    # runs.
    assert leaks <= 3, f"descriptors are left open by {leaks} runs"
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    assert all(isinstance(each.exc_value, NO_MEMORY) for each in unraisable), unraisable
    faulthandler.cancel_dump_traceback_later()
    assert failed, "no allocation failed"
    print(f"{name}: {k} allocations, {failed} runs ended early")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
