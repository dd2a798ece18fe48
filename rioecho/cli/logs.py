"""The log of a command on stderr, as text or as JSON, with a line of statistics when it is asked for.

A thread of its own writes it: a log that nobody reads must never stop the server. It is then cut, and says so.
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
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Any, Literal, Self, TypeAlias

    _LogFormat: TypeAlias = Literal["text", "json"]

LOG_FORMATS: tuple[_LogFormat, ...] = ("text", "json")
STATS = "rioecho.stats"
STDERR = 2

#: Records that may wait to be written; about 10 MB.
MAX_QUEUE = 10_000
#: Characters after which lines are written and no more are collected. Lines of several processes must not be mixed,
#: which a pipe promises up to PIPE_BUF bytes: 4096 on Linux.
BATCH = 2048
#: Seconds between two lines of statistics, at least.
MIN_INTERVAL = 0.01
#: Values that never change, hold nothing alive, and are what they are also in JSON.
ATOMS = frozenset({str, int, float, bool, bytes, type(None)})

BACK, CLEAR = "\r", "\x1b[K"


# ---- formats


class TextFormatter(logging.Formatter):
    r"""Lines for people: local time, level, message.

    What would not print is escaped as in a Python string (``\n``, ``\x1b``), so that no message can pretend to be
    several, or talk to the terminal; a backslash stays as it is. The lines of a traceback follow, indented.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stamp = _Stamp(time.localtime, "%Y-%m-%d %H:%M:%S", ",")

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self._stamp(record.created)} {record.levelname} {_shown(record)}"
        return "".join([line, *(f"\n    {_printable(each)}" for each in _traceback(record).splitlines())])


