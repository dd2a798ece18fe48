# Types of EventLoop; for its contract see the docstring in _server/eventloop.pyx.

from collections.abc import Callable
from typing import Any, Literal, final

from rioecho._core.budget import MemoryBudget
from rioecho._core.counts import Counts
from rioecho._server.accepted import Accepted
from rioecho._server.handling import Handling
from rioecho._server.hosts import HostTable

def pollers() -> list[str]: ...

@final
class EventLoop:
    def __new__(
        cls,
        framing: Literal["line", "raw"],
        *,
        idle_timeout: float | None,
        max_line: int,
        drain_timeout: float | None,
        stop_fd: int,
        on_closed: Callable[[Any, str, int, int], object],
        on_opened: Callable[[Any, bytes | None], object] | None = None,
        on_line: Callable[[int], object] | None = None,
        memory: MemoryBudget | None = None,
        proxied: bool = False,
        hosts: HostTable | None = None,
        handling: Handling | None = None,
        poller: str | None = None,
    ) -> EventLoop: ...
    @property
    def counts(self) -> Counts: ...
    def adopt(self, connection: Accepted | int, peer: object = None) -> None: ...
    def no_more(self) -> None: ...
    def report_closings(self, wanted: bool) -> None: ...
    def run(self) -> None: ...
    def close(self) -> None: ...
