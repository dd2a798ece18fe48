"""A program cannot tell a file of rioecho.makefile from one of socket.makefile, but for the differences listed here.

Every call is made in every state of both files, and both live through the same lives, from the making of a file to
its end. The results must be equal, and errors of the same class.
"""

import functools
import re
import socket
import sys
from typing import NamedTuple

import pytest

import rioecho
from support.file_calls import CALLS, observe, states, unraisable
from support.file_lives import LIVES

STDLIB = socket.socket.makefile
MODES = ["rb", "wb", "rwb"]
CELLS = [(mode, state) for mode in MODES for state in states(mode)]
CLOSED = {
    "closed",
    "closed twice",
    "detached",
    "raw closed",
    "socket closed, then the file",
    "file closed, then the socket",
    "with-block left",
    "one line read, closed",
    "written, closed",
    "written, peer gone, closing failed",
}


class Seen(NamedTuple):
    """What one call did, on either file."""

    mode: str
    state: str
    call: str
    stdlib: str
    ours: str


def doubly_wrong(seen):
    """Report whether the arguments and the direction are wrong, and the two files say so in a different order."""
    errors = {seen.stdlib, seen.ours} - {"UnsupportedOperation"}
    return len(errors) == 1 and errors < {"TypeError", "ValueError", "OverflowError"}


#: The wanted differences, each with its reason.
WANTED = {
    "A closed file refuses everything, before it looks at the arguments. The standard library's looks at arguments and "
    "direction first, and its read-write pair still returns what it has read ahead.": (
        lambda seen: (
            seen.state in CLOSED
            and seen.ours == "ValueError"
            and (
                seen.mode == "rwb"
                or re.match(r"readable|writable|seekable|isatty|readline\(0\)", seen.call)
                or seen.stdlib in ("TypeError", "OverflowError", "UnsupportedOperation", "AttributeError")
            )
            and not re.match("close|__exit__|drop", seen.call)
        )
    ),
    "detach() returns the bytes read ahead too, which would be lost.": (
        lambda seen: seen.call == "detach()" and seen.ours.startswith("[a SocketIO, b'")
    ),
    "detach() works on a file that reads and writes too, and flushes.": (
        lambda seen: seen.call == "detach()" and (seen.mode, seen.stdlib) == ("rwb", "UnsupportedOperation")
    ),
    "A detached file is a closed one: it can be closed again, and says that it is closed.": (
        lambda seen: (
            seen.state == "detached"
            and seen.stdlib == "ValueError"
            and re.match(r"closed$|close\(\)|close|__exit__\(\)|drop|a second file", seen.call)
        )
    ),
    "seek(), tell() and truncate() raise UnsupportedOperation, which is a ValueError, whatever their arguments.": (
        lambda seen: (
            re.match(r"(seek|tell|truncate)\(", seen.call)
            and (seen.ours == "UnsupportedOperation" or (seen.call, seen.ours) == ("seek()", "TypeError"))
        )
    ),
    "A Rio has no attributes but its own, so that a misspelled `rio.timout = 1` is an error.": (
        lambda seen: re.match("set |vars", seen.call) and seen.ours in ("AttributeError", "TypeError")
    ),
    "A file whose socket was detached has no descriptor: OSError (EBADF), not -1.": (
        lambda seen: (
            re.search("socket detached", seen.state)
            and re.match("fileno|isatty", seen.call)
            and seen.ours == "OSError, errno 9"
        )
    ),
    "A file whose `raw` was closed says so when it uses it, by OSError (EBADF).": (
        lambda seen: (
            seen.state == "raw closed"
            and seen.stdlib == "ValueError"
            and (
                seen.ours in ("OSError, errno 9", "UnsupportedOperation")
                or re.match(r"(flush|detach|__iter__)\(\)|iter$|write\(empty\)", seen.call)
                or re.match(r"(read|read1|readline)\(0\)|readinto1?\(empty\)", seen.call)
            )
        )
    ),
    "A size below any number of bytes is as good as -1, and read() refuses both alike.": (
        lambda seen: seen.call.endswith("(-HUGE)") and seen.stdlib == "OverflowError"
    ),
    "Wrong arguments are refused before the wrong direction.": doubly_wrong,
    "A read of no bytes is possible in every direction.": (
        lambda seen: (
            seen.mode == "wb"
            and re.match(r"(read|read1)\(0\)|readinto1?\(empty\)", seen.call)
            and seen.ours in ("b''", "[0, b'']")
        )
    ),
    "peek() is there in every mode.": (
        lambda seen: (
            seen.mode == "wb"
            and seen.call.startswith("peek(")
            and seen.stdlib == "AttributeError"
            and seen.ours in ("UnsupportedOperation", "TypeError", "OverflowError")
        )
    ),
    "Memory that is not contiguous is a TypeError, as any other object that is not bytes-like.": (
        lambda seen: "strided view" in seen.call and (seen.stdlib, seen.ours) == ("BufferError", "TypeError")
    ),
    "A file that reads and writes has a descriptor.": (
        lambda seen: (seen.mode, seen.call, seen.stdlib) == ("rwb", "fileno()", "UnsupportedOperation")
    ),
}

