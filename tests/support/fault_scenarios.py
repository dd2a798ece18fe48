"""Every fault at every system call of each scenario; run by test_faults.py in a child process with faults.c preloaded.

A scenario transfers DATA and continues after each error as documented. It is run with the k-th call failing for
k = 1, 2, ... until it makes fewer than k calls. After each run the data must be complete and in order, and no
descriptor may be open. Prints the number of injected faults of each scenario.
"""

import errno
import os
import select
import socket
import sys
import threading
from functools import partial
from pathlib import Path

from rioecho import EchoServer, Rio, echo

sys.path.append(str(Path(__file__).parents[1]))

from support.faults import (
    ACCEPT,
    DATA,
    EPOLL_WAIT,
    FORK,
    PIPE,
    POLL,
    READ,
    RECV,
    SEND,
    SENDMSG,
    SHORT,
    WRITE,
    read_all,
    sweep,
)

READING_FAULTS = [SHORT, errno.EINTR, errno.EAGAIN, errno.ECONNRESET, errno.ENOBUFS, errno.ENOMEM]
WRITING_FAULTS = [SHORT, errno.EINTR, errno.EAGAIN, errno.ECONNRESET, errno.EPIPE, errno.ENOBUFS, errno.ENOMEM]
POLL_FAULTS = [errno.EINTR, errno.ENOMEM]
ACCEPT_FAULTS = [errno.EINTR, errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


def reading(make_pair, read):
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
            except OSError:
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
        except OSError:
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
            left = left[error.characters_written :]
    ours.close()
    thread.join()
    theirs.close()
    assert got == [data]


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
                    piece = piece[error.characters_written :]
                else:
                    break
        while True:
            try:
                rio.flush()
            except OSError:
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
            back, unsent = error.characters_written, error.unsent
        fault.disarm()
        rest = Rio(ours).read()
        ours.close()
        echoed = Rio(theirs).read()
        theirs.close()
        assert len(echoed) == back
        assert echoed + unsent + rest == DATA

    return scenario


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
    faults = {RECV: READING_FAULTS, SEND: WRITING_FAULTS, POLL: POLL_FAULTS}
    SCENARIOS[f"echo(framing={framing!r})"] = (echoing(framing), faults)
SCENARIOS["a dripping peer"] = (dripping, {RECV: READING_FAULTS, POLL: POLL_FAULTS})
SCENARIOS["a slow reader"] = (draining, {POLL: POLL_FAULTS})
PASSING = [SHORT, errno.EINTR, errno.EAGAIN]
for engine in ("iterative", "thread", "process", "event"):
    faults = {ACCEPT: ACCEPT_FAULTS}
    if engine == "process":  # the calls in its children are those of the other engines
        faults |= {FORK: [errno.EAGAIN, errno.ENOMEM], PIPE: [errno.EMFILE, errno.ENFILE]}
    if engine == "event":
        faults |= {RECV: PASSING, SEND: PASSING, SENDMSG: PASSING, EPOLL_WAIT: [errno.EINTR]}
    SCENARIOS[f"a server, engine={engine!r}"] = (serving(engine), faults)


def attempt(scenario, fault):
    """Run a scenario with a fault, and check that no descriptor is left of it."""
    before = set(os.listdir("/proc/self/fd"))
    scenario(fault)
    fault.disarm()
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor is still open"


def main():
    for name, (scenario, faults) in SCENARIOS.items():
        sweep(name, partial(attempt, scenario), faults)


if __name__ == "__main__":
    sys.exit(main())
