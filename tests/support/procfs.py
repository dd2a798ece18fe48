"""Read the descriptors, threads, children and memory of a process from /proc. Linux only: see ``needs_proc``."""

import contextlib
import os
import socket
import sys
import time

import pytest

from support.peers import SECONDS

#: What a file of a process or thread that has ended raises: at its opening, or at its reading if that was in time.
GONE = (FileNotFoundError, ProcessLookupError)

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="there is no /proc")


def until(condition, what="a condition"):
    """Wait until ``condition()`` is true, by polling, for conditions that no event reports."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        os.sched_yield()


def tcp_row(sock):
    """Return the fields of the other end of an IPv4 connection to this machine in /proc/net/tcp."""

    def found():
        # While others connect and disconnect, the table may contain a connection twice or leave it out.
        with open("/proc/net/tcp") as table:
            rows.extend(row for row in map(str.split, table) if row[1:3] == names)
        return rows

    names = [_name_in_table(*address) for address in (sock.getpeername(), sock.getsockname())]
    rows = []
    until(found, "the connection in /proc/net/tcp")
    return rows[0]


def _name_in_table(host, port):
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"


def until_read(sock):
    """Wait until the process at the other end of an IPv4 connection has read all that was sent, on Linux."""
    if sys.platform == "linux":
        until(lambda: int(tcp_row(sock)[4].partition(":")[2], 16) == 0, "the other end to read")


def descriptors(pid):
    """Return the open files of a process by descriptor."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(*GONE):  # closed in the meantime
            found[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
    return found


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def sleeps(thread, *, locked=False):
    """Report whether a thread of this process sleeps in a system call: in that of a lock, or in any other one."""
    try:
        with open(f"/proc/self/task/{thread.native_id}/wchan") as wchan:
            where = wchan.read()
    except GONE:  # the thread has ended
        return False
    return where not in ("", "0") and ("futex" in where) == locked


def children(pid):
    """Return the process IDs of a process's children, including zombies."""
    found = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(*GONE), open(f"/proc/{pid}/task/{task}/children") as listed:
            found.update(map(int, listed.read().split()))
    return found


def gone(pid):
    """Report whether the process has ended. It may still be a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except GONE:
        return True


def memory(pid, field="VmRSS"):
    """Return the resident memory of a process, or another field of its status, in bytes."""
    if os.environ.get("RIOECHO_BUILD") == "sanitize":
        pytest.skip("AddressSanitizer keeps freed memory")
    with contextlib.suppress(*GONE), open(f"/proc/{pid}/status") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":")), 0)  # 0: a zombie
    return 0
