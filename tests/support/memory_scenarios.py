"""A failure of every allocation of each scenario; run by test_faults.py in a child process.

A MemoryError loses no data: the call is repeated and continues. While allocations fail, the test itself must not
allocate memory, so it stores results in a list of fixed length.
"""

import asyncio
import os
import shutil
import socket
import sys
import tempfile
import threading
from importlib import import_module
from pathlib import Path

from rioecho import Feed, Rio, echo
from rioecho.aio import streams
from rioecho.aio.rio import open_rio

sys.path.append(str(Path(__file__).parents[1]))

from support import certificates

_testcapi = import_module("_testcapi")  # CPython's own test helpers

DATA = b"".join(b"%d " % i * (i % 7) + b"\n" for i in range(12)) + b"x" * 700 + b"\nthe rest"
BUFFER = bytearray(300)
LARGE = bytearray(len(DATA))
FULL = bytes(1 << 22)  # more than a socket takes while nobody reads
MANY = 150  # number of allocations that fail one after the other where nothing tells whether one has failed
FRONT = b"." * 5000
LOOP = asyncio.new_event_loop()  # it does not run
LONGER = [b"%d" % i * 300 * i for i in range(1, 60)]  # pieces that a buffer has to grow for


class SocketLike(socket.socket):
    """A socket that a Rio uses by its methods. They allocate nothing after they have moved bytes."""

    def recv_into(self, view):
        return super().recv_into(view)


def patiently(got, read, k):
    """Store what ``read`` returns up to the end of the input in a list, and return whether allocation k has failed."""
    failed = False
    n = 0
    _testcapi.set_nomemory(k, k + 1)
    while True:
        try:
            got[n] = read()
        except MemoryError:
            failed = True
            continue
        if not got[n]:
            break
        n += 1
    _testcapi.remove_mem_hooks()
    return failed


def reading(read, bufsize=64, kind=socket.socket):
    def scenario(k):
        ours, theirs = socket.socketpair()
        ours = kind(fileno=ours.detach())
        theirs.sendall(DATA)
        theirs.close()
        rio = Rio(ours, bufsize=bufsize)
        got = [b""] * len(DATA)
        failed = patiently(got, lambda: read(rio), k)
        assert ours.gettimeout() is None
        ours.close()
        assert b"".join(got) == DATA, (got, k)
        return failed

    return scenario


def readinto(rio):
    n = rio.readinto(BUFFER)
    _testcapi.remove_mem_hooks()
    return bytes(BUFFER[:n])


def line_and_readinto(rio):
    rio.fill(1)
    n = rio.readinto(LARGE)
    _testcapi.remove_mem_hooks()
    return bytes(LARGE[:n])


def readlines1(rio):
    lines = rio.readlines1()
    _testcapi.remove_mem_hooks()
    return b"".join(lines)


def two_lines(rio):
    """Read two lines as one frame. What they are joined in needs memory, too; without it both are held again."""
    with rio.frame():
        return rio.readline() + rio.readline()


def reading_frames(k):
    payloads = [b"%d " % i * (i * 20 + 1) for i in range(4)]
    ours, theirs = socket.socketpair()
    theirs.sendall(b"".join(len(payload).to_bytes(2, "big") + payload for payload in payloads))
    theirs.close()
    rio = Rio(ours, bufsize=8)
    got = [b""] * 10
    failed = patiently(got, lambda: rio.readframe(2), k)
    ours.close()
    assert got[:4] == payloads, (got, k)
    return failed


def taking_in(make, put):
    """Pass pieces to a reader; a piece that there is no memory for is passed again."""

    def scenario(k):
        reader = make()
        failed = False
        _testcapi.set_nomemory(k, k + 1)
        for piece in LONGER:
            while True:
                try:
                    put(reader, piece)
                    break
                except MemoryError:
                    failed = True
        _testcapi.remove_mem_hooks()
        assert reader.read_buffered() in (b"".join(LONGER), b"".join(LONGER[::-1])), k
        return failed

    return scenario


def coming_in(put, width=1):
    """Give pieces to a Rio of asyncio as a loop does. It keeps what there is no memory for, without an error.

    ``width`` allocations fail. Nothing tells whether any has failed, so each is assumed to have.
    """

    def scenario(k):
        rio, protocol = open_rio(LOOP, bufsize=64)
        _testcapi.set_nomemory(k, k + width)
        for piece in LONGER:
            put(rio, protocol, piece)
        held = again(rio.read_buffered)
        _testcapi.remove_mem_hooks()
        rio.abort()
        assert held == b"".join(LONGER), k
        return k < MANY

    return scenario


def again(call, *arguments):
    """Make a call until there is memory for it."""
    while True:
        try:
            return call(*arguments)
        except MemoryError:
            continue


def by_copy(rio, protocol, piece):
    again(protocol.data_received, piece)


