"""The command rioecho-server."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import signal
import socket

from rioecho import __version__
from rioecho._server.engines import ENGINES
from rioecho._server.listeners import passed_sockets
from rioecho.cli import (
    Parser,
    allow_descriptors,
    complain,
    leave,
    open_standard_streams,
)
from rioecho.cli.logs import LOG_FORMATS, LogWriter, StatsLine
from rioecho.cli.units import count, interval, port, seconds, size
from rioecho.server import EchoServer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

PROG = "rioecho-server"

#: Advice for errors of listening, by errno.
HINTS = {
    errno.EADDRINUSE: "; stop the server that listens there, or choose another address",
    errno.EEXIST: "; choose another path",
    errno.EADDRNOTAVAIL: "; use an address of this machine",
    errno.EACCES: "; choose a port of 1024 or more, or a directory that you can write to",
    socket.EAI_NONAME: "; check the name",
}

HELP = f"""\
usage: {PROG} [options] [PORT]

Echo what clients send; listen on loopback unless --host is given.

  PORT                 the TCP port; 0 picks a free one
  --host H             listen on H; repeatable (localhost)
  --unix PATH          listen on a unix socket; without a PORT only there
  --udp                also echo datagrams on the same port
  --engine E           iterative, process, thread or event (event)
  --workers N          event loops, each in a thread of its own (1)
  --framing F, --raw   line: whole lines; raw: bytes as they come (line)
  --backlog N          length of the listen queue (1024)
  --max-connections N  beyond N, clients wait in it; 0: no limit (10000)
  --idle-timeout S     close after S idle seconds; 0: never (300)
  --max-line N         echo longer lines in pieces; 0: never (1048576)
  --max-memory N       bytes that connections may hold; 0: no limit (268435456)
  --drain-timeout S    seconds that stopping may take; 0: no limit (5)
  --stats S            log the counts and the rates every S seconds
  --log-format F       text or json (text)
  -v, -q               log each line's length; log warnings and errors only
  -h, --version        show this help; show the version

example: {PROG} 7 --host :: --raw --udp     RFC 862, on the network
"""


def parser() -> argparse.ArgumentParser:
    p = Parser(prog=PROG)
    p.help_text = HELP
    option = p.add_argument
    option("port", metavar="PORT", type=port, nargs="?")
    option("--host", action="append")
    option("--unix", metavar="PATH")
    option("--udp", action="store_true")
    option("--engine", choices=tuple(ENGINES), default="event")
    option("--workers", type=count, default=1)
    framing = p.add_mutually_exclusive_group()
    framing.add_argument("--framing", choices=("line", "raw"), default="line")
    framing.add_argument("--raw", dest="framing", action="store_const", const="raw")
    option("--backlog", type=count, default=1024)
    option("--max-connections", type=count, default=10_000)
    option("--idle-timeout", type=seconds, default=300.0)
    option("--max-line", type=size, default=1 << 20)
    option("--max-memory", type=size, default=256 << 20)
    option("--drain-timeout", type=seconds, default=5.0)
    option("--stats", type=interval)
    option("--log-format", choices=LOG_FORMATS, default="text")
    loudness = p.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true")
    loudness.add_argument("-q", "--quiet", action="store_true")
    option("--version", action="version", version=f"%(prog)s {__version__}")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Exits with status 0 after SIGTERM or SIGINT, 1 for a system error, 2 for a usage error."""
    open_standard_streams()
    p = parser()
    options = p.parse_args(argv)
    level = logging.DEBUG if options.verbose else logging.WARNING if options.quiet else logging.INFO
    log_writer = LogWriter(level, options.log_format)
    try:
        log_writer.start()
        passed = passed_sockets()
        if options.port is None and options.unix is None and not passed:
            p.error("give a PORT, or --unix PATH")
        if options.port is None and options.host:
            p.error("--host needs a PORT")
        server = EchoServer(
            options.port,
            options.host or "localhost",
            unix=options.unix,
            sockets=passed,
            udp=options.udp,
            engine=options.engine,
            framing=options.framing,
            workers=options.workers,
            backlog=options.backlog,
            max_connections=options.max_connections,
            idle_timeout=options.idle_timeout,
            max_line=options.max_line,
            drain_timeout=options.drain_timeout,
            max_memory=options.max_memory,
        )
        allow_descriptors(options.max_connections)
        _stop_on_signals(server)
        try:
            server.start()
        except BaseException:
            server.close()
            raise
    except OSError as error:
        complain(PROG, f"{error.strerror or error}{HINTS.get(error.errno or 0, '')}")
        leave(1)
    except (RuntimeError, MemoryError) as error:  # the system has no thread left, or no memory
        complain(PROG, str(error) or "out of memory")
        leave(1)
    except (ValueError, OverflowError) as error:
        complain(PROG, error)
        leave(2)
    try:
        places = [*map(_shown, server.addresses), *map(_shown, server.paths)]
        print("Listening on", ", ".join(places) or "the datagram sockets that were passed", flush=True)
    except (OSError, UnicodeError) as error:
        server.close()
        complain(PROG, f"cannot report on stdout that the server is ready: {getattr(error, 'strerror', None) or error}")
        leave(1)
    try:
        with StatsLine(server.stats, options.stats) if options.stats else contextlib.nullcontext():
            failure = _serve(server)
    except (RuntimeError, MemoryError) as error:  # the system has no thread left for the statistics, or no memory
        server.close()
        failure = error
    # The log is written to its end within the drain deadline, but for a moment that a log that is read needs.
    left = server.drain_time_left()
    if not log_writer.finish(1.0 if left is None else min(max(left, 0.2), 1.0)):
        os._exit(failure is not None)  # a log that nobody reads: a normal exit would wait until it is written
    if failure is not None:
        complain(PROG, str(failure) or "out of memory")
    leave(failure is not None)


def _stop_on_signals(server: EchoServer) -> None:
    """Make SIGTERM and SIGINT stop the server; a second one exits at once."""
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            server.kill()
            os._exit(128 + number)
        stopping = True
        server.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _serve(server: EchoServer) -> Exception | None:
    """Serve until a signal stops the server. Returns the error that serving failed with, or None."""
    failure = None
    try:
        server.wait()
    except Exception as error:
        failure = error
    server.close()
    return failure


def _shown(address: tuple[str, int] | str) -> str:
    if isinstance(address, str):
        return address if address.isprintable() else repr(address)
    host, number = address
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


if __name__ == "__main__":
    main()
