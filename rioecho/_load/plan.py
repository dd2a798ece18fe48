"""The parameters of a load test: a Plan, checked before anything is done."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass

from rioecho._core.addresses import parse_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_THREADS = 1024
MAX_CONNECTIONS = 1 << 20
MAX_MESSAGE_BYTES = 1 << 24
MAX_IN_FLIGHT = 1 << 22  # messages over all connections; each costs 16 bytes
MAX_PIPELINE = 1 << 20  # messages on each connection
MIN_RATE, MAX_RATE = 1e-6, 1e9  # messages per second; the minimum is one in MAX_SECONDS
MAX_SECONDS = 1e6


@dataclass(frozen=True)
class Plan:
    """The parameters of a load test. An invalid one raises ``ValueError`` or ``TypeError`` with the reason.

    - ``target``: ``HOST:PORT``, ``[ADDRESS]:PORT`` (IPv6), ``unix:PATH`` or, for an abstract name, ``unix:@NAME``.
    - ``connections``: number of connections, which alternate over all addresses of the host; ``threads``: number of
      threads that share them.
    - ``ramp``: seconds over which the connects are spread; the warm-up begins when all connections are established.
    - ``duration``: seconds measured, after ``warmup`` seconds (at most ``duration``) that are not.
    - ``message_bytes``: size of a message, including its newline.
    - ``pipeline``: number of messages in flight on each connection.
    - ``rate``: messages per second over all connections. With a rate the messages have a fixed schedule (open loop),
      and ``pipeline`` bounds the number in flight. A message that is due beyond this bound waits, and its latency
      counts from its scheduled time. None: a closed loop.
    - ``connect_timeout``: seconds that each connection may take to be established, over all addresses of the host.
    - ``stall_timeout``: seconds without a received byte, while messages are in flight, after which the test fails.
    - ``reconnect``: establish a lost connection again and continue, instead of failing. What was in flight on it counts
      as lost. The test still fails if all connections of a thread stay lost for ``stall_timeout``.
    """

    target: str
    connections: int = 50
    duration: float = 10.0
    message_bytes: int = 64
    pipeline: int = 1
    rate: float | None = None
    threads: int = 1
    warmup: float = 1.0
    connect_timeout: float = 10.0
    stall_timeout: float = 5.0
    ramp: float = 0.0
    reconnect: bool = False

    def __post_init__(self) -> None:
        parse_target(self.target)
        _whole("connections", self.connections, MAX_CONNECTIONS)
        _whole("message_bytes", self.message_bytes, MAX_MESSAGE_BYTES)
        _whole("pipeline", self.pipeline, MAX_PIPELINE)
        _whole("threads", self.threads, MAX_THREADS)
        if self.connections * self.pipeline > MAX_IN_FLIGHT:
            raise ValueError(f"connections times pipeline must be at most {MAX_IN_FLIGHT} messages in flight")
        if self.threads > self.connections:
            raise ValueError(f"threads ({self.threads}) must not be more than connections ({self.connections})")
        if self.rate is not None:
            check_number("rate", self.rate, MAX_RATE)
            if self.rate < MIN_RATE:
                raise ValueError(f"rate must be at least {MIN_RATE:g}, not {self.rate!r}")
        check_number("duration", self.duration, MAX_SECONDS)
        check_number("connect_timeout", self.connect_timeout, MAX_SECONDS)
        check_number("stall_timeout", self.stall_timeout, MAX_SECONDS)
        check_number("warmup", self.warmup, MAX_SECONDS, least=True)
        check_number("ramp", self.ramp, MAX_SECONDS, least=True)
        if not isinstance(self.reconnect, bool):
            raise TypeError(f"reconnect must be True or False, not {type(self.reconnect).__name__}")

    @property
    def warmup_s(self) -> float:
        """The warm-up in seconds, at most ``duration``."""
        return min(self.warmup, self.duration)


def parse_target(target: str) -> tuple[str] | tuple[str, int]:
    """Return the ``(path,)`` or ``(host, port)`` that a target names, as arguments of ``rioecho.connect()``.

    Raises ``ValueError`` for an invalid target, ``TypeError`` if it is not a str.
    """
    if not isinstance(target, str):
        raise TypeError(f"target must be a str, not {type(target).__name__}")
    kind, _, path = target.partition(":")
    if kind == "unix" and not _is_number(path):
        if not path or "\0" in path[1:]:
            raise ValueError(f"target {target!r} does not name a unix socket: use unix:PATH")
        try:
            return (parse_path(path),)
        except ValueError as error:
            raise ValueError(f"target {target!r}: {error}") from None
    if re.match("[A-Za-z][A-Za-z0-9+.-]*://", target):
        raise ValueError(f"target {target!r} is a URL: use HOST:PORT, without a scheme or a path")
    host, _, port = target.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"target {target!r}: put an IPv6 address in brackets, as in [::1]:8000")
    if not host or "\0" in host:
        raise ValueError(f"target {target!r} is not HOST:PORT, [ADDRESS]:PORT or unix:PATH")
    if not (_is_number(port) and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError(f"target {target!r} has no port: use a number from 1 to 65535")
    return host, int(port)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _unless_bool(value: Any) -> Any:
    """Return the value of a number; raise ``TypeError`` for a bool, which is a mistake and would count as 0 or 1."""
    if isinstance(value, bool):
        raise TypeError
    return value


def _whole(name: str, value: int, most: int) -> None:
    try:
        number = operator.index(_unless_bool(value))
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None
    if not 1 <= number <= most:
        raise ValueError(f"{name} must be 1 to {most}, not {value}")


def check_number(name: str, value: float, most: float, *, least: bool = False) -> None:
    try:
        wrong = not 0 <= _unless_bool(value) <= most or (value == 0 and not least)
    except TypeError:
        raise TypeError(f"{name} must be a number, not {type(value).__name__}") from None
    if wrong:
        raise ValueError(f"{name} must be {'0 or more' if least else 'above 0'} and at most {most:g}, not {value!r}")
