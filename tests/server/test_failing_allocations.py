"""A server in which one allocation fails, from the accept of a client to the end of the drain.

One connection may close, or accepting may pause; the server never stops, hangs, or leaks a descriptor or a child.
"""

import os
import platform
import sys
import sysconfig

import pytest

from support.sweep import preloaded, require_failing_allocations, run_script

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the script reads /proc"),
    pytest.mark.skipif(
        bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="this Python has no hook for failing allocations"
    ),
]

ENGINES = ("iterative", "process", "thread", "event", "handler")  # "handler": a LineServer


def sweep(engine, allocator, tmp_path, *, step, width):
    """Return the number of runs of a server, in each of which another allocation failed."""
    require_failing_allocations()
    environment = {}
    if allocator == "python":
        if sys.version_info >= (3, 14):
            pytest.skip("the hook of this Python does not cover allocations in C; the libc variant does")
    else:
        if platform.libc_ver()[0] != "glibc":
            pytest.skip("the preloaded library needs glibc")
        if os.environ.get("RIOECHO_BUILD") == "sanitize":
            pytest.skip("AddressSanitizer has an allocator of its own")
        environment = {"LD_PRELOAD": preloaded("allocations.c", tmp_path), "PYTHONMALLOC": "malloc"}
    done = run_script("server_memory_scenarios.py", engine, allocator, step, width, timeout=600, **environment)
    assert "_server" not in done.stderr  # no traceback of the server; the interpreter may print its own
    return int(done.stdout.split()[2])


@pytest.mark.long
@pytest.mark.parametrize("allocator", ["python", "libc"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_failed_allocation_closes_at_most_one_connection(engine, allocator, tmp_path):
    assert sweep(engine, allocator, tmp_path, step=97, width=1) > 5


@pytest.mark.slow
@pytest.mark.parametrize(("width", "step"), [(1, 1), (3, 11), (25, 11)])
@pytest.mark.parametrize("allocator", ["python", "libc"])
@pytest.mark.parametrize("engine", ENGINES)
def test_no_failed_allocation_closes_more_than_one_connection(engine, allocator, width, step, tmp_path):
    if os.environ.get("RIOECHO_BUILD") not in (None, "coverage"):
        step *= 23  # the sanitizer and debug builds take much longer
    elif allocator == "python" and platform.libc_ver()[0] == "glibc":
        step *= 7  # the other allocator's sweep has these allocations, too: Python's are calls of malloc() there
    assert sweep(engine, allocator, tmp_path, step=step, width=width) > 500 // step


CONSTRUCTORS = """if True:
    import _testcapi, os, socket
    from rioecho._core.budget import MemoryBudget, Share
    from rioecho._load.histogram import Histogram
    from rioecho._load.loop import LoadLoop, messages
    from rioecho._server.eventloop import EventLoop
    from rioecho._server.hosts import HostTable

    near, far = socket.socketpair()
    stop, _ = os.pipe()
    cycle, fds = messages(64), [near.fileno()]
    budget = MemoryBudget(1 << 20)

    def event_loop():
        EventLoop(
            "line", idle_timeout=1, max_line=0, drain_timeout=1, stop_fd=stop, on_closed=print, on_line=print,
            memory=budget, poller="poll"
        )

    def load_loop():
        LoadLoop(fds, cycle, message_bytes=64, duration=1, rate=1000, pipeline=4, poller="poll")

    makers = {
        "event loop": event_loop,
        "load loop": load_loop,
        "histogram": lambda: Histogram(),
        "table of hosts": lambda: HostTable(1),
        "share": lambda: Share(budget, 1),
    }
    for name, make in makers.items():
        make()
        before = os.listdir("/proc/self/fd")
        failed = 0
        k = 0
        while True:
            _testcapi.set_nomemory(k, k + 1)
            try:
                make()
                fine = True
            except MemoryError:
                fine = False
            except OSError as error:   # of the poller's tables
                fine = False
                assert error.errno == 12, error
            _testcapi.remove_mem_hooks()
            if fine:
                break
            failed += 1
            k += 1
        assert os.listdir("/proc/self/fd") == before, name
        assert budget.used == 0, name
        print(name, failed > 0)
"""


def test_an_object_that_finds_no_memory_releases_what_it_had(child):
    require_failing_allocations()
    printed = child(CONSTRUCTORS).splitlines()
    assert printed == [f"{name} True" for name in ("event loop", "load loop", "histogram", "table of hosts", "share")]
