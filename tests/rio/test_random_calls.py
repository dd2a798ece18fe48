"""Random calls of all methods of a Rio and of a text file.

They are made by two threads, and by the signal handlers, finalizers and forks in them.

RIOECHO_SOAK_SECONDS sets the duration, RIOECHO_SOAK_SEED the first seed. In half of the sessions nothing is closed, and
each byte is accounted for on both sides. In the others a Rio may be closed at any time, and only the types of the
exceptions are checked.
"""

import contextlib
import itertools
import os
import pty
import random
import select
import shutil
import signal
import socket
import ssl
import sys
import threading
import time
import tty
import warnings
from functools import partial

import pytest

import rioecho
from rioecho import ConcurrentCall, IncompleteRead, LineTooLong, Rio
from support import certificates
from support.procfs import until

SECONDS = float(os.environ.get("RIOECHO_SOAK_SECONDS", "10"))
SEED = int(os.environ.get("RIOECHO_SOAK_SEED", "0"))
SESSION = 0.25  # seconds
REST = 60  # seconds after which a test fails
BLOCK = random.Random(0).randbytes(1 << 16).replace(b"\0", b"\n")
PTY_TAKES = 1024  # maximum number of bytes of one write to a terminal
NAME = 10  # length in bytes of the name at the beginning of a record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"),
]


