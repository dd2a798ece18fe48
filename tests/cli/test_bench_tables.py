"""The text output of rioecho-bench: units, bars and tables, from given results."""

import pytest

from rioecho.cli.tables import COMPARED, PLAIN_BLOCKS, bar, comparison, differences, histogram, micros, number, report
from support import loads

LATENCY = loads.LATENCY | {"p50": 33.3, "p99.9": 1234.0, "max": 5_600_000.0}
RUN = loads.RUN | {
    "messages": 1_234_560,
    "rate": 123_456.0,
    "mb_per_s": 7.9012,
    "latency_us": LATENCY,
    "latency_uncorrected_us": LATENCY,
}
BUCKETS = [(1.0, 10.0, 0), (10.0, 100.0, 750), (100.0, 1000.0, 0), (1000.0, 10_000.0, 250), (10_000.0, 1e5, 0)]


def words(line):
    return line.split()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.001, "0.00 us"),
        (0.5, "0.50 us"),
        (9.994, "9.99 us"),
        (9.996, "10.0 us"),
        (99.94, "99.9 us"),
        (99.96, "100 us"),
        (999.4, "999 us"),
        (999.6, "1.00 ms"),
        (12_345.0, "12.3 ms"),
        (999_600.0, "1.00 s"),
        (3.6e9, "3600 s"),
        (0.0, "-"),
        (None, "-"),
        (float("nan"), "-"),
    ],
)
def test_a_latency_has_three_digits_and_a_matching_unit(value, shown):
    assert micros(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (3, "3"), (3.14159, "3.14"), (99.96, "100"), (1234567.8, "1,234,568"), (None, "-")]
)
def test_a_rate_has_three_digits_or_is_an_integer(value, shown):
    assert number(value) == shown


def test_a_bar_is_proportional_to_its_share_and_visible_above_zero():
    assert bar(1.0, 10) == "█" * 10
    assert bar(0.5, 10) == "█" * 5
    assert bar(0.55, 10) == "█" * 5 + "▌"
    assert bar(1e-9, 10) == "▏"
    assert bar(0.0, 10) == ""
    assert bar(1.0, 10, PLAIN_BLOCKS) == "#" * 10
    assert bar(0.55, 10, PLAIN_BLOCKS) == "#####."


def test_the_histogram_omits_empty_buckets_at_both_ends():
    lines = histogram(BUCKETS, 60)
    assert [words(line)[:6] for line in lines] == [
        ["10.0", "us", "-", "100", "us", "75.00%"],
        ["100", "us", "-", "1.00", "ms", "-"],
        ["1.00", "ms", "-", "10.0", "ms", "25.00%"],
    ]
    assert [words(line)[-1] for line in lines] == ["█" * 29, "-", "█" * 9 + "▋"]
    assert max(map(len, lines)) <= 60
    assert histogram([(1.0, 2.0, 0)]) == []
    assert histogram([]) == []


def test_the_table_of_a_closed_loop():
    text = report(RUN, BUCKETS, 80)
    table = {words(line)[0]: words(line)[1:] for line in text if line}
    assert text[0] == "localhost:8000: 50 connections, 1 x 64 bytes in flight on each, 10.0 s"
    assert table["rate"] == ["123,456", "messages/s"]
    assert table["throughput"][:2] == ["7.90", "MB/s"]
    assert table["messages"] == ["1,234,560"]
    assert table["errors"] == ["0"]
    assert table["latency"] == []
    assert table["p99.9"] == ["1.23", "ms"]
    assert table["max"] == ["5.60", "s"]
    assert max(map(len, text)) <= 80


def test_the_table_of_an_open_loop_has_both_latencies_and_the_requested_rate():
    run = RUN | {"rate_asked": 130_000.0, "latency_uncorrected_us": LATENCY | {"p99.9": 66.0}}
    text = report(run, [], 80)
    table = {words(line)[0]: words(line)[1:] for line in text if line}
    assert table["rate"] == ["123,456", "messages/s", "(95.0%", "of", "the", "requested", "130,000)"]
    assert table["latency"] == ["corrected", "uncorrected"]
    assert table["p99.9"] == ["1.23", "ms", "66.0", "us"]
    columns = [line for line in text if line.startswith(("latency", "  p", "  m"))]
    assert len({len(line) for line in columns}) == 1, columns


def test_a_run_without_an_echo_has_no_latencies():
    nothing = dict.fromkeys(LATENCY, 0.0)
    run = RUN | {"rate": 0.0, "messages": 0, "latency_us": nothing, "latency_uncorrected_us": nothing}
    table = {words(line)[0]: words(line)[1:] for line in report(run, []) if line}
    assert [table[name] for name in LATENCY] == [["-"]] * len(LATENCY)
    assert table["rate"] == ["0", "messages/s"]


def test_the_title_shows_the_threads_if_there_are_several_and_uses_the_singular():
    run = RUN | {"threads": 2, "connections": 1, "message_bytes": 1, "pipeline": 8}
    assert report(run, [])[0] == "localhost:8000: 1 connection, 2 threads, 8 x 1 byte in flight on each, 10.0 s"


def test_a_target_that_cannot_be_printed_is_quoted():
    assert report(RUN | {"target": "unix:/tmp/a\nb\udcff"}, [])[0].startswith(r"'unix:/tmp/a\nb\udcff': ")


def test_the_comparison_is_aligned_and_gives_ratios_to_the_first():
    faster = RUN | {"rate": 246_912.0, "latency_us": LATENCY | {"p99": 9.9, "p99.9": 6.17, "max": 0.0}}
    lines = comparison([("before", RUN), ("after", faster)])
    assert words(lines[0]) == ["rate/s", "MB/s", *COMPARED]
    assert words(lines[1]) == "before 123,456 7.90 33.3 us 52.0 us 99.0 us 1.23 ms 5.60 s".split()
    assert words(lines[2])[:3] == ["after", "246,912", "7.90"]
    assert words(lines[3]) == ["2.00x", "1.00x", "1.00x", "1.00x", "0.10x", "0.005x", "0x"]
    assert len({len(line) for line in lines}) == 1, lines
    assert max(map(len, lines)) <= 80


def test_a_ratio_to_zero_is_a_dash():
    lines = comparison([("a", RUN | {"rate": 0.0}), ("b", RUN)])
    assert words(lines[3])[0] == "-"


def test_differences_in_the_settings_are_listed():
    assert differences([("a", RUN), ("b", RUN | {"rate": 1.0})]) == []
    assert differences([("a", RUN), ("b", RUN | {"connections": 1000, "rate_asked": 500.0})]) == [
        "the runs differ in connections: 50, 1,000",
        "the runs differ in the requested rate: none, 500",
    ]
