# Types of Child and Children; for their contracts see the docstrings in _server/child.pyx.

from typing import Literal, final

from rioecho._core.budget import Share
from rioecho._core.counts import Counts
from rioecho._server.accepted import Accepted
from rioecho._server.hosts import HostTable
from rioecho._server.notify import WakePipe

END: int
NOTHING: int
OPENED_NOW: int

@final
class Child:
    announced: bool
    def __new__(cls, peer: str, *, asks: bool = False) -> Child: ...
    @property
    def peer(self) -> str: ...
    @property
    def echoed(self) -> int: ...
    @property
    def reason(self) -> str: ...
    def read_line(self) -> int: ...
    def opened(self, hosts: HostTable | None) -> bool: ...
    @property
    def is_unused(self) -> bool: ...

@final
class Children:
    def __new__(cls) -> Children: ...
    def close(self) -> None: ...
    def wake(self) -> None: ...
    @property
    def any(self) -> bool: ...
    def fork(
        self,
        child: Child,
        connection: Accepted,
        framing: Literal["line", "raw"],
        *,
        timeout: float | None,
        max_line: int,
        stop_fd: int,
        drain_timeout: float | None,
        tell_lines: bool,
        proxied: bool,
        counts: Counts,
        memory: Share,
    ) -> None: ...
    def next(self) -> Child | None: ...
    def reap(self, child: Child, counts: Counts, closings: WakePipe) -> None: ...
    def some(self) -> Child | None: ...
    def kill(self) -> None: ...
