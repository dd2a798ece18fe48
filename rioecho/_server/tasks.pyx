"""A call in a thread of its own, without waiting for the thread to begin.

``threading.Thread.start()`` waits for the new thread to say that it runs. A thread that finds no memory to begin with
never says so, and whoever started it waits for ever. Here nobody waits for the beginning, and the end is told in any
case: by C that allocates nothing, and also for a thread that came to nothing.
"""

import _thread
import threading

cimport cython
from libc.stdint cimport int64_t

from rioecho._core.posix cimport rio_flag_take, rio_signals_hold_sent, rio_signals_release, sigset_t
from rioecho._server.notify cimport Latch


cdef extern from *:
    """
    #define rio_add_fetch(n, delta) __atomic_add_fetch((n), (delta), __ATOMIC_SEQ_CST)
    """
    int64_t rio_add_fetch(int64_t *n, int64_t delta) nogil


@cython.final
cdef class WaitGroup:
    """The tasks that are running, to be waited for after close()."""

    def __cinit__(self):
        self.running = 1
        self.empty = Latch()

    cdef void add(self, int64_t n) noexcept:
        if rio_add_fetch(&self.running, n) == 0:
            self.empty.open_once()

    def close(self):
        """Say that no task will be started any more. Again: does nothing."""
        if rio_flag_take(&self.closed):
            self.add(-1)

    def wait(self, seconds=None):
        """Wait until every task has ended, at most so many seconds; report whether they have. After close() only."""
        return self.empty.wait(seconds)


@cython.final
cdef class Task:
    """A call to be made once, in a thread of its own.

    name: the thread's, for logs and debuggers. group: a WaitGroup to which it belongs while it runs. latches: opened
    when it has ended. The end comes in any case: also when the thread does not begin, or when start() fails, or is
    never called before the task is dropped.
    """

    cdef object call
    cdef tuple arguments
    cdef object name
    cdef WaitGroup group
    cdef tuple latches
    cdef rio_flag started
    cdef rio_flag begun      # taken by the thread, or by whoever sees to it that it never begins
    cdef rio_flag ended

    def __cinit__(self, call, *arguments, name, WaitGroup group=None, tuple latches=()):
        self.call = call
        self.arguments = arguments
        self.name = name
        self.latches = latches
        self.group = group

    def start(self):
        """Start the thread; True, or False where this was called before, or cancel().

        Raises RuntimeError or MemoryError when there is none to be had; then the call is not made, now or later.
        """
        cdef sigset_t before
        if not rio_flag_take(&self.started):
            return False
        if self.group is not None:
            self.group.add(1)
        entry = None   # held here until it is known whether there is a thread
        # The thread inherits this: signals are for the main thread, whose waits they end. A thread that is about to
        # begin or end would often be the one to get them.
        rio_signals_hold_sent(&before)
        try:
            entry = _Entry(self)
            _thread.start_new_thread(entry, ())
        except BaseException:
            # The thread may run all the same: what failed may have been to return its number.
            if rio_flag_take(&self.begun):
                self.end()
                raise
        finally:
            rio_signals_release(&before)
        return True

    def cancel(self):
        """See to it that a task which has not been started never is; report whether this has."""
        if not rio_flag_take(&self.started):
            return False
        if self.group is not None:
            self.group.add(1)
        self.end()
        return True

    cdef void end(self) noexcept:
        cdef Latch latch
        if not rio_flag_take(&self.ended):
            return
        self.call = self.arguments = None
        for latch in self.latches:
            latch.open_once()
        if self.group is not None:
            self.group.add(-1)


@cython.final
@cython.no_gc   # it is referred to by its thread alone; and a collection must not take the task before
cdef class _Entry:
    """What the thread calls. Nobody else holds it: so its own end is that of a thread which never came to call it."""

    cdef Task task

    def __cinit__(self, Task task):
        self.task = task

    def __call__(self):
        if not rio_flag_take(&self.task.begun):
            return
        try:
            _run(self.task.name, self.task.call, self.task.arguments)
        except MemoryError:
            pass   # the end tells enough, and a traceback would need more
        finally:
            self.task.end()

    def __dealloc__(self):
        if rio_flag_take(&self.task.begun):
            self.task.end()


def _run(name, call, arguments):
    """Make the call in a thread that has its name in logs and debuggers, where there is the memory for that."""
    try:
        threading.current_thread().name = name
    except Exception:
        pass
    try:
        call(*arguments)
    finally:
        # Or threading.enumerate() would list it until another thread has its number.
        for _ in range(10):
            try:
                threading.current_thread()._delete()
                break
            except MemoryError:
                continue
            except Exception:
                break
