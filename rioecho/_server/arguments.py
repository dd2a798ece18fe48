"""Checks of the arguments of a server."""

from __future__ import annotations

import math
import operator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    _Number = TypeVar("_Number", int, float)


def integer(name: str, value: int) -> int:
    """Return an integer argument as an int, or raise ``TypeError``."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None


def limit(name: str, value: _Number, maximum: float, *, minimum: int = 0) -> _Number:
    """Return a limit, or raise ``ValueError`` if it is out of range or NaN, ``TypeError`` if it is no number."""
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not minimum <= value <= maximum:
        most = "" if maximum == math.inf else f" and at most {maximum}"
        raise ValueError(f"{name} must be at least {minimum}{most}, not {value!r}")
    return value
