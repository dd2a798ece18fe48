"""Every fault at every system call of each scenario; run by test_faults.py in a child process with faults.c preloaded.

A scenario transfers DATA and continues after each error as documented. It is run with the k-th call failing for
k = 1, 2, ... until it makes fewer than k calls. After each run the data must be complete and in order, and no
descriptor may be open. A fault that passes by itself, as EINTR does, must not be seen as an error at all. Prints the
number of injected faults of each scenario.

With the argument ``passing`` only such faults are injected, at the first two calls.
"""

import contextlib
import errno
import os
import select
import socket
import sys
import threading
from functools import partial
from pathlib import Path

from rioecho import EchoServer, LineServer, Rio, echo
from rioecho._server.accepted import AcceptCounts, adopt
from rioecho._server.eventloop import EventLoop
from rioecho._server.hosts import HostTable

sys.path.append(str(Path(__file__).parents[1]))

from support import faults
from support.delivery import tcp_pair
from support.faults import (
    ACCEPT,
    DATA,
    EPOLL_CTL,
    EPOLL_WAIT,
    FORK,
    PIPE,
    POLL,
    PTHREAD_CREATE,
    READ,
    RECV,
    SEND,
    SENDMSG,
    SHORT,
    SPLICE,
    WRITE,
    read_all,
    sweep,
)

