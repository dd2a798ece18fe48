"""rioecho-server: the echo server as a command."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import signal
import sys
import threading

from rioecho import __version__
from rioecho.cli import Parser, complain, count, leave, open_standard_streams, port, seconds
from rioecho.engines import ENGINES
from rioecho.server import EchoServer

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import FrameType

PROG = "rioecho-server"


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog=PROG,
        usage="%(prog)s [options] PORT",
        description="Send back what clients send. Loopback only, unless --host says otherwise.",
        epilog=f"example: {PROG} 8000",
    )
    option = p.add_argument
    option("port", metavar="PORT", type=port, help="the TCP port; 0 picks a free one")
    option("--host", action="append", metavar="H", help="listen on H (repeatable; default: localhost)")
    option("--engine", choices=sorted(ENGINES), default="thread", help="default: %(default)s")
    option("--framing", choices=("line", "raw"), default="line", help="whole lines, or bytes as they come")
    option("--raw", dest="framing", action="store_const", const="raw", help="the same as --framing raw")
    option("--backlog", type=count, default=1024, metavar="N", help="connections that may wait (%(default)s)")
    option(
        "--idle-timeout",
        type=seconds,
        default=300.0,
        metavar="S",
        help="close what stands still; 0: never (%(default)g)",
    )
    option("--max-line", type=count, default=1 << 20, metavar="N", help="longer ones in pieces; 0: never (%(default)s)")
    option("--drain-timeout", type=seconds, default=5.0, metavar="S", help="for stopping, in seconds (%(default)g)")
    loudness = p.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true", help="log every line's length")
    loudness.add_argument("-q", "--quiet", action="store_true", help="log only what goes wrong")
    option("--version", action="version", version=f"%(prog)s {__version__}")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Exit status: 0 after SIGTERM or SIGINT, 1 for what the system refuses, 2 for wrong usage."""
    open_standard_streams()
    options = parser().parse_args(argv)
    log_writer = _LogWriter(logging.DEBUG if options.verbose else logging.WARNING if options.quiet else logging.INFO)
    log_writer.start()
    try:
        server = EchoServer(
            options.port,
            options.host or "localhost",
            engine=options.engine,
            framing=options.framing,
            backlog=options.backlog,
            idle_timeout=options.idle_timeout,
            max_line=options.max_line,
            drain_timeout=options.drain_timeout,
        )
    except OSError as error:
        complain(PROG, error)
        sys.exit(1)
    except (ValueError, OverflowError) as error:
        complain(PROG, error)
        sys.exit(2)
    woken, wake = _stop_on_signals(server)
    try:
        print("Listening on", ", ".join(map(_shown, server.addresses)), flush=True)
    except OSError as error:
        server.close()
        complain(PROG, f"cannot say on stdout that the server is ready: {error.strerror}")
        leave(1)
    failure = _serve(server, woken, wake)
    if failure is not None:
        complain(PROG, failure)
    log_writer.finish(1.0)
    if log_writer.is_alive():
        os._exit(failure is not None)  # nobody reads the log; the interpreter would wait for it to be written
    leave(failure is not None)


def _stop_on_signals(server: EchoServer) -> tuple[int, int]:
    """Have SIGTERM and SIGINT stop the server; returns the two ends of a pipe into which every signal writes."""
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)  # asked twice: at once
        stopping = True
        server.stop()

    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return woken, wake


def _serve(server: EchoServer, woken: int, wake: int) -> Exception | None:
    """Serve until a signal says stop, or serving fails: with what.

    The main thread only waits for signals, so none comes at a wrong moment.
    """
    ended = False
    failure = None

    def serve() -> None:
        nonlocal ended, failure
        try:
            server.serve_forever()
        except Exception as error:
            failure = error
        finally:
            ended = True
            os.write(wake, b"e")

    thread = threading.Thread(target=serve, name="rioecho accept", daemon=True)
    thread.start()
    while not ended:
        os.read(woken, 1)
    thread.join()
    server.close()
    return failure


class _DroppingHandler(logging.handlers.QueueHandler):
    """Hands records to the thread that writes them; drops them when that is far behind."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


class _LogWriter(threading.Thread):
    """Writes the log to stderr: a log that nobody reads must not stop the server."""

    def __init__(self, level: int) -> None:
        super().__init__(name="rioecho log", daemon=True)
        self._records: queue.Queue[logging.LogRecord | None] = queue.Queue(10_000)
        self._stderr = logging.StreamHandler()
        self._stderr.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.basicConfig(level=level, format="%(message)s", handlers=[_DroppingHandler(self._records)])

    def run(self) -> None:
        while (record := self._records.get()) is not None:
            self._stderr.handle(record)

    def finish(self, timeout: float) -> None:
        """Wait until all is written, at most so many seconds."""
        with contextlib.suppress(queue.Full):
            self._records.put(None, timeout=timeout)
        self.join(timeout)


def _shown(address: tuple[str, int]) -> str:
    host, number = address
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


if __name__ == "__main__":
    main()
