"""Every fault at every system call of a load test; run by tests/load/test_faults.py with faults.c preloaded.

A load test is run with the k-th call failing for k = 1, 2, ... until it makes fewer than k calls. A fault that passes
changes nothing; any other ends the test, or costs what was in flight on one connection, or is tried again. Each test
either succeeds or raises an OSError with the result so far, and no descriptor or thread is left. The servers are
processes of their own. Prints the number of injected faults of each scenario.
"""

import contextlib
import errno
import os
import socket
import sys
import threading
from pathlib import Path

from rioecho import EchoServer
from rioecho.bench import Plan, run

sys.path.append(str(Path(__file__).parents[1]))

from support.faults import (
    CONNECT,
    EPOLL_CREATE,
    EPOLL_CTL,
    EPOLL_WAIT,
    GETSOCKOPT,
    PIPE,
    POLL,
    PTHREAD_CREATE,
    READ,
    RECV,
    SEND,
    SETSOCKOPT,
    SHORT,
    SOCKET,
    WRITE,
    sweep,
)

SIZE = 64
RATE = 200
DURATION = 0.06
#: Faults after which a load test goes on as if nothing had happened.
PASSING = {
    RECV: [SHORT, errno.EINTR, errno.EAGAIN],
    SEND: [SHORT, errno.EINTR, errno.EAGAIN, errno.ENOBUFS],
    READ: [errno.EINTR, errno.EAGAIN],
    WRITE: [errno.EINTR, errno.EAGAIN],
    POLL: [errno.EINTR],
    EPOLL_WAIT: [errno.EINTR],
}
#: Faults that may end it.
FATAL = {
    RECV: [errno.ECONNRESET, errno.ETIMEDOUT, errno.ENOMEM],
    READ: [errno.EIO],
    POLL: [errno.ENOMEM],
    EPOLL_WAIT: [errno.ENOMEM],
    EPOLL_CTL: [errno.ENOMEM, errno.ENOSPC],
    PIPE: [errno.EMFILE, errno.ENFILE],
    SOCKET: [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EACCES],
    CONNECT: [errno.ECONNREFUSED, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.EINTR],
    GETSOCKOPT: [errno.ENOBUFS],
    SETSOCKOPT: [errno.EINVAL],
    EPOLL_CREATE: [errno.EMFILE, errno.ENFILE, errno.ENOMEM],
    PTHREAD_CREATE: [errno.EAGAIN],
}


def serve_honestly(reply):
    with EchoServer(0, "127.0.0.1") as server:
        os.write(reply, b"%d" % server.addresses[0][1])
        threading.Event().wait()


def serve_briefly(reply):
    """Echo three messages on each connection and close it."""

    def talk(sock):
        with sock, contextlib.suppress(ConnectionError):
            for _ in range(3):
                sock.sendall(sock.recv(SIZE, socket.MSG_WAITALL))

    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        os.write(reply, b"%d" % listener.getsockname()[1])
        while True:
            threading.Thread(target=talk, args=listener.accept()[:1], daemon=True).start()


def start(serve):
    """Run a server in a process that ends with this one; return the target of a plan."""
    source, reply = os.pipe()
    lives, life = os.pipe()  # the end of this process closes it
    if os.fork() == 0:
        os.close(life)
        threading.Thread(target=lambda: (os.read(lives, 1), os._exit(0)), daemon=True).start()
        serve(reply)
    os.close(reply)
    with open(source, "rb") as port:
        return f"127.0.0.1:{int(port.read(5))}"


def attempt(plan, fault):
    """Run a load test with a fault; return its result and its error, or None."""
    threads = threading.active_count()
    descriptors = set(os.listdir("/proc/self/fd"))
    fault.arm()
    try:
        result, error = run(plan, lambda progress: None, 0.01), None
    except OSError as caught:
        result, error = caught.result, caught
    finally:
        fault.disarm()
    assert result.error == (None if error is None else error.strerror or str(error))
    assert not result.interrupted
    assert result.messages <= result.total_messages <= result.histogram.count or result.duration_s < plan.duration
    assert threading.active_count() == threads
    assert set(os.listdir("/proc/self/fd")) == descriptors
    return result, error


def passing(target, reconnect):
    """Return a scenario in which every message is echoed, or lost with a connection that the server closes."""
    plan = Plan(target, **OPTIONS, reconnect=reconnect)

    def scenario(fault):
        result, error = attempt(plan, fault)
        assert error is None, error
        assert result.histogram.count + result.lost == RATE * DURATION, result
        assert reconnect or (result.lost, result.reconnects) == (0, 0)

    return scenario


def fatal(target, reconnect):
    plan = Plan(target, **OPTIONS, reconnect=reconnect)

    def scenario(fault):
        result, error = attempt(plan, fault)
        if error is None:
            assert result.histogram.count + result.lost == RATE * DURATION, result
        elif fault.call in (RECV, EPOLL_WAIT):
            assert result.duration_s > 0

    return scenario


OPTIONS = {
    "connections": 2,
    "message_bytes": SIZE,
    "rate": RATE,
    "duration": DURATION,
    "warmup": 0,
    "connect_timeout": 1.0,
    "stall_timeout": 1.0,
}


def main(step):
    honest, brief = start(serve_honestly), start(serve_briefly)
    large = Plan(honest, connections=1, message_bytes=8 << 20, duration=DURATION, warmup=0, stall_timeout=5.0)

    def blocked(fault):
        """Run a load test whose messages do not fit into the socket buffers, so that it waits to send."""
        result, error = attempt(large, fault)
        assert error is None or error.errno in FATAL[EPOLL_CTL], error
        assert error is not None or result.lost == 0

    scenarios = {
        "a load test, passing faults": (passing(honest, False), PASSING),
        "a load test": (fatal(honest, False), FATAL),
        "one that reconnects, passing faults": (passing(brief, True), PASSING),
        "one that reconnects": (fatal(brief, True), FATAL),
        "one that waits to send": (blocked, {EPOLL_CTL: [errno.ENOMEM]}),
    }
    for name, (scenario, faults) in scenarios.items():
        sweep(name, scenario, faults, step=step)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
