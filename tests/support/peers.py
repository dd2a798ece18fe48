"""Peers of the echo server and the echo client: sockets that talk to them, and the commands as child processes."""

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from support.delivery import fileno

SECONDS = 30  # for what does not take long unless something is broken
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
    """Random bytes, newlines among them as often as chance has it."""
    return random.Random(f"{seed} {n}").randbytes(n)


def lines(n, longest=120, seed=0):
    """Random lines without a newline inside; some are empty."""
    chance = random.Random(f"{seed} {n}")
    return [chance.randbytes(chance.randrange(longest)).replace(b"\n", b"n") + b"\n" for _ in range(n)]


def dial(address):
    """Connect; no call on the socket takes longer than it should."""
    return socket.create_connection(address[:2], timeout=SECONDS)


def reset(sock):
    """Close a TCP connection with a reset instead of an end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def receive(sock, n):
    """Exactly n bytes."""
    parts = []
    while n:
        parts.append(sock.recv(min(n, 1 << 16)))
        assert parts[-1], f"the end came {n} bytes too soon"
        n -= len(parts[-1])
    return b"".join(parts)


def receive_all(sock):
    """All that comes, to the end."""
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def ask(sock, line=b"are you there?\n"):
    """Send a line and have it back: the server is serving this connection now."""
    sock.sendall(line)
    assert receive(sock, len(line)) == line


def exchange(end, data, *, finish=True):
    """Send data and receive at the same time; then half-close, and receive to the end: all that came back.

    Without `finish` nothing is closed, and as many bytes are awaited as were sent.
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
    """Send, and never read, until nothing more is taken for a while; how much was."""
    sock.setblocking(False)
    chunk, total = b"x" * 4095 + b"\n", 0
    while select.select([], [sock], [], 0.3)[1]:
        with contextlib.suppress(BlockingIOError):
            total += sock.send(chunk * 16)
        assert total < 1 << 28, "the server reads and reads what nobody takes back"
    return total


def acknowledged(sock):
    """Wait until the peer's kernel has got all that was sent, where this can be asked for."""
    if sys.platform != "linux":
        return
    deadline = time.monotonic() + SECONDS
    while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]:
        assert time.monotonic() < deadline, "what was sent does not arrive"
        os.sched_yield()


class Running:
    """A function in a thread of its own; result() is what it returned, or raises what it raised."""

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
    """A server of ours for one connection, `talk(sock)`; gives its address."""
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
    """What a child writes to one of its pipes, read as it comes."""

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
        """Wait until it has been said so often."""
        if isinstance(wanted, str):
            wanted = wanted.encode()
        with self._changed:
            self._changed.wait_for(lambda: self.data.count(wanted) >= times or self._ended, SECONDS)
        assert self.data.count(wanted) >= times, f"waited for {wanted!r}, got {self.data[-2000:]!r}"

    def join(self):
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "somebody still holds the pipe open"


class Screen:
    """A terminal's master side as a pipe for Output; a hang-up is its end."""

    def __init__(self, fd):
        self._fd = fd

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._fd)

    def read1(self, n):
        with contextlib.suppress(OSError):  # EIO: nobody is on the terminal any more
            return os.read(self._fd, n)
        return b""


class Command:
    """A command of the project as a child process; leaving the block ends it."""

    def __init__(self, module, *arguments, code=None, prelude=None, environment=None, **options):
        program = ["-c", code] if code else ["-m", module]
        command = [sys.executable, "-X", "faulthandler", "-W", "error", *program, *map(str, arguments)]
        if prelude:  # what the shell does before it becomes the command
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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.status()

    def signal(self, number):
        self.process.send_signal(number)

    def status(self):
        """Wait for the end; the exit status. All output is there then."""
        if self.stdin and not self.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()
        status = self.process.wait(SECONDS)
        for output in (self.out, self.err):
            if output:
                output.join()
        return status

    def complaint(self):
        """The one line on stderr that says what was wrong."""
        text = self.err.text
        assert text.endswith("\n"), f"no line on stderr: {text!r}"
        assert text.count("\n") == 1, text
        return text[:-1]


def piped(address, data):
    """What a client that is given data in a pipe ends with: its status, its output, and what it says on stderr."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-m", "rioecho.cli.client", *map(str, address)],
        input=data,
        capture_output=True,
        timeout=2 * SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


class Server(Command):
    """rioecho-server on a free port, ready; `addresses` are its (host, port) pairs, `address` the first."""

    def __init__(self, *arguments, port=0, ready=True, **options):
        super().__init__("rioecho.cli.server", port, *arguments, **options)
        if ready:
            try:
                self.out.wait_for("\n")
            except BaseException:
                self.__exit__()
                raise
            shown = self.out.text.removeprefix("Listening on ").split(", ")
            pairs = (each.strip().rpartition(":") for each in shown if "/" not in each)  # a unix socket's path
            self.addresses = [(host.strip("[]"), int(number)) for host, _, number in pairs]
            self.address = self.addresses[0]


def peak_memory(pid):
    """The most memory that a process has had, in bytes; None where this cannot be asked for."""
    if os.environ.get("RIOECHO_BUILD") == "sanitize":
        pytest.skip("AddressSanitizer keeps freed memory")
    return _status_field(pid, "VmHWM")


def _status_field(pid, name):
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass
    return None


def processor_seconds(pid):
    """Seconds of processor time that a process has had; None where this cannot be asked for."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
