"""The limits of the system on descriptors and listen queues."""

from __future__ import annotations

import resource

#: Number of descriptors besides those of connections: standard streams, listeners, pipes, files that Python opens.
OWN_DESCRIPTORS = 64


def shortages(connections: int, backlog: int) -> list[str]:
    """Return what the system allows less of than the limits of a server ask for, as warnings.

    ``connections`` is its limit of connections, 0 for none; ``backlog`` is 0 if it does not listen.
    """
    found = []
    most, longest = descriptors(), longest_queue()
    if connections and most is not None and most < connections + OWN_DESCRIPTORS:
        found.append(f"{most} file descriptors are too few for max_connections ({connections}): raise ulimit -n")
    if longest is not None and longest < backlog:
        found.append(f"the backlog is {longest}, the kernel's limit, not {backlog}: raise net.core.somaxconn")
    return found


def descriptors() -> int | None:
    """Return the number of descriptors that the process may have; None if there is no limit."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if most == resource.RLIM_INFINITY else most


def longest_queue() -> int | None:
    """Return the kernel's limit of a listen queue, or None if it is unknown."""
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
