"""A line echo server as a handler of LineServer, with a function. usage: line_server.py [--busy] [UNIX-PATH].

With --busy another thread of the process computes all the time.
"""

from __future__ import annotations

import sys
import threading

from rioecho import LineServer


def compute() -> None:
    while True:
        sum(range(1000))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--busy" in arguments:
        arguments.remove("--busy")
        threading.Thread(target=compute, daemon=True).start()
    path = arguments[0] if arguments else None
    with LineServer(
        lambda lines: lines, None if path else 0, "127.0.0.1", unix=path, max_connections=0, backlog=4096
    ) as server:
        print("Listening on", path or f"127.0.0.1:{server.addresses[0][1]}", flush=True)
        server.wait()
