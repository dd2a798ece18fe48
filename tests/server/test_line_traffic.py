"""Random traffic of a LineServer, with handlers that raise: every byte is accounted for.

RIOECHO_MINUTES sets its length. The actions of the clients are random and seeded; their interleaving is not.
"""

import contextlib
import logging
import os
import random
import socket
import threading
import time
from collections import Counter

import pytest

from rioecho import LineServer
from support.peers import Running, dial, reset
from support.procfs import until

DURATION = 60 * float(os.environ.get("RIOECHO_MINUTES", "0.5"))
CLIENTS = 12
LONGEST = 200_000


class Trouble(Exception):
    """Raised by the handler at random, and on request."""


class Handler:
    """Answers each line with its number, its length and itself; a few words are orders."""

    lock = threading.Lock()
    alive, counts, losses = {}, Counter(), Counter()

    def __init__(self):
        self.lines = self.size = 0
        self.ends = 0

    def connection_made(self, conn):
        self.conn = conn
        with self.lock:
            self.alive[conn.peer] = self
            self.counts["made"] += 1
        conn.write(b"hello\n")

    def lines_received(self, lines):
        answers = []
        for line in lines:
            self.lines += 1
            self.size += len(line)
            if line == b"RAISE\n":
                try:
                    self.conn.write(b"".join(answers))
                except BlockingIOError:  # pushes wait
                    self.counts["unanswered"] += bool(answers)
                raise Trouble
            if line == b"CLOSE\n":
                self.conn.close()
                break
            if line == b"ABORT\n":
                self.conn.abort()
                break
            if line == b"QUIET\n":
                continue
            answers.append(b"%d %d " % (self.lines, len(line)) + line)
        choice = self.lines % 3
        if choice == 0:
            return answers
        if choice == 1:
            return b"".join(answers)
        return (answer for answer in answers)

    def connection_lost(self, reason):
        self.ends += 1
        with self.lock:
            self.alive.pop(self.conn.peer, None)
            self.counts["lost"] += 1
            self.counts["lost twice"] += self.ends > 1
            self.counts["bytes"] += self.size
            self.losses[type(reason).__name__] += 1


class Stream:
    """Reads lines from a client's socket in a thread of its own; pushes are told from answers by their first byte."""

    def __init__(self, chance, sock):
        self.sock, self.answers, self.pushes, self.error = sock, [], [], None
        self.pause, self.piece = chance.choice([(0, 1 << 16), (0, 1000), (0.001, 50_000), (0.01, 1 << 16)])
        self.running = Running(self.read)

    def read(self):
        rest = b""
        try:
            while part := self.sock.recv(self.piece):
                *whole, rest = (rest + part).split(b"\n")
                for line in whole:
                    (self.pushes if line.startswith(b"!") else self.answers).append(line)
                if self.pause:
                    time.sleep(self.pause)
        except OSError as error:
            self.error = error
        self.rest = rest


def some_lines(chance):
    kind = chance.random()
    n = 1 if kind < 0.3 else chance.randrange(1, 200)
    longest = chance.choice([2, 20, 200, 2000]) if n > 1 else chance.choice([2, 100, 5000, 100_000, LONGEST - 1])
    return [b"%x" % chance.getrandbits(4 * longest) + b"\n" for _ in range(n)]


def talk(chance, address, totals, stop):
    """Be one client after the other until the stop."""
    try:
        while not stop.is_set():
            be_a_client(chance, address, totals)
    finally:
        stop.set()


