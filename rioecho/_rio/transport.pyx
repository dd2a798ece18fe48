"""The transport of a Rio whose source has I/O of its own: methods that move the bytes in place of system calls.

``recv()`` and ``send()`` make one attempt each. ``patience`` is the time in nanoseconds that the attempt may wait: 0
for not at all, -1 for any time, ``OWN_TIMEOUT`` for the timeout of the source. An attempt that moved nothing returns
-1 and stores in ``want`` the events to poll for before the next one, or 0 if the source has waited itself.

Exceptions are those of the source. If one is raised in the middle of an attempt, by a signal handler, the bytes that
the attempt moved come first: it returns their number, and ``raise_late()``, which the caller calls after it has stored
or counted them, raises the exception.
"""

from libc.stdint cimport int64_t

from rioecho._core.posix cimport rio_this_thread, rio_thread_get, rio_thread_set


cdef class Transport(Registered):
    cdef ssize_t recv(self, char *data, size_t n, int64_t patience, short *want) except -2:
        """Read up to n bytes. Returns their number, 0 at EOF, or -1. Only a caller that reads may call it."""
        raise NotImplementedError

    cdef ssize_t send(self, const char *data, size_t n, int64_t patience, short *want) except -2:
        """Finish what is half sent, then send up to n bytes. Returns how many of the n were accepted, or -1."""
        raise NotImplementedError

    cdef int raise_late(self) except -1:
        """Raise the exception that ``keep()`` has stored for this thread."""
        if rio_thread_get(&self.raised_in) == rio_this_thread():
            error = self.raised
            self.raised = None
            rio_thread_set(&self.raised_in, 0)
            raise error
        return 0

    cdef void keep(self, object error) noexcept:
        """Store an exception raised in the middle of an attempt for ``raise_late()``; None is none.

        The first one is kept: another thread may be raising it just now, and the bytes of this attempt are safe.
        """
        if error is not None and rio_thread_get(&self.raised_in) == 0:
            self.raised = error
            rio_thread_set(&self.raised_in, rio_this_thread())

    cdef object timeout(self):
        """Return the source's own timeout in seconds; ``None`` for no limit."""
        raise NotImplementedError

    cdef str timed_out(self, bint writing):
        """Return the text of the source's own ``TimeoutError``."""
        return "timed out"

    cdef bint lost(self) noexcept:
        """Report whether the source cannot be used since a fork."""
        return False

    cdef bint stands_in_way(self) noexcept:
        """Report whether an interrupted attempt of this thread keeps other threads from making theirs."""
        return False

    cdef size_t least_room(self) noexcept:
        """Return the size that a buffer for ``recv()`` should have, so that no byte stays where nobody looks for it."""
        raise NotImplementedError
