"""Run one side of a row in a process of its own: a program that reads with the files of ``socket.makefile``.

    client.py SIDE MODULE FUNCTION ARGUMENTS

The function of the package ``clients`` connects to its peer; with the side "rioecho", ``rioecho.makefile`` is in place
of ``socket.socket.makefile``, and with "bare" a file that only receives. Each line on stdin is a number of operations
to run. The answer is a line of JSON: what they cost. A process of its own, because the cost of memory depends on what
the allocator was asked for before.
"""

from __future__ import annotations

import importlib
import json
import socket
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # -P leaves it out

from clients import bare
from measure import Meter, Spent

import rioecho

MAKEFILES = {"rioecho": rioecho.makefile, "stdlib": socket.socket.makefile, "bare": bare.makefile}


def main() -> None:
    side, module, function, arguments = sys.argv[1:]
    opened = 0
    makefile = MAKEFILES[side]

    def counting(*args, **options):
        nonlocal opened
        opened += 1
        return makefile(*args, **options)

    socket.socket.makefile = counting
    work = getattr(importlib.import_module(f"clients.{module}"), function)
    meter = Meter()
    with work(meter, **json.loads(arguments)) as run:
        meter.start()
        run(1)
        if not opened:
            raise RuntimeError(f"{module}.{function} calls no makefile")
        socket.socket.makefile = makefile
        say("ready")
        for line in sys.stdin:
            meter.spent = Spent()
            meter.start()
            run(int(line))
            meter.stop()
            say({name: value / int(line) for name, value in asdict(meter.spent).items()})


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
