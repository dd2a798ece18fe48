"""rioecho-bench and its outputs: whole or not at all, and one line that says what is refused."""

import importlib.util
import itertools
import json
import os
import signal
import stat
import sys

import pytest

from rioecho import EchoServer
from support.loads import MODULE, ended
from support.namespaces import inside, mounted
from support.peers import SECONDS, Command, Output
from support.procfs import until

SHORT = ("-d", "0.1", "-c", "2", "-q")


#: The command, which cannot write more than 1000 bytes to a file: as on a disk that is nearly full.
LIMITED_FILES = """if True:
    import resource, runpy, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # EFBIG
    runpy.run_module("rioecho.cli.bench", run_name="__main__")
"""


@pytest.mark.long
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


@pytest.mark.long
def test_a_symbolic_link_and_a_device_are_written_through(target, tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "folder" / "run.json")
    assert ended(target, *SHORT, "--json", link, "--hdr", os.devnull)[0] == 0
    assert link.is_symlink()
    assert json.loads(link.read_text())["connections"] == 2


@pytest.mark.long
@pytest.mark.parametrize("name", ["run", "\u4e2d" * 83 + ".json"], ids=["no suffix", "as long as names may be"])
def test_a_file_may_have_any_name(target, tmp_path, name):
    for _ in range(2):  # a new one, and one that exists
        assert ended(target, *SHORT, "--json", tmp_path / name)[0] == 0
        assert json.loads((tmp_path / name).read_text())["connections"] == 2
        assert os.listdir(tmp_path) == [name]


@pytest.mark.long
def test_a_plot_may_be_written_through_a_link_to_a_name_without_a_suffix(target, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'bench' is not installed")
    link = tmp_path / "link.svg"
    link.symlink_to(tmp_path / "plot")
    status, _, err = ended(target, *SHORT, "--plot", link)
    assert (status, err) == (0, [])
    assert (tmp_path / "plot").read_text().startswith("<?xml")


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/dev/fd/0"), reason="there is no /dev/fd")
def test_an_open_descriptor_is_written_to(target, tmp_path):
    """Such as that of a shell's >(command)."""
    reader, writer = os.pipe()
    assert ended(target, *SHORT, "--json", f"/dev/fd/{writer}", pass_fds=[writer])[0] == 0
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert json.load(pipe)["connections"] == 2
    with open(tmp_path / "out", "ab") as out:  # nothing replaces the file that gets the table
        assert ended(target, *SHORT, "--json", "/dev/fd/1", stdout=out)[0] == 0
    run, _, table = (tmp_path / "out").read_text().partition("}\n127")
    assert json.loads(run + "}")["connections"] == 2
    assert "p99.9" in table


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
def test_root_leaves_a_file_to_its_owner(target, tmp_path):
    path = tmp_path / "run.json"
    path.write_text("from before")
    os.chown(path, 12345, 23456)
    path.chmod(0o600)
    assert ended(target, *SHORT, "--json", path)[0] == 0
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 23456, 0o600)
    assert json.loads(path.read_text())["connections"] == 2


@pytest.mark.long
def test_a_signal_while_the_results_are_written_does_not_lose_them(target, tmp_path):
    first, last = tmp_path / "run.json", tmp_path / "run.hgrm"
    reader, writer = os.pipe()
    filled = os.write(writer, b"x" * (1 << 16))
    arguments = (target, "-c", "2", "-d", "0.1", "-q", "--json", first, "--hdr", last)
    with Command(MODULE, *arguments, stdout=writer) as bench:
        os.close(writer)
        until(first.exists)  # the table is next, for which the pipe has no room
        bench.signal(signal.SIGTERM)
        output = Output(os.fdopen(reader, "rb"))
        assert bench.status() == 143
        output.join()
        assert bench.err.text == "rioecho-bench: terminated\n"
    assert b"p99.9" in output.data[filled:]
    assert last.read_text().split()[0] == "Value"


@pytest.mark.long
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_disk_that_is_full_in_the_middle_of_the_json_on_stdout_is_status_1(target, tmp_path, unbuffered):
    environment = {"PYTHONUNBUFFERED": unbuffered, "PYTHONDONTWRITEBYTECODE": "1"}
    with open(tmp_path / "out", "wb") as out:
        status, _, err = ended(target, *SHORT, "--json", code=LIMITED_FILES, stdout=out, environment=environment)
    assert (status, err) == (1, ["rioecho-bench: stdout: File too large"])


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_times_rates_and_sizes_have_units(target):
    arguments = ("-d", "150ms", "--warmup", "10ms", "-s", "1k", "--rate", "5k", "--stall-timeout", "3s", "--json")
    status, out, _ = ended(target, *arguments)
    run = json.loads(out)
    assert (status, run["message_bytes"], run["rate_asked"]) == (0, 1024, 5000)
    assert run["duration_s"] == pytest.approx(0.15)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract names")
def test_an_abstract_unix_socket_is_a_target():
    name = f"rioecho-bench-{os.getpid()}"
    with EchoServer(port=None, unix=f"\0{name}"):
        status, out, _ = ended("--unix", f"@{name}", *SHORT, "--json")
    assert status == 0
    assert json.loads(out)["target"] == f"unix:@{name}"


#: The folders in which Matplotlib and the module tempfile look for one that they can write to.
EVERYWHERE = [folder for folder in ("/tmp", "/var/tmp", "/usr/tmp") if os.path.isdir(folder)]  # noqa: S108


@pytest.mark.slow
def test_a_plot_where_only_its_own_folder_is_writable_is_refused_before_the_run_or_drawn(target, tmp_path):
    """Read-only for root too: in a mount namespace."""
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("the extra 'bench' is not installed")
    folder = tmp_path / "folder"
    folder.mkdir()
    prelude = inside(*(mounted(each, "ro") for each in EVERYWHERE), mounted(folder, "rw"), mounts=True)
    options = {"prelude": prelude, "cwd": "/proc"}
    nowhere = {"HOME": "/proc", "TMPDIR": "/proc", "PYTHONDONTWRITEBYTECODE": "1"}
    for variable in ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        nowhere[variable] = "/proc/nowhere"
    arguments = (*SHORT, "--plot", folder / "x.png")
    status, out, err = ended("127.0.0.1:1", *arguments, environment=nowhere, **options)
    assert (status, out, len(err)) == (2, "", 1), err
    assert err[0].startswith("rioecho-bench: --plot: ")
    assert err[0].endswith("; Matplotlib needs a directory it can write to: set MPLCONFIGDIR to one")
    assert os.listdir(folder) == []
    status, _, err = ended(target, *arguments, environment=nowhere | {"MPLCONFIGDIR": str(folder / "mpl")}, **options)
    assert (status, err) == (0, [])
    assert (folder / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_too_few_descriptors_are_one_line_that_says_what_to_do(target):
    status, out, err = ended(target, "-c", "100", "-d", "1", prelude="ulimit -n 50")
    assert (status, out, len(err)) == (1, "", 1)
    assert "of 100 connections were made; raise the limit of open files (ulimit -n)" in err[0]