def stream_of(n, at):
    """Return n bytes of an endless stream, from position ``at``."""
    start = at % len(BLOCK)
    return (BLOCK * ((start + n) // len(BLOCK) + 1))[start : start + n]


class Alarm(Exception):
    """Raised by the signal handler."""


#: The exceptions that a call may raise.
EXPECTED = (TimeoutError, BlockingIOError, ConcurrentCall, LineTooLong, IncompleteRead, Alarm)
#: The exceptions that a call may raise while the Rio or its descriptor may be closed by another call.
CLOSING = (*EXPECTED, OSError, ValueError)


class Source:
    """A descriptor whose ``fileno()`` is Python code, which sometimes makes a call itself."""

    def __init__(self, fd):
        self.fd = fd
        self.meanwhile = lambda: None

    def fileno(self):
        self.meanwhile()
        return self.fd

    def close(self):
        """Leave the descriptor to the session."""


def keep_signals_out():
    """Block the signal in this thread. The main thread must get it: see the remaining races in _rio/tls.pyx."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})


class Peer:
    """The peer: sends the stream and stores the bytes received, without blocking."""

    def __init__(self, reads, writes, tls=None):
        self.reads, self.writes, self.tls = reads, writes, tls
        self.got, self.fed = bytearray(), 0
        self.feeding, self.stop = True, False
        self.error = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        keep_signals_out()
        try:
            chance = random.Random(5)
            pending = b""
            while not self.stop:
                moved = self.take()
                if not pending and self.feeding and self.writes is not None:
                    pending = stream_of(chance.choice([2 if self.tls else 1, 7, 100, 1000, 20_000]), self.fed)
                if pending:
                    n = self.give(pending)
                    self.fed += n
                    moved = moved or n
                    # Bytes that a TLS socket could not send must be passed to it again.
                    pending = pending[n:] if self.feeding or self.tls else b""
                if not moved:
                    select.select([fd for fd in (self.reads,) if fd is not None], [], [], 0.002)
        except OSError as error:
            self.error = error  # expected in a session that closes descriptors

    def take(self):
        if self.reads is None:
            return 0
        try:
            data = self.tls.recv(1 << 16) if self.tls else os.read(self.reads, 1 << 16)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        if not data:
            self.reads = None
        self.got += data
        return len(data)

    def give(self, data):
        try:
            return self.tls.send(data) if self.tls else os.write(self.writes, data[:PTY_TAKES])
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def end(self):
        self.stop = True
        self.thread.join(REST)
        assert not self.thread.is_alive()


def made_of(whole, records):
    """Report whether ``whole`` consists of these records, in any order. Each has a unique name and may be truncated."""
    named = {record[:NAME]: record for record in records if len(record) >= NAME}
    short = [record for record in records if 0 < len(record) < NAME]
    at = 0
    while at < len(whole):
        record = named.pop(bytes(whole[at : at + NAME]), None)
        if record is None:
            record = next((each for each in short if whole.startswith(each, at)), None)
            if record is None:
                return False
            short.remove(record)
        if not whole.startswith(record, at):
            return False
        at += len(record)
    return not named and not short


class Session:
    """Random calls on one descriptor."""

    def __init__(self, kind, chance, contexts):
        self.chance, self.kind = chance, kind
        self.closing = chance.random() < 0.5
        self.calls = 0
        self.read, self.wrote = [], []  # pieces, in the order in which they were noted
        self.armed = self.inside = self.child = False
        self.stop = threading.Event()
        self.trouble = []
        self.ids = itertools.count()
        self.ends = []
        self.encoding = chance.choice(["utf-8", "latin-1"])  # of a text file
        self.open(contexts)

    def open(self, contexts):
        tls = None
        sock = None
        far_out = far_in = None
        if self.kind == "terminal":
            far_in, self.fd = pty.openpty()
            tty.setraw(self.fd)
            far_out = far_in
            self.ends = [far_in, self.fd]
        elif self.kind == "pipe in":
            self.fd, far_out = os.pipe()
            self.ends = [self.fd, far_out]
        elif self.kind == "pipe out":
            far_in, self.fd = os.pipe()
            self.ends = [self.fd, far_in]
        else:
            sock, far = socket.socketpair()
            if self.kind == "tls":
                made = []
                server, client = contexts
                thread = threading.Thread(target=lambda: made.append(server.wrap_socket(far, server_side=True)))
                thread.start()
                sock = client.wrap_socket(sock, server_hostname="localhost")
                thread.join(REST)
                far = tls = made[0]
            far.setblocking(False)
            self.fd = sock.fileno()
            far_in = far_out = far.fileno()
            self.ends = [sock, far]
        for fd in (far_in, far_out):
            if fd is not None:
                os.set_blocking(fd, False)
        if sock is None:
            os.set_blocking(self.fd, self.chance.random() < 0.5)
        elif self.kind == "socketpair" and self.chance.random() < 0.3:
            os.set_blocking(self.fd, False)
        self.sock = sock
        if self.kind in ("tls", "text"):
            self.source = sock
        else:
            self.source = Source(self.fd) if self.chance.random() < 0.5 else sock or self.fd
        self.peer = Peer(far_in, far_out, tls)
        self.rio = self.new_rio()
        if isinstance(self.source, Source):
            self.source.meanwhile = self.in_fileno

    def the_rio(self):
        """Return the Rio, also that of a text file. Raises ``ValueError`` if that has been detached."""
        rio = self.rio.buffer if self.kind == "text" else self.rio
        if rio is None:
            raise ValueError("detached")
        return rio

    def gone(self):
        """Report whether the Rio or text file has been closed or detached."""
        try:
            return self.rio.closed
        except ValueError:  # of a text file that has been detached
            return True

    def new_rio(self):
        if self.kind == "text":
            self.sock.settimeout(0.003)
            return rioecho.makefile(self.sock, "rw", encoding=self.encoding, errors="surrogateescape", newline="")
        size = self.chance.choice([1, 64, 1000, 65536])
        timeout = self.chance.choice([0, 0.0005, 0.003])
        if self.sock is not None and self.source is self.sock and self.closing and self.chance.random() < 0.2:
            self.sock.settimeout(0.003)
            return rioecho.makefile(self.sock, "rwb")
        owns = self.closing and isinstance(self.source, Source)
        return Rio(self.source, bufsize=size, timeout=timeout, max_line=300, closefd=owns)

    # ---- single calls

    def reading(self, rio, chance):
        """Return a random call that reads, and the buffer that it fills, if any."""
        n = chance.choice([0, 1, 5, 50, 1500, 70_000])
        if self.kind == "text":
            sized = [partial(each, n) for each in (rio.read, rio.readline)]
            return chance.choice([rio.readline, rio.__next__, *sized, partial(rio.readlines, n + 1)]), None
        timeout = chance.choice([0, 0.0005, 0.003, ...])
        buffer = bytearray(n)
        call = chance.choice(
            [rio.readline, rio.readlines1, rio.read1, rio.read_buffered, rio.has_line, rio.peek, rio.fill]
            + [rio.skipline]
            + [partial(each, n) for each in (rio.read, rio.readexactly, rio.readline, rio.fill)]
            + [partial(each, buffer) for each in (rio.readinto, rio.readinto1)]
            + [partial(rio.readuntil, BLOCK[:2], n + 1), partial(rio.readlines, n + 1), rio.__next__]
        )
        if call not in (rio.read_buffered, rio.has_line, rio.__next__):
            call = partial(call, timeout=timeout)
        return call, buffer

    def writing(self, rio, chance):
        """Return a random call that writes, and its data."""
        name = b"<%08d>" % next(self.ids)
        data = name + stream_of(chance.choice([0, 1, 50, 999, 70_000 if self.kind != "terminal" else 3000]), 0)
        if self.kind == "text":
            data = data.decode(self.encoding, "surrogateescape")
        cut = len(data) // 2
        if self.kind == "text":
            calls = [(partial(rio.write, data), data), (partial(rio.writelines, [data[:cut], data[cut:]]), data)]
            return chance.choice([*calls, (rio.flush, "")])
        timeout = chance.choice([0, 0.0005, 0.003, ...])
        return chance.choice(
            [
                (partial(rio.write, data), data),
                (partial(rio.write, bytearray(data)), data),
                (partial(rio.writen, data, timeout=timeout), data),
                (partial(rio.writelines, [data[:cut], data[cut:]]), data),
                (partial(rio.flush, timeout=timeout), b""),
            ]
        )

    def looking(self, rio, chance):
        names = ["closed", "buffered", "timeout", "max_line"]
        if self.kind == "text":
            names = ["closed", "buffer", "newlines", "errors"]
        if chance.random() < 0.5:
            return partial(getattr, rio, chance.choice(names)), None
        name = chance.choice(["readable", "writable", "isatty", "fileno", "seekable", "__repr__"])
        return getattr(rio, name), None

    def ending(self, rio, chance):
        if self.kind == "text":
            return chance.choice([rio.close, rio.detach]), None
        return chance.choice([rio.close, rio.detach, rio.__del__]), None

    def attempt(self, chance):
        """Make one random call and note what it read or wrote. A handler that raises must not prevent the note."""
        rio = self.rio
        self.calls += 1
        kinds = [self.reading] * 8 + [self.writing] * 8 + [self.looking] * 2 + [self.ending] * self.closing
        if self.kind == "pipe in":
            kinds = [self.reading] * 8 + [self.looking] + [self.ending] * self.closing
        elif self.kind == "pipe out":
            kinds = [self.writing] * 8 + [self.looking] + [self.ending] * self.closing
        kind = chance.choice(kinds)
        if kind == self.looking and self.kind != "text" and chance.random() < 0.3:
            rio.timeout = chance.choice([0, 0.0005, 0.003])
        note = None
        results = []
        main = threading.current_thread() is threading.main_thread()
        try:
            call, note = kind(rio, chance)
            if main and not self.inside:
                self.armed = True
            # Only C code: no handler and no other thread runs between the return of the call and its note.
            log = self.read if kind == self.reading else results
            log.extend(zip([(call, note)], iter(call, results), strict=False))
            if main:
                self.armed = False
        except BaseException as error:
            if main:
                self.armed = False
            if not isinstance(error, CLOSING if self.closing else (*EXPECTED, StopIteration)):
                raise
            if kind == self.writing and not results:
                self.wrote.append(self.as_bytes(note[: getattr(error, "characters_written", 0)] if note else b""))
                return
        if kind == self.writing and results:
            self.wrote.append(self.as_bytes(note))

    def as_bytes(self, data):
        return data.encode(self.encoding, "surrogateescape") if isinstance(data, str) else data

    def pieces(self):
        """Yield the pieces that were read, in order; a number stands for bytes that were skipped."""
        for (call, buffer), result in self.read:
            while isinstance(call, partial):
                call = call.func
            name = call.__name__
            if name in ("readinto", "readinto1"):
                yield bytes(buffer[:result])
            elif name not in ("has_line", "peek", "fill"):
                yield from map(self.as_bytes, result if isinstance(result, list) else [result])

    # ---- callers

    def on_signal(self, *_):
        if self.inside or self.child:
            return
        self.inside, armed, self.armed = True, self.armed, False
        try:
            what = self.chance.random()
            if what < 0.3:
                self.attempt(self.chance)
            elif what < 0.31:
                self.fork()
        finally:
            self.inside, self.armed = False, armed
        if armed and self.chance.random() < 0.3:
            self.armed = False
            raise Alarm

    def in_fileno(self):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0)
        elif not self.inside and self.chance.random() < 0.1:
            self.inside, armed, self.armed = True, self.armed, False
            try:
                self.attempt(self.chance)
            finally:
                self.inside, self.armed = False, armed

    def fork(self):
        """Fork, and in the child make calls that neither read nor write: the parent uses the descriptor too."""
        pid = os.fork()
        if not pid:
            self.child = True
            status = 1
            try:
                signal.alarm(REST)
                warnings.simplefilter("ignore")
                rio = self.the_rio()
                for _ in range(10):
                    for call in (rio.read_buffered, rio.has_line, lambda: rio.write(b"")):
                        with contextlib.suppress(*CLOSING):
                            call()
                    self.looking(self.rio, self.chance)[0]()
                status = 0
            except ValueError:
                status = 0 if self.closing else 1
            except BaseException as error:
                print("in the child:", repr(error), file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            self.trouble.append(f"the child exited with status {status}")

    def beside(self):
        keep_signals_out()
        chance = random.Random(self.chance.random())
        try:
            while not self.stop.is_set():
                self.attempt(chance)
        except BaseException as error:
            self.trouble.append(error)

    def run(self):
        thread = threading.Thread(target=self.beside, daemon=True)
        before = signal.signal(signal.SIGALRM, self.on_signal)
        try:
            thread.start()
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            end = time.monotonic() + SESSION
            while time.monotonic() < end and not self.trouble:
                self.attempt(self.chance)
                if self.gone():
                    self.rio = self.new_rio()
        finally:
            self.inside = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.stop.set()
            thread.join(REST)
            signal.signal(signal.SIGALRM, before)
        try:
            assert not thread.is_alive(), "the second thread hangs"
            assert not self.trouble, self.trouble
            if not self.closing:
                self.account()
        finally:
            self.peer.end()
            self.close()
        return self.calls

    def account(self):
        """Receive the bytes in flight, and compare both sides."""
        rio = self.the_rio()
        self.peer.feeding = False
        end = time.monotonic() + REST
        if self.kind != "pipe in":
            rio.flush(timeout=REST)
            total = sum(map(len, self.wrote))
            until(lambda: len(self.peer.got) >= total, "the peer")
            assert len(self.peer.got) == total
            assert made_of(self.peer.got, self.wrote), "the peer received other bytes than were written"
        if self.kind != "pipe out":
            pieces = list(self.pieces())
            if self.kind == "text":
                with contextlib.suppress(TimeoutError):
                    while True:  # what a sized read has decoded beyond its size is not in the buffer
                        pieces.append(self.as_bytes(self.rio.read(1)))
            size = sum(piece if isinstance(piece, int) else len(piece) for piece in pieces)
            while time.monotonic() < end:
                try:
                    pieces.append(rio.read1(timeout=0.05))
                    size += len(pieces[-1])
                except TimeoutError:
                    if size == self.peer.fed and rio.buffered == 0:
                        break
            assert size == self.peer.fed
            at = 0
            for piece in pieces:
                if not isinstance(piece, int):
                    assert piece == stream_of(len(piece), at), "other bytes were read than the peer sent"
                at += piece if isinstance(piece, int) else len(piece)

    def close(self):
        self.source = None
        if not self.gone():
            self.rio.timeout = 0  # a text file has its socket's
            with contextlib.suppress(OSError):
                self.rio.close()
        for end in self.ends:
            with contextlib.suppress(OSError):
                os.close(end) if isinstance(end, int) else end.close()


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    """Return the SSL contexts of a server and of a client, or None without the openssl command."""
    if not shutil.which("openssl"):
        return None
    return certificates.contexts(*certificates.make(tmp_path_factory.mktemp("certificate")))


@pytest.mark.filterwarnings("ignore:the unsent output of:ResourceWarning")  # Rios are dropped in any state
def test_random_calls_lose_nothing_and_break_nothing(contexts, capsys):
    kinds = ["terminal", "pipe in", "pipe out", "socketpair", "text"] + ["tls"] * (contexts is not None)
    calls = dict.fromkeys(kinds, 0)
    end = time.monotonic() + SECONDS
    for number, kind in zip(itertools.count(SEED), itertools.cycle(kinds)):
        if time.monotonic() > end and all(calls.values()):
            break
        try:
            calls[kind] += Session(kind, random.Random(number), contexts).run()
        except BaseException as error:
            error.add_note(f"in a session of RIOECHO_SOAK_SEED={number}, {kind}")
            raise
    with capsys.disabled():
        print(f"\n{sum(calls.values())} random calls: {calls}", flush=True)
