"""The benchmarks run and evaluate their figures correctly. No test requires that a goal is reached."""

import contextlib
import http.client
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import rioecho
from support import services
from support.procfs import children, gone, until
from support.services import ServiceError, Services

FOLDER = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not (FOLDER / "run.py").is_file(), reason="the source tree is not available")
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="there is no C compiler")
LINUX = sys.platform.startswith("linux")

#: The goals of the design, by row: the ratio that each has to reach.
GOALS = {
    "readline(), 64-byte lines": 0.42,
    "for line in file": 0.48,
    "readlines1(), per line": 0.30,
    "read(16)": 0.45,
    **{f"read({4**n})": 1.0 for n in range(3, 11)},
    "32 lines there and back, beside a busy thread": 0.20,
    "a thread for each of 8 clients, 32 lines in flight": 6.0,
    "50 clients x 32 lines, beside uvloop streams": 30.0,
    "50 clients x 32 lines, beside C": 0.97,
    "50 clients ping-pong, CPU, beside C": 1.02,
    "LineServer, 50 clients x 32 lines, beside uvloop streams": 25.0,
    "LineServer, 50 clients x 32 lines, beside C": 0.8,
    "LineServer, 50 clients x 32 lines, CPU, beside C": 1.2,
    "LineServer, 50 clients ping-pong, CPU, beside C": 1.15,
    **{f"raw, 8 clients x 256 KiB, CPU, beside C, {size} KiB": 1.0 for size in (64, 256)},
    "10 busy clients of 10,010, CPU, kqueue beside epoll": 1.2,
    "idle clients, memory, beside uvloop Protocol": 0.07,
    "rioecho-bench, one thread, beside a load in C": 0.95,
    "import rioecho": 0.010,
    **{
        f"aio, {loop}: {what}": goal
        for loop in ("asyncio", "uvloop")
        for what, goal in (
            ("readline(), line held", 0.20),
            ("async for line, held", 0.20),
            ("readlines1(), per line, held", 0.06),
            ("streams, readline(), line held", 0.30),
            ("echo handler, 50 clients x 32 lines", 8.0),
        )
    },
    "read(17825792)": 1.0,
    **{f"a line, then a body of {size}": 0.8 for size in ("64 KiB", "300 kB", "1 MiB", "4 MiB", "16 MiB", "64 MiB")},
    **{f"TCP: a line, then a body of {size}": 1.0 for size in ("1 MiB", "4 MiB", "16 MiB")},
    'makefile("rb").close()': 1.0,
    "pickle.load, small objects": 1.0,
    "text: readline(), utf-8, ASCII": 0.5,
    "text: readline(), utf-8, Cyrillic": 0.5,
    "TLS: a line there and back, sendall, readline": 1.0,
    'TLS: a line there and back, "rwb"': 1.0,
    "TLS: read(1 MiB)": 1.0,
    **{f"http.client: a body of {size}": 1.0 for size in ("1 kB", "0.3 MB", "1 MB", "12 MB")},
    **{f"http.client, TLS: a body of {size}": 1.0 for size in ("1 kB", "1 MB")},
    "http.server: a POST of 4 MB": 1.0,
    "urllib.request: a page of 1 kB": 1.0,
    "urllib.request: a page of 1 MB": 1.0,
    "urllib.request: 1 MB to the end of the connection": 1.0,
    **{
        f"{client}{tls}: {what}": 1.0
        for client in ("PyMySQL", "pg8000")
        for tls in ("", ", TLS")
        for what in ("20,000 rows", "select 1", "1 MB")
    },
    "pg8000: COPY of 20,000 rows": 1.0,
    **{f"imaplib{tls}: {what}": 1.0 for tls in ("", ", TLS") for what in ("NOOP", "a mail of 1 MB")},
}

