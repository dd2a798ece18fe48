"""The formats of the log: a record as text or as JSON, in one printable line."""

from __future__ import annotations

import json
import logging
import math
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal, TypeAlias

    _LogFormat: TypeAlias = Literal["text", "json"]

LOG_FORMATS: tuple[_LogFormat, ...] = ("text", "json")

#: Immutable types that hold no reference to other objects.
ATOMS = frozenset({str, int, float, bool, bytes, type(None)})


class TextFormatter(logging.Formatter):
    r"""Formats records for people: local time, level, message.

    Unprintable characters are escaped as in a Python string (``\n``, ``\x1b``), so that a message can neither forge
    another log line nor control the terminal. Backslashes are not escaped. The lines of a traceback follow, indented.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stamp = _Stamp(time.localtime, "%Y-%m-%d %H:%M:%S", ",")

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self._stamp(record.created)} {record.levelname} {one_line(record)}"
        return "".join([line, *(f"\n    {printable(each)}" for each in _traceback(record).splitlines())])


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time (ISO 8601, UTC, milliseconds), level, logger, message, any exception.

    The items of the record's dict ``fields`` (``extra={"fields": {"event": "connected"}}``) follow, except those whose
    names are in use. Unprintable characters and lone surrogates are escaped, so that every line is valid UTF-8. Values
    that JSON cannot represent (NaN, infinities, bytes, other objects) become strings.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stamp = _Stamp(time.gmtime, "%Y-%m-%dT%H:%M:%S", ".")

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self._stamp(record.created) + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message_of(record),
        }
        if trace := _traceback(record):
            line["exception"] = trace
        for name, value in _fields(record).items():
            line.setdefault(name, value)
        text = json.dumps(line, ensure_ascii=False)
        return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


FORMATTERS: dict[_LogFormat, Callable[[], logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


class _Stamp:
    """Formats a time; everything but the milliseconds is computed once a second."""

    def __init__(self, calendar: Callable[[float], time.struct_time], form: str, point: str) -> None:
        self._calendar, self._form, self._point = calendar, form, point
        self._second, self._text = -1, ""

    def __call__(self, created: float) -> str:
        second = math.floor(created)
        if second != self._second:
            self._second, self._text = second, time.strftime(self._form, self._calendar(second))
        return f"{self._text}{self._point}{int((created - second) * 1000):03}"


def one_line(record: logging.LogRecord) -> str:
    """Return the message as one printable line."""
    return printable(message_of(record))


def printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a wrong format must not end the log
        return f"{text_of(record.msg)} [cannot be formatted: {text_of(error)}]"


def _traceback(record: logging.LogRecord) -> str:
    text = record.exc_text or ""
    if record.exc_info and not text:
        text = logging.Formatter().formatException(record.exc_info)
    return "\n".join(filter(None, (text, record.stack_info)))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = plain(getattr(record, "fields", None))
    return fields if isinstance(fields, dict) else {}


def plain(value: object, depth: int = 4) -> object:
    """Convert a value for JSON. Anything nested deeper than ``depth``, or not representable, becomes a string."""
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else str(value)  # type: ignore[arg-type]
    if kind in ATOMS and kind is not bytes:
        return value
    if depth and isinstance(value, dict):
        return {text_of(name): plain(each, depth - 1) for name, each in value.items()}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each, depth - 1) for each in value]
    return text_of(value)


def text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"
