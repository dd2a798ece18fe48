"""The command rioecho-server."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import socket
import sys
from time import monotonic

from rioecho import __version__
from rioecho._core.addresses import parse_path, parse_place, shown_path
from rioecho._server.engine import log_line
from rioecho._server.engines import ENGINES
from rioecho.cli import Parser, allow_descriptors, complain, leave, open_standard_streams
from rioecho.cli.logformats import LOG_FORMATS
from rioecho.cli.logs import LogWriter
from rioecho.cli.manager import Notifier, is_connection, is_inetd, protect_peer, take_sockets
from rioecho.cli.statsline import StatsLine
from rioecho.cli.units import count, interval, mode, port, seconds, size
from rioecho.server import EchoServer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

PROG = "rioecho-server"

#: Seconds in which a second signal is the same request to stop: timeout(1) sends two, and a terminal's Ctrl-C may be
#: followed by a supervisor's SIGTERM.
SAME_STOP = 1.0

#: Advice for errors of listening, by errno.
HINTS = {
    errno.EADDRINUSE: "; stop the server that listens there, or choose another address",
    errno.EEXIST: "; choose another path",
    errno.EADDRNOTAVAIL: "; use an address of this machine",
    errno.EACCES: "; choose a port of 1024 or more",
    socket.EAI_NONAME: "; check the name",
}
#: Advice for EACCES of a unix socket.
PATH_HINT = "; choose a path in a directory that you can write to"

HELP = f"""\
usage: {PROG} [options] [PORT]
Echo what clients send, on loopback unless --host is given (units: 500ms, 64k).
  PORT                 the TCP port; 0 picks a free one
  --host H             a name or address; '*' for all; repeatable (localhost)
  --unix PATH          a unix socket, or @NAME; --unix-mode 0660: of its file
  --udp, --inetd       also echo datagrams; serve the socket that is stdin
  --engine E           iterative, process, thread or event (event)
  --workers N          event loops, each in a thread of its own (1)
  --framing F, --raw   line: whole lines; raw: bytes as they come (line)
  --backlog N          length of the listen queue (1024)
  --max-connections N  beyond N, clients wait in it; 0: no limit (10000)
  --idle-timeout S     close after S idle seconds; 0: never (300)
  --max-line N         echo longer lines in pieces; 0: never (1M)
  --max-memory N       bytes that connections may hold; 0: no limit (256M)
  --max-per-host N     close what an address has beyond N; 0: no limit (0)
  --proxy-protocol     a PROXY header, v1 or v2, begins each connection
  --drain-timeout S    seconds that stopping may take; 0: no limit (5)
  --metrics [HOST:]P   serve the counts over HTTP; --stats S: log them each S s
  --log-format F       text or json; -v: lengths of lines too; -q: warnings only
  -h, --version        show this help; show the version
