"""The log of a command on stderr, as text or as JSON, and an optional line of statistics.

A separate thread writes the log, so that a log nobody reads never stops the server. Records that do not fit in the
queue are dropped and counted.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import queue
import select
import sys
import threading
import time
from time import monotonic, sleep

from rioecho._server.notify import Latch
from rioecho._server.tasks import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Any, Literal, Self, TypeAlias

    _LogFormat: TypeAlias = Literal["text", "json"]

LOG_FORMATS: tuple[_LogFormat, ...] = ("text", "json")
STATS = "rioecho.stats"
STDERR = 2

#: Maximum number of records in the queue; about 10 MB.
MAX_QUEUE = 10_000
#: Number of characters that ends a batch of lines. Lines of several processes must not be interleaved, and a pipe
#: guarantees that for writes of up to PIPE_BUF bytes: 4096 on Linux.
BATCH = 2048
#: Minimum number of seconds between two lines of statistics.
MIN_INTERVAL = 0.01
#: Seconds that the log pauses when it has no memory to go on with.
PAUSE = 0.01
#: Immutable types that hold no reference to other objects.
ATOMS = frozenset({str, int, float, bool, bytes, type(None)})

BACK, CLEAR = "\r", "\x1b[K"


# ---- formats


class TextFormatter(logging.Formatter):
    r"""Formats records for people: local time, level, message.

    Unprintable characters are escaped as in a Python string (``\n``, ``\x1b``), so that a message can neither forge
    another log line nor control the terminal. Backslashes are not escaped. The lines of a traceback follow, indented.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stamp = _Stamp(time.localtime, "%Y-%m-%d %H:%M:%S", ",")

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self._stamp(record.created)} {record.levelname} {_one_line(record)}"
        return "".join([line, *(f"\n    {_printable(each)}" for each in _traceback(record).splitlines())])


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
            "message": _message(record),
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


def _one_line(record: logging.LogRecord) -> str:
    """Return the message as one printable line."""
    return _printable(_message(record))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a wrong format must not end the log
        return f"{_str(record.msg)} [cannot be formatted: {_str(error)}]"


def _traceback(record: logging.LogRecord) -> str:
    text = record.exc_text or ""
    if record.exc_info and not text:
        text = logging.Formatter().formatException(record.exc_info)
    return "\n".join(filter(None, (text, record.stack_info)))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = _plain(getattr(record, "fields", None))
    return fields if isinstance(fields, dict) else {}


def _plain(value: object, depth: int = 4) -> object:
    """Convert a value for JSON. Anything nested deeper than ``depth``, or not representable, becomes a string."""
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else str(value)  # type: ignore[arg-type]
    if kind in ATOMS and kind is not bytes:
        return value
    if depth and isinstance(value, dict):
        return {_str(name): _plain(each, depth - 1) for name, each in value.items()}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each, depth - 1) for each in value]
    return _str(value)


