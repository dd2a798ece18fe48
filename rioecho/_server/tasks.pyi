# Types of Task and WaitGroup; for their contracts see the docstrings in _server/tasks.pyx.

from collections.abc import Callable
from typing import final

from rioecho._server.notify import Latch

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
    def begin(self) -> bool: ...
    def start(self) -> bool: ...
    def cancel(self) -> bool: ...
