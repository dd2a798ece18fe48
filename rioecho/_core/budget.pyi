# The types of MemoryBudget and Share. Their contracts are the docstrings in _core/budget.pyx.

from typing import final

@final
class MemoryBudget:
    def __new__(cls, limit: int) -> MemoryBudget: ...
    @property
    def used(self) -> int: ...
    @property
    def limit(self) -> int: ...

@final
class Share:
    def __new__(cls, budget: MemoryBudget | None, max_line: int) -> Share: ...
    @property
    def taken(self) -> int: ...
