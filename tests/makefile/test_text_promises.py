"""In text mode nothing is lost: no character received, and no character that a write accepted."""

import codecs
import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading

import pytest

import rioecho
from support.conversations import LONG, receive

SHORT = 0.005  # timeout in seconds, meant to expire
TEXT = "größe 語 😀"

READINGS = {
    "readline": lambda file: file.readline(),
    "readline(size)": lambda file: file.readline(100),
    "next": lambda file: next(file),
    "read(n)": lambda file: file.read(len(TEXT) + 1),
    "readlines(hint)": lambda file: "".join(file.readlines(1)),
}
READING = pytest.mark.parametrize("reading", READINGS)


@pytest.mark.sampled(6)
@READING
@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("newline", [None, "", "\n", "\r\n"])
def test_after_a_timeout_the_same_call_goes_on(stream, reading, mode, newline):
    stream.near.settimeout(SHORT)
    end = "\r\n" if newline == "\r\n" else "\n"
    if end == "\r\n" and reading == "read(n)":
        end = "\n"
    with rioecho.makefile(stream.near, mode, encoding="utf-8", newline=newline) as file:
        for byte in (TEXT + end).encode():  # also in the middle of characters, and of a newline
            with pytest.raises(TimeoutError):
                READINGS[reading](file)
            stream.feed(bytes([byte]))
        assert READINGS[reading](file) == TEXT + end


def test_after_a_timeout_a_read_to_the_end_goes_on(stream):
    stream.near.settimeout(SHORT)
    with rioecho.makefile(stream.near, encoding="utf-8") as file:
        for piece in (b"one\r", b"\ntwo ", "ö".encode()[:1]):
            stream.feed(piece)
            with pytest.raises(TimeoutError):
                file.read()
            with pytest.raises(TimeoutError):
                file.readlines()
        stream.feed("ö".encode()[1:])
        stream.end()
        assert file.read() == "one\ntwo ö"


def test_a_carriage_return_at_the_end_of_what_has_come_waits_for_its_newline(stream):
    stream.near.settimeout(SHORT)
    with rioecho.makefile(stream.near, encoding="utf-8") as file:
        stream.feed(b"one\r")
        assert file.read(3) == "one"
        for call in (lambda: file.read(1), file.readline):
            with pytest.raises(TimeoutError):
                call()
        stream.feed(b"\n\r")
        assert file.read(1) == "\n"
        stream.feed(b"two")
        assert file.readline() == "\n"
        assert file.newlines == ("\r", "\r\n")


@READING
def test_a_signal_handler_that_raises_loses_nothing(stream, on_alarm, reading):
    class Stop(Exception):
        pass

    def handler(*_):
        raise Stop

    data = (TEXT + "\n").encode()
    with rioecho.makefile(stream.near, encoding="utf-8") as file:

        def interrupted():
            on_alarm(handler, 0.005)
            READINGS[reading](file)

        for start in range(0, len(data), 3):
            with pytest.raises(Stop):  # also if the signal comes before the call
                interrupted()
            stream.feed(data[start : start + 3])
        assert READINGS[reading](file) == TEXT + "\n"


NO_MEMORY = """if True:
    import _testcapi, rioecho, socket
    TEXT = "first\\r\\nsecond ö\\nthird " + "x" * 700 + "€ 語\\r" + "öäü" * 200 + "\\nthe end"
    DATA = TEXT.encode()
    EXPECTED = TEXT.replace("\\r\\n", "\\n").replace("\\r", "\\n")
    READINGS = [
        lambda file: file.readline(), lambda file: file.readline(9), lambda file: file.read(7),
        lambda file: next(file, ""), lambda file: file.read(),
        lambda file: "".join(file.readlines(5)),
    ]
    failures = 0
    for reading in READINGS:
        for errors in ("strict", "replace"):
            k, failed = 0, True
            while failed:
                near, far = socket.socketpair()
                far.sendall(DATA)
                far.close()
                file = rioecho.makefile(near, encoding="utf-8", errors=errors)
                got = [""] * len(DATA)
                n, failed = 0, False
                _testcapi.set_nomemory(k, k + 1)
                while True:
                    try:
                        got[n] = reading(file)
                    except MemoryError:
                        failed = True
                        continue
                    if not got[n]:
                        break
                    n += 1
                _testcapi.remove_mem_hooks()
                assert "".join(got) == EXPECTED, (got[:n], k)
                file.close()
                near.close()
                failures += failed
                k += 1
    print(failures)
"""


