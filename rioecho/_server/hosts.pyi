# Types of HostTable; for its contract see the docstring in _server/hosts.pyx.

from typing import final

@final
class HostTable:
    def __new__(cls, limit: int) -> HostTable: ...
    @property
    def limit(self) -> int: ...