exit status: 0 stopped, 1 failed, 2 usage, 128+N: a second signal, 130 Ctrl-C
example: {PROG} 7 --host '*' --raw --udp     RFC 862, on the network
"""


def parser() -> Parser:
    p = Parser(prog=PROG)
    p.help_text = HELP
    option = p.add_argument
    option("port", metavar="PORT", type=port, nargs="?")
    option("--host", action="append")
    option("--unix", metavar="PATH", type=unix_path)
    option("--unix-mode", type=mode)
    option("--inetd", action="store_true")
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
    option("--max-per-host", type=count, default=0)
    option("--proxy-protocol", action="store_true")
    option("--metrics", type=metrics_place)
    option("--drain-timeout", type=seconds, default=5.0)
    option("--stats", type=interval)
    option("--log-format", choices=LOG_FORMATS, default="text")
    loudness = p.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true")
    loudness.add_argument("-q", "--quiet", action="store_true")
    option("--version", action="version", version=f"%(prog)s {__version__}")
    return p


def unix_path(text: str) -> str:
    """Convert an argument to the path of a unix socket."""
    try:
        return parse_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def metrics_place(text: str) -> tuple[str, int]:
    """Convert an argument to the host and the port of the metrics."""
    try:
        host, number = parse_place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return host, int(number)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    The exit status is 0 after SIGTERM, SIGINT or SIGHUP, and after the last connection that was passed in; 1 for a
    system error; 2 for a usage error.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    open_standard_streams()
    protect_peer(inetd=is_inetd(arguments))
    _set_up_signals()
    notifier = Notifier()
    p = parser()
    options = p.parse_args(arguments)
    level = logging.DEBUG if options.verbose else logging.WARNING if options.quiet else logging.INFO
    log_writer = LogWriter(level, options.log_format)
    try:
        log_writer.start()
        passed = take_sockets(inetd=options.inetd)
        one_connection = is_connection(passed)
        allow_descriptors(options.max_connections)  # before the server compares them
        try:
            server = _server(p, options, passed)
        except BaseException:
            for sock in passed:
                sock.close()
            raise
        _stop_on_signals(server, notifier)
        statistics = StatsLine(server.stats, options.stats) if options.stats else None
        try:
            server.start()
            if statistics is not None:
                statistics.start()
        except BaseException:
            server.close()
            raise
    except OSError as error:
        complain(PROG, f"{error.strerror or error}{_hint(error, options.unix)}")
        leave(1)
    except (RuntimeError, MemoryError) as error:  # the system has no thread left, or no memory
        complain(PROG, str(error) or "out of memory")
        leave(1)
    except ImportError as error:  # of --metrics
        complain(PROG, error)
        leave(1)
    except (ValueError, OverflowError) as error:
        complain(PROG, error)
        leave(2)
    try:
        if not one_connection:
            _report_ready(server, as_event=options.log_format == "json")
    except (OSError, UnicodeError) as error:
        logging.disable(logging.INFO)  # the error is one line
        server.close()
        complain(PROG, f"cannot report on stdout that the server is ready: {getattr(error, 'strerror', None) or error}")
        leave(1)
    notifier.ready()
    try:
        failure = _serve(server, notifier)
        if statistics is not None:
            statistics.stop()
    except MemoryError as error:
        server.close()
        failure = error
    # The log is written to its end within the drain deadline, but for a moment that a log that is read needs.
    left = server.drain_time_left()
    if not log_writer.finish(1.0 if left is None else min(max(left, 0.2), 1.0)):
        os._exit(failure is not None)  # a log that nobody reads: a normal exit would wait until it is written
    if failure is not None:
        complain(PROG, str(failure) or "out of memory")
    leave(failure is not None)


def _server(p: Parser, options: argparse.Namespace, passed: list[socket.socket]) -> EchoServer:
    """Return the server that the options ask for. Exits if they do not fit together or what was passed in."""
    if options.port is None and options.unix is None and not passed:
        p.error("give a PORT, or --unix PATH")
    if options.port is None and options.host:
        p.error("--host needs a PORT")
    if is_connection(passed) and (options.port, options.unix) != (None, None):
        p.error("a connection was passed in, which is served alone: give no PORT and no --unix PATH")
    if options.unix_mode is not None and options.unix is None:
        p.error("--unix-mode needs --unix PATH")
    return EchoServer(
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
        max_per_host=options.max_per_host,
        proxy_protocol=options.proxy_protocol,
        metrics=options.metrics,
        unix_mode=options.unix_mode,
    )


def _hint(error: OSError, path: str | None) -> str:
    """Return advice for an error of listening, on the unix socket at ``path`` if there is one, or ``""``."""
    about_path = path is not None and str(error.strerror).startswith(f"cannot listen on {shown_path(path)}:")
    return PATH_HINT if about_path and error.errno == errno.EACCES else HINTS.get(error.errno or 0, "")


def _set_up_signals() -> None:
    """Set up the signals until there is a server to be stopped."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # end without a traceback, as SIGTERM does
    # After "stty tostop" a process in the background is stopped by what it prints, unless it ignores this signal.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)


def _stop_on_signals(server: EchoServer, notifier: Notifier) -> None:
    """Make SIGTERM, SIGINT and SIGHUP stop the server; another one after SAME_STOP seconds exits at once.

    A SIGHUP that is ignored (nohup(1)) stays ignored.
    """
    stopped_at: float | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped_at
        now = monotonic()
        if stopped_at is None:
            stopped_at = now
            server.stop()
            notifier.stopping()
        elif now - stopped_at > SAME_STOP:
            server.kill()
            os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def _report_ready(server: EchoServer, *, as_event: bool) -> None:
    """Print where the server listens, and log it as an event if requested."""
    places = [*map(_shown, server.addresses), *map(shown_path, server.paths)]
    text = ", ".join(places) or "the datagram sockets that were passed"
    if as_event:  # first, so that it precedes the events of clients that have read the line
        log_line(logging.INFO, "Listening on %s", text, event="listening", addresses=places)
    print("Listening on", text, flush=True)


def _serve(server: EchoServer, notifier: Notifier) -> Exception | None:
    """Serve until a signal stops the server. Returns the error that serving failed with, or None."""
    failure = None
    try:
        server.wait()
    except Exception as error:
        failure = error
    notifier.stopping()
    server.close()
    return failure


def _shown(address: tuple[str, int]) -> str:
    host, number = address
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


if __name__ == "__main__":
    main()
