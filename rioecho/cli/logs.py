"""The log of a command on stderr.

A separate thread writes the log, so that a log nobody reads never stops the server. Records that do not fit in the
queue are dropped and counted.
"""

from __future__ import annotations

import copy
import logging
import os
import queue
import select
import sys
import threading
from time import sleep

from rioecho._server.notify import Latch
from rioecho._server.tasks import Task
from rioecho.cli.logformats import ATOMS, FORMATTERS, message_of, one_line, plain, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from rioecho.cli.logformats import _LogFormat

#: The logger of the line of statistics.
STATS = "rioecho.stats"
STDERR = 2

#: Maximum number of records in the queue; about 10 MB.
MAX_QUEUE = 10_000
#: Number of characters that ends a batch of lines. Lines of several processes must not be interleaved, and a pipe
#: guarantees that for writes of up to PIPE_BUF bytes: 4096 on Linux.
BATCH = 2048
#: Seconds that the log pauses when it has no memory to go on with.
PAUSE = 0.01

BACK, CLEAR = "\r", "\x1b[K"


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
                self._reason = text_of(error) or "out of memory"
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
                self._status = one_line(record)
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
            return self.format(_own_record("a record cannot be formatted: %s", text_of(error))) + "\n"

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
    unchanging = type(record.msg) is str and (not args or (type(args) is tuple and ATOMS.issuperset(map(type, args))))
    if record.exc_info or not unchanging:
        record = copy.copy(record)  # other handlers use the original
        record.msg, record.args = message_of(record), None
        if record.exc_info:
            record.exc_text = record.exc_text or logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
    if (fields := getattr(record, "fields", None)) is not None:
        record.__dict__["fields"] = plain(fields)
    return record


def _own_record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("rioecho.log", logging.WARNING, "", 0, message, args, None)
