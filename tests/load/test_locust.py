"""examples/locustfile.py: a Locust user on Rio, run by Locust's distributed runner with two workers."""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import rioecho
from rioecho import EchoServer
from support.peers import SECONDS

pytestmark = [
    pytest.mark.slow,
    # Not imported: it would replace the sockets of this process by gevent's.
    pytest.mark.skipif(
        importlib.util.find_spec("locust") is None, reason="Locust is not installed (pip install locust)"
    ),
]
LOCUSTFILE = Path(__file__).parents[2] / "examples" / "locustfile.py"
USERS = 6


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


@contextlib.contextmanager
def locust(*arguments, **options):
    """Run Locust in headless mode; kill it at the end of the block."""
    environment = os.environ | {"PYTHONPATH": str(Path(rioecho.__file__).parents[1])}
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *arguments]
    with subprocess.Popen(command, env=environment, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def run(host, *, workers=2, seconds=2):
    """Run a master and its workers; yield the master, whose stdout is Locust's JSON."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(
            locust(
                *("--host", host, "--headless", "--json", "--users", str(USERS), "--spawn-rate", str(USERS)),
                *("--run-time", f"{seconds}s", "--master", "--expect-workers", str(workers)),
                *("--master-bind-host", "127.0.0.1", "--master-bind-port", port),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
        each = [
            stack.enter_context(
                locust(
                    *("--worker", "--master-host", "127.0.0.1", "--master-port", port),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            for _ in range(workers)
        ]
        yield master
        assert [worker.wait(SECONDS) for worker in each] == [0] * workers


def test_two_workers_load_the_server_and_every_echo_counts():
    with EchoServer(host="127.0.0.1") as server:
        with run(f"127.0.0.1:{server.addresses[0][1]}") as master:
            out, _ = master.communicate(timeout=2 * SECONDS)
            assert master.returncode == 0
        stats = server.stats()
    (line,) = json.loads(out)
    assert (line["name"], line["method"], line["num_failures"]) == ("line", "echo", 0)
    assert line["num_requests"] > 100
    assert stats["accepted"] == USERS
    # A user may be stopped between an echo and its report.
    assert line["num_requests"] <= stats["lines"] <= line["num_requests"] + USERS


def test_a_server_that_does_not_answer_is_a_failure_of_the_requests():
    with run(f"127.0.0.1:{free_port()}") as master:
        out, _ = master.communicate(timeout=2 * SECONDS)
        assert master.returncode == 1
    (line,) = json.loads(out)
    assert line["num_failures"] == line["num_requests"] > 0
