"""After one huge frame a Rio holds no more than twice what it still needs, and ``bufsize``."""

import os
import sys
import threading
from pathlib import Path

import pytest

from rioecho import Rio

HUGE = 48 << 20

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(os.environ.get("RIOECHO_BUILD") == "sanitize", reason="AddressSanitizer keeps freed memory"),
]


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def in_frame(rio):
    with rio.frame():
        return len(rio.readline())


def unread(rio):
    data = rio.readline()
    rio.unread(data)
    del data
    return rio.skipline()


def filled(rio):
    rio.fill(HUGE)
    return rio.skip(HUGE)


CALLS = {
    "readline": lambda rio: len(rio.readline()),
    "readuntil": lambda rio: len(rio.readuntil(b"\n")),
    "readlines1": lambda rio: len(rio.readlines1()[0]),
    "readexactly": lambda rio: len(rio.readexactly(HUGE)),
    "readframe": lambda rio: len(rio.readframe(limit=None)) + 4,
    "fill and skip": filled,
    "a frame": in_frame,
    "unread": unread,
    "readinto": lambda rio: rio.readinto(bytearray(HUGE)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_the_memory_of_a_huge_frame_is_given_back_where_it_is_consumed(stream, name):
    rio = Rio(stream.near, max_line=None, timeout=60)

    def send():
        stream.far.sendall((HUGE - 4).to_bytes(4, "big"))
        for _ in range(HUGE // (1 << 20) - 1):
            stream.far.sendall(b"x" * (1 << 20))
        stream.far.sendall(b"x" * ((1 << 20) - 5) + b"\nhalf")

    before = resident()
    thread = threading.Thread(target=send)
    thread.start()
    assert CALLS[name](rio) == HUGE
    thread.join(60)
    assert resident() - before < HUGE // 4
    assert rio.read(4) == b"half"
