"""Files in text mode give what the standard library's give, for any bytes, any chunking and any sequence of calls."""

import contextlib
import csv
import io
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

# Newlines of all kinds; characters of 1 to 4 bytes; surrogates, overlong forms and other invalid bytes.
PIECES = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b"a", b"word", "ö".encode(), "€".encode(), "😀".encode(), "größe ".encode()]
    + [b"x" * 70, ("語" * 40).encode(), b"ab\n" * 30, b"ab\r\n" * 30]
)
INVALID = st.sampled_from(
    [b"\x80", b"\xff", b"\xc0\x80", b"\xe2\x82", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf0\x9f", b"\xf4\x90\x80\x80"]
    + [b"\x80" * 70, b"\xf5a", b"\xc3"]
)
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


@pytest.mark.parametrize("newline", NEWLINES)
@given(
    st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(0, 300), max_size=6), st.lists(READINGS)
)
@settings(max_examples=2000)
def test_valid_text_reads_as_in_the_standard_library(newline, data, cuts, calls):
    options = {"encoding": "utf-8", "newline": newline}
    assert outcome_in_pieces(data, cuts, calls, **options) == outcome_of_stdlib(data, calls, **options)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(
    st.sampled_from(NEWLINES),
    st.sampled_from(LENIENT),
    st.lists(PIECES | INVALID, max_size=12).map(b"".join),
    st.lists(st.integers(0, 300), max_size=6),
    st.lists(READINGS),
)
@settings(max_examples=4000)
def test_any_bytes_read_as_in_the_standard_library(encoding, newline, errors, data, cuts, calls):
    options = {"encoding": encoding, "newline": newline, "errors": errors}
    assert outcome_in_pieces(data, cuts, calls, **options) == outcome_of_stdlib(data, calls, **options)
