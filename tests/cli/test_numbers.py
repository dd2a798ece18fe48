"""The numbers of the command lines: ASCII digits only, and the same rule for all."""

import argparse

import pytest

from rioecho._load.plan import parse_target
from rioecho.cli import count, interval, port, seconds
from rioecho.cli.bench import rate

EVERY = [port, count, seconds, interval, rate]


@pytest.mark.parametrize("convert", EVERY)
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1_0", "1_000.5", " 5", "5 ", "5\n", "+5", "-5", "- 5", "0x10", "5s", "1,5", "5e", "e5", "."),
        *("1.2.3", "nan", "inf", "infinity", "-inf", "\u0665", "\uff15", "\u00b2", "5\u0665", "\u0bea", "5\0"),
        *("1e999", "\ud800"),
    ],
)
def test_a_number_that_is_not_of_ascii_digits_is_an_error(convert, text):
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


@pytest.mark.parametrize("convert", [count, port])
@pytest.mark.parametrize("text", ["0.5", "5.", "1e3", "9" * 10_000])
def test_a_count_is_whole_and_of_a_limited_length(convert, text):
    with pytest.raises(argparse.ArgumentTypeError):
        convert(text)


@pytest.mark.parametrize("text", ["1" * 100_000, "1" * 100_000 + "x", "." * 100_000, "1e" + "1" * 100_000])
def test_a_long_argument_is_rejected_at_once(text):
    with pytest.raises(argparse.ArgumentTypeError):
        seconds(text)


def test_zero_is_a_valid_time_but_not_an_interval_or_a_rate():
    assert seconds("0") == 0
    for convert in (interval, rate):
        with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
            convert("0.0")


@pytest.mark.parametrize("digits", ["\u0665", "\u00b2"])
def test_digits_of_other_scripts_name_a_unix_socket_and_not_a_port(digits):
    assert parse_target(f"unix:{digits}") == (digits,)
    with pytest.raises(ValueError, match="port"):
        parse_target(f"localhost:{digits}")
