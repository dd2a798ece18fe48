"""Machine instructions per operation, counted by valgrind: exact, unlike times on a busy machine.

Counts the instructions of this project's extension modules and of the functions that they call, without those of the
interpreter (but with those of a LineServer's handler): for an awaited call of aio, those that make it, those up to its
result, and those that free it.
``python tests/support/instruction_counts.py`` prints the counts and the recorded ones; ``--record`` records them. Use
it for a change that is meant to alter them, and give the reason in the commit message.
"""

import asyncio
import contextlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from pathlib import Path

import rioecho

RECORDED = Path(__file__).with_suffix(".json")
LINE = b"x" * 63 + b"\n"
LINES = 500  # number of operations of each kind
DEPTH = 32  # lines in flight on the loop's busy connection

#: The compiler options of Python, on which the counts depend: extension modules are compiled with them too.
OPTIMIZED = re.findall(
    r"-O\w|--enable-optimizations|--with-lto",
    f"{sysconfig.get_config_var('PY_CFLAGS')} {sysconfig.get_config_var('CONFIG_ARGS')}",
)
PLATFORM = (
    f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}, "
    f"{platform.python_compiler()} {' '.join(dict.fromkeys(OPTIMIZED))}"
)

VALGRIND = [
    "valgrind",
    "--tool=callgrind",
    "--collect-atstart=no",
    "--toggle-collect=__pyx_pw_7rioecho*",  # the Python functions and methods of this project
    # An awaited call: from Python 3.12 on the interpreter calls its tp_iternext, before that its am_send.
    f"--toggle-collect={'rio_next' if sys.version_info >= (3, 12) else '__pyx_f_7rioecho_3aio_5_call_slot_send'}",
    "--toggle-collect=rio_dealloc",  # its end
    "--dump-before=getppid",  # called by mark()
    "--combine-dumps=no",
]


def mark():
    """Begin a new count."""
    os.getppid()


# ---- in the child, under valgrind


def by_readline(rio):
    for _ in range(LINES):
        rio.readline()


def by_iteration(rio):
    for _ in zip(range(LINES), rio, strict=False):
        pass


def by_readlines1(rio):
    count = 0
    while count < LINES:
        count += len(rio.readlines1())


def by_read(rio):
    for _ in range(LINES):
        rio.read(16)


def by_write(rio):
    for _ in range(LINES):
        rio.write(LINE)


RIO = {
    "readline()": by_readline,
    "iteration": by_iteration,
    "readlines1(), per line": by_readlines1,
    "read(16)": by_read,
    "write(line)": by_write,
}


async def await_readline(rio):
    for _ in range(LINES):
        await rio.readline()


async def await_iteration(rio):
    count = 0
    async for _ in rio:
        count += 1
        if count == LINES:
            break


async def await_readlines1(rio):
    await rio.readlines1()


async def await_nothing_and_write(rio):
    by_write(rio)