READING_FAULTS = [SHORT, errno.EINTR, errno.EAGAIN, errno.ECONNRESET, errno.ENOBUFS, errno.ENOMEM]
WRITING_FAULTS = [SHORT, errno.EINTR, errno.EAGAIN, errno.ECONNRESET, errno.EPIPE, errno.ENOBUFS, errno.ENOMEM]
PASSING = [SHORT, errno.EINTR, errno.EAGAIN]  # after which the library makes the call again, or waits
POLL_FAULTS = [errno.EINTR, errno.ENOMEM]
ACCEPT_FAULTS = [errno.EINTR, errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


class Fault(faults.Fault):
    """A fault whose error a scenario may meet, unless it passes by itself."""

    def explain(self, error):
        """Raise an error that this fault must not cause."""
        if self.error in PASSING:
            raise error


def reading(make_pair, read, bufsize=64):
    """Return a scenario that reads DATA, which has been sent completely, up to EOF."""

    def scenario(fault):
        ours, theirs = make_pair()
        os.write(theirs, DATA)
        os.close(theirs)
        rio = Rio(ours, bufsize=64, closefd=True)
        got = []
        fault.arm()
        while True:
            try:
                part = read(rio)
            except OSError as error:
                fault.explain(error)
                continue
            if not part:
                break
            got.append(part)
        rio.close()
        assert b"".join(got) == DATA

    return scenario


def dripping(fault):
    """Read lines that arrive in pieces, so that nearly every read has to wait."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=drip, args=(theirs,))
    rio = Rio(ours, timeout=60)
    got = []
    fault.arm()
    thread.start()
    while True:
        try:
            line = rio.readline()
        except OSError as error:
            fault.explain(error)
            continue
        if not line:
            break
        got.append(line)
    thread.join()
    ours.close()
    assert b"".join(got) == DATA


def drip(sock):
    with sock:
        for start in range(0, len(DATA), 60):
            sock.sendall(DATA[start : start + 60])
            select.select([], [], [], 0.0005)  # the pace of the peer, not a wait for a condition


def draining(fault):
    """Send more than the socket buffer holds to a peer that reads slowly, so that writes have to wait."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = DATA * 20
    got = []
    thread = threading.Thread(target=lambda: got.append(Rio(theirs).read()))
    rio = Rio(ours, timeout=60)
    left = memoryview(data)
    fault.arm()
    thread.start()
    while left:
        try:
            left = left[rio.writen(left) :]
        except OSError as error:
            fault.explain(error)
            left = left[error.characters_written :]
    ours.close()
    thread.join()
    theirs.close()
    assert got == [data]


def crossing(fault):
    """Send more than the socket buffers hold to a peer that sends first, reading ahead meanwhile."""
    ours, theirs = socket.socketpair()
    data = DATA * 500
    got = []
    thread = threading.Thread(target=lambda: got.append(cross(theirs, data)))
    rio = Rio(ours, timeout=60)
    left, come = memoryview(data), b""
    fault.arm()
    thread.start()
    while left:
        try:
            left = left[rio.writen(left, read_ahead=1 << 30) :]
        except OSError as error:
            fault.explain(error)
            left = left[error.characters_written :]
    ours.shutdown(socket.SHUT_WR)
    thread.join()
    while True:
        try:
            part = rio.read(1 << 20)
        except OSError as error:
            fault.explain(error)
            continue
        if not part:
            break
        come += part
    fault.disarm()
    ours.close()
    assert come == data
    assert got == [data]


def cross(sock, data):
    """Send and then read everything, by other system calls than those that fail."""
    with sock:
        write_all(sock.fileno(), data)
        parts = []
        while part := os.read(sock.fileno(), 1 << 16):
            parts.append(part)
        return b"".join(parts)


def write_all(fd, data):
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def readinto(rio):
    buffer = bytearray(300)
    return bytes(buffer[: rio.readinto(buffer)])


def writing(make_pair, write):
    """Return a scenario that writes DATA in pieces and continues after each error at ``characters_written``."""

    def scenario(fault):
        theirs, ours = make_pair()
        rio = Rio(ours, bufsize=64, closefd=True)
        fault.arm()
        for start in range(0, len(DATA), 100):
            piece = DATA[start : start + 100]
            while piece:
                try:
                    write(rio, piece)
                except OSError as error:
                    fault.explain(error)
                    piece = piece[error.characters_written :]
                else:
                    break
        while True:
            try:
                rio.flush()
            except OSError as error:
                fault.explain(error)
                continue
            break
        rio.close()
        fault.disarm()
        assert read_all(theirs) == DATA

    return scenario


def write_and_writen(rio, piece):
    if len(piece) % 3:
        rio.write(piece)
    else:
        rio.writen(piece)


def tied(fault):
    """Echo DATA line by line on one Rio, so that faults also hit the output that a read sends."""
    ours, theirs = socket.socketpair()
    theirs.sendall(DATA)
    theirs.shutdown(socket.SHUT_WR)
    rio = Rio(ours, bufsize=256)
    fault.arm()
    line = None
    while True:
        try:
            if line is None:
                line = rio.readline()
            if not line:
                rio.flush()
                break
            rio.write(line)
        except OSError as error:
            fault.explain(error)
            if line:
                line = line[getattr(error, "characters_written", 0) :] or None
        else:
            line = None
    ours.close()
    fault.disarm()
    assert Rio(theirs).read() == DATA
    theirs.close()


def echoing(framing):
    """Return a scenario that runs ``echo()`` to EOF, or to an error that reports what was echoed and what was not."""

    def scenario(fault):
        ours, theirs = socket.socketpair()
        theirs.sendall(DATA)
        theirs.shutdown(socket.SHUT_WR)
        fault.arm()
        back, unsent = 0, b""
        try:
            back = echo(ours, framing)
        except OSError as error:
            fault.explain(error)
            back, unsent = error.characters_written, error.unsent
        fault.disarm()
        rest = Rio(ours).read()
        ours.close()
        echoed = Rio(theirs).read()
        theirs.close()
        assert len(echoed) == back
        assert echoed + unsent + rest == DATA

    return scenario


def echoing_drips(fault):
    """Run ``echo()`` on what arrives in pieces, so that it waits."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=drip_and_end, args=(theirs,))
    fault.arm()
    thread.start()
    try:
        assert echo(ours) == len(DATA)
    finally:
        thread.join()
        ours.close()
    fault.disarm()
    assert Rio(theirs).read() == DATA
    theirs.close()


def drip_and_end(sock):
    for start in range(0, len(DATA), 100):
        write_all(sock.fileno(), DATA[start : start + 100])
        select.select([], [], [], 0.0005)  # the pace of the peer, not a wait for a condition
    sock.shutdown(socket.SHUT_WR)


def serving(engine, framing="line"):
    """Return a scenario in which a server serves all clients although a call fails temporarily."""

    def scenario(fault):
        with EchoServer(engine=engine, framing=framing, drain_timeout=10.0) as server:
            fault.arm()
            for address in server.addresses * 2:
                with socket.create_connection(address[:2], timeout=30) as sock:
                    for start in range(0, len(DATA), 333):  # not at line boundaries, so that partial lines are kept
                        sock.sendall(DATA[start : start + 333])
                    sock.shutdown(socket.SHUT_WR)
                    assert Rio(sock).read() == DATA
            fault.disarm()
        assert server.stats()["bytes_in"] == server.stats()["bytes_out"] == 2 * len(server.addresses) * len(DATA)
        assert threading.active_count() == 1

    return scenario


def surviving(make_server, data):
    """Return a scenario in which a server may cut the connection that meets an error, and serves the others."""

    def scenario(fault):
        with make_server() as server:
            (address, *_) = server.addresses
            fault.arm()
            whole = [served(address, data), served(address, data)]
            fault.disarm()
            assert whole.count(False) <= (fault.error not in (*PASSING, errno.EINVAL))  # splice(2) may be refused
            assert served(address, data)
        stats = server.stats()
        assert stats["accepted"] == stats["closed"] == 3
        assert stats["active"] == 0
        assert stats["errors"] <= 1
        assert threading.active_count() == 1

    return scenario


def served(address, data):
    """Report whether a client gets all of ``data`` back. What it gets is the beginning of it.

    Its system calls are others than those that fail.
    """
    got = b""
    with socket.create_connection(address[:2]) as sock:
        thread = threading.Thread(target=feed, args=(sock, data))
        thread.start()
        with contextlib.suppress(OSError):
            while part := os.read(sock.fileno(), 1 << 16):
                got += part
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # the thread may be sending
        thread.join()
    assert data.startswith(got)
    return got == data


def feed(sock, data):
    with contextlib.suppress(OSError):
        step = 1 + len(data) // 4
        for start in range(0, len(data), step):
            write_all(sock.fileno(), data[start : start + step])
        sock.shutdown(socket.SHUT_WR)


def adopting(fault):
    """Give a connection to an event loop, which takes it or leaves it to its owner."""
    ours, theirs = tcp_pair()
    tally, table = AcceptCounts(), HostTable(1)
    reader, writer = os.pipe()
    loop = EventLoop(
        "line",
        idle_timeout=None,
        max_line=0,
        drain_timeout=5,
        stop_fd=reader,
        on_closed=lambda *closing: None,
        hosts=table,
    )
    connection = adopt(theirs, tally)
    assert connection.admit(table)
    fault.arm()
    try:
        loop.adopt(connection, "peer")
    except OSError:
        fault.disarm()
        assert not connection.is_taken
        connection.close()
        assert (tally.accepted, tally.refused) == (0, 1)
    else:
        fault.disarm()
        write_all(ours.fileno(), DATA)
        ours.shutdown(socket.SHUT_WR)
        loop.no_more()
        loop.run()
        assert read_all(os.dup(ours.fileno())) == DATA
        assert (tally.accepted, tally.refused) == (1, 0)
    loop.close()
    ours.close()
    ours, theirs = tcp_pair()
    connection = adopt(theirs, tally)
    assert connection.admit(table)  # the claim of the first one was released
    connection.close()
    ours.close()
    os.close(reader)
    os.close(writer)


def bulk_server():
    return EchoServer(engine="event", framing="raw", drain_timeout=10.0)


def line_server():
    return LineServer(lambda lines: lines, drain_timeout=10.0)


def socket_pair():
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


SCENARIOS = {
    f"{name} from a {kind}": (reading(make, read), {call: READING_FAULTS, POLL: POLL_FAULTS})
    for kind, make, call in (("socket", socket_pair, RECV), ("pipe", os.pipe, READ))
    for name, read in {
        "readline": lambda rio: rio.readline(),
        "readlines1": lambda rio: b"".join(rio.readlines1()),
        "readlines": lambda rio: b"".join(rio.readlines()),
        "read(7)": lambda rio: rio.read(7),
        "read(500)": lambda rio: rio.read(500),
        "lines, then read(10**12)": lambda rio: rio.read(10**12) if rio.peek()[:1] == b"x" else rio.readline(),
        "read()": lambda rio: rio.read(),
        "readinto": readinto,
    }.items()
}
SCENARIOS["readline from a socket, a buffer of 1 byte"] = (
    reading(socket_pair, lambda rio: rio.readline(), 1),
    {RECV: READING_FAULTS},
)
SCENARIOS |= {
    f"{name} to a {kind}": (writing(make, write), {call: WRITING_FAULTS, POLL: POLL_FAULTS})
    for kind, make, call in (("socket", socket_pair, SEND), ("pipe", os.pipe, WRITE))
    for name, write in {
        "write": lambda rio, piece: rio.write(piece),
        "writen": lambda rio, piece: rio.writen(piece),
        "write and writen": write_and_writen,
        "writelines": lambda rio, piece: rio.writelines([piece[:30], piece[30:50], piece[50:]]),
    }.items()
}
SCENARIOS["a tied echo"] = (tied, {RECV: READING_FAULTS, SEND: WRITING_FAULTS, POLL: POLL_FAULTS})
for framing in ("line", "raw"):
    errors = {RECV: READING_FAULTS, SEND: WRITING_FAULTS, POLL: POLL_FAULTS}
    SCENARIOS[f"echo(framing={framing!r})"] = (echoing(framing), errors)
SCENARIOS["echo() of a dripping peer"] = (echoing_drips, {RECV: PASSING, POLL: [errno.EINTR]})
SCENARIOS["a dripping peer"] = (dripping, {RECV: READING_FAULTS, POLL: POLL_FAULTS})
SCENARIOS["a slow reader"] = (draining, {POLL: POLL_FAULTS})
SCENARIOS["two who send first"] = (crossing, {RECV: READING_FAULTS, SEND: WRITING_FAULTS, POLL: POLL_FAULTS})
for engine in ("iterative", "thread", "process", "event"):
    errors = {ACCEPT: ACCEPT_FAULTS}
    if engine == "process":  # the calls in its children are those of the other engines
        errors |= {FORK: [errno.EAGAIN, errno.ENOMEM], PIPE: [errno.EMFILE, errno.ENFILE]}
    if engine == "thread":
        errors |= {PTHREAD_CREATE: [errno.EAGAIN]}
    if engine == "event":
        errors |= {RECV: PASSING, SEND: PASSING, SENDMSG: PASSING, EPOLL_WAIT: [errno.EINTR]}
    SCENARIOS[f"a server, engine={engine!r}"] = (serving(engine), errors)
SCENARIOS["an event loop and its inbox"] = (adopting, {WRITE: [errno.EINTR, errno.EPIPE, errno.ENOMEM]})
CUTTING = [errno.ECONNRESET, errno.EPIPE, errno.ENOBUFS, errno.ENOMEM]
WATCHING_FAULTS = [errno.ENOMEM, errno.ENOSPC]
for engine in ("iterative", "thread", "event"):
    SCENARIOS[f"a server that may cut, engine={engine!r}"] = (
        surviving(partial(EchoServer, engine=engine, drain_timeout=10.0), DATA),
        {RECV: CUTTING, SEND: CUTTING} | ({SENDMSG: CUTTING, EPOLL_CTL: WATCHING_FAULTS} if engine == "event" else {}),
    )
SCENARIOS["a server of lines that may cut"] = (
    surviving(line_server, DATA + b"\n"),
    {RECV: PASSING + CUTTING, SEND: PASSING + CUTTING, EPOLL_CTL: WATCHING_FAULTS},
)
SCENARIOS["a server that splices"] = (
    surviving(bulk_server, DATA * 2000),
    {SPLICE: [SHORT, errno.EINTR, errno.EAGAIN, errno.EINVAL, errno.ECONNRESET, errno.EPIPE, errno.ENOMEM]},
)


def attempt(scenario, fault):
    """Run a scenario with a fault, and check that no descriptor is left of it."""
    before = set(os.listdir("/proc/self/fd"))
    scenario(fault)
    fault.disarm()
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor is still open"


def passing(errors):
    """Return those of the errors of each call that pass by themselves; a server pauses after those left out."""
    chosen = {call: [error for error in errors[call] if error in PASSING] for call in errors}
    return {call: chosen[call] for call in chosen if chosen[call] and call not in (FORK, PTHREAD_CREATE)}


def main(*, only_passing):
    for name, (scenario, errors) in SCENARIOS.items():
        if not only_passing:
            sweep(name, partial(attempt, scenario), errors, kind=Fault)
        elif passing(errors):
            sweep(name, partial(attempt, scenario), passing(errors), kind=Fault, most=2)


if __name__ == "__main__":
    main(only_passing=sys.argv[1:] == ["passing"])
