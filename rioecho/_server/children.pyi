# Types of Children; for its contract see the docstrings in _server/children.pyx.

from typing import Literal, final

from rioecho._core.budget import Share
from rioecho._core.counts import Counts
from rioecho._server.accepted import Accepted
from rioecho._server.child import Child
from rioecho._server.notify import WakePipe

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