#: The rows about processor time; the others are about time, memory or a rate.
CPU_ROWS = (
    *(f"aio, {loop}: {how}" for loop in ("asyncio", "uvloop") for how in ("readline", "async for", "streams")),
    "10 busy clients of 10,010",
    "read(262144)",
    "read(1048576)",
    "read(17825792)",
    "a line, ",
    "TCP: a line, ",
    "makefile",
    "pickle",
    "TLS",
    "http.",
    "urllib.",
    "PyMySQL",
    "pg8000",
    "imaplib",
    "50 clients ping-pong",
    "LineServer, 50 clients x 32 lines, CPU",
    "LineServer, 50 clients ping-pong",
    "raw, 8 clients",
)


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(FOLDER) in str(sys.modules[name].__file__):
            del sys.modules[name]


def run(*arguments):
    package = Path(rioecho.__file__).parents[1]
    return subprocess.run(
        [sys.executable, FOLDER / "run.py", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_every_goal_has_a_row(benchmarks):
    from run import all_rows

    assert {row.name: row.goal for row in all_rows() if row.goal is not None} == GOALS


def test_a_goal_of_processor_time_is_of_the_rows_that_wait(benchmarks):
    from run import all_rows

    with_goal = [row for row in all_rows() if row.goal is not None]
    assert {row.name for row in with_goal if row.of == "cpu"} == {n for n in GOALS if n.startswith(CPU_ROWS)}


def test_a_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_the_medians(benchmarks):
    from measure import Measured, Row, evaluated

    row = Row("", "", "", "s", None, goal=0.6)
    pairs = [(1.0, 2.0), (10.0, 30.0), (100.0, 100.0), (4.0, 8.0), (3.0, 6.0)]
    result = evaluated(row, Measured(pairs))
    assert result["ratio"] == 0.5
    assert result["quartiles"] == (0.5, 0.5)
    assert (result["ours_median"], result["peer_median"], result["verdict"]) == (4.0, 8.0, "ok")


@pytest.mark.parametrize(
    ("unit", "goal", "limit", "difference", "pair", "verdict"),
    [
        ("s", 0.5, None, False, (1.0, 2.0), "ok"),
        ("s", 0.5, None, False, (1.1, 2.0), "missed"),
        ("/s", 6.0, None, False, (6.0, 1.0), "ok"),
        ("/s", 6.0, None, False, (5.9, 1.0), "missed"),
        ("B", 0.1, 1024, False, (100.0, 1000.0), "ok"),
        ("B", 0.1, 1024, False, (2000.0, 30_000.0), "missed"),
        ("s", 0.015, None, True, (0.030, 0.020), "ok"),
        ("s", 0.015, None, True, (0.040, 0.020), "missed"),
        ("s", None, None, False, (1.0, 2.0), ""),
        ("s", 0.5, None, False, (1.0, 0.0), "missed"),
    ],
)
def test_a_goal_is_a_maximum_or_a_minimum_by_its_unit(benchmarks, unit, goal, limit, difference, pair, verdict):
    from measure import Measured, Row, evaluated

    row = Row("", "", "", unit, None, goal, limit, difference)
    assert evaluated(row, Measured([pair]))["verdict"] == verdict


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (5.5e6, "/s", "5.50 M/s"),
        (135_000, "/s", "135 k/s"),
        (42.4e-9, "s", "42.4 ns"),
        (0.5e-9, "s", "0.50 ns"),
        (6.1e-6, "s", "6.10 us"),
        (0.0123, "s", "12.3 ms"),
        (80, "B", "80 B"),
        (20_480, "B", "20 KiB"),
        (0.0, "s", "0.00 ns"),
    ],
)
def test_figures_have_three_digits_and_a_unit(benchmarks, value, unit, shown):
    from measure import figure

    assert figure(value, unit) == shown


