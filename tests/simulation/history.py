"""One history: the accept loop and the event loop of a server, which the seed's clients use in the model of a kernel.

The library of the folder ``model`` must be preloaded; run.py does that.
"""

import ctypes
import logging
import random
import signal
import sys
import threading

from rioecho._core.budget import MemoryBudget
from rioecho._server.acceptor import Acceptor
from rioecho._server.eventloop import EventLoop
from rioecho._server.handling import Handling
from rioecho._server.hosts import HostTable
from rioecho._server.lineconnection import Connection
from rioecho._server.notify import Stop, WakePipe

SECOND = 1_000_000_000
EINVAL, ENOSYS = 22, 38
LISTENER = 1  # enum kind of model.h


class Plan(ctypes.Structure):
    """``struct plan`` of model.h."""

    _fields_ = [
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_int64) for name in ("idle", "drain", "stop_at")),
        *((name, ctypes.c_uint64) for name in ("max_line", "max_memory")),
        *(
            (name, ctypes.c_int)
            for name in (
                *("clients", "limit", "per_host", "span_ms", "raw", "lines", "handled", "big", "no_splice"),
                *("interrupt", "refuse", "cut", "fail", "preempt", "spurious", "freeze", "scarce", "corrupt", "trace"),
            )
        ),
    ]


