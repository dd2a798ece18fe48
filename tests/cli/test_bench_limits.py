"""rioecho-bench for CI and for several hosts: limits, comparisons that fail, merged runs, and the quiet mode."""

import itertools
import json
import math
from datetime import UTC, datetime, timedelta

import pytest

from rioecho.bench import Histogram, Plan, run
from support.loads import LATENCY, MODULE, ONE_AFTER_THE_OTHER, RUN, ended
from support.peers import Command

SHORT = ("-d", "0.2", "-c", "4", "-q")


# ---- Limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_limits_that_are_met_are_status_0_and_quiet_prints_the_result_only(target):
    status, out, err = ended(target, *SHORT, "--max-p99", "5s", "--min-rate", "10")
    assert (status, err) == (0, [])
    assert out.startswith(f"{target}: 4 connections")


@pytest.mark.long
@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (("--max-p99", "1ns"), r"rioecho-bench: the p99 is "),
        (("--min-rate", "900M"), "below --min-rate 900,000,000/s"),
    ],
)
def test_a_missed_limit_is_one_line_and_status_4_after_the_result(target, limit, words):
    status, out, err = ended(target, *SHORT, *limit, "--json")
    assert status == 4
    assert len(err) == 1
    assert words in err[0]
    assert json.loads(out)["messages"] > 0


@pytest.mark.long
def test_a_failed_run_is_status_1_whatever_the_limits(target):
    status, _, err = ended("127.0.0.1:1", *SHORT, "--min-rate", "900M")
    assert (status, len(err)) == (1, 1)


# ---- Comparisons -----------------------------------------------------------------------------------------------------


def written(folder, **runs):
    paths = []
    for name, changes in runs.items():
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(RUN | changes))
    return paths


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "fail_above", "words"),
    [
        ({}, "0%", None),
        ({"rate": 9_001.0}, "10%", None),
        ({"rate": 8_999.0}, "10%", "b: the rate is 8,999/s, more than 10% below the 10,000/s of a"),
        ({"latency_us": LATENCY | {"p99": 108.0}}, "10", None),
        ({"latency_us": LATENCY | {"p99": 120.0}}, "12.5%", "b: p99 is 120 us, more than 12.5% above the 99.0 us of a"),
    ],
    ids=itertools.count(),
)
def test_a_comparison_fails_above_a_percentage(tmp_path, changes, fail_above, words):
    status, out, err = ended("compare", *written(tmp_path, a={}, b=changes), "--fail-above", fail_above)
    assert status == (4 if words else 0)
    assert err == ([f"rioecho-bench: {words}"] if words else [])
    assert "rate/s" in out


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"error": "connection 3 was closed by the server", "errors": 1}, "b failed: connection 3 was closed"),
        ({"errors": 1}, "b failed"),  # written by an earlier version
        ({"interrupted": True, "duration_s": 3.2}, "b was interrupted after 3.2 s"),
        ({"messages": 0, "rate": 0.0}, "b measured nothing: no message was echoed"),
    ],
    ids=itertools.count(),
)
def test_a_run_that_failed_or_was_cut_short_is_a_warning_and_fails_a_checked_comparison(tmp_path, changes, words):
    paths = written(tmp_path, a={}, b=changes)
    status, _, err = ended("compare", *paths)
    assert status == 0
    assert err[0].startswith(f"rioecho-bench: warning: {words}")
    assert ended("compare", *paths, "--fail-above", "1000%")[0] == 4


# ---- Merged runs -----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("options", [(), ("--rate", "2k")], ids=["closed loop", "open loop"])
def test_merged_runs_are_those_of_all_messages(target, tmp_path, options):
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path in paths:
        assert ended(target, *SHORT, *options, "--json", path)[0] == 0
    status, out, err = ended("merge", *paths, "--json")
    assert status == 0
    runs, merged = [json.loads(path.read_text()) for path in paths], json.loads(out)
    assert len(err) == 1
    assert "warning" in err[0]
    assert "one after the other" in err[0]
    for key in ("messages", "rate", "mb_per_s", "connections", "threads", "errors", "reconnects", "lost"):
        assert merged[key] == pytest.approx(sum(run[key] for run in runs)), key
    assert merged["rate_asked"] == (4000 if options else None)
    assert merged["date"] == min(run["date"] for run in runs)
    both = Histogram()
    for run_ in runs:
        both.add(Histogram.from_json(run_["histogram"]))
    assert merged["histogram"] == both.to_json()
    assert merged["latency_us"]["p99"] == pytest.approx(both.percentile(99), abs=0.001)
    assert merged["late_p99_us"] == max(run["late_p99_us"] for run in runs)
    assert merged["latency_us"]["max"] == max(run["latency_us"]["max"] for run in runs)
    assert ("histogram_uncorrected" in merged) == bool(options)
    # A merged run is a result like any other.
    (tmp_path / "sum.json").write_text(out)
    assert ended("compare", tmp_path / "sum.json", *paths)[0] == 0
    status, out, _ = ended("merge", tmp_path / "sum.json", paths[0])
    assert status == 0
    assert "p99.9" in out


