# The types of LoadLoop. What it promises is said in its docstrings, in _load/loop.pyx.

from collections.abc import Iterable
from typing import ClassVar, Literal, final

from rioecho._load.histogram import Histogram

@final
class LoadLoop:
    OUTCOMES: ClassVar[tuple[str, ...]]
    def __new__(
        cls,
        fds: Iterable[int],
        cycle: bytes,
        *,
        message_bytes: int,
        pipeline: int = 1,
        rate: float | None = None,
        warmup: float = 0.0,
        duration: float,
        stall_timeout: float | None = 5.0,
        phase: float = 0.0,
        first: int = 0,
        step: int = 1,
        without_epoll: bool = False,
    ) -> LoadLoop: ...
    def run(
        self, start: int | None = None
    ) -> tuple[Literal["done", "wrong echo", "lost", "stalled", "failed"], int, int, int]: ...
    def stop(self) -> None: ...
    def counts(self) -> tuple[int, int, int]: ...
    @property
    def measured_seconds(self) -> float: ...
    def add_to(self, histogram: Histogram, *, corrected: bool = True) -> None: ...

def messages(size: int) -> bytes: ...
def monotonic_ns() -> int: ...