class Counts(ctypes.Structure):
    """``struct counts`` of model.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "accepted",
            "refused",
            "closed",
            "errors",
            "bytes_in",
            "bytes_out",
            "lines",
            "ended",
            "resets",
            "idle",
            "left",
            "unsure",
        )
    ]


logging.getLogger("rioecho.server").addHandler(logging.NullHandler())
logging.getLogger("rioecho.server").propagate = False
model = ctypes.CDLL(None)
model.history_end.restype = ctypes.c_uint64


class Listener:
    """A listening socket of the model, as far as the accept loop needs it."""

    def __init__(self):
        self.fd = model.file_open(LISTENER, None, None)

    def fileno(self):
        return self.fd

    def close(self):
        if self.fd >= 0:
            model.close(self.fd)
            self.fd = -1


def choose(seed):
    """Return the plan of a seed, and the options of the loop that the model need not know."""
    chance = random.Random(seed)
    plan = Plan(seed=seed)

    def rate(most, often=0.5):
        return chance.randrange(1, most) if chance.random() < often else 0

    plan.raw = chance.random() < 0.4
    plan.clients = chance.choice([1, 2, 3, 5, 8, 8, 20]) if chance.random() < 0.99 else 270
    plan.span_ms = chance.choice([0, 1, 50, 3000])
    plan.max_memory = chance.choice([0, 0, 0, 70_000, 200_000, 1_000_000])
    idle = chance.choice([None, 0.05, 1.0, 7.0, *([] if plan.max_memory else [300.0])])
    drain = chance.choice([None, 0.1, 5.0, 5.0])
    plan.idle = -1 if idle is None else int(idle * SECOND)
    plan.drain = -1 if drain is None else int(drain * SECOND)
    plan.stop_at = int(10 ** chance.uniform(5, 10)) if chance.random() < 0.5 else 30_000 * SECOND
    plan.max_line = chance.choice([0, 1, 7, 200, 5000, 65_536, 1 << 20])
    if plan.max_memory:  # while it is short, the loop looks for it every 10 ms
        plan.stop_at = min(plan.stop_at, 60 * SECOND)
    plan.limit = chance.choice([0, 0, 1, 3])
    plan.per_host = chance.choice([0, 0, 0, 2])
    plan.big = rate(400, 0.3)
    plan.no_splice = chance.choice([0, 0, 0, EINVAL, ENOSYS])
    plan.interrupt = rate(100)
    plan.refuse = rate(200)
    plan.cut = rate(600)
    plan.fail = rate(10, 0.3)
    plan.preempt = rate(300)
    plan.spurious = rate(60)
    plan.freeze = rate(30, 0.2)
    plan.scarce = rate(200, 0.2)
    plan.lines = chance.random() < 0.1
    plan.handled = chance.choice([0, 0, 1, 2])
    return plan, idle, drain, chance.choice(["epoll", "epoll", "poll"])


class Moody:
    """A handler that echoes, and ends the connection at lines that begin with some letters (model/rules.c)."""

    made, lost = 0, 0

    def connection_made(self, conn):
        Moody.made += 1
        self.conn = conn

    def data_received(self, data):
        self.conn.write(data[: len(data) // 2])
        return data[len(data) // 2 :]

    def lines_received(self, lines):
        answer = []
        for line in lines:
            if line.startswith(b"x"):
                raise ValueError
            if line.startswith(b"z"):
                self.conn.abort()
                break
            answer.append(line)
            if line.startswith(b"q"):
                self.conn.close()
                break
        self.conn.write(b"".join(answer[:1]))
        return answer[1:]

    def connection_lost(self, reason):
        Moody.lost += 1
        self.conn = None


class Engine:
    """What the accept loop hands connections to: one event loop, in a thread of its own."""

    at_once = None

    def __init__(self, loop, handling):
        self.loop = loop
        self.handling = handling
        self.counts = (loop.counts,)
        self.threads = ()
        self.report_closings = loop.report_closings
        self.error = None
        self.thread = threading.Thread(target=self.run)

    def serve(self, connection, drain):
        with_object = self.handling is not None and self.handling.has_objects
        self.loop.adopt(connection, Connection(connection, self.handling) if with_object else None)

    def run(self):
        model.history_loop_begins()
        try:
            self.loop.run()
        except BaseException as error:
            self.error = error
        finally:
            model.history_loop_ends()


def run(seed, *, trace=False, corrupt=False):
    """Run the history of a seed. Returns its hash and what the model counted; a broken rule ends the process."""
    plan, idle, drain, poller = choose(seed)
    plan.trace, plan.corrupt = trace, 20 * corrupt
    if trace:
        print(f"seed {seed}: {poller},", ", ".join(f"{name}={getattr(plan, name)}" for name, _ in plan._fields_[1:]))
    model.history_begin(ctypes.byref(plan))
    memory = MemoryBudget(plan.max_memory)
    stop = Stop(drain)
    closings = WakePipe(armed=False)

    def on_closed(*what):
        if trace:
            print("closed:", *what, file=sys.stderr, flush=True)
        closings.wake()

    hosts = HostTable(plan.per_host) if plan.per_host else None
    handling = None
    if plan.handled:
        handler = Moody if plan.handled == 2 else lambda received: received
        handling = Handling(handler, raw=bool(plan.raw), max_line=plan.max_line, write_limit=0)
    reported = []
    loop = EventLoop(
        "raw" if plan.raw else "line",
        idle_timeout=idle,
        max_line=plan.max_line,
        drain_timeout=drain,
        stop_fd=stop.fd,
        on_closed=on_closed,
        on_line=reported.append if plan.lines else None,
        memory=memory,
        hosts=hosts,
        handling=handling,
        poller=poller,
    )
    engine = Engine(loop, handling)
    listener = Listener()
    acceptor = Acceptor(
        [listener],
        engine,
        limit=plan.limit,
        backlog=0,
        stop=stop,
        closings=closings,
        hosts=hosts,
    )
    signal.signal(signal.SIGTERM, lambda number, frame: stop.request())
    engine.thread.start()
    acceptor.run()
    if acceptor.take_the_queue():
        listener.close()
    acceptor.serve_the_queue()
    listener.close()
    loop.no_more()
    model.history_join()
    engine.thread.join()
    if engine.error is not None:
        raise engine.error
    loop.close()
    acceptor.close()
    stop.close()
    closings.close()
    found = Counts()
    digest = model.history_end(ctypes.byref(found))
    counts = loop.counts.now()
    counts["accepted"], counts["refused"] = acceptor.counts.accepted, acceptor.counts.refused
    expected = {name: getattr(found, name) for name in counts}
    if plan.raw:
        expected["lines"] = 0
    if expected["errors"] <= counts["errors"] <= expected["errors"] + found.unsure:
        expected["errors"] = counts["errors"]
    assert Moody.made == Moody.lost, f"seed {seed}: {Moody.made} handlers were made, {Moody.lost} lost"
    assert counts == expected, f"seed {seed}: counted {counts}, not {expected}"
    assert memory.used == 0, f"seed {seed}: {memory.used} bytes of the budget are taken"
    if plan.lines:
        assert found.bytes_out <= sum(reported) <= found.bytes_in, f"seed {seed}: lines of {sum(reported)} bytes"
    return digest, found
