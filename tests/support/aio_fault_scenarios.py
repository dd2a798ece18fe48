"""Every fault at every system call of each scenario of rioecho.aio, on asyncio's loop and on uvloop.

Run by tests/aio/test_faults.py in a child process with faults.c preloaded. A scenario is run with the k-th call failing
for k = 1, 2, ... until it makes fewer than k calls. After a fault that passes everything must have come. Any other one
may end a connection, with its errno, and then what has come is the beginning of what was sent; the loop keeps no task
and the process no descriptor. Prints the number of injected faults of each scenario.
"""

import asyncio
import contextlib
import errno
import gc
import os
import socket
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

from rioecho import aio

sys.path.append(str(Path(__file__).parents[1]))

from support import faults
from support.faults import (
    ACCEPT,
    CONNECT,
    DATA,
    EPOLL_WAIT,
    GETSOCKOPT,
    READ,
    READV,
    RECV,
    SEND,
    SENDMSG,
    SHORT,
    SOCKET,
    WRITE,
    read_all,
    sweep,
)

try:
    import uvloop
except ImportError:
    uvloop = None

LOOPS = {"asyncio": asyncio.new_event_loop} | ({"uvloop": uvloop.new_event_loop} if uvloop else {})
PASSING = (SHORT, errno.EINTR, errno.EAGAIN)
SECONDS = 30  # after which a scenario hangs

asyncio.constants.ACCEPT_RETRY_DELAY = 0.01  # seconds after which asyncio accepts again when descriptors were used up


class Fault(faults.Fault):
    """A fault, and what the run has heard of it."""

    def __init__(self, call, k, error):
        super().__init__(call, k, error)
        self.passes = error in PASSING
        self.errors = []

    def note(self, error):
        """Note an error that a call has raised. It must be the one that was injected."""
        assert not self.passes, repr(error)
        assert error.errno == self.error, repr(error)
        assert error.strerror, repr(error)
        self.errors.append(error)

    def note_context(self, loop, context):
        """Note what has come to the loop's handler of exceptions."""
        error = context.get("exception")
        if isinstance(error, ValueError) and "_start_serving" in context["message"]:
            return  # asyncio begins to accept again on a listener that was closed meanwhile
        assert isinstance(error, OSError), context
        self.note(error)


def check(fault, got, *, whole=False):
    """Check what has come: all of it, unless an error was raised; then the beginning, or all if ``whole``."""
    if whole or not fault.errors:
        assert got == DATA, got
    else:
        assert DATA.startswith(got), got


def near_end(kind):
    """Return what ``wrap()`` takes and the descriptor of the other end, for reading from it."""
    if kind == "pipe":
        return os.pipe()
    near, far = socket.socketpair()
    return near, far.detach()


def reading(kind, read):
    """Return a scenario that reads DATA, which has been sent completely, up to EOF or an error."""

    async def scenario(fault):
        near, far = near_end(kind)
        os.write(far, DATA)
        os.close(far)
        got = []
        fault.arm()
        try:
            rio = await aio.wrap(near, bufsize=64)
        except OSError as error:
            fault.note(error)
            (os.close if kind == "pipe" else socket.socket.close)(near)
            return
        for _ in range(2):  # an error is raised again
            try:
                while part := await read(rio):
                    got.append(part)
            except OSError as error:
                fault.note(error)
        got.append(rio.read_buffered())
        await rio.close()
        fault.disarm()
        check(fault, b"".join(got), whole=kind == "socket")

    return scenario


async def dripping(fault):
    """Read pieces that are sent one after another, so that each read has to wait."""
    near, far = socket.socketpair()
    sent, got = b"", []
    fault.arm()
    rio = await aio.wrap(near, bufsize=64)
    with far:
        try:
            while sent != DATA:
                reading = asyncio.create_task(rio.readexactly(min(60, len(DATA) - len(sent))))
                await asyncio.sleep(0)
                with contextlib.suppress(BrokenPipeError):  # the fault has ended the connection
                    sent += DATA[len(sent) :][: far.send(DATA[len(sent) :][:60])]
                got.append(await reading)
        except OSError as error:
            fault.note(error)
    got.append(rio.read_buffered())
    await rio.close()
    fault.disarm()
    assert b"".join(got) == sent
    check(fault, sent)


