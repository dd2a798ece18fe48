"""Checks of the arguments of a server, its handler among them."""

from __future__ import annotations

import math
import operator
import socket
from functools import partial

from rioecho._server.passed import listens, was_connected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeVar

    _Number = TypeVar("_Number", int, float)


#: The methods of a handler object besides the one that gets the input.
_OPTIONAL = ("connection_made", "connection_lost")
#: The flags of the code of ``async def``: CO_COROUTINE and CO_ASYNC_GENERATOR. The module inspect is slow to import.
_ASYNCHRONOUS = 0x80 | 0x200
_ADVICE = "for async handlers use rioecho.aio.start_server()"


def check_handler(handler: Any, method: str) -> None:
    """Raise ``TypeError`` if it can be seen that calling the handler of a LineServer would fail.

    ``method`` is the name of the method that gets the input.
    """
    if not callable(handler):
        raise TypeError(f"handler must be a class or a function, not {type(handler).__name__}")
    if not isinstance(handler, type):
        if _is_asynchronous(handler):
            raise TypeError(f"handler is a coroutine function, which a LineServer cannot call: {_ADVICE}")
        return
    if not callable(getattr(handler, method, None)):
        framing = "raw" if method == "data_received" else "line"
        raise TypeError(f"the class {handler.__name__} has no method {method}(), which framing={framing!r} calls")
    for name in (method, *_OPTIONAL):
        called = getattr(handler, name, None)
        if callable(called) and _is_asynchronous(called):
            raise TypeError(
                f"the class {handler.__name__} has a coroutine function {name}(), which a LineServer cannot call: "
                f"{_ADVICE}"
            )


def _is_asynchronous(function: Any) -> bool:
    """Report whether a callable is defined by ``async def``: it makes a coroutine or an asynchronous generator."""
    while isinstance(function, partial):
        function = function.func
    for called in (function, type(function).__call__):  # the latter is that of an object
        flags = getattr(getattr(called, "__code__", None), "co_flags", 0)
        if isinstance(flags, int) and flags & _ASYNCHRONOUS:
            return True
    return False


def check_sockets(sockets: Iterable[socket.socket]) -> list[socket.socket]:
    """Return the ``sockets`` of a server as a list. Raise ``TypeError`` or ``ValueError`` for what it cannot serve."""
    if isinstance(sockets, socket.socket) or not hasattr(sockets, "__iter__"):
        raise TypeError(f"sockets must be a sequence of sockets, not {type(sockets).__name__}")
    passed = list(sockets)
    for sock in passed:
        if not isinstance(sock, socket.socket):
            raise TypeError(f"sockets must be socket.socket objects, not {type(sock).__name__}")
        if hasattr(sock, "_sslobj"):
            raise TypeError(
                "sockets must be plain: the server speaks no TLS, and this one would be served in the clear"
            )
        if sock.fileno() < 0:
            raise ValueError("one of the sockets is closed")
        if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            raise ValueError(f"one of the sockets is neither TCP, UDP nor unix: {sock!r}")
        if sock.type == socket.SOCK_DGRAM:
            continue
        if sock.type != socket.SOCK_STREAM:
            raise TypeError(f"a byte stream is required: one of the sockets carries packets: {sock!r}")
        if not listens(sock) and not was_connected(sock):
            raise ValueError(f"one of the sockets neither listens nor is connected: call listen() first: {sock!r}")
    return passed


def host_names(host: str | Iterable[str]) -> tuple[str, ...]:
    """Return the hosts of a server, which are checked when they are looked up."""
    if isinstance(host, str):
        return (host,)
    if isinstance(host, bytes | bytearray) or not hasattr(host, "__iter__"):
        raise TypeError(f"host must be a str or a sequence of them, not {type(host).__name__}")
    return tuple(host)


def integer(name: str, value: int) -> int:
    """Return an integer argument as an int, or raise ``TypeError``."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None


def limit(name: str, value: _Number, maximum: float, *, minimum: int = 0) -> _Number:
    """Return a limit, or raise ``ValueError`` if it is out of range or NaN, ``TypeError`` if it is no number."""
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not minimum <= value <= maximum:
        most = "" if maximum == math.inf else f" and at most {maximum}"
        raise ValueError(f"{name} must be at least {minimum}{most}, not {value!r}")
    return value
