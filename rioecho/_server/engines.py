"""The engines, by the names of the ``engine`` argument."""

from __future__ import annotations

from rioecho._server.eventengine import EventEngine
from rioecho._server.processengine import ProcessEngine
from rioecho._server.threadengine import IterativeEngine, ThreadEngine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rioecho._server.engine import Engine, EngineOwner

ENGINES: dict[str, Callable[[EngineOwner], Engine]] = {
    "iterative": IterativeEngine,
    "process": ProcessEngine,
    "thread": ThreadEngine,
    "event": EventEngine,
}
