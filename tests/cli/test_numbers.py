"""The numbers of the command lines: ASCII digits only, units, and the same rule for all."""

import argparse

import pytest

from rioecho._load.plan import parse_target
from rioecho.cli.units import count, interval, mode, port, rate, seconds, size

EVERY = [port, count, size, seconds, interval, rate]


@pytest.mark.parametrize("convert", EVERY)
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1_0", "1_000.5", " 5", "5 ", "5\n", "+5", "-5", "- 5", "0x10", "1,5", "5e", "e5", "."),
        *("1.2.3", "nan", "inf", "infinity", "-inf", "\u0665", "\uff15", "\u00b2", "5\u0665", "\u0bea", "5\0"),
        *("1e999", "\ud800", "s", "k", "ms", "5x", "5kk", "5sk", "5/", "/s", "5ki", "5%", "-5s", "5KiBs", "5 s", "5 k"),
    ],
)
def test_a_number_that_is_not_of_ascii_digits_and_a_unit_is_an_error(convert, text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a "):
        convert(text)


@pytest.mark.parametrize("convert", EVERY)
def test_every_conversion_accepts_a_whole_number(convert):
    assert convert("80") == 80
    assert convert("0080") == 80


@pytest.mark.parametrize("convert", [seconds, interval, rate])
@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("1e3", 1e3), ("2.5E-3", 0.0025)])
def test_a_time_or_rate_may_have_a_point_and_an_exponent(convert, text, value):
    assert convert(text) == value


@pytest.mark.parametrize("convert", [count, port, size])
@pytest.mark.parametrize("text", ["0.5", "5.", "1e3", "9" * 10_000])
def test_a_count_or_size_is_whole_and_of_a_limited_length(convert, text):
    with pytest.raises(argparse.ArgumentTypeError):
        convert(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1ns", 1e-9), ("250us", 250e-6), ("250\u00b5s", 250e-6), ("250\u03bcs", 250e-6), ("500ms", 0.5)),
        *(("30s", 30), ("1.5s", 1.5), ("5m", 300), ("5min", 300), ("2h", 7200), ("1d", 86400), ("30ms", 0.03)),
    ],
)
def test_a_time_has_units(text, value):
    assert seconds(text) == interval(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("64k", 65536), ("64K", 65536), ("64kB", 65536), ("64KiB", 65536), ("7b", 7), ("7B", 7)),
        *(("1M", 1 << 20), ("1m", 1 << 20), ("3G", 3 << 30), ("2T", 2 << 40), ("2TiB", 2 << 40), ("0k", 0)),
    ],
)
def test_a_size_has_units_that_are_powers_of_1024(text, value):
    assert size(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("5k", 5000), ("1.5k", 1500), ("10K", 10_000), ("2M", 2_000_000), ("1G", 1e9), ("5k/s", 5000), ("80/s", 80)],
)
def test_a_rate_has_units_that_are_powers_of_1000(text, value):
    assert rate(text) == value


def test_a_mode_is_octal():
    assert mode("660") == mode("0660") == 0o660
    assert mode("0") == 0
    for text in ("", "0o660", "0x1", "668", "1777", "rw-rw----", "-660", " 660", "66\u0660"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a mode"):
            mode(text)


@pytest.mark.parametrize("convert", [port, count])
@pytest.mark.parametrize("text", ["5k", "5s", "5B"])
def test_a_port_or_count_has_no_unit(convert, text):
    with pytest.raises(argparse.ArgumentTypeError):
        convert(text)


@pytest.mark.parametrize("text", ["5k", "5M", "5b", "5S", "5MS", "5H", "5sec", "5mss"])
def test_the_unit_of_something_else_is_not_a_time(text):
    with pytest.raises(argparse.ArgumentTypeError, match="500ms, 30s"):
        seconds(text)


@pytest.mark.parametrize("text", ["1" * 100_000, "1" * 100_000 + "x", "." * 100_000, "1e" + "1" * 100_000])
@pytest.mark.parametrize("convert", [seconds, size, rate])
def test_a_long_argument_is_rejected_at_once(convert, text):
    with pytest.raises(argparse.ArgumentTypeError):
        convert(text)


def test_zero_is_a_valid_time_and_size_but_not_an_interval_or_a_rate():
    assert seconds("0") == seconds("0ms") == size("0") == 0
    for convert in (interval, rate):
        with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
            convert("0.0")


@pytest.mark.parametrize("digits", ["\u0665", "\u00b2"])
def test_digits_of_other_scripts_name_a_unix_socket_and_not_a_port(digits):
    assert parse_target(f"unix:{digits}") == (digits,)
    with pytest.raises(ValueError, match="port"):
        parse_target(f"localhost:{digits}")