AIO = {
    "aio: readline()": await_readline,
    "aio: iteration": await_iteration,
    "aio: readlines1(), per line": await_readlines1,
    "aio: write(line)": await_nothing_and_write,
}
LOOP = {"nothing": (0, 1), "1 in flight": (LINES, 1), f"{DEPTH} in flight": (LINES // DEPTH, DEPTH)}
LOOPS = ("event loop", "LineServer, lambda lines: lines")  # each with every one of LOOP


def child(descriptors):
    """Run each operation of a Rio, and the event loop on each descriptor, between two marks."""
    from rioecho import Rio
    from rioecho._server.eventloop import EventLoop
    from rioecho._server.handling import Handling

    for work in RIO.values():
        near, far = socket.socketpair()
        with near, far:
            rio = Rio(near)
            far.sendall(LINE * (3 * LINES))  # one read of 64 KiB at a time
            rio.read1(1)
            rio.read(len(LINE) * LINES - 1)
            rio.write(LINE)
            mark()
            work(rio)
            mark()
    for work in AIO.values():
        asyncio.run(counted_on_asyncio(work))
    stop, never = os.pipe()
    for i, fd in enumerate(descriptors):
        loop = EventLoop(
            "line",
            idle_timeout=None,
            max_line=1 << 20,
            drain_timeout=None,
            stop_fd=stop,
            on_closed=lambda *_: None,
            handling=None
            if i < len(LOOP)
            else Handling(lambda lines: lines, raw=False, max_line=1 << 20, write_limit=1 << 20),
        )
        loop.adopt(fd)
        loop.no_more()
        mark()
        loop.run()
        mark()
        loop.close()
    os.close(never)


async def counted_on_asyncio(work):
    """Run an operation of a Rio of asyncio that holds the lines, between two marks."""
    from rioecho import aio

    near, far = socket.socketpair()
    with far:
        async with aio.wrap(near) as rio:
            far.sendall(LINE * LINES)
            await rio.fill(len(LINE) * LINES)
            if work is not await_readlines1:  # that takes all that is held
                far.sendall(LINE * LINES)
                await rio.fill(2 * len(LINE) * LINES)
                rio.write(await rio.readline())
                await rio.flush()
            mark()
            await work(rio)
            mark()


# ---- outside


def talk(sock, rounds, depth):
    """Send lines, ``depth`` of them at a time, and receive their echo."""
    with sock:
        for _ in range(rounds):
            sock.sendall(LINE * depth)
            left = len(LINE) * depth
            while left:
                got = len(sock.recv(left))
                if not got:
                    return  # the child has exited; its stderr has the reason
                left -= got


def count(timeout=120):
    """Run valgrind and return the number of instructions per operation, by name."""
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        out = os.path.join(place, "counts")
        fds = []
        threads = []
        for rounds, depth in (*LOOP.values(),) * len(LOOPS):
            ours, theirs = socket.socketpair()
            fds.append(stack.enter_context(theirs).fileno())
            ours.settimeout(timeout)
            threads.append(threading.Thread(target=talk, args=(ours, rounds, depth), daemon=True))
            threads[-1].start()
        run = subprocess.run(
            [*VALGRIND, f"--callgrind-out-file={out}", sys.executable, "-P", __file__, "--child", *map(str, fds)],
            pass_fds=fds,
            env=os.environ | {"PYTHONPATH": str(Path(rioecho.__file__).parents[1]), "PYTHONHASHSEED": "0"},
            timeout=timeout,
            check=False,
            capture_output=True,
        )
        if run.returncode:
            raise RuntimeError(f"the counted program failed: {run.stderr.decode()}")
        for thread in threads:
            thread.join(timeout)
        # Part 2k+2 of valgrind's output is the k-th measurement, part 2k+1 what ran before it.
        totals = []
        for part in range(2, 2 * (len(RIO) + len(AIO) + len(LOOPS) * len(LOOP)) + 1, 2):
            with open(f"{out}.{part}") as file:
                totals.append(int(re.search(r"^(?:totals|summary): (\d+)", file.read(), re.MULTILINE)[1]))
    counts = {name: totals.pop(0) / LINES for name in (*RIO, *AIO)}
    for loop in LOOPS:
        nothing = totals.pop(0)
        for name, (rounds, depth) in list(LOOP.items())[1:]:
            counts[f"{loop}, per line, {name}"] = (totals.pop(0) - nothing) / (rounds * depth)
    return {name: round(number, 1) for name, number in counts.items()}


def recorded():
    """Return the recorded counts of this platform, or None."""
    try:
        return json.loads(RECORDED.read_text()).get(PLATFORM)
    except FileNotFoundError:
        return None


def main():
    if sys.argv[1:2] == ["--child"]:
        child(map(int, sys.argv[2:]))
        return
    if sys.argv[1:] not in ([], ["--record"]):
        sys.exit(f"usage: {sys.argv[0]} [--record]")
    counts, before = count(), recorded() or {}
    print(f"{PLATFORM}\n{'':40} {'now':>8} {'recorded':>8}")
    for name, number in counts.items():
        print(f"{name:40} {number:8.1f} {before.get(name, '-'):>8}")
    if sys.argv[1:]:
        everything = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        RECORDED.write_text(json.dumps(everything | {PLATFORM: counts}, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
