# The types of Task and WaitGroup. What they promise is said in their docstrings, in _server/tasks.pyx.

from collections.abc import Callable
from typing import final

from rioecho._server.notify import Latch

__pyx_capi__: dict[str, object]  # what other extension modules cimport

@final
class WaitGroup:
    def __new__(cls) -> WaitGroup: ...
    def close(self) -> None: ...
    def wait(self, seconds: float | None = None) -> bool: ...

@final
class Task:
    def __new__(
        cls,
        call: Callable[..., object],
        *arguments: object,
        name: str,
        group: WaitGroup | None = None,
        latches: tuple[Latch, ...] = (),
    ) -> Task: ...
    def start(self) -> bool: ...
    def cancel(self) -> bool: ...
