"""Run the programs of examples/, and clients for them, as child processes."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import rioecho
from rioecho import Rio, connect

EXAMPLES = Path(__file__).parents[2] / "examples"
LONG = 20.0  # timeout in seconds; expires only if something is broken

OTHERS = {
    "nc": ["nc", "-N"],  # half-close at the end of stdin (OpenBSD's nc)
    "socat": ["socat", "-t", "20", "-"],
}


def other(name, host, port):
    """Return the command line of another program that sends stdin and prints what it receives."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    if name == "socat":
        return [*OTHERS[name], f"TCP:{host}:{port}"]
    usage = subprocess.run(["nc", "-h"], capture_output=True, text=True, timeout=LONG, check=False)
    if not re.search(r"^\s*-N|\[-\w*N", usage.stdout + usage.stderr, re.MULTILINE):
        pytest.skip("this nc has no option -N")
    return [*OTHERS[name], host, str(port)]


def command(name, *args):
    return [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLES / name), *map(str, args)]


def environment():
    """Return an environment in which children import the tested rioecho and CGI programs run this Python."""
    return os.environ | {
        "PYTHONPATH": str(Path(rioecho.__file__).parents[1]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


@pytest.fixture
def start():
    """Return a function that starts a child process. The fixture terminates the children after the test.

    Their standard streams are unbuffered pipes. ``child.output`` and ``child.complaints`` are Rios that read stdout and
    stderr with a timeout of LONG.
    """
    children = []

    def start(argv, **options):
        pipe = subprocess.PIPE
        child = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, env=environment(), **options)
        child.output = Rio(child.stdout, timeout=LONG)
        child.complaints = Rio(child.stderr, timeout=LONG)
        children.append(child)
        return child

    yield start
    for child in children:
        child.terminate()
        try:
            child.communicate(timeout=LONG)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise


def run(argv, data=b"", **kwargs):
    """Run a child with this input and wait for its end. Returns its status, stdout and stderr."""
    child = subprocess.run(argv, input=data, capture_output=True, timeout=60, env=environment(), check=False, **kwargs)
    return child.returncode, child.stdout, child.stderr


class Server:
    def __init__(self, child, port):
        self.child = child
        self.port = port

    def lines(self, count):
        """Read this many lines of its output, with the addresses of clients removed."""
        lines = [self.child.output.readline().decode() for _ in range(count)]
        return [re.sub(r"^Connected to \(.+, \w+\)$", "Connected", line.rstrip("\n")) for line in lines]

    def connect(self):
        return connect("127.0.0.1", self.port, timeout=LONG)

    def end(self):
        """Interrupt it as Ctrl-C does, wait for its end, and return what it wrote to stderr."""
        self.child.send_signal(signal.SIGINT)
        _, complaints = self.child.communicate(timeout=LONG)
        assert self.child.returncode == -signal.SIGINT
        return complaints


def free_port():
    """Return a free port outside the ranges from which systems assign ephemeral ports."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def accepting(child, *address):
    """Wait until the child accepts connections at a host and port, or a path. The test connection sends nothing."""
    while True:
        try:
            return connect(*address, timeout=LONG).close()
        except (ConnectionRefusedError, FileNotFoundError):
            try:
                child.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"{child.args} ended with status {child.returncode} and wrote {child.communicate()}")


@pytest.fixture
def serve(start):
    """Return a function that starts a server, ``serve("echoserveri.py")``, and waits until it has accepted a client.

    That client sends nothing. ``code`` is Python source to run instead of the program, with the port in sys.argv[1].
    """

    def serve(name, *, code=None, **options):
        port = free_port()
        argv = [*command(name)[:-1], "-c", code, str(port)] if code else command(name, port)
        child = start(argv, **options)
        accepting(child, "127.0.0.1", port)
        return Server(child, port)

    return serve
