"""The server's log: text and JSON, dropping records when nobody reads it, and the line of statistics."""

import calendar
import contextlib
import fcntl
import itertools
import json
import logging
import os
import re
import signal
import statistics
import struct
import termios
import threading
import time

import pytest

from rioecho.cli.logformats import JsonFormatter, TextFormatter
from rioecho.cli.statsline import StatsLine
from support.peers import SECONDS, Command, Output, Server, ask, dial, peak_memory, receive
from support.sweep import require_failing_allocations

STATS = re.compile(
    r"stats: (\d+) active, (\d+) accepted, (\d+) refused, (\d+) errors, (?:([\d,]+) lines/s, )?"
    r"([\d.,]+ [kMG]?B)/s in, ([\d.,]+ [kMG]?B)/s out"
)


def stop(server):
    server.signal(signal.SIGTERM)
    assert server.status() == 0


def send(server, data, times=1):
    """Have data echoed this many times over one connection."""
    with dial(server.address) as sock:
        for _ in range(times):
            sock.sendall(data)
            assert receive(sock, len(data)) == data


def objects(text):
    """Parse a log of one JSON object per line."""
    assert text.endswith("\n")
    parsed = []
    for line in text[:-1].split("\n"):
        assert line.isprintable(), line
        parsed.append(json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", parsed[-1]["time"])
    return parsed


def logged(code, *, log_format="json", **options):
    """Return the log of a child that runs ``code``, with a logger ``log`` and a LogWriter ``writer``.

    The writer is started before the code and finished after it.
    """
    code = (
        "import logging, os, sys\nfrom rioecho.cli.logs import LogWriter\n"
        f"writer = LogWriter(logging.DEBUG, {log_format!r})\nwriter.start()\nlog = logging.getLogger('test')\n"
        f"{code}\nassert writer.finish(20)\n"
    )
    with Command("", code=code, environment={"PYTHONIOENCODING": "utf-8"}, **options) as command:
        assert command.status() == 0, command.err and command.err.text
        return command.err and command.err.text


# ---- formats


@pytest.mark.long
def test_json_has_one_object_per_line():
    with Server("-v", "--log-format", "json") as server:
        with dial(server.address) as sock:
            name = sock.getsockname()
            ask(sock)
        server.err.wait_for("Closed")
        stop(server)
        log = objects(server.err.text)
    assert {each["logger"] for each in log} == {"rioecho.server"}
    assert [each["event"] for each in log] == ["listening", "connected", "line", "closed", "stopping", "stopped"]
    assert [each["level"] for each in log] == ["info", "info", "debug", "info", "info", "info"]
    assert server.out.text == log[0]["message"] + "\n"
    assert log[0]["addresses"] == [f"127.0.0.1:{server.address[1]}", f"[::1]:{server.address[1]}"]
    assert (log[4]["message"], log[4]["active"]) == ("Stopping: 0 active", 0)
    counts = {"accepted": 1, "refused": 0, "closed": 1, "errors": 0, "bytes_in": 15, "bytes_out": 15, "lines": 1}
    assert {name: log[5][name] for name in counts} == counts
    log = log[1:4]
    assert log[0]["message"] == f"Connected to ({name[0]}, {name[1]})"
    assert log[1]["message"] == "server received 15 bytes"
    assert log[0]["peer"] == log[2]["peer"] == f"({name[0]}, {name[1]})"
    assert log[1]["bytes"] == log[2]["bytes"] == 15
    assert log[2]["reason"] == "end of input"
    assert set(log[0]) == {"time", "level", "logger", "message", "event", "peer"}


def test_json_has_the_time_in_utc():
    before = time.time()
    text = logged("log.info('now')", prelude="TZ=Asia/Tokyo; export TZ")
    after = time.time()
    (line,) = objects(text)
    shown = time.strptime(line["time"][:-5], "%Y-%m-%dT%H:%M:%S")
    assert int(before) <= calendar.timegm(shown) <= after


def test_json_has_the_fields_of_the_record_and_none_replaces_a_standard_one():
    (line,) = objects(
        logged(
            "log.warning('m', extra={'fields': {'event': 'connected', 'peer': '127.0.0.1:41234', 'n': 3, 'x': None,"
            " 'time': 0, 'level': 0, 'logger': 0, 'message': 0, 'all': [1, {'a': (2.5, True)}], 'nan': float('nan'),"
            " 'data': b'x', 7: OSError('why')}})"
        )
    )
    standard = {name: line.pop(name) for name in ("time", "level", "logger", "message")}
    assert 0 not in standard.values()
    assert line == {
        "event": "connected",
        "peer": "127.0.0.1:41234",
        "n": 3,
        "x": None,
        "all": [1, {"a": [2.5, True]}],
        "nan": "nan",
        "data": "b'x'",
        "7": "why",
    }


def test_fields_have_the_values_at_the_time_of_the_call_and_none_stops_the_log():
    code = """
fields = {"all": [1]}
log.info("first", extra={"fields": fields})
fields["all"].append(2)
fields["self"] = fields
log.info("second", extra={"fields": fields})
log.info("third", extra={"fields": 5})
log.info("fourth", extra={"fields": {"many": 10**5000}})
class Bad:
    def __str__(self): raise ValueError
log.info("fifth", extra={"fields": {"bad": Bad()}})
log.info("sixth %s", Bad())
log.info(Bad())
"""
    log = objects(logged(code))
    assert log[0]["all"] == [1]
    assert log[1]["all"] == [1, 2]
    assert [line["message"] for line in log[:3]] == ["first", "second", "third"]
    assert "cannot be formatted" in log[3]["message"]
    assert log[4]["bad"] == "<Bad>"
    assert log[5]["message"].startswith("sixth %s [cannot be formatted")
    assert len(log) == 7


def test_json_has_the_text_of_an_exception():
    (line,) = objects(logged("try:\n  1 / 0\nexcept ZeroDivisionError:\n  log.exception('oh %s', 'no')"))
    assert (line["level"], line["message"]) == ("error", "oh no")
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")


HOSTILE = 'a\nb\r\tc\0\x1b[2J\x7f\x85\u2028\u202e\ud800\ue000 \U000e0001\\ \u00e9\u4e16\U0001f600 "'


def test_json_preserves_every_string_and_escapes_control_characters():
    text = logged(f"log.info('%s', {HOSTILE!r}, extra={{'fields': {{{HOSTILE!r}: [{HOSTILE!r}]}}}})")
    (line,) = objects(text)
    assert line["message"] == HOSTILE
    assert line[HOSTILE] == [HOSTILE]
    assert "\u00e9\u4e16\U0001f600" in text


def test_text_escapes_unprintable_characters_and_keeps_the_rest():
    text = logged(f"log.info('%s', {HOSTILE!r})", log_format="text")
    line, end, rest = text.partition("\n")
    assert (end, rest) == ("\n", "")
    assert line.isprintable()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO .*", line)
    assert line.partition(" INFO ")[2] == (
        r"a\nb\r\tc\x00\x1b[2J\x7f\x85\u2028\u202e\ud800\ue000 \U000e0001"
        '\\ \u00e9\u4e16\U0001f600 "'
    )


def test_text_indents_an_exception_so_that_no_line_of_it_can_pass_for_a_record():
    code = "try:\n  raise ValueError('one\\n2024-01-01 00:00:00,000 INFO two\\x1b[2J')\nexcept ValueError as error:\n"
    lines = logged(code + "  log.exception('oh')", log_format="text").splitlines()
    assert lines[0].endswith(" ERROR oh")
    assert lines[1] == "    Traceback (most recent call last):"
    assert lines[-1] == r"    2024-01-01 00:00:00,000 INFO two\x1b[2J"
    assert all(line.startswith("    ") for line in lines[1:])


def test_a_character_outside_the_encoding_of_stderr_is_escaped():
    with Command(
        "",
        code="import logging; from rioecho.cli.logs import LogWriter; w = LogWriter(20); w.start();"
        " logging.warning('caf\\xe9'); assert w.finish(20)",
        environment={"PYTHONIOENCODING": "ascii"},
    ) as command:
        assert command.status() == 0
        assert command.err.text.endswith(" WARNING caf\\xe9\n")


def test_a_message_shows_its_arguments_at_the_time_of_the_call_and_keeps_no_reference():
    code = """
import gc, os, weakref
class Thing(list): pass
thing = Thing([1])
gone = weakref.ref(thing)
reader, end = os.pipe()
held = LogWriter(logging.DEBUG, "json", end)  # not started, so that it keeps its records
log.addHandler(held)
log.info("%s", thing)
thing.append(2)
try:
    raise OSError(thing)
except OSError as error:
    log.info("%s", error, exc_info=True, extra={"fields": {"thing": thing}})
del thing
gc.collect()
assert gone() is None
"""
    log = objects(logged(code))
    assert log[0]["message"] == "[1]"
    assert log[1]["message"] == "[1, 2]"
    assert log[1]["thing"] == [1, 2]


def test_a_message_with_wrong_arguments_is_logged_unformatted():
    log = objects(logged("log.info('%d bytes', 'many')\nlog.info('%s and %s', 'one')\nlog.info('next')"))
    assert log[0]["message"].startswith("%d bytes [cannot be formatted: ")
    assert log[1]["message"].startswith("%s and %s [cannot be formatted: ")
    assert log[2]["message"] == "next"


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
def test_the_formatters_work_with_any_handler(formatter):
    record = logging.LogRecord("name", logging.INFO, "", 0, "%(a)s", ({"a": [1]},), None)
    record.stack_info = "Stack:\n  here"
    text = formatter().format(record)
    assert "[1]" in text
    assert "here" in text


# ---- a log that nobody reads, or that cannot be written


@contextlib.contextmanager
def unread(*arguments, blocking=True):
    """Run a server whose log nobody reads; yield it, and a function that starts to read the log."""
    with contextlib.ExitStack() as stack:
        reader, writer = (stack.enter_context(open(fd, mode)) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
        os.set_blocking(writer.fileno(), blocking)
        server = stack.enter_context(Server("-v", *arguments, stderr=writer))

        def read():
            writer.close()
            return Output(open(os.dup(reader.fileno()), "rb"))  # Output closes the file

        yield server, read


@pytest.mark.slow
def test_records_that_nobody_reads_are_dropped_and_counted_and_the_server_goes_on():
    with unread("--log-format", "json") as (server, read):
        send(server, b"\n" * 200, 150)
        memory = peak_memory(server.pid)
        send(server, b"\n" * 200, 500)
        if memory is not None:
            assert peak_memory(server.pid) - memory < 4 << 20
        err = read()
        err.wait_for('"dropped"')
        send(server, b"after\n")
        err.wait_for("received 6 bytes")
        stop(server)
        err.join()
    log = objects(err.text)
    (notice,) = [line for line in log if "dropped" in line["message"]]
    assert notice["level"] == "warning"
    assert notice["event"] == "dropped"
    n = notice["records"]
    assert notice["message"] == f"dropped {n} log records: the log is not read fast enough"
    # No other record is missing: two connections and their lines, and the third connection with one line.
    assert len(log) - 1 + n == 2 * 3 + 130_000 + 1 + len(("listening", "stopping", "stopped"))
    assert "server received 6 bytes" in [line["message"] for line in log[log.index(notice) :]]


@pytest.mark.long
def test_queued_records_are_written_once_the_log_is_read():
    """The descriptor may also be non-blocking, because another process has set O_NONBLOCK on the open file."""
    for blocking in (True, False):
        with unread(blocking=blocking) as (server, read):
            send(server, b"\n" * 200, 25)  # of more lines that come at once only the number is logged
            err = read()
            stop(server)
            err.join()
        assert err.text.count("server received 1 bytes\n") == 5000
        assert "dropped" not in err.text


@pytest.mark.slow
def test_a_server_whose_log_nobody_reads_stops_in_time():
    with unread("--stats", "0.02") as (server, read):
        send(server, b"\n" * 1000, 20)
        start = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.process.wait(SECONDS) == 0
        assert time.monotonic() - start < SECONDS / 3
        read().join()


def test_records_that_could_not_be_written_are_reported_later_with_the_reason(tmp_path):
    path = tmp_path / "log"
    code = f"""
import resource
log.info("fits")
assert writer.finish(20)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize({str(path)!r}) + 20, hard))
for n in range(3):
    log.info("does not fit")
writer.start()
assert writer.finish(20)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.start()
log.info("fits again")
"""
    with open(path, "wb") as log:
        logged(code, stderr=log)
    first, half, *rest = path.read_text().splitlines()
    assert objects(first + "\n")[0]["message"] == "fits"
    assert len(half) == 20
    assert [line["message"] for line in objects("\n".join(rest) + "\n")] == [
        "dropped 3 log records: File too large",
        "fits again",
    ]


def test_a_forked_child_has_its_own_empty_log_and_writes_it_after_start():
    code = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads
log.info("parent %d", 1)
child = os.fork()
if not child:
    log.info("child %d", 1)
    writer.start()
    log.info("child %d", 2)
    os._exit(not writer.finish(20))
assert os.waitpid(child, 0)[1] == 0
log.info("parent %d", 2)
"""
    messages = [line["message"] for line in objects(logged(code))]
    assert sorted(messages) == ["child 1", "child 2", "parent 1", "parent 2"]


# ---- statistics


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_the_rates_match_the_bytes_that_were_sent(quiet):
    line = b"x" * 999 + b"\n"
    with Server("--log-format", "json", "--stats", "0.05", *quiet) as server:
        for _ in range(5):
            send(server, line * 100, 20)
            server.err.wait_for('"stats"', server.err.data.count(b'"stats"') + 2)
        stop(server)
        log = [each for each in objects(server.err.text) if each["logger"] == "rioecho.stats"]
    assert len(log) >= 10
    last = log[-1]
    counts = {"accepted": 5, "active": 0, "refused": 0, "closed": 5, "errors": 0}
    assert counts | {"bytes_in": 10_000_000, "bytes_out": 10_000_000, "lines": 10_000} == {
        name: last[name] for name in (*counts, "bytes_in", "bytes_out", "lines")
    }
    assert {(each["event"], each["level"]) for each in log} == {("stats", "info")}
    for name in ("bytes_in", "bytes_out", "lines"):
        assert sum(each[f"{name}_per_s"] * each["interval"] for each in log) == pytest.approx(last[name], rel=0.001)
        for before, after in itertools.pairwise(log):
            rate = (after[name] - before[name]) / after["interval"]
            assert after[f"{name}_per_s"] == pytest.approx(rate, rel=0.001, abs=0.1)


def test_the_text_of_the_statistics_is_readable_and_is_logged_despite_quiet(tmp_path):
    path = tmp_path / "log"
    with open(path, "wb") as log, Server("-q", "--stats", "1000", stderr=log) as server:
        send(server, b"a line of 18 byte\n")
        send(server, b"a line of 19 bytes\n", 10)
        stop(server)
    (line,) = path.read_text().splitlines()
    time_and_level, found, shown = line.partition(" INFO stats: ")
    assert found
    match = STATS.fullmatch("stats: " + shown)
    assert match, line
    assert match.groups()[:4] == ("0", "2", "0", "0")
    assert match[5] is not None
    assert match[6] == match[7]
    assert re.fullmatch(r"\S+ \S+", time_and_level)


@pytest.mark.long
def test_raw_framing_shows_only_bytes():
    with Server("-q", "--raw", "--stats", "1000") as server:
        send(server, b"\n" * 1000)
        stop(server)
        match = STATS.fullmatch(server.err.text.partition("INFO ")[2].rstrip())
    assert match, server.err.text
    assert match[5] is None
    assert match[6] != "0 B"


@pytest.mark.long
def test_the_last_line_is_logged_only_if_a_count_has_changed():
    with Server("-q", "--stats", "1000") as server:
        stop(server)
        assert server.err.text == ""
    with Server("-q", "--stats", "0.02") as server:
        send(server, b"hello\n")
        server.err.wait_for("0 active, 1 accepted", 2)  # the counts are final from the first of these on
        stop(server)
        last = STATS.fullmatch(server.err.text.splitlines()[-1].partition("INFO ")[2])
        assert last[5] == "0"


@contextlib.contextmanager
def collected():
    """Yield the list of the statistics records that this process logs in the block."""
    records = []
    handler = logging.Handler()
    handler.handle = records.append
    log = logging.getLogger("rioecho.stats")
    level = log.level
    log.addHandler(handler)
    try:
        yield records
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


ZEROS = dict.fromkeys(("accepted", "active", "refused", "closed", "errors", "bytes_in", "bytes_out", "lines"), 0)


@pytest.mark.slow
def test_the_lines_keep_the_interval_when_stats_is_slow():
    enough = threading.Event()
    calls = []

    def stats():
        calls.append(None)
        if len(calls) > 16:
            enough.set()
        time.sleep(0.04)
        return ZEROS

    with collected() as records:
        with StatsLine(stats, 0.05):
            assert enough.wait(SECONDS)
        intervals = [record.fields["interval"] for record in records]
    assert statistics.mean(intervals) > 0.045
    assert statistics.quantiles(intervals)[0] < 0.085  # the machine may delay some of them


def test_stopping_does_not_wait_for_the_interval():
    with collected() as records:
        start = time.monotonic()
        for every in (1000, 1e12, 1e300):
            with StatsLine(lambda: ZEROS, every):
                pass
        assert time.monotonic() - start < SECONDS / 3
    assert records == []


def test_an_error_in_stats_is_logged_and_the_statistics_continue():
    results = iter([ZEROS, ZEROS | {"accepted": 1}])
    failed = threading.Event()

    def stats():
        counts = next(results, None)
        if counts is None:
            failed.set()
            raise RuntimeError("no counts")
        return counts

    with collected() as records:
        with StatsLine(stats, 0.01):
            assert failed.wait(SECONDS)
        assert records[0].getMessage().startswith("stats: 0 active, 1 accepted")
        assert records[1].levelno == logging.ERROR


@pytest.mark.parametrize("every", [0, -1.0, float("nan")])
def test_an_interval_that_is_not_positive_is_refused(every):
    with pytest.raises(ValueError, match="above 0"):
        StatsLine(lambda: ZEROS, every)


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--stats", "0"), "'0' is not a number of seconds above 0"),
        (("--stats", "-1"), "--stats"),
        (("--stats=-1",), "'-1' is not a number of seconds above 0"),
        (("--stats", "nan"), "'nan' is not"),
        (("--stats", "inf"), "'inf' is not"),
        (("--stats", "often"), "'often' is not"),
        (("--stats",), "--stats"),
        (("--log-format", "xml"), "xml"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(arguments, words):
    with Server(*arguments, ready=False) as command:
        assert command.status() == 2
        assert words in command.complaint()


# ---- the live line


class Master:
    """The master side of a terminal, with the error at a hang-up turned into an end of input."""

    def __init__(self, fd):
        self._file = open(fd, "rb", buffering=0)  # noqa: SIM115

    def read1(self, n):
        with contextlib.suppress(OSError):
            return self._file.read(n)
        return b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


@contextlib.contextmanager
def on_a_terminal(*arguments, columns=0, term="xterm"):
    """Run a server whose stderr is a terminal; ``err`` is the terminal's output."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24 * bool(columns), columns, 0, 0))
    err = Output(Master(master))
    try:
        server = Server(*arguments, stderr=slave, environment={"TERM": term})
    finally:
        os.close(slave)
    with server:
        server.err = err
        yield server


def screen(data):
    """Return the lines that a terminal shows after this output. Wrapping of long lines is not emulated."""
    rows = [""]
    column = 0
    for piece in re.findall(r"\r|\n|\x1b\[K|[ -~]|.", data, re.DOTALL):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            rows.append("")
        elif piece == "\x1b[K":
            rows[-1] = rows[-1][:column]
        else:
            assert piece.isprintable(), repr(piece)
            rows[-1] = rows[-1][:column].ljust(column) + piece + rows[-1][column + 1 :]
            column += 1
    return rows


@pytest.mark.long
def test_on_a_terminal_the_line_is_drawn_in_place_and_the_log_goes_above_it():
    with on_a_terminal("--stats", "0.02") as server:
        server.err.wait_for("\rstats: 0 active, 0 accepted", 2)
        with dial(server.address) as sock:
            ask(sock)
            server.err.wait_for("\rstats: 1 active, 1 accepted", 2)
            with dial(server.address) as other:
                ask(other)
                server.err.wait_for("2 active, 2 accepted")
        server.err.wait_for("0 active, 2 accepted")
        stop(server)
        text = server.err.text
    # Each line of statistics starts at the left and clears the rest of the row; a log line clears it first.
    drawn = r"\rstats: [^\r\n\x1b]*\x1b\[K"
    line = r"[^\r\n\x1b]* INFO [^\r\n\x1b]*\r\n"
    assert re.fullmatch(rf"(?:{line})*(?:{drawn}|\r\x1b\[K(?:{line})+(?={drawn}))*\r\n", text), text
    *log, last, empty = screen(text)
    events = [*["Connected to"] * 2, *["Closed"] * 2, "Stopping", "Stopped"]
    assert [re.sub(r"^\S+ \S+ INFO | \(.*|:.*", "", line.partition("INFO")[2].strip()) for line in log] == events
    assert STATS.fullmatch(last).groups()[:4] == ("0", "2", "0", "0")
    assert empty == ""


@pytest.mark.long
def test_the_live_line_fits_the_terminal_and_is_complete_at_the_end():
    with on_a_terminal("-q", "--stats", "0.02", columns=40) as server:
        with dial(server.address) as sock:
            ask(sock)
            server.err.wait_for("\rstats: 1 active, 1 accepted")
        stop(server)
        *drawn, last, empty = server.err.text.split("\r")
    assert drawn[0] == ""
    assert {len(each.removesuffix("\x1b[K")) for each in drawn[1:]} == {39}
    assert STATS.fullmatch(last.removesuffix("\x1b[K"))
    assert empty == "\n"


@pytest.mark.long
@pytest.mark.parametrize(("arguments", "term"), [([], "dumb"), (["--log-format", "json"], "xterm")])
def test_a_dumb_terminal_and_the_json_format_get_whole_lines(arguments, term):
    with on_a_terminal("--stats", "0.02", *arguments, term=term) as server:
        server.err.wait_for("stats: ", 3)
        stop(server)
        assert "\x1b" not in server.err.text
        shown = server.err.text
        events = ("listening", "Stopping", "Stopped") if "json" in arguments else ("Stopping", "Stopped")
        assert shown.count("\r") == shown.count("\r\n") == shown.count("stats: ") + len(events)


@pytest.mark.long
def test_a_verbose_log_and_the_live_line_do_not_mix():
    with on_a_terminal("-v", "--stats", "0.01") as server:
        send(server, b"\n" * 100, 30)
        server.err.wait_for("Closed")
        stop(server)
        *log, last, _ = screen(server.err.text)
    assert len(log) == 3004
    assert all(re.match(r"\S+ \S+ (INFO|DEBUG) ", line) for line in log)
    assert STATS.fullmatch(last)


@pytest.mark.parametrize("what", ["LogWriter(20)", "StatsLine(lambda: dict.fromkeys(names, 0), 100)"])
def test_no_memory_for_its_thread_is_an_error_and_no_wait(what, child):
    """threading.Thread.start() would wait for ever for a thread that has no memory to begin with."""
    require_failing_allocations()
    printed = child(f"""if True:
        import _testcapi, logging, sys
        from rioecho.cli.logs import LogWriter
        from rioecho.cli.statsline import StatsLine
        sys.unraisablehook = lambda unraisable: None   # a thread that did not come to its call
        names = ("active", "accepted", "refused", "errors", "lines", "bytes_in", "bytes_out")
        begun = refused = 0
        logging.raiseExceptions = False
        for k in range(80):
            each = {what}
            finish = getattr(each, "stop", None) or (lambda: each.finish(30))
            started = False
            _testcapi.set_nomemory(k, k + 1)
            try:
                each.start()
            except (MemoryError, RuntimeError):
                refused += 1
            else:
                started = True
                begun += 1
            finally:
                _testcapi.remove_mem_hooks()
            assert not started or finish() is not False
            logging.getLogger().handlers.clear()
        print(begun, refused)
        """)
    begun, refused = map(int, printed.split())
    assert begun
    assert refused
