"""The limits of the system on descriptors and listen queues."""

from __future__ import annotations

import resource

#: Number of descriptors besides those of connections: standard streams, listeners, pipes, files that Python opens.
OWN_DESCRIPTORS = 64


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
