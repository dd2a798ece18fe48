"""rioecho-client: the book's echo client as a command, for terminals and pipes (CS:APP 11.4.9)."""

from __future__ import annotations

import argparse
import contextlib
import os

from rioecho import IncompleteRead, Rio, __version__
from rioecho._core.addresses import parse_path
from rioecho.cli import Parser, check_standard_streams, complain, finish
from rioecho.cli.terminal import Interruption, Readable
from rioecho.cli.units import port, seconds
from rioecho.client import EchoLostError, WrongEchoError, dial, pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

PROG = "rioecho-client"
LOST, WRONG = 1, 3
STDIN, STDOUT = 0, 1


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog=PROG,
        usage="%(prog)s [options] (HOST PORT | --unix PATH)",
        description="Send lines to an echo server, compare each echo with its line, and print it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # the examples have a line each
        epilog="exit status: 1 connection, 2 usage, 3 wrong echo, 130 Ctrl-C\n"
        f"examples: {PROG} localhost 8000\n          {PROG} localhost 8000 < big.txt > same.txt",
    )
    p.add_argument("host", nargs="?", metavar="HOST", help="name or address of the server")
    p.add_argument("port", nargs="?", type=port, metavar="PORT", help="TCP port of the server")
    p.add_argument("--unix", metavar="PATH", help="connect to a unix socket instead (@NAME: an abstract one)")
    p.add_argument("--connect-timeout", type=seconds, metavar="S", help="maximum time to connect, as 5s or 500ms")
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
        where = (options.host, options.port) if options.unix is None else (parse_path(options.unix),)
    except ValueError as error:
        p.error(f"--unix: {error}")
    return _run(where, options.connect_timeout)


def _run(where: tuple[Any, ...], timeout: float | None) -> int:
    try:
        check_standard_streams()
        with dial(*where, timeout=timeout or None) as sock:
            if os.isatty(STDIN) and os.isatty(STDOUT):
                _converse(Rio(sock, timeout=None))
            else:
                pump(sock, STDIN, STDOUT, on_wait=_report_waiting)
    except BrokenPipeError:
        return 0  # of stdout: its reader has what it wanted, as "head" does
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
            with Interruption(rio.fileno()):
                typed = input("> ")
        except Readable:
            print()  # the message begins on a line of its own
            _expect_nothing(rio)
            continue
        except EOFError:
            print()
            return
        line = os.fsencode(typed + "\n")
        try:
            rio.writen(line)
            answer = rio.readexactly(len(line))
        except (IncompleteRead, BrokenPipeError, ConnectionResetError) as error:
            raise EchoLostError(len(line) - len(getattr(error, "partial", b""))) from None
        if answer != line:
            raise WrongEchoError(next(i for i, byte in enumerate(line) if answer[i] != byte))
        print(os.fsdecode(answer), end="", flush=True)


def _expect_nothing(rio: Rio) -> None:
    """Raise the error of a connection that is readable although nothing is in flight; return if it is not."""
    try:
        data = rio.read1(1, timeout=0)
    except BlockingIOError:
        return
    except ConnectionResetError:
        data = b""
    if data:
        raise WrongEchoError(0)
    raise EchoLostError(0)


if __name__ == "__main__":
    main()
