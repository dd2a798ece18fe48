# The types of class Descriptor.

import asyncio
from typing import Any

class Descriptor(asyncio.Transport):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        file: Any,
        protocol: asyncio.BaseProtocol,
        *,
        reads: bool,
        writes: bool,
        is_terminal: bool,
    ) -> None: ...
    def start(self) -> None: ...
    def __del__(self) -> None: ...