@pytest.mark.long
def test_a_failing_allocation_while_reading_loses_nothing():
    pytest.importorskip("_testcapi")
    done = subprocess.run([sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


@READING
def test_a_line_that_cannot_be_decoded_raises_until_it_is_read_as_bytes(stream, reading):
    stream.near.settimeout(SHORT)
    with rioecho.makefile(stream.near, "rw", encoding="utf-8") as file:
        stream.feed(b"good\n" + b"bad \xff\xfe, but long enough for any reading\n" + (TEXT + "\n").encode())
        assert file.readline() == "good\n"
        for _ in range(3):
            with pytest.raises(UnicodeDecodeError):
                READINGS[reading](file)
        assert file.buffer.readline() == b"bad \xff\xfe, but long enough for any reading\n"
        assert READINGS[reading](file) == TEXT + "\n"


def test_a_character_that_the_end_cuts_off_raises_and_is_kept(stream):
    with rioecho.makefile(stream.near, encoding="utf-8") as file:
        stream.feed("line\nhalf €".encode()[:-1])
        stream.end()
        assert file.readline() == "line\n"
        for call in (file.readline, file.read, lambda: file.read(100), file.readlines):
            with pytest.raises(UnicodeDecodeError):
                call()
        assert file.buffer.read() == b"half \xe2\x82"


def test_an_error_handler_that_raises_loses_nothing(stream):
    class Stop(Exception):
        pass

    armed = [True]

    def handler(error):
        if armed:
            raise Stop
        return "?", error.end

    codecs.register_error("rioecho-test-stop", handler)
    with rioecho.makefile(stream.near, encoding="utf-8", errors="rioecho-test-stop") as file:
        stream.feed(b"one \xff\r\ntwo \xff\n")
        for call in (file.readline, lambda: file.read(7), lambda: file.readlines(1)):
            with pytest.raises(Stop):
                call()
        armed.clear()
        assert file.readline() == "one ?\n"
        assert file.read(5) == "two ?"


def test_an_error_handler_cannot_disturb_the_line_that_it_is_called_for(stream):
    refused = []

    def handler(error):
        for call in (file.readline, file.close, file.buffer.read_buffered, lambda: file.reconfigure(newline="")):
            with pytest.raises((rioecho.ConcurrentCall, RuntimeError)):
                call()
            refused.append(call)
        return "?", error.end

    codecs.register_error("rioecho-test-call", handler)
    with rioecho.makefile(stream.near, encoding="utf-8", errors="rioecho-test-call") as file:
        stream.feed(b"one \xff\r\n")
        assert file.readline() == "one ?\n"
    assert len(refused) == 4


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_reading_survives_writing(stream, encoding):
    stream.near.settimeout(LONG)
    stream.feed("l1 ö\nl2 ö\nl3\n".encode(encoding))
    with rioecho.makefile(stream.near, "rw", encoding=encoding) as file:
        assert file.readline() == "l1 ö\n"
        file.write("x\n")
        file.flush()
        assert file.read(2) == "l2"
        file.write("y\n")
        assert file.readline() == " ö\n"
        assert next(file) == "l3\n"


def test_text_and_bytes_can_be_read_in_turns(stream):
    with rioecho.makefile(stream.near, "rw", encoding="utf-8") as file:
        stream.feed(b"Content-Length: 4\r\n\r\n\xff\xfe\xfd\xfcnext \xc3\xb6\n")
        assert list(iter(file.readline, "\n")) == ["Content-Length: 4\n"]
        assert file.buffer.read(4) == b"\xff\xfe\xfd\xfc"
        assert file.readline() == "next ö\n"
        file.write("text, ")
        file.buffer.write(b"bytes, ")
        file.write("text")
        file.flush()
        assert receive(stream, 17) == b"text, bytes, text"


# ---- writing


class Drain:
    """Read everything that arrives at a socket in a thread, when asked to begin."""

    def __init__(self, sock):
        self.data = bytearray()
        self.thread = threading.Thread(target=self.run, args=(sock,))

    def run(self, sock):
        while piece := sock.recv(1 << 16):
            self.data += piece


def test_text_that_was_accepted_before_a_timeout_arrives():
    near, far = socket.socketpair()
    near.settimeout(SHORT)
    done = []
    with far, near, rioecho.makefile(near, "w", encoding="utf-8") as file:
        with contextlib.suppress(TimeoutError):
            for number in range(999):
                file.write(f"{number:07d}\n" * 1000)
                done.append(number)
        assert 0 < len(done) < 999
        drain = Drain(far)
        drain.thread.start()
        near.settimeout(LONG)
        file.flush()
        near.shutdown(socket.SHUT_WR)
        drain.thread.join()
    lines = drain.data.split(b"\n")
    assert [number for number in done if lines.count(b"%07d" % number) != 1000] == []


@pytest.mark.sampled(6)
@pytest.mark.parametrize("size", [100, 9_000, 100_000])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("encoding", "errors", "text"),
    [
        ("utf-8", "strict", "line\n"),
        ("utf-8", "strict", "größe\n\n語😀\n"),
        ("utf-8", "surrogateescape", "ö\udc80€\n"),
        ("latin-1", "strict", "größe\n"),
        ("ascii", "xmlcharrefreplace", "語\n"),
    ],
)
def test_a_failed_write_tells_how_many_characters_were_accepted_and_cuts_none(size, newline, encoding, errors, text):
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    text = (text * size)[:size]
    options = {"encoding": encoding, "errors": errors, "newline": newline}
    sent = []
    failures = 0
    with far, near, rioecho.makefile(near, "w", **options) as file:
        received = bytearray()
        near.setblocking(False)
        while sum(map(len, sent)) < 250_000:
            rest = text
            while rest:
                try:
                    assert file.write(rest) == len(rest)
                    accepted = len(rest)
                except BlockingIOError as error:
                    accepted = error.characters_written
                    failures += 1
                    # So that the next write ends somewhere else; more of a long text, which is encoded again each time.
                    received += far.recv(897 + size // 10)
                assert 0 <= accepted <= len(rest)
                sent.append(rest[:accepted])
                rest = rest[accepted:]
        drain = Drain(far)
        drain.thread.start()
        near.settimeout(LONG)
        file.flush()
        near.shutdown(socket.SHUT_WR)
        drain.thread.join()
    assert failures
    assert received + drain.data == "".join(sent).replace("\n", newline).encode(encoding, errors)


def test_a_text_that_cannot_be_encoded_is_not_written_in_part(stream):
    with rioecho.makefile(stream.near, "w", encoding="ascii") as file:
        for text in ("ö", "x" * 100_000 + "ö", "ö" + "\n" * 100_000):
            with pytest.raises(UnicodeEncodeError) as caught:
                file.write(text)
            assert caught.value.characters_written == 0
        file.write("only this")
        file.flush()
    stream.near.close()
    assert stream.take() == b"only this"


def test_writelines_tells_how_many_characters_of_all_its_lines_were_accepted(stream):
    with rioecho.makefile(stream.near, "w", encoding="utf-8") as file:
        with pytest.raises(TypeError) as caught:
            file.writelines(["ö\n", "€\n", b"bytes"])
        assert caught.value.characters_written == 4
        file.flush()
        assert receive(stream, 7) == "ö\n€\n".encode()


# ---- the end of a file


def test_a_dropped_text_file_sends_and_closes(stream):
    file = rioecho.makefile(stream.near, "rw", encoding="utf-8")
    number = stream.near.fileno()
    stream.near.close()
    file.write("the end: ö")
    del file
    gc.collect()
    assert receive(stream, 11) == "the end: ö".encode()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_detach_sends_what_was_written_and_leaves_the_bytes_to_the_rio(stream):
    file = rioecho.makefile(stream.near, "rw", encoding="utf-8")
    stream.feed("line\nrest ö\n".encode())
    assert file.readline() == "line\n"
    file.write("ö")
    with file.detach() as rio:
        assert receive(stream, 2) == "ö".encode()
        assert rio.readline() == "rest ö\n".encode()


def test_the_last_reference_to_a_detached_rio_is_the_callers(stream):
    file = rioecho.makefile(stream.near, "r", encoding="utf-8")
    number = stream.near.fileno()
    stream.near.close()
    file.detach()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert file.buffer is None


LEAKS = """if True:
    import gc, os, rioecho, socket, sys
    near, far = socket.socketpair()
    far.setblocking(False)
    near.setblocking(False)
    file = rioecho.makefile(near, "rw", encoding="utf-8")
    lenient = rioecho.makefile(near, "rw", encoding="utf-8", errors="backslashreplace")
    crlf = rioecho.makefile(near, "w", encoding="utf-8", newline="\\r\\n")

    def fails(error, call, *arguments):
        try:
            call(*arguments)
        except error:
            return
        raise AssertionError("did not raise")

    def drain():
        try:
            while far.recv(1 << 16):
                pass
        except BlockingIOError:
            pass

    def once():
        far.sendall("ö line\\r\\nrest €\\nlast\\n".encode())
        file.readline(), file.read(3), file.readline(2), file.readlines(1), next(file)
        fails(BlockingIOError, file.readline)
        far.sendall(b"\\xff\\n")
        fails(UnicodeDecodeError, file.readline)
        file.buffer.readline()
        far.sendall(b"\\xff\\n")
        lenient.read(2), lenient.readline()
        fails(UnicodeEncodeError, file.write, "\\udc80")
        fails(TypeError, file.write, b"x")
        file.write("ö\\n"), crlf.write("ö\\n"), file.flush(), crlf.flush()
        fails(BlockingIOError, crlf.write, "ö\\n" * 300_000)
        drain(), crlf.flush(), drain()
        rioecho.makefile(near, "rw", encoding="latin1").close()
        rioecho.makefile(near, "r", encoding="ascii").detach().close()

    def resident():
        with open("/proc/self/statm") as sizes:
            return int(sizes.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(30):
        once()
    gc.collect()
    before = resident()
    for _ in range(300):
        once()
    gc.collect()
    print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
@pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="AddressSanitizer keeps freed memory")
def test_nothing_leaks():
    done = subprocess.run([sys.executable, "-c", LEAKS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300_000