def writing(kind, write):
    """Return a scenario that writes DATA in pieces and closes the Rio. What is not sent must be an error."""

    async def scenario(fault):
        if kind == "pipe":
            far, near = os.pipe()
        else:
            near, far = near_end(kind)
        fault.arm()
        try:
            rio = await aio.wrap(near)
        except OSError as error:
            fault.note(error)
            (os.close if kind == "pipe" else socket.socket.close)(near)
            os.close(far)
            return
        try:
            for start in range(0, len(DATA), 100):
                await write(rio, DATA[start : start + 100])
        except OSError as error:
            fault.note(error)
        await close(rio, fault)
        fault.disarm()
        check(fault, read_all(far))

    return scenario


async def close(rio, fault):
    """Close a Rio, which may fail."""
    try:
        await rio.close()
    except OSError as error:
        fault.note(error)


async def write_turns(rio, piece):
    rio.write(piece)
    await asyncio.sleep(0)  # a turn, in which it is sent


async def write_some(rio, piece):
    rio.write(piece)


async def write_and_writen(rio, piece):
    if len(piece) % 3:
        rio.write(piece)
    else:
        await rio.writen(piece)


async def writelines(rio, piece):
    rio.writelines([piece[:30], piece[30:50], piece[50:]])
    await rio.flush()


async def draining(fault):
    """Send more than the kernel takes to a peer that reads slowly, so that the transport holds unsent bytes."""
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = DATA * 20
    peer = await aio.wrap(far, bufsize=512)
    rio = await aio.wrap(near)
    fault.arm()

    async def send():
        try:
            await rio.writen(data)
        except OSError as error:
            fault.note(error)
        await close(rio, fault)

    sending = asyncio.create_task(send())
    got = []
    try:
        while part := await peer.read1(300):
            got.append(part)
    except OSError as error:
        fault.note(error)
    await sending
    peer.abort()
    await peer.close()
    fault.disarm()
    got = b"".join(got)
    assert data.startswith(got)
    assert fault.errors or got == data


async def tied(fault):
    """Echo DATA line by line on one Rio, so that faults also hit the output that a read sends."""
    near, far = socket.socketpair()
    far.sendall(DATA)
    far.shutdown(socket.SHUT_WR)
    fault.arm()
    rio = await aio.wrap(near, bufsize=256)
    try:
        async for line in rio:
            rio.write(line)
    except OSError as error:
        fault.note(error)
    await close(rio, fault)
    fault.disarm()
    check(fault, read_all(far.detach()))


def serving(is_unix):
    """Return a scenario in which a server's handler echoes what a client sends: each may fail, with an error."""

    async def scenario(fault):
        async def echo(rio):
            try:
                async for line in rio:
                    rio.write(line)
                await rio.flush()
            except OSError as error:
                note_of_two(fault, error)
                rio.abort()

        got = b""
        with tempfile.TemporaryDirectory() as folder:
            place = (os.path.join(folder, "socket"),) if is_unix else ("127.0.0.1", 0)
            fault.arm()
            try:
                async with aio.start_server(echo, *place) as server:
                    if not is_unix:
                        place = server.sockets[0].getsockname()
                    rio = await aio.connect(*place, timeout=SECONDS)
                    try:
                        for start in range(0, len(DATA), 333):
                            await rio.writen(DATA[start : start + 333])
                        await rio.write_eof()
                        got = await rio.read()
                        await rio.close()
                    finally:
                        rio.abort()
                        await rio.close()
            except OSError as error:
                note_of_two(fault, error)
            fault.disarm()
        check(fault, got)

    return scenario


