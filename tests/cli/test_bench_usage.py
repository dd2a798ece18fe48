"""rioecho-bench: the comparison of runs, and errors that are found before a run."""

import itertools
import json
import math
import os
import socket

import pytest

from support.loads import LATENCY, MODULE, ONE_AFTER_THE_OTHER, RUN
from support.peers import SECONDS, Command


def compared(*arguments):
    """Run a comparison, require success, and return its stdout and stderr."""
    with Command(MODULE, "compare", *arguments) as bench:
        assert bench.status() == 0, bench.err.text
        return bench.out.text, bench.err.text


# ---- Comparisons -----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_runs_are_compared(tmp_path):
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, connections in zip(paths, (50, 100), strict=True):
        path.write_text(json.dumps(RUN | {"connections": connections, "rate": connections * 200.0}))
    out, err = compared(*paths)
    lines = out.splitlines()
    assert lines[0].split() == ["rate/s", "MB/s", "p50", "p90", "p99", "p99.9", "max"]
    assert [line.split()[0] for line in lines[1:3]] == ["before", "after"]
    assert lines[3].split() == ["2.00x", *["1.00x"] * 6]
    assert err == "rioecho-bench: warning: the runs differ in connections: 50, 100\n"


@pytest.mark.long
def test_runs_of_the_same_name_are_shown_with_their_directories(tmp_path):
    paths = [tmp_path / folder / "run.json" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps(RUN))
    out, err = compared(*paths)
    assert [str(path) in out for path in paths] == [True, True]
    assert err == ""


@pytest.mark.long
def test_control_characters_in_file_names_are_escaped(tmp_path):
    paths = [tmp_path / name for name in ("a\x1b[31m.json", "b\nc.json", os.fsdecode(b"\xff.json"))]
    try:
        for path in paths:
            path.write_text(json.dumps(RUN))
    except OSError:
        pytest.skip("this file system does not allow such names")
    out, _ = compared(*paths)
    assert len(out.splitlines()) == 6
    names = [r"a\x1b[31m", r"b\nc", r"\udcff"]
    assert [line.split()[0] for line in (out.splitlines()[i] for i in (1, 2, 4))] == names


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("", "is not a result of --json"),
        ("[]", "is not a result of --json"),
        ("{}", "is not a result of --json: rate is not a number"),
        (b"\xff\xfe", "is not a result of --json"),
        ("[" * 200_000, "is nested too deeply"),
        *(
            (json.dumps(RUN | {name: value}), f"is not a result of --json: {name} is")
            for name, value in [
                *(("rate", rate) for rate in (math.nan, math.inf, -1.0, 10**400, True, "fast", [1], None)),
                *(("pipeline", pipeline) for pipeline in ("1", [1], None)),
                *(("rate_asked", asked) for asked in ("1", [1], math.nan)),
                ("messages", -1),
            ]
        ),
        *(
            (json.dumps(RUN | {"latency_us": LATENCY | {"max": us}}), "latency_us.max is")
            for us in (math.inf, math.nan, -1, 1e300, None)
        ),
    ],
    ids=itertools.count(),
)
def test_a_file_that_is_not_a_result_is_named(tmp_path, content, words):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with Command(MODULE, "compare", path, path) as bench:
        assert bench.status() == 2
        assert str(path) in bench.complaint()
        assert words in bench.complaint()
        assert "--help" not in bench.complaint()  # which says nothing about the file
        assert bench.out.text == ""


@pytest.mark.long
@pytest.mark.parametrize("other", [{}, {"duration_s": "long"}, {"duration_s": None}], ids=repr)
def test_an_interrupted_run_of_unknown_length_is_a_warning(tmp_path, other):
    path, half = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text(json.dumps(RUN))
    run = {name: value for name, value in RUN.items() if name not in ("duration_s", "target", "threads", "errors")}
    half.write_text(json.dumps(run | {"interrupted": True} | other))
    out, err = compared(path, half)
    assert err == "rioecho-bench: warning: b was interrupted\n"
    assert len(out.splitlines()) == 4


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("arguments", [(), ("a.json",), ("a.json", "b.json", "--rate", "5")])
def test_a_usage_error_of_a_comparison_is_status_2(arguments):
    with Command(MODULE, "compare", *arguments) as bench:
        assert bench.status() == 2
        assert bench.complaint().startswith("rioecho-bench: ")
        assert "(try rioecho-bench --help)" in bench.complaint()
        assert bench.out.text == ""


