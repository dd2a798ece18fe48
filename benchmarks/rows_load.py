"""The row about the loop of rioecho-bench: the rate of one core, compared with load.c, both against the C server."""

from __future__ import annotations

import statistics
import time

from measure import Measured, Row, Settings
from processes import C_EPOLL, loading, serving
from rows_server import SESSIONS, needs_proc, run_once

from rioecho import bench

PAIRS = 8
HOW = {"connections": 50, "pipeline": 32, "message_bytes": 64}


def measure(settings: Settings) -> Measured:
    needs_proc()
    rates, cpus = [], []
    for _ in range(settings.sessions or SESSIONS):
        with serving(C_EPOLL, settings, unix=False) as (pid, where):
            plan = bench.Plan(
                f"127.0.0.1:{where}", duration=settings.seconds, warmup=settings.warm_up, threads=1, **HOW
            )
            how = ["-c", 50, "-p", 32, "-d", settings.seconds, "-u", settings.warm_up]
            with loading(where, settings, *how) as load:
                run_once(pid, load)  # warm
                for _ in range(settings.pairs or PAIRS):
                    begun = time.process_time()
                    result = bench.run(plan)
                    cpu = (time.process_time() - begun) / max(result.total_messages, 1)
                    peer = run_once(pid, load)
                    rates.append((result.rate, peer.rate))
                    cpus.append(cpu / peer.load_cpu)
    return Measured(rates, details={"cpu_ratio": statistics.median(cpus)})


def rows() -> list[Row]:
    name = "rioecho-bench, one thread, beside a load in C"
    return [Row(name, "rioecho-bench", "load.c, which measures no latencies", "/s", measure, 0.95)]