def by_memory(rio, protocol, piece):
    """Store a piece in the memory of the Rio, as far as it fits at once."""
    at = 0
    while at < len(piece):
        view = again(protocol.get_buffer, -1)
        n = min(len(view), len(piece) - at)
        view[:n] = memoryview(piece)[at : at + n]
        protocol.buffer_updated(n)
        at += n


def beside_a_view(rio, protocol, piece):
    """Put bytes in front while the loop has a view of the memory."""
    view = again(protocol.get_buffer, -1)
    again(rio.unread, piece)
    del view
    held = again(rio.read_buffered)
    by_copy(rio, protocol, held[len(piece) :])
    by_copy(rio, protocol, held[: len(piece)])


def behind_a_move(rio, protocol, piece):
    """Make the held bytes move after the loop has got a view of the memory behind them."""
    view = again(protocol.get_buffer, -1)
    n = min(len(view), len(piece))
    view[:n] = memoryview(piece)[:n]
    again(rio.unread, FRONT)
    try:
        protocol.buffer_updated(n)
    except MemoryError:  # the loop would end the connection
        by_copy(rio, protocol, piece[:n])
    del view
    held = again(rio.read_buffered)
    by_copy(rio, protocol, held[len(FRONT) :])
    by_copy(rio, protocol, piece[n:])


def streaming(k):
    """Give pieces to a StreamReader. The loop gets the error, so it is given the piece again."""
    reader = streams.StreamReader(loop=LOOP)
    protocol = streams.StreamReaderProtocol(reader, loop=LOOP)
    _testcapi.set_nomemory(k, k + 2)
    for piece in LONGER:
        by_memory(None, protocol, piece)
    _testcapi.remove_mem_hooks()
    assert reader._buffer == b"".join(LONGER), k
    return k < MANY


def large(read):
    """Read what fills most of a bytes object, which is then made smaller."""
    data = bytes(range(250)) * 280

    def scenario(k):
        ours, theirs = socket.socketpair()
        theirs.sendall(data)
        theirs.close()
        rio = Rio(ours, bufsize=64)
        got = [b""] * 100
        failed = patiently(got, lambda: read(rio), k)
        ours.close()
        assert b"".join(got) == data, k
        return failed or k < 30  # most are made again, with less

    return scenario


def reading_ahead(k):
    """Send more than a socket takes, and read ahead meanwhile. Without memory the write goes on without."""
    ours, theirs = socket.socketpair()
    theirs.sendall(DATA)
    theirs.shutdown(socket.SHUT_WR)
    rio = Rio(ours, bufsize=64, timeout=0.01)  # with 0 it would not read
    taken = 0
    failed = False
    _testcapi.set_nomemory(k, k + 1)
    try:
        rio.writen(FULL, read_ahead=len(DATA) + 1)
    except TimeoutError as error:
        _testcapi.remove_mem_hooks()
        taken = error.characters_written
    except MemoryError as error:
        _testcapi.remove_mem_hooks()
        failed = True
        taken = getattr(error, "characters_written", None)  # None: there was none for this number
    assert rio.read() == DATA, k
    ours.close()
    assert len(Rio(theirs).read()) == taken or taken is None, k
    theirs.close()
    return failed or k < 30  # the write goes on where there is no memory to read ahead


def writing(size, bufsize=64, failures=1):
    """Return the scenario of writing pieces of ``size`` bytes, in which so many allocations in a row fail."""

    def scenario(k):
        ours, theirs = socket.socketpair()
        rio = Rio(ours, bufsize=bufsize)
        pieces = [DATA[start : start + size] for start in range(0, len(DATA), size)]
        failed = False
        _testcapi.set_nomemory(k, k + failures)
        for piece in pieces:
            while piece:
                try:
                    rio.write(piece)
                    break
                except MemoryError as error:
                    _testcapi.remove_mem_hooks()
                    failed = True
                    piece = piece[error.characters_written :]
        _testcapi.remove_mem_hooks()
        rio.flush()
        ours.close()
        assert Rio(theirs).read() == DATA
        theirs.close()
        return failed

    return scenario


def tls_contexts(folder):
    """Contexts of a server and of a client; None where there is no command to make a certificate with."""
    if shutil.which("openssl") is None:
        return None
    return certificates.contexts(*certificates.make(Path(folder)))


def tls_pair(server, client):
    near, far = socket.socketpair()
    ends = []
    thread = threading.Thread(target=lambda: ends.append(server.wrap_socket(far, server_side=True)))
    thread.start()
    near = client.wrap_socket(near, server_hostname="localhost")
    thread.join()
    near.settimeout(30.5)
    return near, ends[0]


