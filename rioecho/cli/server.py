"""rioecho-server: the echo server as a command."""

from __future__ import annotations

import logging
import os
import signal
import sys

from rioecho import __version__
from rioecho.cli import Parser, complain, count, leave, port, seconds
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
        description="Send back what clients send. Loopback only, unless --host says otherwise.",
        epilog=f"example: {PROG} 8000, and in another terminal: rioecho-client localhost 8000",
    )
    p.add_argument("port", metavar="PORT", type=port, help="the TCP port; 0 picks a free one")
    p.add_argument(
        "--host", action="append", metavar="H", help="listen on this address (may be repeated; default: localhost)"
    )
    p.add_argument(
        "--engine",
        choices=sorted(ENGINES),
        default="thread",
        help="a thread for each connection, or one at a time (default: %(default)s)",
    )
    p.add_argument(
        "--framing", choices=("line", "raw"), default="line", help="send back whole lines, or bytes as they come"
    )
    p.add_argument("--raw", dest="framing", action="store_const", const="raw", help="the same as --framing raw")
    p.add_argument("--backlog", type=count, default=1024, metavar="N", help="connections that may wait (%(default)s)")
    p.add_argument(
        "--idle-timeout",
        type=seconds,
        default=300.0,
        metavar="S",
        help="close a connection after S seconds without progress; 0: never (%(default)g)",
    )
    p.add_argument(
        "--max-line",
        type=count,
        default=1 << 20,
        metavar="N",
        help="send a line of more than N bytes back in pieces; 0: no limit (%(default)s)",
    )
    p.add_argument(
        "--drain-timeout", type=seconds, default=5.0, metavar="S", help="seconds that stopping may take (%(default)g)"
    )
    loudness = p.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true", help="log every line's length")
    loudness.add_argument("-q", "--quiet", action="store_true", help="log only what goes wrong")
    p.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Exit status: 0 after SIGTERM or SIGINT, 1 for what the system refuses, 2 for wrong usage."""
    options = parser().parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
        level=logging.DEBUG if options.verbose else logging.WARNING if options.quiet else logging.INFO,
    )
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
    _stop_on_signals(server)
    try:
        print("Listening on", ", ".join(map(_shown, server.addresses)), flush=True)
    except OSError as error:
        complain(PROG, f"cannot say on stdout that the server is ready: {error.strerror}")
        leave(1)
    server.serve_forever()
    leave(0)


def _stop_on_signals(server: EchoServer) -> None:
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)  # asked twice: at once
        stopping = True
        server.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _shown(address: tuple[str, int]) -> str:
    host, number = address
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


if __name__ == "__main__":
    main()
