# The types of fork_echo(). What it promises is said in its docstring, in _server/child.pyx.

from enum import IntEnum
from typing import Literal

from rioecho._core.budget import Share
from rioecho._core.counts import Counts

REPORT: str

class Outcome(IntEnum):
    LINE = 0
    ENDED = 1
    TIMED_OUT = 2
    FAILED = 3

def fork_echo(
    fd: int,
    framing: Literal["line", "raw"],
    *,
    timeout: float | None,
    max_line: int,
    stop_fd: int,
    drain_timeout: float | None,
    tell_lines: bool,
    report_fd: int,
    counts: Counts,
    memory: Share,
) -> int: ...