#: What makes a result one that cannot be merged with itself, and words of the message.
UNMERGEABLE = [
    ({"message_bytes": 65}, "the runs differ in bytes per message: 64, 65"),
    ({"rate_asked": 10.0}, "runs with and without --rate cannot be merged"),
    ({"histogram": {"unit": "ns", "counts": [[0, -1]]}}, "b was not written by this version of --json: it has no hist"),
    ({"histogram": [1]}, "b was not written by this version of --json: it has no histogram"),
    ({"histogram_uncorrected": "x"}, "b was not written by this version of --json: it has no histogram"),
    *(
        ({name: value}, f"b was not written by this version of --json: {name} is")
        for name, value in [
            *(("threads", value) for value in ("many", None, True, [1], -1, math.nan, math.inf)),
            *(("duration_s", value) for value in ("long", math.nan)),
            *(("errors", None), ("reconnects", {}), ("lost", 1 << 64), ("late_p99_us", -1)),
            *(("target", value) for value in (None, 7, ["localhost:1"])),
        ]
    ),
]


@pytest.mark.long
def test_runs_that_cannot_be_merged_are_a_usage_error(target, tmp_path):
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    assert ended(target, *SHORT, "--json", path)[0] == 0
    (old,) = written(tmp_path, old={})
    whole = json.loads(path.read_text())
    lines = []
    for number, (changes, _) in enumerate(UNMERGEABLE):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "b.json").write_text(json.dumps(whole | changes))
        lines.append(["merge", str(path), str(tmp_path / str(number) / "b.json")])
    with Command(MODULE, json.dumps(lines), code=ONE_AFTER_THE_OTHER) as bench:
        assert bench.status() == 0, bench.err.text
        assert bench.out.text == "2\n" * len(lines)
        complaints = bench.err.text.splitlines()
    for complaint, (_, words) in zip(complaints, UNMERGEABLE, strict=True):
        assert complaint.startswith(f"rioecho-bench: {words}"), complaint
        assert "--help" not in complaint
    assert ended("merge", path, old)[0] == 2
    assert ended("merge", path)[0] == 2
    other.symlink_to(path)
    status, _, err = ended("merge", path, other)
    assert (status, err) == (
        2,
        [f"rioecho-bench: {other} is given twice: its messages would count twice (try rioecho-bench --help)"],
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("dates", "words"),
    [
        ([(0, 10), (5, 10), (9, 10)], None),
        ([(0, 100), (1, 1), (50, 10)], "b had ended when c began"),
        ([(0, 1), (0.5, 100), (50, 10)], "a had ended when c began"),
        ([(20, 1), (0, 1), (0, 30)], "b had ended when a began"),
    ],
    ids=itertools.count(),
)
def test_merged_runs_without_a_moment_in_common_are_a_warning(tmp_path, dates, words):
    empty = Histogram().to_json()
    runs = {
        name: {
            "date": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=begun)).isoformat(),
            "duration_s": seconds,
            "histogram": empty,
            "reconnects": 0,
            "lost": 0,
        }
        for name, (begun, seconds) in zip("abc", dates, strict=True)
    }
    status, _, err = ended("merge", *written(tmp_path, **runs))
    rest = ": the rates of runs made one after the other do not add up"
    assert (status, err) == (0, [f"rioecho-bench: warning: {words}{rest}"] if words else [])


@pytest.mark.long
def test_dates_that_cannot_be_compared_are_not(tmp_path):
    more = {"histogram": Histogram().to_json(), "reconnects": 0, "lost": 0}
    dates = ("2026-01-01T00:00:00+00:00", "2026-01-01", "yesterday", None, 5, ["2026"], "9999-12-31T23:59:59+00:00")
    runs = {f"r{number}": more | {"date": date} for number, date in enumerate(dates)}
    status, out, err = ended("merge", *written(tmp_path, **runs), "--json")
    assert (status, err) == (0, [])
    assert json.loads(out)["date"] == "2026-01-01"


def test_a_histogram_survives_json_and_a_wrong_one_is_refused():
    h = Histogram()
    for us in (0, 0.001, 33.3, 4096, 4e9, 1e12):
        h.record(us, 3)
    data = json.loads(json.dumps(h.to_json()))
    again = Histogram.from_json(data)
    assert again.to_json() == data
    assert (again.count, again.mean, again.min, again.max) == (h.count, h.mean, h.min, h.max)
    assert Histogram.from_json(Histogram().to_json()).count == 0
    good = {"unit": "ns", "counts": [[5, 1]], "min": 5, "max": 5, "sum": 5}
    assert Histogram.from_json(good).max == 0.005
    for wrong in (
        *(None, [], {}, good | {"unit": "us"}, good | {"counts": [[5]]}, good | {"counts": [[5, 0]]}),
        *(good | {"counts": [[5, 1], [5, 1]]}, good | {"counts": [[4099, 1]]}, good | {"max": 7}, good | {"min": 9}),
        *(good | {"counts": [[5, 1 << 70]]}, good | {"max": None}, good | {"sum": "x"}),
    ):
        with pytest.raises(ValueError, match="not a histogram"):
            Histogram.from_json(wrong)


def test_a_result_says_when_and_with_what_it_was_measured(target):
    data = run(Plan(target, connections=1, duration=0.05, warmup=0)).to_json()
    assert data["date"].endswith("+00:00")
    assert data["version"].count(".") == 2
