"""Threads and semaphores (CS:APP chapter 12), which behave as in C although they are Python's.

A thread does not keep the process alive: the process ends when the main thread returns or calls ``exit()``, and
``exit()`` in any thread ends the process. Only ``Pthread_exit`` in the main thread waits for the others.
"""

# ruff: noqa: N801, N802, the book's names

from __future__ import annotations

import errno
import os
import sys
import threading
from queue import Empty, SimpleQueue

from rioecho.csapp._calls import end_process, exits, raises

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


class _Exit(SystemExit):
    """Raised by ``Pthread_exit`` in a thread."""

    def __init__(self, value: Any) -> None:
        super().__init__(0)
        self.value = value


class _Thread(threading.Thread):
    """A thread of ``Pthread_create``."""

    def __init__(self, routine: Callable[[Any], Any], arg: Any) -> None:
        super().__init__(name=getattr(routine, "__name__", None), daemon=True)
        self._routine = routine
        self._arg = arg
        self.result: Any = None
        self.detached = False

    def run(self) -> None:
        try:
            self.result = self._routine(self._arg)
        except _Exit as exc:
            self.result = exc.value
        except SystemExit as exc:
            if exc.code is not None and not isinstance(exc.code, int):
                print(exc.code, file=sys.stderr, flush=True)
            end_process(exc.code if isinstance(exc.code, int) else int(exc.code is not None))
        finally:
            del self._routine, self._arg


@exits("tid = Pthread_create(routine, arg)", refused=(RuntimeError,))
def Pthread_create(routine: Callable[[Any], Any], arg: Any = None) -> threading.Thread:
    """Start a thread that calls ``routine(arg)``, and return its ID, which is Python's object for the thread.

    An exception of the routine is printed as for any thread of Python, and ends only the thread. ``exit()`` in the
    routine ends the process.
    """
    if not callable(routine):
        raise TypeError(f"the thread's routine must be a function, not {type(routine).__name__}")
    thread = _Thread(routine, arg)
    thread.start()
    return thread


@exits("result = Pthread_join(tid)")
def Pthread_join(tid: threading.Thread) -> Any:
    """Wait for the thread to end, and return what its routine returned or gave to ``Pthread_exit``; else None."""
    _check_thread(tid)
    if tid is threading.current_thread():
        raise _error(errno.EDEADLK)
    if isinstance(tid, _Thread) and tid.detached:
        raise _error(errno.EINVAL)
    tid.join()
    return getattr(tid, "result", None)


@exits("Pthread_detach(tid)")
def Pthread_detach(tid: threading.Thread) -> None:
    """Declare that nobody will join the thread; ``Pthread_join`` is then an error. Python frees it in any case."""
    _check_thread(tid)
    if isinstance(tid, _Thread):
        if tid.detached:
            raise _error(errno.EINVAL)
        tid.detached = True


@exits("tid = Pthread_self()")
def Pthread_self() -> threading.Thread:
    """Return the ID of the calling thread."""
    return threading.current_thread()


pthread_self = Pthread_self  # the book's programs call both


@raises("Pthread_exit(value)")
def Pthread_exit(value: Any = None) -> NoReturn:
    """End the calling thread; ``Pthread_join`` returns ``value``. The main thread first waits for all others."""
    if threading.current_thread() is threading.main_thread():
        while others := [thread for thread in threading.enumerate() if isinstance(thread, _Thread)]:
            for thread in others:
                thread.join()
        raise SystemExit(0)
    raise _Exit(value)


_once_lock = threading.RLock()
_once_done: set[Callable[[], object]] = set()


@exits("Pthread_once(routine)")
def Pthread_once(routine: Callable[[], object]) -> None:
    """Call ``routine()``, unless this function has called it before. Returns when the first call has ended."""
    with _once_lock:
        if routine not in _once_done:
            routine()
            _once_done.add(routine)


class sem_t:
    """A counting semaphore, with the methods of ``threading.Semaphore``.

    Unlike that one it may be used by a signal handler that interrupts a thread inside one of its methods: a
    ``SimpleQueue``, which has no lock of its own in Python, holds one item per unit.
    """

    def __init__(self, value: int) -> None:
        self._units: SimpleQueue[None] = SimpleQueue()
        for _ in range(value):
            self._units.put(None)

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take a unit, waiting for one if there is none. Returns False if there is none in time."""
        try:
            self._units.get(blocking, timeout)
        except Empty:
            return False
        return True

    def release(self) -> None:
        """Give a unit back, or add one."""
        self._units.put(None)


@exits("sem = Sem_init(value)")
def Sem_init(value: int) -> sem_t:
    """Return a semaphore whose value is ``value``, for the threads of this process."""
    if value < 0:
        raise ValueError(f"the value of a semaphore must be 0 or more, not {value}")
    return sem_t(value)


@exits("P(sem)")
def P(sem: sem_t) -> None:
    """Decrement the semaphore, after waiting until it is not 0."""
    _check_semaphore(sem)
    sem.acquire()


@exits("V(sem)")
def V(sem: sem_t) -> None:
    """Increment the semaphore; if threads are waiting for it, one of them goes on."""
    _check_semaphore(sem)
    sem.release()


def _check_thread(tid: Any) -> None:
    if not isinstance(tid, threading.Thread):
        raise TypeError(f"the ID of a thread is required, not {type(tid).__name__}")


def _check_semaphore(sem: Any) -> None:
    if not hasattr(sem, "acquire"):
        raise TypeError(f"a semaphore of Sem_init() is required, not {type(sem).__name__}")


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
