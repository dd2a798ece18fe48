"""rioecho-bench and its outputs: whole or not at all, and one line that says what is refused."""

import itertools
import json
import os
import stat
import sys

import pytest

from rioecho import EchoServer
from support.peers import SECONDS, Command, Output

MODULE = "rioecho.cli.bench"
SHORT = ("-d", "0.1", "-c", "2", "-q")


@pytest.fixture
def target():
    with EchoServer() as running:
        host, port = running.addresses[0]
        yield f"{host}:{port}"


def ended(*arguments, **options):
    """Run the command; return its status, stdout and the lines of stderr."""
    with Command(MODULE, *arguments, **options) as bench:
        status = bench.status()
        return status, bench.out and bench.out.text, bench.err.text.splitlines()


#: The command, which cannot write more than 1000 bytes to a file: as on a disk that is nearly full.
LIMITED_FILES = """if True:
    import resource, runpy, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # EFBIG
    runpy.run_module("rioecho.cli.bench", run_name="__main__")
"""


def test_a_full_disk_leaves_no_file_and_an_older_one_unchanged(target, tmp_path):
    new, old = tmp_path / "new.json", tmp_path / "old.hgrm"
    old.write_text("from before")
    old.chmod(0o640)
    arguments = (target, *SHORT, "--json", new, "--hdr", old)
    status, _, err = ended(*arguments, code=LIMITED_FILES, environment={"PYTHONDONTWRITEBYTECODE": "1"})
    assert status == 1
    assert err == [f"rioecho-bench: {path}: File too large" for path in (new, old)]
    assert os.listdir(tmp_path) == ["old.hgrm"]
    assert old.read_text() == "from before"
    assert ended(*arguments)[0] == 0
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert old.read_text().split()[0] == "Value"


def test_a_symbolic_link_and_a_device_are_written_through(target, tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "folder" / "run.json")
    assert ended(target, *SHORT, "--json", link, "--hdr", os.devnull)[0] == 0
    assert link.is_symlink()
    assert json.loads(link.read_text())["connections"] == 2


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_disk_that_is_full_in_the_middle_of_the_json_on_stdout_is_status_1(target, tmp_path, unbuffered):
    environment = {"PYTHONUNBUFFERED": unbuffered, "PYTHONDONTWRITEBYTECODE": "1"}
    with open(tmp_path / "out", "wb") as out:
        status, _, err = ended(target, *SHORT, "--json", code=LIMITED_FILES, stdout=out, environment=environment)
    assert (status, err) == (1, ["rioecho-bench: stdout: File too large"])


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_full_non_blocking_pipe_gets_everything_when_it_is_read(unbuffered):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = os.write(writer, b"x" * (1 << 16))
    with EchoServer() as server:
        host, port = server.addresses[0]
        arguments = (f"{host}:{port}", "-d", "0.01", "-c", "1", "--json")
        bench = Command(MODULE, *arguments, stdout=writer, environment={"PYTHONUNBUFFERED": unbuffered})
        with bench:
            while server.stats()["closed"] == 0:  # the test has ended: its result is written next
                assert bench.process.poll() is None
                os.sched_yield()
            os.close(writer)
            output = Output(os.fdopen(reader, "rb"))
            assert bench.status() == 0
            output.join()
    assert json.loads(output.data[filled:])["connections"] == 1


@pytest.mark.slow
def test_a_full_non_blocking_pipe_that_nobody_reads_is_status_1(target):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b"x" * (1 << 16))
    with Command(MODULE, target, *SHORT, "--json", stdout=writer) as bench:
        assert bench.process.wait(SECONDS) == 1
        bench.status()
        assert bench.complaint() == "rioecho-bench: stdout: nobody has read from the pipe for 5 s"
    os.close(writer)
    os.close(reader)


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("http://localhost:1",), "is a URL: use HOST:PORT"),
        (("localhost:1", "--warmup", "4", "-d", "1"), "--warmup 4 is longer than --duration 1"),
        (("localhost:1", "--hdr", "-"), "--hdr -: only --json writes to stdout"),
        (("localhost:1", "--connect-timeout", "0"), "'0' is not a number of seconds above 0"),
        (("localhost:1", "--ramp", "-1"), "-1"),
        (("localhost:1", "--max-p99", "fast"), "'fast' is not a number of seconds"),
        (("localhost:1", "--min-rate", "0"), "'0' is not a number of messages per second above 0"),
        (("--unix", "@"), "@NAME"),
        (("compare", "a", "b", "--fail-above", "ten"), "'ten' is not a percentage"),
        (("merge", "a"), "give two or more results of --json to merge"),
        (("merge", "/nowhere/a", "/nowhere/b"), "/nowhere/a: No such file"),
    ],
    ids=itertools.count(),
)
def test_what_is_refused_is_one_line_that_says_what_to_do(arguments, words):
    status, out, err = ended(*arguments)
    assert (status, out, len(err)) == (2, "", 1)
    assert words in err[0]


def test_times_rates_and_sizes_have_units(target):
    arguments = ("-d", "150ms", "--warmup", "10ms", "-s", "1k", "--rate", "5k", "--stall-timeout", "3s", "--json")
    status, out, _ = ended(target, *arguments)
    run = json.loads(out)
    assert (status, run["message_bytes"], run["rate_asked"]) == (0, 1024, 5000)
    assert run["duration_s"] == pytest.approx(0.15)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract names")
def test_an_abstract_unix_socket_is_a_target():
    name = f"rioecho-bench-{os.getpid()}"
    with EchoServer(port=None, unix=f"\0{name}"):
        status, out, _ = ended("--unix", f"@{name}", *SHORT, "--json")
    assert status == 0
    assert json.loads(out)["target"] == f"unix:@{name}"


def test_a_plot_without_a_writable_cache_is_refused_before_the_run(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise FileNotFoundError(2, 'No usable temporary directory found in /tmp')")
    status, out, err = ended(
        "127.0.0.1:1", *SHORT, "--plot", tmp_path / "x.png", environment={"PYTHONPATH": str(tmp_path)}
    )
    assert (status, out) == (2, "")
    assert err == [
        "rioecho-bench: --plot: No usable temporary directory found in /tmp; "
        "Matplotlib needs a directory it can write to: set MPLCONFIGDIR to one"
    ]


def test_too_few_descriptors_are_one_line_that_says_what_to_do(target):
    status, out, err = ended(target, "-c", "100", "-d", "1", prelude="ulimit -n 50")
    assert (status, out, len(err)) == (1, "", 1)
    assert "of 100 connections were made; raise the limit of open files (ulimit -n)" in err[0]
