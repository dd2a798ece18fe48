from collections.abc import Callable
from typing import final

from rioecho._server.lineconnection import Output

@final
class Handling(Output):
    def __new__(cls, handler: Callable[..., object], *, raw: bool, max_line: int, write_limit: int) -> Handling: ...
    @property
    def has_objects(self) -> bool: ...
