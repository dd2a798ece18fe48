"""A statsd server on TCP: prints what it has received every 10 seconds. Usage: ``statsd.py [PORT [SECONDS]]``.

A line is ``name:value|type``. The types are ``c``, a counter, which may be followed by ``|@rate``; ``g``, a gauge, to
which a value with a sign is added; and ``ms``, a time in milliseconds. The output is what Graphite reads.
"""

import math
import signal
import sys
import threading
import time
from collections import Counter, defaultdict

from rioecho import LineServer

counters, gauges, timers = Counter(), Counter(), defaultdict(list)
lock = threading.Lock()


def count(line):
    name, rest = line.decode().strip().rsplit(":", 1)
    text, kind, *rate = rest.split("|")
    if not math.isfinite(value := float(text)):
        raise ValueError("not a number")
    if kind == "c":
        counters[name] += value / float(rate[0].removeprefix("@") if rate else 1)
    elif kind == "g":
        gauges[name] = value + (gauges[name] if text[0] in "+-" else 0)
    elif kind == "ms":
        timers[name].append(value)
    else:
        raise ValueError("no such type")


def receive(lines):
    with lock:  # the other thread prints
        for line in lines:
            try:
                count(line)
            except (ArithmeticError, ValueError):
                counters["statsd.bad_lines"] += 1


def flush(seconds):
    now = int(time.time())
    with lock:
        for name, total in counters.items():
            print(f"stats.{name}.count {total:g} {now}\nstats.{name}.rate {total / seconds:g} {now}")
        for name, value in gauges.items():
            print(f"stats.gauges.{name} {value:g} {now}")
        for name, times in timers.items():
            times.sort()
            for key, value in ("count", len(times)), ("median", times[len(times) // 2]), ("upper", times[-1]):
                print(f"stats.timers.{name}.{key} {value:g} {now}")
        counters.clear()
        timers.clear()
    sys.stdout.flush()


def main(port="8125", seconds="10"):
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with LineServer(receive, port) as server:
        print("Listening on port", server.addresses[0][1], flush=True)
        while not stopped.wait(float(seconds)):
            flush(float(seconds))
    flush(float(seconds))  # what has come since, until the last connection was closed


if __name__ == "__main__":
    main(*sys.argv[1:])
