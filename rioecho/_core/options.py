"""Options that a function passes on to another one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def check_options(function: str, options: Iterable[str], known: Collection[str]) -> None:
    """Raise the ``TypeError`` of a function's own unknown argument, in its name."""
    for name in options:
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