def _str(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


# ---- writing


class LogWriter(logging.Handler):
    """The log handler of a process: a thread writes the records to a descriptor, and a call that logs never blocks.

    ``start()`` installs it as the root logger's handler for records of ``level`` and above. When MAX_QUEUE records are
    queued, further records are dropped until the queue has been written; a warning in their place gives their number.
    A warning with the reason also reports records whose write failed.

    On a terminal that is not dumb, the text format draws the line of statistics (INFO records of the logger
    "rioecho.stats") in place as the last line of the screen, without a time; ``finish()`` ends it with a newline.

    After a fork the log of the child is empty, and nothing is written until the child calls ``start()``.
    """

    def __init__(self, level: int, log_format: _LogFormat = "text", fd: int = STDERR) -> None:
        super().__init__()
        self._root_level = level
        self._fd = fd
        self.setFormatter(FORMATTERS[log_format]())
        # sys.stderr is None if open_standard_streams() has opened the descriptor, which leaves the file unopened.
        self._encoding = "utf-8" if log_format == "json" or sys.stderr is None else sys.stderr.encoding
        self._live = log_format == "text" and os.isatty(fd) and os.environ.get("TERM", "dumb") != "dumb"
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._ended: Latch | None = None  # opened when the thread has
        # SimpleQueue.put() is reentrant: signal handlers may log, and a fork may happen at any time.
        self._records: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._taken, self._is_last = 0, False  # from the queue and not yet written; with the end behind them
        self._dropped = 0  # while it is not 0, all records are dropped
        self._unwritten, self._reason = 0, ""
        self._pending_newline = b""  # ends a line that was written in part
        self._status: str | None = None  # the last line of the terminal

    def start(self) -> None:
        """Install the handler and start the thread that writes. RuntimeError, MemoryError: there is none to be had."""
        # No format prints the caller, the thread or the process, and looking them up is a large part of the cost of a
        # record (see "Optimization" in the logging HOWTO).
        logging._srcfile = None
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
        root = logging.getLogger()
        root.setLevel(self._root_level)
        root.addHandler(self)
        self._is_last = False
        ended = Latch()
        Task(self._run, name="rioecho log", latches=(ended,)).begin()
        self._ended = ended

    def finish(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds until all records are written. Report whether they are.

        If not, the thread is still trying, and only os._exit() can end the process.
        """
        if self._ended is None:
            return True
        self._records.put(None)
        return self._ended.wait(timeout)

    # ---- in the threads that log

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue the record for the writer. Takes a lock only to drop it, and leaves formatting to the writer."""
        if not self.filter(record):
            return False
        if self._dropped or self._records.qsize() >= MAX_QUEUE:
            with self._lock:
                # Check again under the lock: the writer may have caught up, and dropping must begin while records are
                # queued, or nothing would wake the writer to end it.
                if self._dropped or self._records.qsize() >= MAX_QUEUE:
                    self._dropped += 1
                    return True
        self._records.put(_snapshot(record))
        return True

    # ---- in the thread that writes

    def _run(self) -> None:
        while not self._is_last:
            try:
                self._write_some()
            except Exception as error:  # no memory, for one: what has been taken is lost, and the log goes on
                self._unwritten += self._taken
                self._reason = _str(error) or "out of memory"
                sleep(PAUSE)

    def _write_some(self) -> None:
        """Wait for records, and write those that are there, up to a batch."""
        self._taken = 0
        lines = list(self._unwritten_notice())
        size = 0
        record = self._records.get()
        while record is not None:
            self._taken += 1
            if self._live and record.name == STATS and record.levelno == logging.INFO:
                self._status = _one_line(record)
            else:
                lines.append(self._line(record))
                size += len(lines[-1])
            if size >= BATCH or self._records.empty():
                break
            record = self._records.get()
        self._is_last = record is None
        if self._is_last or self._records.empty():
            lines += self._dropped_notice()
        self._write(self._render(lines, last=self._is_last), self._taken)

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record) + "\n"
        except Exception as error:  # no record may end the log
            return self.format(_own_record("a record cannot be formatted: %s", _str(error))) + "\n"

    def _dropped_notice(self) -> Iterator[str]:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            yield self._notice(dropped, "the log is not read fast enough")

    def _unwritten_notice(self) -> Iterator[str]:
        if self._unwritten:
            yield self._notice(self._unwritten, self._reason)

    def _notice(self, n: int, reason: str) -> str:
        record = _own_record("dropped %d log record%s: %s", n, "" if n == 1 else "s", reason)
        record.__dict__["fields"] = {"event": "dropped", "records": n}
        return self._line(record)

    def _render(self, lines: list[str], *, last: bool) -> str:
        """Return the lines as text, with the line of statistics below them."""
        text = "".join(lines)
        if self._status is None:
            return text
        if text:
            text = BACK + CLEAR + text
        if last:
            return f"{text}{BACK}{self._status}{CLEAR}\n"
        # Cut the line to the terminal's width: if it wrapped, BACK would return to the start of its second row only.
        try:
            columns = os.get_terminal_size(self._fd).columns or 80
        except OSError:
            columns = 80
        return f"{text}{BACK}{self._status[: columns - 1]}{CLEAR}"

    def _write(self, text: str, count: int) -> None:
        """Write the text of ``count`` records, however long it takes. After an error, give them up and count them."""
        data = self._pending_newline + text.encode(self._encoding, "backslashreplace")
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:  # another process that shares the open file may have set O_NONBLOCK
                    writable = select.poll()
                    writable.register(self._fd, select.POLLOUT)
                    writable.poll()
        except OSError as error:
            self._unwritten += count
            self._reason = error.strerror or str(error)
            if written := len(data) - len(rest):
                self._pending_newline = b"" if data[written - 1] == ord("\n") else b"\n"
        else:
            self._unwritten = 0
            self._pending_newline = b""


def _snapshot(record: logging.LogRecord) -> logging.LogRecord:
    """Return the record in a form that can be formatted at any later time.

    A message whose arguments are all ATOMS is formatted later, which saves the caller most of the time. Any other is
    formatted now: its arguments may change, and an exception would keep its frames and their variables alive.
    """
    args = record.args
    plain = type(record.msg) is str and (not args or (type(args) is tuple and ATOMS.issuperset(map(type, args))))
    if record.exc_info or not plain:
        record = copy.copy(record)  # other handlers use the original
        record.msg, record.args = _message(record), None
        if record.exc_info:
            record.exc_text = record.exc_text or logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
    if (fields := getattr(record, "fields", None)) is not None:
        record.__dict__["fields"] = _plain(fields)
    return record


def _own_record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("rioecho.log", logging.WARNING, "", 0, message, args, None)


# ---- statistics


class StatsLine:
    """Logs a server's counts every ``every`` seconds, at INFO to "rioecho.stats", whatever the level of the log.

    ``stats()`` returns the counts by name, as ``EchoServer.stats`` does; it is called in a thread of its own. Rates are
    computed since the previous line. The record's fields are the counts, ``event`` ("stats"), ``interval`` in seconds,
    and ``lines_per_s``, ``bytes_in_per_s``, ``bytes_out_per_s``. ``stop()`` logs a last line if a count has changed
    since the previous one. As a context manager it runs for the length of the block.
    """

    def __init__(self, stats: Callable[[], Mapping[str, int]], every: float) -> None:
        if not every > 0:
            raise ValueError(f"the interval must be above 0 seconds, not {every!r}")
        self._stats = stats
        self._every = max(every, MIN_INTERVAL)
        self._stopped, self._ended = Latch(), Latch()
        self._task = Task(self._run, name="rioecho stats", latches=(self._ended,))
        self._log = logging.getLogger(STATS)

    def start(self) -> None:
        self._log.setLevel(logging.INFO)
        # Begin at zero: the first line also covers what the server counted before this call.
        self._then, self._counts = monotonic(), dict.fromkeys(self._stats(), 0)
        self._task.begin()

    def stop(self) -> None:
        """Log a last line if there is anything new, and stop. Waits only for ``stats()``."""
        self._stopped.open()
        self._ended.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        start, tick = self._then, 0
        while True:
            # Lines are due at multiples of the interval, even after a late one. Lines that are missed are left out.
            elapsed = monotonic() - start
            tick = max(tick, int(elapsed / self._every)) + 1
            stopped = self._stopped.wait(min(max(0.0, tick * self._every - elapsed), threading.TIMEOUT_MAX))
            try:
                self._log_counts(only_if_changed=stopped)
            except Exception:
                self._log.exception("cannot log the statistics")
            if stopped:
                return

    def _log_counts(self, *, only_if_changed: bool) -> None:
        now, counts = monotonic(), dict(self._stats())
        if only_if_changed and counts == self._counts:
            return
        interval = max(now - self._then, 1e-6)
        rates = {
            f"{name}_per_s": round((counts[name] - self._counts[name]) / interval, 1)
            for name in ("lines", "bytes_in", "bytes_out")
        }
        self._then, self._counts = now, counts
        fields = {"event": "stats", **counts, "interval": round(interval, 6), **rates}
        parts = [f"{counts[name]} {name}" for name in ("active", "accepted", "refused", "errors")]
        if counts["lines"]:  # raw framing counts no lines
            parts.append(f"{rates['lines_per_s']:,.0f} lines/s")
        parts += [f"{_amount(rates['bytes_in_per_s'])}/s in", f"{_amount(rates['bytes_out_per_s'])}/s out"]
        self._log.info("stats: %s", ", ".join(parts), extra={"fields": fields})


def _amount(n: float) -> str:
    """Format a number of bytes: 999 B, 1.0 kB, 51.2 kB, 3.3 MB; GB is the largest unit."""
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if n < 999.5:
            break
        n, unit = n / 1000, larger
    return f"{n:.0f} B" if unit == "B" else f"{n:,.1f} {unit}"