class JsonFormatter(logging.Formatter):
    """A JSON object in a line: time (ISO 8601, UTC, milliseconds), level, logger, message, exception if there is one.

    The record's ``fields``, a dict (``extra={"fields": {"event": "connected"}}``), come after them, under names that
    are not taken. No character is raw that does not print, lone surrogates among them: any line is valid UTF-8. What
    JSON has no word for is a string: NaN, the infinities, bytes, other objects.
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
    """Writes times; all but the milliseconds is computed once a second."""

    def __init__(self, calendar: Callable[[float], time.struct_time], form: str, point: str) -> None:
        self._calendar, self._form, self._point = calendar, form, point
        self._second, self._text = -1, ""

    def __call__(self, created: float) -> str:
        second = math.floor(created)
        if second != self._second:
            self._second, self._text = second, time.strftime(self._form, self._calendar(second))
        return f"{self._text}{self._point}{int((created - second) * 1000):03}"


def _shown(record: logging.LogRecord) -> str:
    """The message, in one line that prints."""
    return _printable(_message(record))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a wrong format: the rest of the log is to come all the same
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
    """The value as JSON may have it; what is nested deeper, or is no such thing, as a string."""
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
    """The handler of a whole process's log: a thread writes it to a descriptor, and no call that logs ever waits.

    ``level`` and what is above it is logged. ``start()`` makes it the root logger's handler. At most MAX_QUEUE
    records wait; from then on records are dropped and counted, until all that wait are written: in the place of the
    missing ones a warning says how many they are. The same is said, with the reason, of those whose write failed.

    Text on a terminal that is not dumb has the line of statistics (the INFO of the logger "rioecho.stats") drawn in
    place, last on the screen, without its time; ``finish()`` leaves it complete, with a newline.

    After a fork the child has an empty log, and writes nothing until it calls ``start()`` itself.
    """

    def __init__(self, level: int, log_format: _LogFormat = "text", fd: int = STDERR) -> None:
        super().__init__()
        self._root_level = level
        self._fd = fd
        self.setFormatter(FORMATTERS[log_format]())
        # None: open_standard_streams() has opened the descriptor, but not the file.
        self._encoding = "utf-8" if log_format == "json" or sys.stderr is None else sys.stderr.encoding
        self._live = log_format == "text" and os.isatty(fd) and os.environ.get("TERM", "dumb") != "dumb"
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        # Its put() holds no lock: a signal handler may log, and a fork may come at any time.
        self._records: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._dropped = 0  # if not 0, everything is dropped
        self._unwritten, self._why = 0, ""
        self._owed = b""  # the newline of a line that was written in part
        self._status: str | None = None  # what stands on the last line of the terminal

    def start(self) -> None:
        """Take the process's log, and write it from now on."""
        # Nothing here prints the caller, the thread or the process: finding them out is a good part of the cost of a
        # record (see "Optimization" in the logging HOWTO).
        logging._srcfile = None
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
        root = logging.getLogger()
        root.setLevel(self._root_level)
        root.addHandler(self)
        self._thread = threading.Thread(target=self._run, name="rioecho log", daemon=True)
        self._thread.start()

    def finish(self, timeout: float) -> bool:
        """Wait until all is written, at most so many seconds; whether it is.

        If not, the thread still tries to: only os._exit() ends the process then.
        """
        if self._thread is None:
            return True
        self._records.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # ---- in the threads that log

    def handle(self, record: logging.LogRecord) -> bool:
        """Leave the record to the writer. Takes no lock but to drop it, and formats nothing that can wait."""
        if not self.filter(record):
            return False
        if self._dropped or self._records.qsize() >= MAX_QUEUE:
            with self._lock:
                # Asked again, for the writer may have caught up: who starts to drop must do so while records wait, or
                # nothing would wake the writer to end it.
                if self._dropped or self._records.qsize() >= MAX_QUEUE:
                    self._dropped += 1
                    return True
        self._records.put(_kept(record))
        return True

    # ---- in the thread that writes

    def _run(self) -> None:
        going = True
        while going:
            lines = list(self._unwritten_notice())
            size = count = 0
            record = self._records.get()
            while record is not None:
                count += 1
                if self._live and record.name == STATS and record.levelno == logging.INFO:
                    self._status = _shown(record)
                else:
                    lines.append(self._line(record))
                    size += len(lines[-1])
                if size >= BATCH or self._records.empty():
                    break
                record = self._records.get()
            going = record is not None
            if not going or self._records.empty():
                lines += self._dropped_notice()
            self._write(self._drawn(lines, last=not going), count)

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record) + "\n"
        except Exception as error:  # the log goes on, whatever is in a record
            return self.format(_own_record("a record cannot be formatted: %s", _str(error))) + "\n"

    def _dropped_notice(self) -> Iterator[str]:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            yield self._notice(dropped, "nobody reads the log fast enough")

    def _unwritten_notice(self) -> Iterator[str]:
        if self._unwritten:
            yield self._notice(self._unwritten, self._why)

    def _notice(self, n: int, why: str) -> str:
        record = _own_record("dropped %d log record%s: %s", n, "" if n == 1 else "s", why)
        record.__dict__["fields"] = {"event": "dropped", "records": n}
        return self._line(record)

    def _drawn(self, lines: list[str], *, last: bool) -> str:
        """The lines, and the line of statistics below them."""
        text = "".join(lines)
        if self._status is None:
            return text
        if text:
            text = BACK + CLEAR + text
        if last:
            return f"{text}{BACK}{self._status}{CLEAR}\n"
        # Longer than the terminal is wide, it would take two lines, and BACK would find only the second.
        try:
            columns = os.get_terminal_size(self._fd).columns or 80
        except OSError:
            columns = 80
        return f"{text}{BACK}{self._status[: columns - 1]}{CLEAR}"

    def _write(self, text: str, count: int) -> None:
        """Write the text of so many records, however long it takes; what cannot be written is given up and counted."""
        data = self._owed + text.encode(self._encoding, "backslashreplace")
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:  # who has the other end may have made it so: it is shared
                    writable = select.poll()
                    writable.register(self._fd, select.POLLOUT)
                    writable.poll()
        except OSError as error:
            self._unwritten += count
            self._why = error.strerror or str(error)
            if written := len(data) - len(rest):
                self._owed = b"" if data[written - 1] == ord("\n") else b"\n"
        else:
            self._unwritten = 0
            self._owed = b""