def test_a_goal_names_processor_time_and_page_faults_are_per_operation(benchmarks):
    from measure import Measured, Row, Spent, evaluated, faults_of, goal_of, ratio_of

    runs = [(Spent(2.0, 0.5, 16.0), Spent(1.0, 1.0, 0.001))] * 3
    result = evaluated(Row("", "", "", "s", None, 0.8, of="cpu"), Measured.of_runs(runs, "cpu"))
    assert (ratio_of(result), goal_of(result), result["verdict"]) == ("0.500", "cpu <= 0.8", "ok")
    assert (result["time_ratio"], result["cpu_ratio"], faults_of(result)) == (2.0, 0.5, "16.0/0")


@pytest.mark.long
def test_a_meter_counts_only_between_start_and_stop(benchmarks):
    from measure import Meter

    def touch():
        with mmap.mmap(-1, 1 << 26, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            for page in range(0, len(memory), mmap.PAGESIZE):
                memory[page] = 1

    meter = Meter()
    for _ in range(2):
        touch()
        meter.start()
        meter.stop()
    little = meter.spent.faults
    meter.start()
    touch()
    meter.stop()
    assert little < 32 <= meter.spent.faults - little  # 32 if all pages have 2 MiB
    assert 0 < meter.spent.cpu < 20


def test_a_server_runs_once_and_until_the_end_of_the_run(benchmarks):
    script = FOLDER / "peers" / "http_server.py"
    with Services() as services:
        server = services.http(script)
        port = server.port
        assert services.http(script) is server
        for path, body in (("/5", bytes(5)), ("/until-close/70000", bytes(70_000))):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
                client.request("GET", path)
                assert client.getresponse().read() == body
        folder = services.folder
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=20).connect()
    assert not folder.exists()


def test_a_row_without_its_program_says_what_is_missing(benchmarks, monkeypatch, capsys):
    import rows_software
    from measure import Settings
    from run import measured
    from sides import row

    monkeypatch.setattr(services.shutil, "which", lambda name, path=None: None if "maria" in name else f"/bin/{name}")
    monkeypatch.setattr(services, "certificate", lambda folder: ("certificate", "key"))
    with services.Services() as running:
        settings = Settings(services=running)
        needs_server = row("a", "databases.pymysql", service=rows_software.mariadb(tls=False))
        needs_driver = row("b", "databases.pymysql", module="no_such_driver")
        assert measured(needs_server, settings) == {"skipped": "mariadbd is not installed"}
        assert measured(needs_server, settings) == {"skipped": "mariadbd is not installed"}
        assert measured(needs_driver, settings) == {"skipped": "no_such_driver is not installed"}
    assert "skipped: mariadbd is not installed" in capsys.readouterr().out


def test_a_server_that_does_not_start_fails_its_row_with_its_last_words(benchmarks, tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such table')"]
    with contextlib.ExitStack() as stack, pytest.raises(ServiceError, match="status 1; it logged: no such table"):
        stack.enter_context(services._running(command, tmp_path, tmp_path / "log", "ready", {}))


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="needs /proc")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_no_process_and_no_file(tmp_path, signum):
    package = Path(rioecho.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(package), "TMPDIR": str(tmp_path)}
    command = [sys.executable, FOLDER / "run.py", "http.client: a body of 1 kB", "--pairs", "1000000"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: len(children(process.pid)) == 3, "a server and two clients")
        started = children(process.pid)
        process.send_signal(signum)
        assert process.wait(60) != 0
    for pid in started:
        until(lambda pid=pid: gone(pid), "the end of a child")
    assert not list(tmp_path.iterdir())


def test_a_run_without_an_echo_has_a_ratio_that_can_be_printed(benchmarks):
    from measure import Measured, Row, evaluated, goal_of, ratio_of

    result = evaluated(Row("", "", "", "/s", None, 6.0), Measured([(5.0, 0.0)]))
    assert (ratio_of(result), goal_of(result), result["verdict"]) == ("inf", ">= 6", "ok")


