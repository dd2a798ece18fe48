"""The fixtures of the tests of asyncio: each runs on every event loop, in debug mode, and leaves nothing behind.

A test is an ``async def``, or a plain function that uses ``run``, a function that runs a coroutine to its end.
"""

import asyncio
import contextlib
import gc
import inspect
import time

import pytest

from support import certificates

try:
    import uvloop
except ImportError:
    uvloop = None

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop and uvloop.new_event_loop}
SETTLING = 5  # seconds in which what a test has left behind must come to its end


if uvloop is not None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as first:  # it keeps a pipe for signals for ever
        first.run(asyncio.sleep(0))


def pytest_generate_tests(metafunc):
    """Run a test with each loop: ``loop_factory`` is a function that makes one."""
    if inspect.iscoroutinefunction(metafunc.function) and "loop_factory" not in metafunc.fixturenames:
        metafunc.fixturenames.append("loop_factory")
    if "loop_factory" in metafunc.fixturenames:
        skip = pytest.mark.skip(reason="uvloop is not installed")
        loops = [pytest.param(factory, id=name, marks=() if factory else skip) for name, factory in LOOPS.items()]
        metafunc.parametrize("loop_factory", loops)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run an ``async def`` test."""
    if not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    run_to_the_end(pyfuncitem.callspec.params["loop_factory"], pyfuncitem.function(**arguments))
    return True


@pytest.fixture
def run(loop_factory):
    """Return a function that runs a coroutine in a new event loop and returns its result, ``run(main())``."""

    def run(main, *, debug=True):
        return run_to_the_end(loop_factory, main, debug=debug)

    return run


def run_to_the_end(loop_factory, main, *, debug=True):
    """Run a coroutine in a new loop. Fails if an exception went to the loop's handler, or if anything is left over."""
    problems = []
    with asyncio.Runner(loop_factory=loop_factory, debug=debug) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda loop, context: problems.append(context))
        loop.slow_callback_duration = 60
        try:
            return runner.run(main)
        finally:
            # In the finally clause: an exception of the test is then shown as the context of what is left over.
            with contextlib.suppress(asyncio.CancelledError):
                problems += runner.run(left_over(loop))
            assert not problems, "\n".join(map(str, problems))


async def left_over(loop):
    """Return what is left in the loop, after it had the time to end: tasks, and descriptors that it watches."""
    deadline = time.monotonic() + SETTLING
    while True:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        watched = watched_descriptors(loop)
        if not (tasks or watched) or time.monotonic() > deadline:
            break
        gc.collect()
        await asyncio.sleep(0)
    gc.collect()  # what was dropped unclosed warns while the loop is there
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    return [f"task left over: {task}" for task in tasks] + [f"watched: descriptor {fd}" for fd in watched]


def watched_descriptors(loop):
    """Return the descriptors that a loop of asyncio watches, without its own."""
    if not hasattr(loop, "_selector"):
        return []  # uvloop tells nobody; its descriptors are counted as all others
    return [key.fd for key in loop._selector.get_map().values() if key.fd != loop._ssock.fileno()]


@pytest.fixture(scope="session")
def tls_contexts(certificate):
    """Return the contexts of a TLS server and of a client that trusts it."""
    return certificates.contexts(certificate)