def be_a_client(chance, address, totals):
    end = chance.choices(["finish", "raise", "close", "abort", "reset", "vanish", "long"], [10, 4, 4, 2, 3, 2, 1], k=1)[
        0
    ]
    with dial(address) as sock:
        stream = Stream(chance, sock)
        expected = []
        number = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(chance.randrange(1, 12)):
                batch = some_lines(chance)
                if chance.random() < 0.2:
                    batch.insert(chance.randrange(len(batch) + 1), b"QUIET\n")
                for line in batch:
                    number += 1
                    if line != b"QUIET\n":
                        expected.append(b"%d %d " % (number, len(line)) + line[:-1])
                data = b"".join(batch)
                while data:
                    size = chance.choice([len(data), len(data), 1 + len(data) // 3, min(len(data), 7)])
                    sock.sendall(data[:size])
                    data = data[size:]
                if chance.random() < 0.3:
                    time.sleep(chance.random() * 0.01)
            if end == "long":
                sock.sendall(b"x" * (LONGEST + 1))
            elif end in ("raise", "close", "abort"):
                sock.sendall(end.upper().encode() + b"\n" + (b"ignored\n" * 50 if end == "close" else b""))
            elif end == "finish" and chance.random() < 0.3:
                number += 1
                expected.append(b"%d 4 tail" % number)
                sock.sendall(b"tail")
            if end == "finish":
                sock.shutdown(socket.SHUT_WR)
        if end in ("reset", "vanish"):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD)  # ends the reading thread
        try:
            stream.running.result()
        except AssertionError as error:
            error.add_note(f"{end}, {stream.pause}, {stream.piece}: {len(stream.answers)} of {len(expected)}")
            raise
        if end == "reset":
            reset(sock)
        answers = stream.answers
        if end == "finish" and stream.rest:
            answers.append(stream.rest)
        if answers:
            assert answers[0] == b"hello"
            answers = answers[1:]
        totals["connections"] += 1
        totals[end] += 1
        totals["answers"] += len(answers)
        totals["pushes"] += len(stream.pushes)
        totals["bytes"] += sum(map(len, answers)) + len(answers)
        assert answers == expected[: len(answers)], f"a wrong answer after {len(answers)} at {end}"
        if end in ("finish", "raise", "close", "long"):
            assert stream.error is None, (end, stream.error)
            if end == "raise":
                totals["unanswered"] += len(answers) < len(expected)
            else:
                assert len(answers) == len(expected), f"{len(expected) - len(answers)} are missing at {end}"
        numbers = [int(push.split()[1]) for push in stream.pushes]
        assert numbers == sorted(set(numbers))


def push(chance, totals, stop):
    """Write to connections of others."""
    n = 0
    while not stop.is_set():
        with Handler.lock:
            alive = list(Handler.alive.values())
        for handler in chance.sample(alive, min(len(alive), 3)):
            n += 1
            try:
                handler.conn.write(b"! %d %s\n" % (n, b"p" * chance.choice([0, 10, 3000])))
                totals["pushed"] += 1
            except BlockingIOError:
                totals["refused"] += 1
            except ConnectionError:
                totals["late"] += 1
        time.sleep(0.01)  # less than a client reads: it is not read from while something waits for it


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_in_an_hour_of_traffic_every_byte_is_accounted_for(workers, caplog):
    seed = os.environ.get("RIOECHO_SEED") or str(workers)
    caplog.set_level(logging.CRITICAL, "rioecho.server")
    Handler.alive, Handler.counts, Handler.losses = {}, Counter(), Counter()
    totals, stop = [Counter() for _ in range(CLIENTS + 1)], threading.Event()
    with LineServer(Handler, host="127.0.0.1", workers=workers, max_line=LONGEST, write_limit=1 << 18) as server:
        address = server.addresses[0]
        running = [Running(talk, random.Random(f"{seed} {i}"), address, totals[i], stop) for i in range(CLIENTS)]
        running.append(Running(push, random.Random(f"{seed} push"), totals[-1], stop))
        stop.wait(DURATION / 2)
        stop.set()
        for each in running:
            each.result()
        until(lambda: server.stats()["active"] == 0)
        stats = server.stats()
    total = sum(totals, Counter())
    report = f"seed {seed}: {dict(total)}, {dict(Handler.counts)}, {dict(Handler.losses)}, {stats}"
    print(report)
    assert Handler.counts["made"] == Handler.counts["lost"] == stats["accepted"] == total["connections"], report
    assert not Handler.counts["lost twice"], report
    assert not Handler.alive, report
    assert Handler.losses["LineTooLong"] == total["long"], report
    assert Handler.losses["Trouble"] == total["raise"], report
    assert total["unanswered"] <= Handler.counts["unanswered"], report
    assert total["bytes"] <= stats["bytes_out"], report