def _kept(record: logging.LogRecord) -> logging.LogRecord:
    """The record as it can be formatted at any later time.

    Left for later is what takes the most time, a message of arguments that are ATOMS: they are the same then. Of others
    the text is made now: they may change, and an exception keeps its frames alive with all that is in them.
    """
    args = record.args
    plain = type(record.msg) is str and (not args or (type(args) is tuple and ATOMS.issuperset(map(type, args))))
    if record.exc_info or not plain:
        record = copy.copy(record)  # other handlers have it, too
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
    """Logs a server's counts every so many seconds, at INFO to "rioecho.stats", whatever the level of the rest is.

    ``stats()`` returns the counts by name, as ``EchoServer.stats`` does; it is called in a thread of this one's own.
    The rates are those since the line before. The record's fields are the counts, ``event`` ("stats"), ``interval`` in
    seconds, and ``lines_per_s``, ``bytes_in_per_s``, ``bytes_out_per_s``. ``stop()`` logs a last line if a count has
    changed since the one before. As a context manager it runs from entering to leaving the block.
    """

    def __init__(self, stats: Callable[[], Mapping[str, int]], every: float) -> None:
        if not every > 0:
            raise ValueError(f"the seconds between two lines must be above 0, not {every!r}")
        self._stats = stats
        self._every = max(every, MIN_INTERVAL)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rioecho stats", daemon=True)
        self._log = logging.getLogger(STATS)

    def start(self) -> None:
        self._log.setLevel(logging.INFO)
        # What has been counted by now is news, too: the server may have begun before.
        self._then, self._counts = monotonic(), dict.fromkeys(self._stats(), 0)
        self._thread.start()

    def stop(self) -> None:
        """Log what is left to log, and end; at once, unless stats() takes its time."""
        self._stopped.set()
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        start, beat = self._then, 0
        while True:
            # The lines are due at multiples of the interval, however late one is; what is missed is left out.
            elapsed = monotonic() - start
            beat = max(beat, int(elapsed / self._every)) + 1
            stopped = self._stopped.wait(min(max(0.0, beat * self._every - elapsed), threading.TIMEOUT_MAX))
            try:
                self._say(only_news=stopped)
            except Exception:
                self._log.exception("no statistics")
            if stopped:
                return

    def _say(self, *, only_news: bool) -> None:
        now, counts = monotonic(), dict(self._stats())
        if only_news and counts == self._counts:
            return
        interval = max(now - self._then, 1e-6)
        rates = {
            f"{name}_per_s": round((counts[name] - self._counts[name]) / interval, 1)
            for name in ("lines", "bytes_in", "bytes_out")
        }
        self._then, self._counts = now, counts
        fields = {"event": "stats", **counts, "interval": round(interval, 6), **rates}
        parts = [f"{counts[name]} {name}" for name in ("active", "accepted", "refused", "errors")]
        if counts["lines"]:  # else the framing has none
            parts.append(f"{rates['lines_per_s']:,.0f} lines/s")
        parts += [f"{_amount(rates['bytes_in_per_s'])}/s in", f"{_amount(rates['bytes_out_per_s'])}/s out"]
        self._log.info("stats: %s", ", ".join(parts), extra={"fields": fields})


def _amount(n: float) -> str:
    """A number of bytes: 999 B, 1.0 kB, 51.2 kB, 3.3 MB; GB without end."""
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if n < 999.5:
            break
        n, unit = n / 1000, larger
    return f"{n:.0f} B" if unit == "B" else f"{n:,.1f} {unit}"
