"""Files in text mode give what the standard library's give, for any bytes, any chunking and any sequence of calls."""

import codecs
import contextlib
import csv
import functools
import io
import itertools
import json
import socket
import subprocess
import sys
import threading

import pytest

import rioecho
from support.conversations import LONG, receive
from support.properties import given, settings, st

STDLIB = socket.socket.makefile
NEWLINES = [None, "", "\n", "\r", "\r\n"]
ENCODINGS = ["utf-8", "latin-1", "ascii"]
# The handlers with which every input can be decoded.
LENIENT = ["ignore", "replace", "backslashreplace", "surrogateescape"]
ENCODING_HANDLERS = ["strict", *LENIENT, "surrogatepass", "xmlcharrefreplace"]
EXAMPLES = pytest.mark.parametrize("examples", [25, pytest.param(250, marks=pytest.mark.slow)])

# Newlines of all kinds; characters of 1 to 4 bytes; surrogates, overlong forms and other invalid bytes.
PIECES = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b"a", b"word", b"x" * 70, b"ab\n" * 30, b"ab\r\n" * 30, b"x" * 63 + b"\r\n" * 40]
) | st.sampled_from(["ö", "€", "😀", "größe ", "語" * 40]).map(str.encode)
INVALID = st.sampled_from(
    [b"\x80", b"\xff", b"\xc0\x80", b"\xe2\x82", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf0\x9f", b"\xf4\x90\x80\x80"]
) | st.sampled_from([b"\x80" * 70, b"\xf5a", b"\xc3"])
CUTS = st.lists(st.integers(0, 300), max_size=6)
READINGS = st.one_of(
    st.sampled_from([("readline",), ("readline",), ("next",), ("read", 0), ("readlines",), ("read",)]),
    st.tuples(st.just("readline"), st.integers(-1, 90)),
    st.tuples(st.just("read"), st.integers(0, 200)),
    st.tuples(st.just("readlines"), st.integers(-1, 90)),
)


def call(file, name, *arguments):
    if name == "next":
        return next(file, "")
    return getattr(file, name)(*arguments)


def outcome_of_stdlib(data, calls, **options):
    """Return what the standard library's file returns for each call, and at last for read(), and its ``newlines``."""
    near, far = socket.socketpair()
    with near, far:
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        with STDLIB(near, "r", **options) as file:
            return [call(file, *step) for step in calls], file.read(), file.newlines


def outcome_in_pieces(data, cuts, calls, **options):
    """Return the same for our file. A call that finds no more data is interrupted, and repeated with the next piece."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
        pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]

        def patiently(step):
            while True:
                try:
                    return call(file, *step)
                except BlockingIOError:
                    if pieces:
                        far.sendall(pieces.pop(0))
                    else:
                        far.shutdown(socket.SHUT_WR)

        with rioecho.makefile(near, "r", **options) as file:
            assert type(file).__name__ == "TextFile"
            return [patiently(step) for step in calls], patiently(("read",)), file.newlines


@EXAMPLES
@pytest.mark.parametrize("newline", NEWLINES)
def test_valid_text_reads_as_in_the_standard_library(newline, examples):
    options = {"encoding": "utf-8", "newline": newline}

    @given(st.lists(PIECES, max_size=12).map(b"".join), CUTS, st.lists(READINGS))
    @settings(max_examples=examples)
    def compare(data, cuts, calls):
        assert outcome_in_pieces(data, cuts, calls, **options) == outcome_of_stdlib(data, calls, **options)

    compare()


@EXAMPLES
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_bytes_read_as_in_the_standard_library(encoding, examples):
    @given(
        st.sampled_from(NEWLINES),
        st.sampled_from(LENIENT),
        st.lists(PIECES | INVALID, max_size=12).map(b"".join),
        CUTS,
        st.lists(READINGS),
    )
    @settings(max_examples=examples)
    def compare(newline, errors, data, cuts, calls):
        options = {"encoding": encoding, "newline": newline, "errors": errors}
        assert outcome_in_pieces(data, cuts, calls, **options) == outcome_of_stdlib(data, calls, **options)

    compare()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("newline", NEWLINES)
def test_sized_reads_of_a_long_text_end_at_the_same_characters(newline, encoding):
    data = (b"x" * 63 + b"\r\n") * 6 + b"x\r\r\n" * 40 + b"y" * 200 + b"\r"
    options = {"encoding": encoding, "newline": newline}
    for n in (62, 63, 64, 65, 66, 127, 128, 129, 200):
        calls = [("read", n)] * (len(data) // n + 2)
        expected = outcome_of_stdlib(data, calls, **options)
        for cuts in ([], [64], [65, 129], range(60, 140)):
            assert outcome_in_pieces(data, cuts, calls, **options) == expected


@pytest.mark.parametrize("newline", NEWLINES)
def test_a_newline_behind_a_replacement_that_a_sized_read_cuts_stays_whole(newline):
    options = {"encoding": "utf-8", "newline": newline, "errors": "backslashreplace"}
    for data in (b"\xff\r\nab\r\n", b"\xff\rab\r\n", b"\xff\r"):
        for size, method in itertools.product(range(7), ("readline", "read")):
            calls = [("read", size), (method, 2), ("next",), ("readlines", 1)]
            for cuts in ([], range(len(data))):
                assert outcome_in_pieces(data, cuts, calls, **options) == outcome_of_stdlib(data, calls, **options)


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
def test_several_crs_behind_a_replacement_that_a_sized_read_cuts_stay_whole(newline):
    options = {"encoding": "utf-8", "newline": newline, "errors": "backslashreplace"}
    for crs, end, size in itertools.product(range(2, 5), (b"rest", b"\nrest"), range(6)):
        data = b"\xff" + b"\r" * crs + end
        calls = [("read", size), ("read", 1), ("readline", 1), ("read", 2), ("next",)]
        for cuts in ([], range(len(data))):
            assert outcome_in_pieces(data, cuts, calls, **options) == outcome_of_stdlib(data, calls, **options)


def test_a_replacement_may_end_in_a_cr_of_its_own():
    codecs.register_error("rioecho.test.cr", lambda error: ("ab\r", error.end))
    options = {"encoding": "utf-8", "newline": "", "errors": "rioecho.test.cr"}
    for size in range(1, 4):
        calls = [("read", size)] * 6
        # Only the kinds of newlines seen differ: this CR is none that was received.
        assert outcome_in_pieces(b"\xffZ", [], calls, **options)[0] == outcome_of_stdlib(b"\xffZ", calls, **options)[0]


@pytest.mark.parametrize("replacement", ["\r", "\n", "\r\n", "a\rb"])
def test_a_newline_in_the_replacement_of_a_registered_error_handler_is_text(replacement):
    codecs.register_error("rioecho.test.newline", lambda error: (replacement, error.end))
    options = {"encoding": "utf-8", "errors": "rioecho.test.newline"}
    read = outcome_in_pieces(b"x\xffy\nz\xff\r\n", [], [("next",)] * 3, **options)[0]
    assert read == [f"x{replacement}y\n", f"z{replacement}\n", ""]


def test_a_cr_and_an_lf_with_ignored_bytes_between_them_are_two_newlines():
    options = {"encoding": "utf-8", "errors": "ignore"}
    assert outcome_in_pieces(b"a\r\xff\nb", [], [("next",)] * 3, **options)[0] == ["a\n", "\n", "b"]


# ---- every form of UTF-8

# Texts around the character of a line that may be malformed, which are decoded several bytes at a time.
SURROUNDINGS = [("", ""), ("a", "a"), ("ж" * 7, "ж" * 8), ("x" * 17, "x" * 17), ("ö" * 4, "ö" * 5), ("語", "語😀")]
FURTHER = (0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0)
SEQUENCES = [
    bytes([lead, *rest])
    for lead in range(0x80, 0x100)
    for n in range(4)
    for rest in itertools.product(FURTHER[:: 1 if n < 3 else 2], repeat=n)
]


@pytest.mark.parametrize("surroundings", SURROUNDINGS, ids=ascii)
def test_every_form_of_utf8_reads_as_cpython_decodes_it(surroundings):
    before, after = (text.encode() for text in surroundings)
    lines = [before + sequence + after + b"\n" for sequence in SEQUENCES]
    near, far = socket.socketpair()
    with near, far, rioecho.makefile(near, "r", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for start in range(0, len(lines), 100):
            some = lines[start : start + 100]
            far.sendall(b"".join(some))
            for line in some:
                text, expected = file.readline(), line.decode("utf-8", "surrogateescape")
                # A str that is not in the smallest form equals no other and has another size.
                assert (text, sys.getsizeof(text)) == (expected, sys.getsizeof(expected))


def decoded(makefile, data, errors):
    """Return the line of a file that has only this line, or the attributes of the error."""
    near, far = socket.socketpair()
    with near, far:
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        with makefile(near, "r", encoding="utf-8", errors=errors) as file:
            try:
                return file.readline()
            except UnicodeDecodeError as error:
                return error.encoding, error.object[error.start : error.end], error.reason


@pytest.mark.long
@EXAMPLES
def test_a_text_with_random_changes_reads_as_in_the_standard_library(examples):
    texts = st.lists(
        st.text(st.characters(exclude_characters="\r\n"), max_size=20)
        | st.text("abcdefgh ", max_size=30)
        | st.text("абвгдежз ", max_size=30)
        | st.text("aäoöuüß", max_size=30)
    ).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))
    changes = st.lists(st.tuples(st.integers(0, 200), st.integers(0x80, 0xFF)), max_size=2)

    @given(texts, changes, st.sampled_from(["strict", "replace", "surrogatepass"]))
    @settings(max_examples=4 * examples)
    def compare(text, changes, errors):
        data = bytearray(text)
        for place, byte in changes:
            data[place : place + 1] = [byte]
        assert decoded(rioecho.makefile, data, errors) == decoded(STDLIB, data, errors)

    compare()


# ---- writing

CHARACTERS = st.sampled_from(["a", "\n", "\r", "\r\n", "ö", "€", "😀", "\udc80", "\x80", "line\n" * 20, "x" * 100])
WRITINGS = st.lists(st.lists(CHARACTERS, max_size=8).map("".join), max_size=6)


def written(makefile, texts, **options):
    """Return what ``write()`` returns or raises for each text, and all bytes that arrive."""
    near, far = socket.socketpair()
    answers = []
    with near, far:
        with makefile(near, "w", **options) as file:
            for text in texts:
                try:
                    answers.append(file.write(text))
                except UnicodeEncodeError as error:
                    answers.append((error.start, error.end, error.reason))
        near.close()
        data = b""
        while piece := far.recv(1 << 20):
            data += piece
    return answers, data


@EXAMPLES
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_is_written_as_by_the_standard_library(encoding, examples):
    @given(st.sampled_from(NEWLINES), st.sampled_from(ENCODING_HANDLERS), WRITINGS)
    @settings(max_examples=examples)
    def compare(newline, errors, texts):
        options = {"encoding": encoding, "newline": newline, "errors": errors}
        assert written(rioecho.makefile, texts, **options) == written(STDLIB, texts, **options)

    compare()


def test_a_string_of_a_subclass_is_written_as_it_is(stream):
    class Shouting(str):
        def __str__(self):
            return self.upper()

        encode = replace = __len__ = None

    with rioecho.makefile(stream.near, "w", encoding="utf-8", newline="\r\n") as file:
        assert file.write(Shouting("größe\n")) == 6
        assert file.write(Shouting("x" * 100)) == 100
        file.flush()
        assert receive(stream, 109) == "größe\r\n".encode() + b"x" * 100


@pytest.mark.parametrize("newline", [None, "\r\n"])
@pytest.mark.parametrize("errors", ["strict", "xmlcharrefreplace"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_text_longer_than_the_buffer_is_written_as_by_the_standard_library(stream, encoding, errors, newline):
    text = "some words\n" * 9000 + ("größe €\n" if errors != "strict" or encoding == "utf-8" else "x\n") * 30_000
    expected = text.replace("\n", newline or "\n").encode(encoding, errors)
    with rioecho.makefile(stream.near, "w", encoding=encoding, errors=errors, newline=newline) as file:
        received = bytearray()
        reading = threading.Thread(target=lambda: received.extend(receive(stream, len(expected))))
        reading.start()
        assert file.write(text) == len(text)
        file.flush()
        reading.join()
    assert received == expected


# ---- everything else that a program can see


def script(file, far):
    """Use everything a text file has. Returns what each use returned, or the class of its exception."""
    uses = {
        "encoding": lambda: file.encoding,
        "errors": lambda: file.errors,
        "mode": lambda: file.mode,
        "newlines": lambda: file.newlines,
        "line_buffering": lambda: file.line_buffering,
        "write_through": lambda: file.write_through,
        "closed": lambda: file.closed,
        "TextIOBase": lambda: (isinstance(file, io.TextIOBase), isinstance(file, io.IOBase)),
        "not binary": lambda: (isinstance(file, io.RawIOBase), isinstance(file, io.BufferedIOBase)),
        "can": lambda: (file.readable(), file.writable(), file.seekable(), file.isatty()),
        "seek": lambda: file.seek(0),
        "tell": lambda: file.tell(),
        "truncate": lambda: file.truncate(),
        "assign": lambda: setattr(file, "extra", 5) or file.extra,
        "iterate": lambda: iter(file) is file,
        "hash": lambda: hash(file) is not None,
        "set encoding": lambda: setattr(file, "encoding", "ascii"),
        "write bytes": lambda: file.write(b"x"),
        "write nothing": lambda: file.write(),
        "write lines": lambda: file.writelines(["a\n", "b\n"]),
        "write wrong lines": lambda: file.writelines([b"a\n"]),
        "write no lines": lambda: file.writelines(5),
        "write empty": lambda: file.write(""),
        "write": lambda: file.write("größe\n"),
        "print": lambda: print("a", 1, file=file, flush=True),
        "csv": lambda: csv.writer(file).writerow(["a", "b,c"]),
        "flush": lambda: file.flush(),
        "redirect": lambda: redirected(file),
        "read text": lambda: file.read("x"),
        "read float": lambda: file.read(1.0),
        "readline None": lambda: file.readline(None),
        "readline too large": lambda: file.readline(1 << 80),
        "readlines text": lambda: file.readlines("x"),
        "read 0": lambda: file.read(0),
        "readline": lambda: file.readline(),
        "readline -5": lambda: file.readline(-5),
        "csv reader": lambda: next(csv.reader(file)),
        "for": lambda: [line for _, line in zip(range(2), file, strict=False)],
        "read True": lambda: file.read(True),
        "readlines 1": lambda: file.readlines(1),
        "readlines None": lambda: file.readlines(None),
        "json": lambda: json.load(file),
        "read None": lambda: file.read(None),
        "read -2": lambda: file.read(-2),
        "reconfigure wrong": lambda: file.reconfigure(newline="x"),
        "reconfigure unknown": lambda: file.reconfigure(encoding="klingon"),
        "reconfigure": lambda: file.reconfigure(line_buffering=True, write_through=True),
        "reconfigured": lambda: (file.line_buffering, file.write_through),
        "write line": lambda: file.write("line\n"),
        "enter": lambda: file.__enter__() is file,
        "newlines afterwards": lambda: file.newlines if file.mode == "r" else None,  # a write may make it forget them
        "close": lambda: file.close(),
        "close again": lambda: file.close(),
        "closed after": lambda: file.closed,
        "use after close": lambda: [outcome(use) for use in closed_uses(file)],
    }
    answers = {name: outcome(use) for name, use in uses.items()}
    far.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        answers["received"] = far.recv(1 << 16)
    return answers


def redirected(file):
    with contextlib.redirect_stdout(file):
        print("to the peer")


def closed_uses(file):
    return [
        file.readline,
        file.read,
        file.readlines,
        file.flush,
        file.__enter__,
        file.__iter__,
        file.__next__,
        lambda: file.write("x"),
        lambda: file.writelines([]),
        lambda: file.reconfigure(line_buffering=True),
        lambda: file.write(5),
        lambda: file.readline(1),
        lambda: file.encoding,
    ]


def outcome(use):
    try:
        return use()
    except Exception as error:
        return error.__class__


@pytest.mark.parametrize("mode", ["r", "w", "rw"])
def test_everything_a_text_file_has_answers_as_the_standard_librarys(mode):
    answers = []
    for makefile in (rioecho.makefile, STDLIB):
        near, far = socket.socketpair()
        with near, far:
            near.settimeout(LONG)
            far.sendall("größe\r\nzwei\na,b\n1\n2\n3\n4\n5\n6\n".encode())
            far.shutdown(socket.SHUT_WR)
            with makefile(near, mode, encoding="UTF8") as file:
                answers.append(script(file, far))
    ours, theirs = answers
    assert {name: (answer, theirs[name]) for name, answer in ours.items() if answer != theirs[name]} == {}


@pytest.mark.parametrize("mode", ["r", "w", "rw"])
def test_a_detached_text_file_refuses_everything_as_the_standard_librarys(mode):
    names = [
        "__iter__",
        "__next__",
        "__enter__",
        "closed",
        "newlines",
        "name",
        "read",
        "readline",
        "readlines",
        "flush",
    ]
    names += ["close", "fileno", "detach", "readable", "writable", "seekable", "isatty", "reconfigure", "tell"]

    def use(file, name):
        attribute = getattr(file, name)
        return attribute() if callable(attribute) else attribute

    answers = []
    for makefile in (rioecho.makefile, STDLIB):
        near, far = socket.socketpair()
        file = makefile(near, mode, encoding="utf-8")
        with near, far, file.detach():
            uses = [functools.partial(use, file, name) for name in names]
            answers.append([file.buffer, file.encoding, file.errors, file.mode, *map(outcome, uses)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "UTF8", "utf_8", "U8", "latin-1", "ISO-8859-1", "l1", "ascii", "us-ascii", "646", None]
)
def test_the_encodings_of_the_layer_of_our_own(stream, encoding):
    with rioecho.makefile(stream.near, encoding=encoding) as ours, STDLIB(stream.near, encoding=encoding) as theirs:
        assert type(ours).__name__ == "TextFile"
        assert ours.encoding == theirs.encoding


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "shift_jis", "utf-7"])
def test_another_encoding_has_a_text_io_wrapper(stream, encoding):
    with rioecho.makefile(stream.near, "rw", encoding=encoding) as file:
        assert type(file) is io.TextIOWrapper
        assert type(file.buffer) is rioecho.Rio
        stream.feed("text\n".encode(encoding))
        assert file.readline() == "text\n"


WRONG = [
    {"encoding": "klingon"},
    {"encoding": "hex"},
    {"encoding": "a\0b"},
    {"encoding": b"ascii"},
    {"encoding": 1},
    {"errors": 1},
    {"errors": "strict\0"},
    {"newline": "x"},
    {"newline": b"\n"},
    {"newline": 1},
]


@pytest.mark.parametrize("options", WRONG, ids=repr)
def test_wrong_arguments_raise_what_the_standard_library_raises(stream, options):
    options = {"encoding": "utf-8"} | options
    raised = []
    for makefile in (rioecho.makefile, STDLIB):
        with pytest.raises((LookupError, TypeError, ValueError)) as caught:
            makefile(stream.near, "r", **options)
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


UNKNOWN_HANDLER = """if True:
    import rioecho, socket
    for makefile in (rioecho.makefile, socket.socket.makefile):
        near, far = socket.socketpair()
        try:
            with makefile(near, "r", encoding="utf-8", errors="nonsense") as file:
                far.sendall(b"valid\\n")
                print(file.readline(), file.errors)
                far.sendall(b"\\xff\\n")
                file.readline()
        except LookupError as error:
            print(error)
        near.close()
        far.close()
"""


@pytest.mark.parametrize("option", ["-B", "-Xdev"])
def test_an_unknown_error_handler_is_met_when_the_standard_library_meets_it(option):
    done = subprocess.run([sys.executable, option, "-c", UNKNOWN_HANDLER], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


WARNING = """if True:
    import warnings, rioecho, socket
    near, far = socket.socketpair()
    with near, far, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rioecho.makefile(near, "r").close()  # line 6
        rioecho.makefile(near, "r", encoding="utf-8").close()
        rioecho.makefile(near, "r", encoding="locale").close()
        rioecho.makefile(near, "rb").close()
    print([(w.category.__name__, w.filename, w.lineno) for w in caught])
"""


def test_a_missing_encoding_warns_in_the_line_of_the_call():
    done = subprocess.run(
        [sys.executable, "-Xwarn_default_encoding", "-c", WARNING], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[('EncodingWarning', '<string>', 6)]\n"


def test_text_that_has_not_been_read_can_be_read_in_another_encoding(stream):
    with rioecho.makefile(stream.near, "rw", encoding="ascii") as file:
        stream.feed(b"encoding: latin-1\n" + "größe\n".encode("latin-1"))
        assert file.readline() == "encoding: latin-1\n"
        file.reconfigure(encoding="latin-1")
        assert (file.encoding, file.errors) == ("latin-1", "strict")
        assert file.readline() == "größe\n"
        file.write("ö")
        file.flush()
        assert receive(stream, 1) == b"\xf6"
        with pytest.raises(io.UnsupportedOperation, match="utf-16"):
            file.reconfigure(encoding="utf-16")


def test_a_file_with_line_buffering_is_sent_at_each_line(stream):
    with rioecho.makefile(stream.near, "w", encoding="utf-8") as file:
        file.reconfigure(line_buffering=True)
        file.write("half a ")
        assert not stream.readable()
        file.write("line\n")
        assert receive(stream, 12) == b"half a line\n"


def test_a_text_file_shows_what_it_is(stream):
    with rioecho.makefile(stream.near, "r", encoding="utf-8") as file:
        assert repr(file).startswith("<rioecho.TextFile")
        assert repr(file).endswith("mode='r' encoding='utf-8'>")
