"""rioecho-bench against servers in processes of their own: rioecho-server, socat, ncat, and uvloop's streams."""

import importlib.util
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from support.peers import Command, Server
from support.programs import accepting, free_port, start  # noqa: F401 - a fixture

ASYNCIO_ECHO = Path(__file__).parents[2] / "benchmarks" / "peers" / "asyncio_echo.py"
CONNECTIONS, SIZE = 3, 100

#: The program, and its arguments to listen on a port and on a path.
OTHERS = {
    "socat cat": ("socat", "TCP-LISTEN:{1},bind={0},fork EXEC:/bin/cat", "UNIX-LISTEN:{0},fork EXEC:/bin/cat"),
    "socat": ("socat", "TCP-LISTEN:{1},bind={0},fork PIPE", "UNIX-LISTEN:{0},fork PIPE"),
    "ncat": ("ncat", "-k -e /bin/cat -l {0} {1}", "-k -e /bin/cat -l -U {0}"),
}


def bench(*arguments, duration=0.1, may_be_idle=False):
    """Run the command, require success, and return its result. Repeat a run that got no processor time."""
    with Command("rioecho.cli.bench", *arguments, "-d", duration, "--warmup", "0", "--json") as command:
        assert command.status() == 0, command.err.text
        run = json.loads(command.out.text)
    assert run["errors"] == 0
    if not run["messages"] and not may_be_idle:
        return bench(*arguments, duration=duration * 2)
    assert run["rate"] == pytest.approx(run["messages"] / duration, rel=1e-6)
    assert run["mb_per_s"] == pytest.approx(run["rate"] * run["message_bytes"] / 1e6)
    return run


def echoed(server, times):
    """Return the numbers of bytes echoed on each of ``times`` closed connections, from the server's log."""
    server.err.wait_for("bytes echoed", times=times)
    return [int(n) for n in re.findall(r"end of input, (\d+) bytes echoed", server.err.text)]


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("framing", ["line", "raw"])
@pytest.mark.parametrize("engine", ["iterative", "process", "thread", "event"])
def test_its_count_agrees_with_the_log_of_rioecho_server(engine, framing, tmp_path):
    unix = tmp_path / "echo"
    connections = 1 if engine == "iterative" else CONNECTIONS
    with Server("--engine", engine, "--framing", framing, "--unix", unix, "--host", "127.0.0.1") as server:
        before = runs = 0
        for where in ([f"127.0.0.1:{server.address[1]}"], ["--unix", unix]):
            messages = 0
            while not messages:
                run = bench(*where, "-c", connections, "-s", SIZE, "--pipeline", 4, may_be_idle=True)
                runs += 1
                each = echoed(server, runs * connections)
                assert all(count % SIZE == 0 for count in each)
                messages = sum(each) // SIZE - before
                # The messages in flight at the end were echoed, too.
                assert run["messages"] <= messages <= run["messages"] + 4 * connections
                before += messages
        server.signal(signal.SIGTERM)
        assert server.status() == 0


@pytest.mark.slow
def test_a_suspended_server_shows_in_the_corrected_latencies_and_hardly_in_the_uncorrected():
    with Server("--host", "127.0.0.1") as server:
        arguments = [
            f"127.0.0.1:{server.address[1]}",
            "-c",
            "1",
            "-d",
            "3",
            "--warmup",
            "0",
            "--rate",
            "1000",
            "--json",
        ]
        with Command("rioecho.cli.bench", *arguments) as command:
            command.err.wait_for("p50")  # the first line is printed after a second
            server.signal(signal.SIGSTOP)
            time.sleep(1)
            server.signal(signal.SIGCONT)
            assert command.status() == 0, command.err.text
            run = json.loads(command.out.text)
    corrected, uncorrected = run["latency_us"], run["latency_uncorrected_us"]
    # 1000 of 3000 messages were due in that second, and only one of them was in flight.
    assert corrected["p99.9"] > corrected["p99"] > corrected["p90"] > 500_000
    assert uncorrected["max"] > 900_000
    assert uncorrected["p99"] < corrected["p99"] / 3
    assert run["late_p99_us"] < corrected["p99"] / 2
    assert "late itself" not in command.err.text


@pytest.mark.long
def test_a_suspended_load_test_says_that_it_was_late_itself():
    with Server("--host", "127.0.0.1", "-v") as server:
        arguments = ["-c", "1", "-d", "1", "--warmup", "0", "--rate", "1000", "--json"]
        with Command("rioecho.cli.bench", f"127.0.0.1:{server.address[1]}", *arguments) as command:
            server.err.wait_for("server received")
            command.signal(signal.SIGSTOP)
            time.sleep(0.4)
            command.signal(signal.SIGCONT)
            assert command.status() == 0, command.err.text
            run = json.loads(command.out.text)
    assert run["late_p99_us"] > 300_000
    warning = r"rioecho-bench: warning: the load generator was late itself, by (\d+\.\d) ms at the 99th percentile: .+"
    (late,) = re.findall(warning, command.err.text)
    assert float(late) == pytest.approx(run["late_p99_us"] / 1000, abs=0.051)


@pytest.mark.slow
def test_a_server_that_dies_is_status_1_with_what_was_measured():
    with Server("--host", "127.0.0.1") as server:
        arguments = [f"127.0.0.1:{server.address[1]}", "-c", CONNECTIONS, "-d", "60", "--warmup", "0"]
        with Command("rioecho.cli.bench", *arguments) as command:
            command.err.wait_for("p50")
            server.signal(signal.SIGKILL)
            assert command.status() == 1
            *run, complaint = command.err.text.splitlines()
            assert all("/s  p50" in line for line in run)
            assert "p99.9" in command.out.text
    assert re.fullmatch(
        r"rioecho-bench: connection \d was (closed by the server|lost \(Connection reset by peer\)); "
        r"\d+ bytes were not echoed",
        complaint,
    )


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("name", OTHERS)
def test_it_can_load_other_servers(start, name, transport, tmp_path):  # noqa: F811
    program, *listening = OTHERS[name]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    address = ["127.0.0.1", free_port()] if transport == "tcp" else [str(tmp_path / "echo")]
    words = listening[transport == "unix"].format(*address).split()
    child = start([program, *words])
    accepting(child, *address)
    where = ["--unix", *address] if transport == "unix" else ["{}:{}".format(*address)]
    bench(*where, "-c", CONNECTIONS, "-s", SIZE, "--pipeline", 4)
    assert child.poll() is None


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
@pytest.mark.skipif(not ASYNCIO_ECHO.exists(), reason="the source tree is not available")
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_it_can_load_a_server_on_uvloop(start, transport, tmp_path):  # noqa: F811
    unix = [str(tmp_path / "echo")] if transport == "unix" else []
    child = start([sys.executable, str(ASYNCIO_ECHO), "streams", *unix])
    address = child.output.readline().decode().split()[-1]
    bench(*(["--unix", address] if unix else [address]), "-c", CONNECTIONS, "-s", SIZE, "--pipeline", 4)
    assert child.poll() is None