def test_a_row_with_a_wrong_echo_fails_and_does_not_end_the_run(benchmarks, capsys):
    from measure import Row, Settings
    from run import measured

    from rioecho.bench import WrongEcho

    def measure(settings):
        raise WrongEcho(0, 7)

    assert "wrong echo" in measured(Row("", "", "", "/s", measure), Settings())["failed"]
    assert "failed: wrong echo" in capsys.readouterr().out


@pytest.mark.long
def test_a_row_of_aio_runs(tmp_path):
    done = run("aio, asyncio: readlines1()", "--pairs", 2, "--json", tmp_path / "out.json")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"].values()
    assert min(figure for pair in row["pairs"] for figure in pair) > 0


@pytest.mark.long
def test_a_row_of_the_reader_runs_and_is_written(tmp_path):
    done = run("read(1024)", "--pairs", 2, "--json", tmp_path / "out.json", "--results", tmp_path / "out.md")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads((tmp_path / "out.json").read_text())
    (row,) = data["rows"].values()
    assert len(row["pairs"]) == 2
    assert min(figure for pair in row["pairs"] for figure in pair) > 0
    assert data["machine"]["Python"] == sys.version.split()[0]
    assert "| read(1024) | Rio.read | makefile.read | " in (tmp_path / "out.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="other programs are not sanitized")
@pytest.mark.parametrize(
    "word",
    [
        "read(262144)",
        "a line, then a body of 64 KiB",
        "close()",
        "pickle.load",
        "text:",
        "a line there and back",
        "http.client, TLS: a body of 1 kB",
        "http.server",
        "urllib.request: a page of 1 kB",
        "PyMySQL: select 1",
        "pg8000: select 1",
        "imaplib: NOOP",
    ],
)
def test_a_row_of_makefile_runs(tmp_path, word):
    done = run(word, "--pairs", 1, "--sessions", 1, "--json", tmp_path / "out.json")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert rows
    for row in rows.values():
        if "skipped" in row:
            assert row["skipped"].endswith("is not installed")
        else:
            assert min(row["cpu_ratio"], row["time_ratio"], *row["pairs"][0]) > 0
            assert min(row["faults"]) >= 0


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(not LINUX, reason="needs the processor time of a process from /proc")
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="the compiled peers are not sanitized")
@pytest.mark.parametrize(
    "word",
    [
        "a thread for each",
        "aio, uvloop: echo handler",
        "50 clients x 32 lines, beside C",
        "idle clients, memory, beside uvloop Protocol",
        "rioecho-bench",
    ],
)
def test_a_row_of_a_server_runs(tmp_path, word):
    few = ["--pairs", 1, "--sessions", 1, "--seconds", 0.02, "--warm-up", 0, "--idle", 50]
    done = run(word, "--goals", *few, "--json", tmp_path / "out.json")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert rows
    for row in rows.values():
        assert row.get("verdict") in ("ok", "missed") or row == {"skipped": "uvloop is not installed"}


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["no such row"], "no row contains 'no such row': --list names them"),
        (["--pairs", "0"], "argument --pairs: '0' is not a whole number above 0"),
        (
            ["--seconds", "soon"],
            "argument --seconds: 'soon' is not a number of seconds above 0 (30, 500ms, 30s, 5m, 1h)",
        ),
        (["--seconds", "0"], "argument --seconds: '0' is not a number of seconds above 0 (30, 500ms, 30s, 5m, 1h)"),
        (["--json", "/no/such/folder/x"], "--json /no/such/folder/x: No such file or directory"),
        (["--results", "/"], "--results /: Is a directory"),
        (["--picture", "x.gif"], "x.gif ends neither in .png nor in .svg"),
    ],
)
def test_a_usage_error_is_status_2_with_the_reason(arguments, complaint):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"run.py: error: {complaint}"


@pytest.mark.slow
def test_the_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'bench' is not installed")
    done = run("read(1024)", "read(4096)", "--pairs", 1, "--picture", tmp_path / "x.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
