"""rioecho-client: the book's echo client as a command, for terminals and pipes (CS:APP 11.4.9)."""

from __future__ import annotations

import contextlib
import os
import signal

from rioecho import IncompleteRead, Rio, __version__
from rioecho.cli import Parser, complain, finish
from rioecho.cli.units import port, seconds
from rioecho.client import EchoLostError, WrongEchoError, dial, pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

PROG = "rioecho-client"
LOST, WRONG, INTERRUPTED = 1, 3, 130
STDIN, STDOUT = 0, 1


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog=PROG,
        usage="%(prog)s [options] (HOST PORT | --unix PATH)",
        description="Send lines to an echo server, compare the echoes with them, and print the echoes.",
        epilog=f"examples: {PROG} localhost 8000    {PROG} localhost 8000 < big.txt > same.txt",
    )
    p.add_argument("host", nargs="?", metavar="HOST", help="name or address of the server")
    p.add_argument("port", nargs="?", type=port, metavar="PORT", help="TCP port of the server")
    p.add_argument("--unix", metavar="PATH", help="connect to a unix socket instead")
    p.add_argument("--connect-timeout", type=seconds, metavar="S", help="maximum seconds to wait for the connection")
    p.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    The exit status is 0, 1 (connection not established or lost, or another system error), 2 (usage error), 3 (wrong
    echo), or 130 (Ctrl-C).
    """
    finish(PROG, lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    p = parser()
    options = p.parse_args(argv)
    if options.unix is not None and options.host is not None:
        p.error("give HOST and PORT, or --unix PATH, not both")
    if options.unix is None and options.port is None:
        p.error("give HOST and PORT, or --unix PATH")
    try:
        return _run(options)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is already exiting
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    try:
        where = (options.host, options.port) if options.unix is None else (options.unix,)
        with dial(*where, timeout=options.connect_timeout) as sock:
            if os.isatty(STDIN) and os.isatty(STDOUT):
                _converse(Rio(sock, timeout=None))
            else:
                pump(sock, STDIN, STDOUT, on_wait=_report_waiting)
    except WrongEchoError as error:
        complain(PROG, error)
        return WRONG
    except (OSError, ValueError) as error:
        complain(PROG, error)
        return LOST
    return 0


def _report_waiting(in_flight: int) -> None:
    complain(PROG, f"waiting for the server to answer: {in_flight} bytes are in flight, no more are sent")


def _converse(rio: Rio) -> None:
    """Send each line typed at a prompt and print its echo, until EOF. Raises WrongEchoError or EchoLostError."""
    with contextlib.suppress(ImportError):  # some Pythons are built without it
        import readline  # noqa: F401, adds editing and history to input()

    while True:
        try:
            line = os.fsencode(input("> ") + "\n")
        except EOFError:
            print()
            return
        try:
            rio.writen(line)
            answer = rio.readexactly(len(line))
        except (IncompleteRead, BrokenPipeError, ConnectionResetError) as error:
            raise EchoLostError(len(line) - len(getattr(error, "partial", b""))) from None
        if answer != line:
            raise WrongEchoError(next(i for i, byte in enumerate(line) if answer[i] != byte))
        print(os.fsdecode(answer), end="", flush=True)


if __name__ == "__main__":
    main()
