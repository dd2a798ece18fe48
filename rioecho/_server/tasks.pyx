"""Calls in new threads, started without waiting for the thread to begin.

``threading.Thread.start()`` waits until the new thread reports that it runs. A thread that has no memory to begin never
does, and the caller blocks indefinitely. Here the caller does not wait, and the end of the task is reported in any
case, even if the thread never began, by C code that allocates nothing.
"""

import _thread
import threading

cimport cython
from libc.stdint cimport int64_t, uint64_t

from rioecho._core.posix cimport rio_atomic_add, rio_flag_take, rio_signals_hold_sent, rio_signals_release, sigset_t
from rioecho._server.notify cimport Latch


@cython.final
cdef class WaitGroup:
    """A group of running tasks, to be waited for after ``close()``."""

    def __cinit__(self):
        self.running = 1
        self.empty = Latch()

    cdef void add(self, int64_t n) noexcept:
        if rio_atomic_add(&self.running, <uint64_t>n) == 0:
            self.empty.open_once()

    def close(self):
        """Declare that no further task will be started. Closing again does nothing."""
        if rio_flag_take(&self.closed):
            self.add(-1)

    def wait(self, seconds=None):
        """Wait up to ``seconds`` until every task has ended; report whether they have. None means no limit.

        Call ``close()`` first.
        """
        return self.empty.wait(seconds)


@cython.final
cdef class Task:
    """A call to be made once, in a new thread.

    ``name`` is the name of the thread in logs and debuggers. The task belongs to ``group``, a ``WaitGroup``, while it
    runs. ``latches`` are opened when it has ended, in any case: even if the thread never begins, or ``start()`` fails.
    """

    cdef object call
    cdef tuple arguments
    cdef object name
    cdef WaitGroup group
    cdef tuple latches
    cdef Latch beginning     # opened when it has begun, or has ended without that
    cdef bint came           # it has begun
    cdef rio_flag started
    cdef rio_flag begun      # taken by the thread, or by the code that prevents it from beginning

    def __cinit__(self, call, *arguments, name, WaitGroup group=None, tuple latches=()):
        self.call = call
        self.arguments = arguments
        self.name = name
        self.latches = latches
        self.group = group
        self.beginning = Latch()

    def begin(self):
        """Start the thread as start() does, and wait until it runs.

        Raises MemoryError where it has found no memory to begin with: then the call is not made, and the task has
        ended.
        """
        if not self.start():
            return False
        self.beginning.wait()
        if not self.came:
            raise MemoryError("no memory for a thread to begin with")
        return True

    def start(self):
        """Start the thread. Returns False if ``start()`` or ``cancel()`` was called before.

        Raises ``RuntimeError`` or ``MemoryError`` if the system has no thread or no memory left; the call is never made
        then.
        """
        cdef sigset_t before
        if not rio_flag_take(&self.started):
            return False
        if self.group is not None:
            self.group.add(1)
        entry = None   # referenced here until it is known whether the thread exists
        # The thread inherits this signal mask: signals are meant for the main thread, whose waits they interrupt, but
        # would often be delivered to a thread that is about to begin or end.
        rio_signals_hold_sent(&before)
        try:
            entry = _Entry(self)
            _thread.start_new_thread(entry, ())
        except BaseException:
            # The thread may run nevertheless: returning its number may be what failed.
            if rio_flag_take(&self.begun):
                self.end()
                raise
        finally:
            rio_signals_release(&before)
        return True

    def cancel(self):
        """Prevent a task that was not started from ever being started; report whether this call did."""
        if not rio_flag_take(&self.started):
            return False
        if self.group is not None:
            self.group.add(1)
        self.end()
        return True

    cdef void end(self) noexcept:
        """Report the end. Called once, by the only one that took ``begun``, or by cancel()."""
        cdef Latch latch
        self.call = self.arguments = None
        self.beginning.open_once()
        for latch in self.latches:
            latch.open_once()
        if self.group is not None:
            self.group.add(-1)


@cython.final
@cython.no_gc   # only its thread refers to it, and the collector must not clear the task before
cdef class _Entry:
    """The function of the thread, which alone refers to it: deallocation ends a task whose thread never began."""

    cdef Task task

    def __cinit__(self, Task task):
        self.task = task

    def __call__(self):
        if not rio_flag_take(&self.task.begun):
            return
        self.task.came = True
        self.task.beginning.open_once()
        try:
            _run(self.task.name, self.task.call, self.task.arguments)
        except MemoryError:
            pass   # the end is reported anyway, and a traceback would need memory
        finally:
            self.task.end()

    def __dealloc__(self):
        if self.task is not None and rio_flag_take(&self.task.begun):
            self.task.end()


def _run(name, call, arguments):
    """Make the call in this thread, which is named for logs and debuggers if there is memory for that."""
    try:
        threading.current_thread().name = name
    except Exception:
        pass
    try:
        call(*arguments)
    finally:
        # Otherwise threading.enumerate() would list the thread until another one reuses its number.
        for _ in range(10):
            try:
                threading.current_thread()._delete()
                break
            except Exception:   # no memory
                continue
