"""What /proc says of a process: its descriptors, threads, children and memory. Linux only: `needs_proc` skips."""

import contextlib
import os
import time

import pytest

from support.peers import SECONDS

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc to ask")


def until(condition, what="it"):
    """Wait until it is so; nobody tells when, so it is asked for again and again."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} does not come true"
        os.sched_yield()


def descriptors(pid):
    """What each open descriptor of a process is, by number."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
    return found


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def children(pid):
    """The children of a process, the dead that nobody has waited for among them."""
    found = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{task}/children") as listed:
            found.update(map(int, listed.read().split()))
    return found


def gone(pid):
    """Has the process ended? (Who waits for it is another question.)"""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def memory(pid, field="VmRSS"):
    """The memory that a process has now, in bytes; or another field of its status."""
    if os.environ.get("RIOECHO_BUILD") == "sanitize":
        pytest.skip("AddressSanitizer keeps freed memory")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/status") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":")), 0)  # 0: a zombie
    return 0
