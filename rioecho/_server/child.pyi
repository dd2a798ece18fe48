# Types of Child; for its contract see the docstrings in _server/child.pyx.

from typing import final

from rioecho._server.hosts import HostTable

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
