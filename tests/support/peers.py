"""Peers of the echo server and the echo client, and the commands as child processes."""

import contextlib
import fcntl
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from support.delivery import fileno

SECONDS = 30  # timeout; expires only if something is broken
SIZES = (0, 1, 2, 7, 64, 1023, 4096, 65_535, 65_536, 65_537, 300_000, (1 << 20) + 1, 3_000_001)


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")


def binary(n, seed=0):
    """Return n random bytes, including newlines."""
    return random.Random(f"{seed} {n}").randbytes(n)


def lines(n, longest=120, seed=0):
    """Return n random lines of at most ``longest`` bytes, newline included; some are empty."""
    chance = random.Random(f"{seed} {n}")
    return [chance.randbytes(chance.randrange(longest)).replace(b"\n", b"n") + b"\n" for _ in range(n)]


def dial(address):
    """Connect to an address, with a timeout of SECONDS for each call on the socket."""
    return socket.create_connection(address[:2], timeout=SECONDS)


def reset(sock):
    """Close a TCP connection with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def receive(sock, n):
    """Receive exactly n bytes."""
    parts = []
    while n:
        parts.append(sock.recv(min(n, 1 << 16)))
        assert parts[-1], f"end of input with {n} bytes missing"
        n -= len(parts[-1])
    return b"".join(parts)


def receive_all(sock):
    """Receive until the end of input."""
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def ask(sock, line=b"are you there?\n"):
    """Send a line and receive its echo, which shows that the server is serving this connection."""
    sock.sendall(line)
    assert receive(sock, len(line)) == line


def exchange(end, data, *, finish=True):
    """Send data and receive at the same time, half-close, and receive to the end. Returns what was received.

    With ``finish=False``, nothing is closed, and the call returns when as many bytes were received as sent.
    """
    fd, view, back = fileno(end), memoryview(data), bytearray()
    os.set_blocking(fd, False)
    poller = select.poll()
    ended = False
    while True:
        if finish and not view and not ended:
            end.shutdown(socket.SHUT_WR)
            ended = True
        if not finish and len(back) == len(data):
            return bytes(back)
        poller.register(fd, select.POLLIN | (select.POLLOUT if view else 0))
        (event,) = poller.poll(SECONDS * 1000) or [None]
        assert event, f"stuck after {len(data) - len(view)} bytes sent, {len(back)} received of {len(data)}"
        if event[1] & ~select.POLLOUT:
            part = os.read(fd, 1 << 16)
            if not part:
                return bytes(back)
            back += part
        if view and event[1] & select.POLLOUT:
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(fd, view[: 1 << 17]) :]


def fill(sock):
    """Send without reading until the socket is not writable for 0.3 seconds. Returns the number of bytes sent."""
    sock.setblocking(False)
    chunk, total = b"x" * 4095 + b"\n", 0
    while select.select([], [sock], [], 0.3)[1]:
        with contextlib.suppress(BlockingIOError):
            total += sock.send(chunk * 16)
        assert total < 1 << 28, "the server goes on reading although nobody reads its echoes"
    return total


def acknowledged(sock):
    """Wait until the peer's kernel has acknowledged all data sent. Does nothing if the system cannot tell."""
    if sys.platform != "linux":
        return
    deadline = time.monotonic() + SECONDS
    while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]:
        assert time.monotonic() < deadline, "timed out waiting for the peer's acknowledgement"
        os.sched_yield()


class Running:
    """Runs a function in a thread. ``result()`` waits and returns its result or raises its exception."""

    def __init__(self, function, *arguments, **options):
        self._call = function, arguments, options
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        function, arguments, options = self._call
        try:
            self._result, self._error = function(*arguments, **options), None
        except BaseException as error:
            self._error = error

    def result(self):
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "a thread of the test did not end"
        if self._error is not None:
            raise self._error
        return self._result


@contextlib.contextmanager
def answering(talk):
    """Run a server that calls ``talk(sock)`` for one connection; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)

        def serve():
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(SECONDS)
                talk(sock)

        running = Running(serve)
        yield listener.getsockname()
        running.result()


class Output:
    """Collects the output of a child from a pipe, in a thread."""

    def __init__(self, pipe):
        self.data = b""
        self._ended = False
        self._pipe = pipe
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self):
        with self._pipe:
            while part := self._pipe.read1(1 << 16):
                with self._changed:
                    self.data += part
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def text(self):
        return self.data.decode()

    def wait_for(self, wanted, times=1):
        """Wait until the output contains ``wanted`` at least this many times."""
        if isinstance(wanted, str):
            wanted = wanted.encode()
        with self._changed:
            self._changed.wait_for(lambda: self.data.count(wanted) >= times or self._ended, SECONDS)
        assert self.data.count(wanted) >= times, f"waited for {wanted!r}, got {self.data[-2000:]!r}"

    def join(self):
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "another process holds the pipe open"


class Screen:
    """A terminal's master side in the form of a pipe for Output. A hang-up is the end of input."""

    def __init__(self, fd):
        self._fd = fd

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._fd)

    def read1(self, n):
        with contextlib.suppress(OSError):  # EIO: no process has the terminal open
            return os.read(self._fd, n)
        return b""


