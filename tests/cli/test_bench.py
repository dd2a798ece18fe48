"""rioecho-bench: its output on stdout, stderr and a terminal, and the files that it writes."""

import contextlib
import json
import os
import re
import socket
import subprocess
import termios
from datetime import UTC, datetime, timedelta

import pytest

import rioecho
from rioecho.server import EchoServer
from support.peers import Command, Output, Screen

MODULE = "rioecho.cli.bench"
FIELDS = {
    "target",
    "connections",
    "message_bytes",
    "pipeline",
    "threads",
    "duration_s",
    "rate_asked",
    "messages",
    "rate",
    "mb_per_s",
    "errors",
    "latency_us",
    "latency_uncorrected_us",
    "late_p99_us",
    "reconnects",
    "lost",
    "version",
    "date",
    "interrupted",
    "error",
    "histogram",
}
LATENCIES = ["mean", "p50", "p90", "p99", "p99.9", "max"]
SHORT = ("-d", "0.4", "-c", "4")
PROGRESS = re.compile(r" *\d+\.\d s +[\d,.]+/s  p50 .* p99 .* max .*")


@pytest.fixture(params=["line", "raw"])
def address(request):
    with EchoServer(framing=request.param) as running:
        host, port = running.addresses[0]
        yield f"{host}:{port}"


@pytest.fixture
def server():
    with EchoServer() as running:
        yield running


@pytest.fixture
def target(server):
    host, port = server.addresses[0]
    return f"{host}:{port}"


def measured(*arguments, **options):
    """Run the command, require success, and return its stdout and stderr."""
    with Command(MODULE, *arguments, **options) as bench:
        assert bench.status() == 0, bench.err.text
        return bench.out.text, bench.err.text