def note_of_two(fault, error):
    """Note an error of one side, which may be the consequence of one of the other side."""
    if (isinstance(error, ConnectionError) and not fault.passes) or (
        fault.call == SOCKET and "could not bind on any address" in str(error)
    ):
        fault.errors.append(error)
    else:
        fault.note(error)


READING_FAULTS = [*PASSING, errno.ECONNRESET, errno.ENOBUFS, errno.ENOMEM]
WRITING_FAULTS = [*PASSING, errno.ECONNRESET, errno.EPIPE, errno.ENOBUFS, errno.ENOMEM]
INPUT = dict.fromkeys((READ, READV, RECV), READING_FAULTS)
OUTPUT = dict.fromkeys((WRITE, SEND, SENDMSG), WRITING_FAULTS)
WAITING = {EPOLL_WAIT: [errno.EINTR]}
READS = {
    "readline": lambda rio: rio.readline(),
    "readlines1": lambda rio: joined(rio.readlines1()),
    "read(7)": lambda rio: rio.read(7),
    "read(500)": lambda rio: rio.read(500),
    "read()": lambda rio: rio.read(),
}
WRITES = {
    "write": write_some,
    "write, one in a turn": write_turns,
    "writen": lambda rio, piece: rio.writen(piece),
    "write and writen": write_and_writen,
    "writelines": writelines,
}


async def joined(lines):
    return b"".join(await lines)


SCENARIOS = {}
for kind in ("socket", "pipe"):
    for name, method in READS.items():
        SCENARIOS[f"{name} from a {kind}"] = reading(kind, method), INPUT | WAITING
    for name, method in WRITES.items():
        SCENARIOS[f"{name} to a {kind}"] = writing(kind, method), OUTPUT | WAITING
SCENARIOS["a dripping peer"] = dripping, INPUT | WAITING
SCENARIOS["a slow reader"] = draining, OUTPUT | WAITING
SCENARIOS["a tied echo"] = tied, INPUT | OUTPUT | WAITING
SCENARIOS["a server and a client"] = serving(True), INPUT | OUTPUT | WAITING
SCENARIOS["a server and a client that connects"] = (
    serving(False),
    {
        ACCEPT: [errno.EINTR, errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM],
        SOCKET: [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EACCES],
        CONNECT: [errno.ECONNREFUSED, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENOBUFS],
        GETSOCKOPT: [errno.ENOBUFS],
    },
)


def attempt(factory, scenario, fault):
    """Run a scenario with a fault, and check that nothing is left of it."""
    before = set(os.listdir("/proc/self/fd"))
    problems = []

    async def main():
        async with asyncio.timeout(SECONDS):
            await scenario(fault)
            while asyncio.all_tasks() != {asyncio.current_task()}:  # a handler whose connection has ended ends too
                await asyncio.sleep(0)

    def handle(loop, context):
        try:
            fault.note_context(loop, context)
        except AssertionError as problem:
            problems.append(problem)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.get_loop().set_exception_handler(handle)
        try:
            runner.run(main())
        finally:
            fault.disarm()
    fault.errors.clear()  # their tracebacks keep what they have seen
    gc.collect()
    assert not problems, problems
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor is still open"


def main(loop):
    warnings.simplefilter("error")
    with asyncio.Runner(loop_factory=LOOPS[loop]) as first:  # uvloop keeps a pipe for signals for ever
        first.run(asyncio.sleep(0))
    for name, (scenario, errors) in SCENARIOS.items():
        if loop == "uvloop" and READ in errors:  # the number of ENOBUFS is uvloop's own for a get_buffer() that raised
            errors = errors | {READ: [error for error in errors[READ] if error != errno.ENOBUFS]}
        sweep(name, partial(attempt, LOOPS[loop], scenario), errors, kind=Fault)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