class Command:
    """A command of the project as a child process; leaving the block kills it."""

    def __init__(self, module, *arguments, code=None, prelude=None, environment=None, **options):
        command = self.program(module, *arguments, code=code)
        if prelude:  # shell code that runs before the command, or a redirection
            command = [
                "/bin/sh",
                "-c",
                f'exec "$@" {prelude}' if prelude[0] in "<>" else f'{prelude}; exec "$@"',
                "sh",
                *command,
            ]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "COLUMNS": "80", "TERM": "dumb", **(environment or {})}
        self.process = subprocess.Popen(command, env=environment, **(pipes | options))
        self.pid = self.process.pid
        self.stdin = self.process.stdin
        self.out, self.err = (p and Output(p) for p in (self.process.stdout, self.process.stderr))

    @staticmethod
    def program(module, *arguments, code=None):
        """Return the command line."""
        program = ["-c", code] if code else ["-m", module]
        return [sys.executable, "-X", "faulthandler", "-W", "error", *program, *map(str, arguments)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.status()

    def signal(self, number):
        self.process.send_signal(number)

    def interrupt(self):
        """Send SIGINT, as Ctrl-C does, until the process ends.

        One that arrives before the last is handled is lost, and Python can miss one that arrives just before a wait.
        """
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "the process does not end"
            self.signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)

    def signal_until_it_ends(self, number):
        """Send a signal again and again. The first of them that is a second after an earlier stop ends a server."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            self.signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)

    def drain(self, *clients):
        """Stop a server by SIGTERM, whose clients wait for its EOF and then close. It ends with status 0."""
        self.signal(signal.SIGTERM)
        for sock in clients:
            assert receive_all(sock) == b""
            sock.close()
        assert self.status() == 0

    def status(self):
        """Close stdin, wait for the end, and return the exit status. All output has been collected then."""
        if self.stdin and not self.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()
        status = self.process.wait(SECONDS)
        for output in (self.out, self.err):
            if output:
                output.join()
        return status

    def complaint(self):
        """Return the error message, which must be the only line on stderr."""
        text = self.err.text
        assert text.endswith("\n"), f"no line on stderr: {text!r}"
        assert text.count("\n") == 1, text
        return text[:-1]


def piped(address, data):
    """Run rioecho-client with data on stdin. Returns its exit status, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-m", "rioecho.cli.client", *map(str, address)],
        input=data,
        capture_output=True,
        timeout=2 * SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


class Server(Command):
    """rioecho-server on a free port. ``addresses`` are its (host, port) pairs, ``address`` is the first of them."""

    def __init__(self, *arguments, port=0, ready=True, **options):
        super().__init__("rioecho.cli.server", port, *arguments, **options)
        if ready:
            try:
                self.out.wait_for("\n")
            except BaseException:
                self.__exit__()
                raise
            shown = self.out.text.removeprefix("Listening on ").split(", ")
            pairs = (each.strip().rpartition(":") for each in shown if "/" not in each and each[0] != "@")  # TCP
            self.addresses = [(host.strip("[]"), int(number)) for host, _, number in pairs]
            self.address = self.addresses[0]


def peak_memory(pid):
    """Return the peak resident memory of a process in bytes, or None if the system cannot tell."""
    if os.environ.get("RIOECHO_BUILD") == "sanitize":
        pytest.skip("AddressSanitizer keeps freed memory")
    return _status_field(pid, "VmHWM")


def _status_field(pid, name):
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return None


def processor_seconds(pid):
    """Return the processor time of a process in seconds, or None if the system cannot tell."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def assert_waits(pid, clients):
    """Check that none of the clients receives anything for a while, and that the server uses no processor time then."""
    before = processor_seconds(pid)
    assert not select.select(clients, [], [], 0.5)[0]  # time for a busy loop to show
    if before is not None:
        assert processor_seconds(pid) - before < 0.1