def table(text):
    """Return the lines of the table by their first word."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: row[1:] for row in rows if row}


def whole(run):
    """Assert that a JSON result has all fields and is consistent."""
    assert set(run) - {"histogram_uncorrected"} == FIELDS
    assert ("histogram_uncorrected" in run) == (run["rate_asked"] is not None)
    assert (run["error"], run["interrupted"], run["version"]) == (None, False, rioecho.__version__)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(run["date"])) < timedelta(seconds=60)
    for latency in (run["latency_us"], run["latency_uncorrected_us"]):
        assert set(latency) == set(LATENCIES)
        ordered = [latency[name] for name in LATENCIES[1:]]
        assert ordered == sorted(ordered)
        assert ordered[0] > 0
    assert run["messages"] > 0
    assert run["errors"] == 0
    assert run["rate"] == pytest.approx(run["messages"] / run["duration_s"], rel=0.1)
    assert run["mb_per_s"] == pytest.approx(run["rate"] * run["message_bytes"] / 1e6, rel=0.01)


# ---- Runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.sampled(1)
def test_a_closed_loop_ends_with_a_table_and_a_histogram(address):
    out, err = measured(address, *SHORT)
    rows = table(out)
    assert out.startswith(f"{address}: 4 connections, 1 x 64 bytes in flight on each, 0.4 s\n")
    assert float(rows["rate"][0].replace(",", "")) > 0
    assert rows["throughput"][1] == "MB/s"
    assert rows["errors"] == ["0"]
    assert set(LATENCIES) <= set(rows)
    assert "corrected" not in out
    assert "█" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_run_prints_a_line_per_second_on_stderr(target):
    _, err = measured(target, "-d", "1.8", "-c", "2", "--warmup", "0")
    lines = [line for line in err.splitlines() if PROGRESS.fullmatch(line)]
    assert 2 <= len(lines) <= 3, err  # one of them at the end


@pytest.mark.long
def test_json_on_stdout_is_the_only_output_there(target):
    out, _ = measured(target, *SHORT, "--json")
    run = json.loads(out)
    whole(run)
    assert run["target"] == target
    assert (run["connections"], run["message_bytes"], run["pipeline"], run["threads"]) == (4, 64, 1, 1)
    assert run["rate_asked"] is None
    assert run["latency_us"] == run["latency_uncorrected_us"]


@pytest.mark.long
def test_json_in_a_file_leaves_the_table_on_stdout(target, tmp_path):
    path = tmp_path / "run.json"
    path.write_text("an old result that is longer " * 1000)
    out, _ = measured(target, *SHORT, "--json", path)
    whole(json.loads(path.read_text()))
    assert "rate" in table(out)


@pytest.mark.slow
def test_the_options_are_parameters_of_the_run(target):
    out, _ = measured(target, "-d", "0.4", "-c", "6", "-s", "1000", "--pipeline", "8", "--threads", "2", "--json")
    run = json.loads(out)
    whole(run)
    assert (run["connections"], run["message_bytes"], run["pipeline"], run["threads"]) == (6, 1000, 8, 2)


@pytest.mark.slow
def test_an_open_loop_reports_both_latencies_and_the_requested_rate(target, tmp_path):
    path = tmp_path / "run.json"
    out, _ = measured(target, "-d", "0.5", "--warmup", "0", "-c", "4", "--rate", "500", "--json", path)
    run = json.loads(path.read_text())
    whole(run)
    assert run["rate_asked"] == 500
    assert 250 <= run["rate"] <= 504  # 251 are due; on a busy machine fewer are sent
    assert run["latency_us"]["max"] >= run["latency_uncorrected_us"]["max"]
    rows = table(out)
    assert "of the requested 500)" in out
    assert rows["latency"] == ["corrected", "uncorrected"]
    assert len(rows["p99.9"]) == 4


@pytest.mark.long
def test_the_hdr_file_has_the_format_of_hdrhistogram(target, tmp_path):
    path = tmp_path / "run.hgrm"
    measured(target, *SHORT, "--hdr", path)
    head, *rows = path.read_text().splitlines()
    assert head.split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    numbers = [row.split() for row in rows if row and not row.startswith("#")]
    assert float(numbers[-1][1]) == 1.0
    assert [float(row[0]) for row in numbers] == sorted(float(row[0]) for row in numbers)


@pytest.mark.slow
def test_targets_may_be_ipv6_addresses_names_and_unix_sockets(server, tmp_path):
    port = server.addresses[0][1]
    for target in (f"[::1]:{port}", f"localhost:{port}"):
        assert measured(target, *SHORT)[0].startswith(f"{target}: 4 connections")
    with EchoServer(None, unix=str(tmp_path / "echo")):
        out, _ = measured("--unix", tmp_path / "echo", *SHORT, "--json")
    whole(json.loads(out))
    with EchoServer(None, unix=str(tmp_path / "8000")):  # not port 8000 of a host called unix
        measured("--unix", "8000", *SHORT, cwd=tmp_path)


@pytest.mark.long
def test_the_server_received_the_bytes_that_are_counted(server, target):
    run = json.loads(measured(target, *SHORT, "-s", "100", "--warmup", "0", "--json")[0])
    assert server.stats()["bytes_in"] >= run["messages"] * 100
    assert server.stats()["accepted"] >= 4


@pytest.mark.slow
def test_the_soft_limit_of_descriptors_is_raised_for_the_connections(target):
    out, _ = measured(target, "-d", "0.3", "-c", "100", "--json", prelude="ulimit -S -n 64")
    assert json.loads(out)["connections"] == 100


@pytest.mark.long
def test_an_ascii_output_gets_a_plain_histogram(target):
    out, _ = measured(target, *SHORT, environment={"PYTHONIOENCODING": "ascii"})
    assert "#" in out
    assert out.isascii()


@pytest.mark.long
def test_rich_and_matplotlib_are_imported_only_if_needed(target):
    code = f"""if True:
        import sys
        sys.argv[1:] = {[target, *SHORT]!r}
        from rioecho.cli.bench import main
        try:
            main()
        finally:
            assert not {{"rich", "matplotlib"}} & set(sys.modules)
    """
    measured(code=code)


@pytest.mark.long
@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["table", "JSON"])
@pytest.mark.parametrize(
    ("stream", "why"), [("", "Broken pipe"), (">&-", "not open for writing")], ids=["a reader that has gone", "closed"]
)
def test_a_result_that_nobody_can_read_is_one_line_and_status_1(target, stream, why, arguments):
    reader, writer = os.pipe()
    with Command(MODULE, target, *SHORT, "-q", *arguments, stdout=writer, prelude=stream) as bench:
        os.close(writer)
        os.close(reader)
        assert bench.status() == 1
        assert bench.err.text == f"rioecho-bench: stdout: {why}\n"


@pytest.mark.long
def test_a_table_that_nobody_reads_is_not_an_error_if_a_file_has_the_result(target, tmp_path):
    path = tmp_path / "run.json"
    reader, writer = os.pipe()
    with Command(MODULE, target, *SHORT, "-q", "--json", path, stdout=writer) as bench:
        os.close(writer)
        os.close(reader)
        assert bench.status() == 0
        assert bench.err.text == ""
    whole(json.loads(path.read_text()))


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("stream", [">&-", "2>&-"])
def test_a_closed_stream_does_no_harm(target, tmp_path, stream):
    path = tmp_path / "run.json"
    with Command(MODULE, target, *SHORT, "--json", path, prelude=stream) as bench:
        assert bench.status() == 0
        assert "Traceback" not in bench.err.text
    whole(json.loads(path.read_text()))


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_output_is_status_1(target):
    with open("/dev/full", "wb") as full, Command(MODULE, target, *SHORT, stdout=full) as bench:
        assert bench.status() == 1
        assert "rioecho-bench: stdout: No space left on device\n" in bench.err.text
        assert "Traceback" not in bench.err.text


@pytest.mark.long
def test_help_and_version_fit_a_terminal():
    for option in ("-h", "--version"):
        out, err = measured(option)
        assert err == ""
        assert len(out.splitlines()) <= 24
        assert max(map(len, out.splitlines())) < 80
    assert out == f"rioecho-bench {rioecho.__version__}\n"


# ---- On a terminal ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_terminal(*arguments, environment=None, size=(24, 80), **options):
    """Run the command with a terminal as stderr, and as stdout unless given; yield the command and the screen."""
    master, slave = os.openpty()
    try:
        termios.tcsetwinsize(slave, size)
        streams = {"stdout": slave, "stderr": slave} | options
        environment = {"TERM": "xterm-256color", "COLUMNS": ""} | (environment or {})
        bench = Command(MODULE, *arguments, environment=environment, **streams)
    finally:
        os.close(slave)
    screen = Output(Screen(master))
    with bench:
        yield bench, screen
    screen.join()


@pytest.mark.slow
def test_a_terminal_gets_a_live_view_and_then_the_table(target):
    pytest.importorskip("rich", reason="the extra 'bench' is not installed")
    with on_terminal(target, "-d", "0.6", "-c", "4") as (bench, screen):
        assert bench.status() == 0
    live, _, left = screen.text.rpartition("\x1b[2K")
    assert "━" in live
    assert "p99" in live
    assert "\x1b[?25h" in live  # the cursor is shown again
    assert "\x1b" not in left
    assert set(LATENCIES) <= set(table(left))
    times = re.findall(r"(\d+\.\d) of (\d+\.\d) s", live)
    assert times
    assert all(float(passed) <= float(whole) for passed, whole in times)


@pytest.mark.long
def test_a_second_ctrl_c_shows_the_cursor_again():
    pytest.importorskip("rich", reason="the extra 'bench' is not installed")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = "{}:{}".format(*silent.getsockname())
        with on_terminal(target, "-d", "60", "-c", "2", "--stall-timeout", "60") as (bench, screen):
            screen.wait_for("p99")
            bench.interrupt()  # the first one waits for the messages in flight
            assert bench.status() == 130
    assert screen.text.rfind("\x1b[?25h") > screen.text.rfind("\x1b[?25l") >= 0


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("size", [(3, 10), (1, 1), (0, 0)])
def test_the_live_view_fits_any_terminal(target, size):
    pytest.importorskip("rich", reason="the extra 'bench' is not installed")
    with on_terminal(target, *SHORT, size=size) as (bench, screen):
        assert bench.status() == 0
    live, _, left = screen.text.rpartition("\x1b[2K")
    assert "Traceback" not in live
    assert set(LATENCIES) <= set(table(left))
    if size[1]:
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", live)
        assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= size[1]


@pytest.mark.slow
def test_the_live_view_of_an_ascii_terminal_is_plain(target):
    pytest.importorskip("rich", reason="the extra 'bench' is not installed")
    with on_terminal(target, "-d", "0.6", "-c", "4", environment={"PYTHONIOENCODING": "ascii"}) as (bench, screen):
        assert bench.status() == 0
    assert "#" in screen.text
    assert "\\u" not in screen.text
    assert screen.text.isascii()


@pytest.mark.slow
def test_the_live_view_is_shown_while_json_is_written_to_a_pipe(target):
    pytest.importorskip("rich", reason="the extra 'bench' is not installed")
    with on_terminal(target, "-d", "0.6", "-c", "4", "--json", stdout=subprocess.PIPE) as (bench, screen):
        assert bench.status() == 0
        whole(json.loads(bench.out.text))
    assert "━" in screen.text


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("why", ["no rich", "a dumb terminal"])
def test_a_terminal_without_a_live_view_gets_lines(target, tmp_path, why):
    (tmp_path / "rich.py").write_text("raise ImportError('not installed')")
    environment = {"PYTHONPATH": str(tmp_path)} if why == "no rich" else {"TERM": "dumb"}
    with on_terminal(target, *SHORT, environment=environment) as (bench, screen):
        assert bench.status() == 0
    assert "\x1b" not in screen.text
    assert any(PROGRESS.fullmatch(line) for line in screen.text.splitlines())
    assert set(LATENCIES) <= set(table(screen.text))
