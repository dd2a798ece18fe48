"""What the scripts that inject faults have in common: the calls of faults.c, a fault, and the sweep over all calls.

A script is run in a child process with faults.c preloaded (sweep.py).
"""

import ctypes
import os

READ, RECV, WRITE, SEND, POLL, ACCEPT, SENDMSG, EPOLL_WAIT, EPOLL_CTL, FORK, PIPE = range(11)
SOCKET, CONNECT, GETSOCKOPT, SETSOCKOPT, EPOLL_CREATE, PTHREAD_CREATE, READV = range(11, 18)
SHORT = -1  # in place of an errno: transfer only one byte

#: What the scenarios transfer.
DATA = b"".join(b"%d " % i * (i % 7) + b"\n" for i in range(40)) + b"x" * 700 + b"\nthe rest"

shim = ctypes.CDLL(None)


class Fault:
    """The fault of one run: ``error`` at the k-th ``call`` after ``arm()``."""

    def __init__(self, call, k, error):
        self.call, self.k, self.error = call, k, error

    def arm(self):
        shim.fault_arm(self.call, self.k, self.error)

    def disarm(self):
        shim.fault_disarm()

    def __str__(self):
        return f"call {self.call}, number {self.k}, error {self.error}"


def sweep(name, attempt, faults, *, kind=Fault, step=1):
    """Make an attempt with each fault at the k-th call, for k = 1, 1 + step, ... until it makes fewer than k calls.

    ``faults`` are the errors of each call. Prints how many faults were injected; none is an error.
    """
    made = 0
    for call, errors in faults.items():
        for error in errors:
            k = 1
            while True:
                fault = kind(call, k, error)
                try:
                    attempt(fault)
                except BaseException as failure:
                    failure.add_note(f"{name}: {fault}")
                    raise
                if not shim.fault_fired():
                    break
                made += 1
                k += step
    print(f"{name}: {made}", flush=True)
    assert made, f"{name}: no fault was injected"


def read_all(fd):
    """Read a descriptor to its end, and close it."""
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    os.close(fd)
    return b"".join(parts)