#: Differences that some versions of Python do not have.
WANTED_ON_SOME = {
    "A file cannot be pickled. CPython 3.12 makes of its read-write pair an object that cannot be used.": (
        lambda seen: (seen.mode, seen.call, seen.ours) == ("rwb", "pickle, protocol 0", "TypeError")
    ),
}


@functools.cache
def differences(mode, state):
    """Return what the two files do differently."""
    with unraisable():
        seen = [
            Seen(mode, state, call, *(observe(each, mode, state, call) for each in (STDLIB, rioecho.makefile)))
            for call in CALLS
        ]
    return [each for each in seen if each.stdlib != each.ours]


@pytest.mark.parametrize(("mode", "state"), CELLS)
def test_every_call_does_what_it_does_on_the_standard_librarys_file(mode, state):
    wanted = [*WANTED.values(), *WANTED_ON_SOME.values()]
    assert [seen for seen in differences(mode, state) if not any(each(seen) for each in wanted)] == []


@pytest.mark.parametrize("reason", WANTED)
def test_a_listed_difference_exists(reason):
    assert any(WANTED[reason](seen) for cell in CELLS for seen in differences(*cell))


#: The wanted differences of lives, each with its reason: what the life and its label look like.
WANTED_IN_LIVES = {
    "A file that reads and writes has a descriptor.": (
        r"of an? (closed|detached|unconnected|listening) socket",
        r"rwb: fileno",
    ),
    "The error is the system's (ENOTCONN, EPIPE), and comes without a wait.": (
        r"of a listening socket",
        r"(rb|wb|rwb): (readline|read|readinto|__next__|flush|close)$",
    ),
    "What came before a reset stays readable.": (r"of a connection that was reset", r"(rb|rwb): read again"),
    "A dropped file that reads and writes sends its output too.": (
        r"dropped after the socket was closed",
        r"rwb: peer$",
    ),
    "The error says that there is no data yet. An empty or shorter result looks like the end.": (
        r"without blocking",
        r"rest|nothing|read\(|read1\(|peek\(|readinto",
    ),
    "What was not accepted is the caller's alone: it is not sent later.": (r"without blocking", r"close"),
}
if sys.version_info >= (3, 13):
    WANTED_IN_LIVES["An error of sending when it is dropped is reported, as that of a file that only writes."] = (
        r"dropped when nobody can be sent to",
        r"rwb: errors",
    )


def different(life):
    """Return the labels under which a life with either file differs."""
    stdlib, ours = LIVES[life](STDLIB), LIVES[life](rioecho.makefile)
    assert stdlib.keys() == ours.keys()
    return {label: (stdlib[label], ours[label]) for label in stdlib if stdlib[label] != ours[label]}


@pytest.mark.long
@pytest.mark.parametrize("life", LIVES)
def test_a_file_lives_as_the_standard_librarys_does(life):
    wanted = [labels for lives, labels in WANTED_IN_LIVES.values() if re.fullmatch(lives, life)]
    found = different(life)
    assert {label: both for label, both in found.items() if not any(re.match(each, label) for each in wanted)} == {}
    assert all(any(re.match(each, label) for label in found) for each in wanted), "a listed difference does not exist"


# ---- attributes


#: Attributes of the standard library's files that ours lack, and the reason.
LACKING = {
    "__dict__": "A Rio has no attributes but its own.",
    "__module__": "Only classes that are created at run time have it, as those of io since CPython 3.12.",
    "_checkClosed": "Private.",
    "_checkReadable": "Private.",
    "_checkSeekable": "Private.",
    "_checkWritable": "Private.",
    "_dealloc_warn": "Private.",
    "_finalizing": "Private.",
}


@pytest.mark.parametrize("mode", MODES)
def test_a_file_has_every_public_attribute_of_the_standard_librarys(stream, mode):
    def kind(file, name):
        try:
            return "method" if callable(getattr(file, name)) else type(getattr(file, name)).__name__
        except AttributeError:
            return "none"

    with STDLIB(stream.near, mode) as stdlib, rioecho.makefile(stream.near, mode) as ours:
        names = sorted(set(dir(stdlib)) - set(LACKING))
        assert {name: kind(ours, name) for name in names} == {name: kind(stdlib, name) for name in names}


def test_the_names_of_a_file_are_its_own(stream):
    with rioecho.makefile(stream.near, "rb") as file:
        assert repr(file) == f"<rioecho.Rio fd={stream.near.fileno()}>"
        assert type(file).__name__ == "Rio"


@pytest.mark.parametrize("name", ["raw", "mode", "name"])
def test_a_rio_that_is_no_socket_file_has_none_of_their_attributes(stream, name):
    with rioecho.Rio(stream.near) as rio:
        assert not hasattr(rio, name)
