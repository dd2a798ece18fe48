"""The debug build detects a broken invariant, which aborts the process, and an index out of range, which raises.

The tests corrupt objects in child processes. They run only on the builds with checks: the behaviour of any other build
is undefined.
"""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("RIOECHO_BUILD") not in ("debug", "sanitize", "race"), reason="this build has no checks"
)

# A Rio whose input buffer is recognisable among the words of the object: 7 of 100 bytes read, capacity 12,347.
CORRUPT = """if True:
    import ctypes, socket
    from rioecho import Rio
    ours, theirs = socket.socketpair()
    rio = Rio(ours, bufsize=12_347)
    theirs.sendall(b"x" * 100)
    assert rio.read(7) == b"x" * 7
    words = (ctypes.c_size_t * (Rio.__basicsize__ // ctypes.sizeof(ctypes.c_size_t))).from_address(id(rio))
    no_mark = ctypes.c_size_t(-1).value
    (r,) = [i for i in range(len(words) - 3) if list(words[i : i + 4]) == [7, 100, no_mark, 12_347]]
    w, cap = r + 1, r + 3
    CHANGE
    theirs.sendall(b"y" * 12_347 + b"\\n")
    rio.CALL
"""

# The same for a Rio of asyncio, which is awaited.
CORRUPT_ON_ASYNCIO = """if True:
    import asyncio, ctypes, socket
    from rioecho import aio

    async def main():
        ours, theirs = socket.socketpair()
        rio = await aio.wrap(ours, bufsize=12_347)
        theirs.sendall(b"x" * 100)
        assert await rio.read(7) == b"x" * 7
        words = (ctypes.c_size_t * (aio.Rio.__basicsize__ // ctypes.sizeof(ctypes.c_size_t))).from_address(id(rio))
        no_mark = ctypes.c_size_t(-1).value
        (r,) = [i for i in range(len(words) - 3) if list(words[i : i + 4]) == [7, 100, no_mark, 12_347]]
        w, cap = r + 1, r + 3
        CHANGE
        theirs.sendall(b"y" * 12_347 + b"\\n")
        await rio.CALL

    asyncio.run(main())
"""

# The reason of a close is looked up in a tuple, and an exception of that is logged as one of the callback.
OUT_OF_RANGE = """if True:
    import logging, os, socket, sys
    from rioecho import EchoServer
    from rioecho._server import reports
    assert reports.REASONS
    reports.REASONS = ()

    class Ends(logging.Handler):
        def emit(self, record):
            if record.levelno >= logging.ERROR:
                print(record.getMessage(), flush=True)
                os._exit(0)

    logging.getLogger("rioecho.server").setLevel("INFO")  # the reason is looked up only if it is logged
    logging.getLogger("rioecho.server").addHandler(Ends())
    with EchoServer(engine="event") as server:
        sock = socket.create_connection(server.addresses[0], timeout=20)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    sys.exit("nothing was raised")
"""


def run(code):
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("change", ["words[r] = 101", "words[w] = 12_348", "words[cap] = 99"])
@pytest.mark.parametrize("call", ["readline()", "read(3)", "read(1000)", "readlines1()", "skipline()"])
def test_a_broken_invariant_of_a_buffer_aborts_the_process(change, call):
    done = run(CORRUPT.replace("CHANGE", change).replace("CALL", call))
    assert done.returncode == -signal.SIGABRT, done.stdout + done.stderr
    assert "this must hold: " in done.stderr


@pytest.mark.parametrize("change", ["words[r] = 101", "words[w] = 12_348", "words[cap] = 99"])
@pytest.mark.parametrize("call", ["readline()", "read(1000)", "readlines1()"])
def test_a_broken_invariant_of_a_buffer_on_asyncio_aborts_the_process(change, call):
    done = run(CORRUPT_ON_ASYNCIO.replace("CHANGE", change).replace("CALL", call))
    assert done.returncode == -signal.SIGABRT, done.stdout + done.stderr
    assert "this must hold: " in done.stderr


def test_an_index_out_of_range_is_an_error():
    done = run(OUT_OF_RANGE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "raised IndexError: " in done.stdout
