"""Numbers on the command lines: ports, modes, counts, sizes, times and rates, with or without a unit.

Each function is the ``type`` of an argparse option: it raises ``argparse.ArgumentTypeError`` with the reason. Digits
are ASCII; int() and float() accept more: 1_0, blanks, a sign, the digits of other scripts.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re

WHOLE = re.compile("[0-9]{1,100}")
OCTAL = re.compile("0{0,4}[0-7]{1,3}")
QUANTITY = re.compile(r"((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)([A-Za-z\u00b5\u03bc/]*)")

#: The number of bytes in each unit, in lower case.
SIZES = {"": 1, "b": 1} | {k + b: 1 << 10 * i for i, k in enumerate("kmgt", 1) for b in ("", "b", "ib")}
#: The number of seconds in each unit of at least a second, and the number of units in a second of the shorter ones.
LONG_TIMES = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
SHORT_TIMES = {"ms": 10**3, "us": 10**6, "\u00b5s": 10**6, "\u03bcs": 10**6, "ns": 10**9}
#: Examples for the message of an error.
TIME_UNITS = " (30, 500ms, 30s, 5m, 1h)"
#: The factor of each unit of a rate, in lower case.
RATES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def port(text: str) -> int:
    """Convert an argument to a port number."""
    if not WHOLE.fullmatch(text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: use a number from 0 to 65535")
    return int(text)


def count(text: str) -> int:
    """Convert an argument to a whole number of 0 or more."""
    if not WHOLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def mode(text: str) -> int:
    """Convert an argument to the mode of a file: octal digits, ``660`` or ``0660``."""
    if not OCTAL.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a mode: use octal digits, such as 0660")
    return int(text, 8)


def size(text: str) -> int:
    """Convert an argument to a number of bytes: a whole number of bytes, ``k``, ``M``, ``G`` or ``T`` (powers of 1024).

    ``64K``, ``64kB`` and ``64KiB`` are the same as ``64k``.
    """
    digits = text.rstrip("bBiIkKmMgGtT")
    factor = SIZES.get(text[len(digits) :].lower())
    if factor is None or not WHOLE.fullmatch(digits):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: use a whole number of bytes, or 64k, 1M, 2G")
    return int(digits) * factor


def seconds(text: str) -> float:
    """Convert an argument to a number of seconds of 0 or more: ``0.5``, ``500ms``, ``30s``, ``5m``, ``1h``, ``1d``."""
    number, unit = _quantity(text)
    value = number / SHORT_TIMES[unit] if unit in SHORT_TIMES else number * LONG_TIMES.get(unit, math.inf)
    if not value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds of 0 or more{TIME_UNITS}")
    return value


def interval(text: str) -> float:
    """Convert an argument to a number of seconds above 0, in the units of ``seconds``."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        if value := seconds(text):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0{TIME_UNITS}")


def rate(text: str) -> float:
    """Convert an argument to a number per second above 0: ``5k``, ``1.5M``, ``1G`` (powers of 1000), ``5k/s``."""
    number, unit = _quantity(text.removesuffix("/s"))
    value = number * RATES.get(unit.lower(), math.inf)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of messages per second above 0 (500, 10k, 1.5M)")
    return value


def percent(text: str) -> float:
    """Convert an argument to a fraction of 0 or more: ``10%`` or ``10`` is 0.1."""
    value, unit = _quantity(text.removesuffix("%"))
    if unit or not value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage of 0 or more, such as 10%")
    return value / 100


def _quantity(text: str) -> tuple[float, str]:
    """Split a number of 0 or more from its unit; the number is infinite if the text is something else."""
    match = QUANTITY.fullmatch(text)
    return (float(match[1]), match[2]) if match else (math.inf, "")
