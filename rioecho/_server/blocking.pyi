# Types of echo(); for its contract see the docstring in _server/blocking.pyx.

from collections.abc import Callable
from typing import Literal, Protocol, Self, SupportsIndex, final

from rioecho._core.budget import MemoryBudget
from rioecho._core.counts import Counts

class _HasFileno(Protocol):
    def fileno(self) -> int: ...

@final
class Echo:
    def __new__(
        cls,
        fd: int | _HasFileno,
        framing: Literal["line", "raw"] = "line",
        *,
        timeout: float | None = None,
        max_line: SupportsIndex = 1048576,
        stop_fd: int = -1,
        drain_timeout: float | None = 5.0,
        on_line: Callable[[int], object] | None = None,
        on_opened: Callable[[bytes | None, bool], object] | None = None,
        proxied: bool = False,
        counts: Counts | None = None,
        memory: MemoryBudget | None = None,
    ) -> Self: ...
    def run(self) -> int: ...
    def unsent(self) -> bytes: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def is_unused(self) -> bool: ...
    @property
    def draining(self) -> bool: ...

def echo(fd: int | _HasFileno, framing: Literal["line", "raw"] = "line", *, timeout: float | None = None) -> int: ...
