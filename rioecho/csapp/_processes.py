"""Processes and signals (CS:APP chapter 8), as the programs of chapters 10 to 12 use them."""

# ruff: noqa: N802, the book's names

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from rioecho.csapp._calls import exits, fail, raises, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType
    from typing import Any, NoReturn, TypeAlias

    _Handler: TypeAlias = Callable[[int], object] | Callable[[int, FrameType | None], object] | int | signal.Handlers

# Python ignores these signals, and execve(2) keeps what is ignored.
_IGNORED_BY_PYTHON = [getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)]


@exits("pid = Fork()")
def Fork() -> int:
    """Fork the process. Returns 0 in the child, and the child's process ID in the parent."""
    return os.fork()


@exits("pid, status = Wait()")
def Wait() -> tuple[int, int]:
    """Wait for a child to end. Returns its process ID and its status, for ``WIFEXITED`` and the like."""
    return os.wait()


@exits("pid, status = Waitpid(pid, options)")
def Waitpid(pid: int, options: int = 0) -> tuple[int, int]:
    """Wait for the child ``pid``, or any for -1. With ``WNOHANG`` the result is ``(0, 0)`` if none has ended."""
    return os.waitpid(pid, options)


@exits("Execve(filename, argv, environ)")
def Execve(filename: str | bytes, argv: list[Any] | tuple[Any, ...], envp: Mapping[Any, Any]) -> NoReturn:
    """Replace this process's program. ``envp`` is a mapping, such as ``environ``.

    The signals that Python ignores, SIGPIPE above all, have their default action in the new program.
    """
    ignored = []
    if threading.current_thread() is threading.main_thread():  # only there Python can change the action for a signal
        ignored = [number for number in _IGNORED_BY_PYTHON if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(filename, argv, envp)  # noqa: S606, its purpose
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


@exits("Kill(pid, signum)")
def Kill(pid: int, signum: int) -> None:
    """Send a signal to a process, or to a process group if ``pid`` is negative."""
    os.kill(pid, signum)


@exits("Signal(signum, handler)")
def Signal(signum: int, handler: _Handler) -> _Handler | None:
    """Set the action for a signal and return the previous one: SIG_DFL, SIG_IGN, or a function.

    The function is called in the main thread with the signal's number, as in the book, or, if it has two parameters,
    with Python's stack frame too. A wrapper that it interrupts goes on when it returns.
    """
    previous = signal.signal(signum, _with_frame(handler))
    return getattr(previous, "book_handler", previous)


def _with_frame(handler: Any) -> Any:
    """Return a handler that Python can call, with the signal's number and the stack frame."""
    if not callable(handler) or isinstance(handler, signal.Handlers):
        return handler
    import inspect  # slow to import

    try:
        inspect.signature(handler).bind(0, None)
    except TypeError:  # it has one parameter
        pass
    except ValueError:  # a function in C that does not tell its parameters
        return handler
    else:
        return handler

    def with_frame(signum: int, frame: FrameType | None) -> None:
        handler(signum)

    with_frame.book_handler = handler  # type: ignore[attr-defined]
    return with_frame


@exits("Sleep(seconds)")
def Sleep(seconds: float) -> int:
    """Suspend the calling thread for this many seconds, whatever signals arrive; return 0, the seconds left."""
    time.sleep(seconds)
    return 0


# Error handling (8.3, appendix A)


@raises("unix_error(message)")
def unix_error(message: str) -> NoReturn:
    """Print the message and the reason of the exception that is being handled, and end the process with status 1."""
    exc = sys.exception() if sys.version_info >= (3, 12) else sys.exc_info()[1]
    fail(message if exc is None else f"{message}: {reason(exc)}")


@raises("posix_error(code, message)")
def posix_error(code: int, message: str) -> NoReturn:
    """Print the message and the text of the error number ``code``, and end the process with status 1."""
    fail(f"{message}: {os.strerror(code)}")


@raises("app_error(message)")
def app_error(message: str) -> NoReturn:
    """Print the message, and end the process with status 1."""
    fail(message)
