"""Writing through the output buffer, for ``Rio.write()`` and for text files.

The caller of ``put()`` holds ``writing``. Sending is in _rio/output.pyx.
"""

import io

from rioecho._core.buffer cimport buffer_put, buffer_reserve
from rioecho._core.convert cimport check_source
from rioecho._core.posix cimport rio_assert, rio_flag_mine, rio_flag_take, sched_yield
from rioecho._rio.channel cimport rio_call
from rioecho._rio.lines cimport LineReader
from rioecho._rio.output cimport NOTHING


cdef int note_written(object error, size_t n) except -1:
    """Set the error's ``characters_written`` to the number of the caller's bytes that were sent or buffered."""
    try:
        error.characters_written = n
    except (AttributeError, TypeError):
        pass   # an exception raised by a signal handler, whose class allows no attributes
    return 0


cdef class Writer(LineReader):
    cdef int check_writable(self) except -1:
        if not self.can_write:
            raise io.UnsupportedOperation("this Rio is not writable: its descriptor is open for reading only")
        return 0

    cdef int begin_writing(self, rio_call *call, object timeout) except -1:
        self.check_writable()
        self.start(call, timeout)
        self.raise_kept(call)
        return 0

    cdef int put(self, const char *data, size_t n, size_t *taken) except -1:
        """Write n bytes through the buffer. Counts the bytes that were sent or buffered in ``taken``."""
        cdef rio_call call
        cdef size_t size = self.out.base
        self.begin_writing(&call, ...)
        if n > size:
            self.push(&call, NOTHING)
            self.send_all(&call, data, n, taken)
        elif n:
            self.push(&call, size - n)
            self.hold_output(&call, data, n)
            taken[0] = n
            if self.has_unsent(&call, size - 1):
                check_source(self.source, self.f.fd)
                self.tied_flush()   # the buffer is full: send what can be sent without blocking
        return 0

    cdef int reserve_output(self) except -1:
        """Allocate the output buffer, so that ``keep_rest()`` needs no memory."""
        cdef rio_call call
        self.start(&call, ...)
        self.hold_output(&call, b"", 0)
        return 0

    cdef void keep_rest(self, const char *data, size_t n) noexcept:
        """After a ``put()`` that was sent in part, append n bytes to the buffer, which is empty and allocated."""
        rio_assert(rio_flag_mine(&self.writing))
        rio_assert(not rio_flag_mine(&self.sending))   # or there would have been no put()
        if n == 0:
            return
        while not rio_flag_take(&self.sending):
            with nogil:
                sched_yield()
        buffer_reserve(&self.out, n)   # moves its start to the front; does not allocate
        buffer_put(&self.out, data, n)
        self.unlock(NULL)
