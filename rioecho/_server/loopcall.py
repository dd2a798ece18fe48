"""A blocking call made from asyncio's loop, which goes on meanwhile.

Not asyncio.to_thread(), whose threads may all be busy with calls that wait for this one.
"""

from __future__ import annotations

import asyncio
import contextlib

from rioecho._server.tasks import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


async def call_in_thread(call: Callable[[], object]) -> None:
    """Call a function in a thread of its own, and wait until it has returned. Raises what it raises.

    If this is cancelled, the call goes on. If no thread is to be had, the call is made here, which blocks the loop.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def report(failure: BaseException | None) -> None:
        if ended.done():  # cancelled
            return
        if failure is None:
            ended.set_result(None)
        else:
            ended.set_exception(failure)

    def run() -> None:
        failure = None
        try:
            call()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(report, failure)

    try:
        Task(run, name="rioecho close").begin()
    except (RuntimeError, MemoryError):
        call()
        return
    await ended