def reading_tls(contexts):
    """Read records of 400 bytes with read1(): Python's own int for their length needs memory, too."""
    data = bytes(range(200)) * 6

    def scenario(k):
        near, far = tls_pair(*contexts)
        for start in range(0, len(data), 400):
            far.sendall(data[start : start + 400])
        far.close()
        rio = Rio(near, bufsize=64)
        got = [b""] * len(data)
        failed = patiently(got, rio.read1, k)
        assert near.gettimeout() == 30.5
        near.close()
        assert b"".join(got) == data, ([len(part) for part in got], k)
        return failed

    return scenario


def sending_tls(contexts):
    """Let a read send what was written before. Whatever fails, it is sent once."""

    def scenario(k):
        near, far = tls_pair(*contexts)
        rio = Rio(near, bufsize=64)
        rio.write(b"question")
        failed = False
        _testcapi.set_nomemory(k, k + 1)
        try:
            rio.readline(timeout=0)
        except BlockingIOError:
            _testcapi.remove_mem_hooks()
        except MemoryError:
            _testcapi.remove_mem_hooks()
            failed = True
        rio.flush()
        near.shutdown(socket.SHUT_WR)  # a close would be a reset, if the session tickets have not been read
        assert far.recv(100) == b"question", k
        assert far.recv(100) == b"", k
        near.close()
        far.close()
        return failed

    return scenario


def echoing(k):
    ours, theirs = socket.socketpair()
    theirs.sendall(DATA)
    theirs.shutdown(socket.SHUT_WR)
    failed = False
    unsent = b""
    _testcapi.set_nomemory(k, k + 1)
    try:
        echo(ours)
        _testcapi.remove_mem_hooks()
    except (MemoryError, OSError) as error:
        _testcapi.remove_mem_hooks()
        failed = True
        unsent = getattr(error, "unsent", b"")
    rest = Rio(ours).read()
    ours.close()
    echoed = Rio(theirs).read()
    theirs.close()
    assert echoed + unsent + rest == DATA
    return failed


SCENARIOS = {
    "readline": reading(lambda rio: rio.readline()),
    "readline, a buffer of 1 byte": reading(lambda rio: rio.readline(), 1),
    "read(7)": reading(lambda rio: rio.read(7)),
    "read(500)": reading(lambda rio: rio.read(500)),
    "read()": reading(lambda rio: rio.read()),
    "readexactly(500)": reading(lambda rio: rio.readexactly(min(500, rio.fill(500)))),
    "read(10**12)": reading(lambda rio: rio.read(10**12)),
    "read(), much": large(lambda rio: rio.read()),
    "read(69000)": large(lambda rio: rio.read(69_000)),
    "readinto": reading(readinto, 600),
    "readinto, more than the buffer": reading(line_and_readinto),
    "readlines1": reading(readlines1),
    "frame": reading(two_lines),
    "readframe": reading_frames,
    "unread": taking_in(lambda: Rio(sys.stdin.fileno(), bufsize=64), Rio.unread),
    "Feed.feed": taking_in(Feed, Feed.feed),
    "socket-like": reading(lambda rio: rio.readline(), kind=SocketLike),
    "socket-like, timeout": reading(lambda rio: rio.readline(timeout=30.5), kind=SocketLike),
    "write": writing(50),
    "write, a length that is allocated": writing(300, bufsize=4096, failures=2),
    "read_ahead": reading_ahead,
    "asyncio, data_received": coming_in(by_copy),
    "asyncio, data_received twice": coming_in(by_copy, 2),
    "asyncio, get_buffer": coming_in(by_memory),
    "asyncio, get_buffer without memory": coming_in(by_memory, 2),
    "asyncio, unread": coming_in(beside_a_view),
    "asyncio, memory that has moved": coming_in(behind_a_move),
    "asyncio.streams": streaming,
    "echo": echoing,
}

# Since Python 3.14 set_nomemory does not affect raw allocations, and these scenarios make no others.
OUT_OF_REACH = {"readinto"} if sys.version_info >= (3, 14) else set()


def main():
    with tempfile.TemporaryDirectory() as folder:
        contexts = tls_contexts(folder)
    scenarios = SCENARIOS | (
        {"TLS": reading_tls(contexts), "TLS, output that a read sends": sending_tls(contexts)} if contexts else {}
    )
    for name, scenario in scenarios.items():
        before = set(os.listdir("/proc/self/fd"))
        made = passed = 0
        k = 0
        while passed < 20:  # in a row, because allocations of this file's own code fail as well and raise elsewhere
            k += 1
            try:
                failed = scenario(k)
            except MemoryError:
                _testcapi.remove_mem_hooks()
                continue
            passed = 0 if failed else passed + 1
            made += failed
        assert made or name in OUT_OF_REACH, f"{name}: no allocation failed"
        assert set(os.listdir("/proc/self/fd")) == before, f"{name}: a descriptor is still open"
        print(f"{name}: {made}")
    LOOP.close()


if __name__ == "__main__":
    sys.exit(main())