@pytest.mark.long
def test_a_negative_percentage_is_named():
    assert "'-1%' is not a percentage of 0 or more" in refused("compare", "--fail-above", "-1%")


# ---- Errors before a run ---------------------------------------------------------------------------------------------


@pytest.fixture
def unasked():
    """Listen, yield the address, and require at the end of the test that nothing has connected to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield "{}:{}".format(*listener.getsockname())
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def refused(*arguments, **options):
    """Run the command, require a usage error, and return its one line."""
    with Command(MODULE, *arguments, **options) as bench:
        assert bench.process.wait(SECONDS) == 2
        assert bench.status() == 2
        assert bench.out.text == ""
        return bench.complaint()


WRONG = [
    (("-c", "0"), "connections"),
    (("-c", "many"), "'many'"),
    (("-c", "-1"), "-1"),
    (("-d", "0"), "'0' is not a number of seconds above 0"),
    (("-d", "nan"), "nan"),
    (("-d", "inf"), "inf"),
    (("-d", "-1"), "-1"),
    (("-d", "-1s"), "'-1s' is not a number of seconds above 0"),
    (("-s", "-4k"), "'-4k' is not a size"),
    (("--rate", "-1.5k"), "'-1.5k' is not a number of messages per second above 0"),
    (("-s", "0"), "message_bytes"),
    (("-s", "1.5"), "1.5"),
    (("--pipeline", "0"), "pipeline"),
    (("--threads", "0"), "threads"),
    (("--threads", "9", "-c", "8"), "threads"),
    (("--rate", "0"), "'0' is not a number of messages per second above 0"),
    (("--rate", "fast"), "'fast'"),
    (("--warmup", "-1"), "-1"),
    (("--stall-timeout", "0"), "above 0"),
    (("--plot", "run.pdf"), "neither in .png nor in .svg"),
    (("--plot",), "--plot"),
    (("--hdr",), "--hdr"),
    (("--unix", "/tmp/x"), "not both"),  # noqa: S108 - no file is made
    (("another:1",), "another:1"),
    (("--magic",), "--magic"),
]
WRONG_TARGETS = ["", "localhost", "localhost:", ":8000", "localhost:http", "localhost:65536", "localhost:0", "::1:8000"]


@pytest.mark.long
def test_a_usage_error_is_one_line_and_status_2(unasked):
    lines = [[unasked, *arguments] for arguments, _ in WRONG] + [[target] for target in WRONG_TARGETS]
    words = [words for _, words in WRONG] + ["target"] * len(WRONG_TARGETS)
    with Command(MODULE, json.dumps(lines), code=ONE_AFTER_THE_OTHER) as bench:
        assert bench.status() == 0, bench.err.text
        assert bench.out.text == "2\n" * len(lines)
        complaints = bench.err.text.splitlines()
    for line, wanted, complaint in zip(lines, words, complaints, strict=True):
        assert complaint.startswith("rioecho-bench: "), line
        assert wanted in complaint, line


@pytest.mark.long
def test_a_missing_target_is_one_line_and_status_2():
    assert "give HOST:PORT" in refused()
    assert "'localhost:8000' was parsed as the FILE of --json" in refused("--json", "localhost:8000")


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("option", ["--json", "--hdr", "--plot"])
def test_a_file_that_cannot_be_written_is_an_error_before_the_run(unasked, tmp_path, option):
    missing = tmp_path / "nowhere" / "x.png"
    complaint = f"rioecho-bench: {option} {missing}: No such file or directory"
    assert refused(unasked, option, missing) == complaint
    folder = tmp_path / "folder.png"
    folder.mkdir()
    assert "Is a directory" in refused(unasked, option, folder)
    assert os.listdir(tmp_path) == ["folder.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every directory")
def test_a_directory_without_permission_is_an_error_before_the_run(unasked, tmp_path):
    tmp_path.chmod(0o555)
    assert "Permission denied" in refused(unasked, "--json", tmp_path / "x")


@pytest.mark.long
def test_two_results_in_one_file_are_an_error(unasked, tmp_path):
    assert "--json and --hdr are the same file" in refused(
        unasked, "--json", tmp_path / "x", "--hdr", tmp_path / "." / "x"
    )


@pytest.mark.long
def test_a_plot_without_matplotlib_is_an_error_before_the_run(unasked, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not installed')")
    complaint = refused(unasked, "--plot", tmp_path / "x.png", environment={"PYTHONPATH": str(tmp_path)})
    assert complaint == "rioecho-bench: --plot needs Matplotlib: pip install 'rioecho[bench]'"
