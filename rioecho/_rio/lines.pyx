"""Reading lines, and frames that end in any other separator: ``rio_readlineb()`` of the book and its extensions.

The search is in _core/buffer.pxd and scans no byte twice. The structure common to all methods is described in
_rio/reader.pyx.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport SIZE_MAX

from rioecho._core.buffer cimport (
    FOUND,
    TOO_LONG,
    buffer_held,
    buffer_start,
    find_frame,
    find_line,
    framing,
)
from rioecho._core.posix cimport rio_flag_closed
from rioecho._rio.framing cimport MORE
from rioecho._rio.input cimport consume, enter, leave_reading, take, take_and_leave
from rioecho._rio.limits cimport rio_call
from rioecho._rio.reader cimport Reader
from rioecho._core.convert cimport check_timeout, to_limit

from rioecho.errors import LineTooLong


cdef object MINUS_ONE = -1   # the default of a size; compared by identity, so that the usual call converts nothing


cdef class LineReader(Reader):
    # ---- lines

    def readline(self, limit=-1, *, timeout=...):
        """Read a line, including its newline (CS:APP 10.5.2, ``rio_readlineb``).

        Returns the line as bytes. With a ``limit`` of 0 or more, returns at most ``limit`` bytes of it, and the next
        call returns the rest. At EOF, returns an unterminated last line as it is, then ``b""``.

        Raises ``LineTooLong`` if no ``limit`` is given and the line is longer than ``max_line`` bytes, ``TimeoutError``
        (``BlockingIOError`` if the timeout is 0) and any other ``OSError``. The bytes received stay in the buffer, and
        the next call continues.
        """
        cdef size_t n
        check_timeout(timeout)
        enter(self, &self.reading)
        if limit is MINUS_ONE and find_line(&self.inp, self.line_limit, &n) == FOUND:
            return take_and_leave(self, n)
        return self.read_line(limit, timeout)

    def __iter__(self):
        if rio_flag_closed(&self.reading):
            self.refuse(&self.reading)
        return self

    def __next__(self):
        """Return the next line, as ``readline()`` does. Raises ``StopIteration`` at EOF."""
        cdef size_t n
        enter(self, &self.reading)
        if find_line(&self.inp, self.line_limit, &n) == FOUND:
            return take_and_leave(self, n)
        line = self.read_line(MINUS_ONE, ...)
        if not line:
            raise StopIteration
        return line

    def readlines1(self, *, timeout=...):
        """Return a list of all complete lines in the buffer; if there are none, wait for the first.

        Each line includes its newline. At EOF, returns a list of the unterminated last line, then an empty list.

        Raises the errors of ``readline()``. The lines before one that is too long are returned first.
        """
        cdef size_t n
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            if find_line(&self.inp, self.line_limit, &n) != FOUND:
                n = self.wait_line(self.line_limit, False, timeout)
            return self.take_lines(n)
        finally:
            leave_reading(self)

    def readlines(self, hint=-1, *, timeout=...):
        """Return a list of all lines up to EOF; if ``hint`` is positive, stop after more than ``hint`` bytes.

        ``timeout`` is for all lines together. Raises the errors of ``readline()``; nothing is consumed before the list
        is complete, so that the next call returns all bytes received.
        """
        cdef rio_call call
        cdef size_t whole = 0   # number of buffered bytes that are in `lines` already
        cdef size_t scanned = 0, n = 0, held
        cdef framing answer
        cdef Py_ssize_t enough
        cdef ssize_t got
        cdef list lines = []
        enter(self, &self.reading)
        try:
            enough = to_limit(hint, "hint")
            self.start(&call, timeout)
            while enough <= 0 or <Py_ssize_t>whole <= enough:
                held = buffer_held(&self.inp)
                answer = find_frame(
                    buffer_start(&self.inp) + whole, held - whole, b"\n", 1, &scanned, self.line_limit, &n
                )
                if answer == TOO_LONG:
                    raise LineTooLong(self.line_limit, held)
                if answer != FOUND:
                    if enough <= 0:
                        got = self.fill_once(&call, self.next_step())
                    else:
                        got = self.fill_towards(&call, c"\n", SIZE_MAX)
                    if got:
                        continue
                    n = held - whole
                    if n == 0:
                        break
                lines.append(PyBytes_FromStringAndSize(buffer_start(&self.inp) + whole, n))
                whole += n
                scanned = 0
            consume(self, whole)
            return lines
        finally:
            leave_reading(self)

    def skipline(self, *, timeout=...):
        """Discard the bytes through the next newline, for example to continue after ``LineTooLong``.

        Returns their number, including the newline. At EOF, discards the remaining bytes and returns their number.

        Raises ``TimeoutError`` (``BlockingIOError`` if the timeout is 0) and any other ``OSError``. The line is
        discarded only after its newline has arrived, so an error loses nothing. There is one exception, which bounds
        the memory: if a line exceeds ``max_line`` by more than ``bufsize`` bytes and 64 KiB, its beginning is
        discarded at once. The next ``skipline()`` includes those bytes in the number it returns.
        """
        cdef rio_call call
        cdef ssize_t n
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            n = self.skipline_end(False)
            if n == MORE:
                self.start(&call, timeout)
            while n == MORE:
                n = self.skipline_end(self.fill_towards(&call, c"\n", SIZE_MAX) == 0)
            return self.drop(n)
        finally:
            leave_reading(self)

    cdef bytes read_line(self, object limit, object timeout):
        """End a call of ``readline()`` that has begun. Without a limit, the buffer was searched for a line before."""
        cdef size_t n
        cdef Py_ssize_t most
        try:
            if limit is MINUS_ONE:
                n = self.wait_line(self.line_limit, False, timeout)
            elif (most := to_limit(limit, "limit")) < 0:
                if find_line(&self.inp, self.line_limit, &n) != FOUND:
                    n = self.wait_line(self.line_limit, False, timeout)
            elif find_line(&self.inp, most, &n) != FOUND:
                n = self.wait_line(most, True, timeout)
            return take(self, n)
        finally:
            leave_reading(self)

    cdef ssize_t wait_line(self, size_t limit, bint cut, object timeout) except -1:
        """Read until the buffer has a complete line, and return its length, as ``line_end()`` does."""
        cdef rio_call call
        cdef bint ended = False
        cdef ssize_t n
        self.start(&call, timeout)
        while True:
            n = self.line_end(limit, cut, ended)
            if n != MORE:
                return n
            ended = self.fill_towards(&call, c"\n", limit if cut else SIZE_MAX) == 0

    # ---- any other separator

    def readuntil(self, sep=b"\n", limit=-1, *, timeout=...):
        """Read through the next separator ``sep``, a bytes-like object of one byte or more, or a tuple of such objects.

        Returns the bytes, including the separator; of several, the one that ends first: ``(b"\\r", b"\\r\\n")`` always
        stops at ``b"\\r"``.

        Raises ``IncompleteRead`` if the input ends before a separator; its ``partial`` has the remaining bytes, which
        are removed from the buffer. Raises ``LineTooLong`` if more than ``limit`` bytes (``max_line`` by default, and
        if ``limit`` is negative or ``None``) come and no separator ends within them; ``TimeoutError``,
        ``BlockingIOError`` and any other ``OSError`` as ``readline()`` does; the bytes received then stay in the
        buffer.
        """
        cdef rio_call call
        cdef size_t most = self.line_limit
        cdef Py_ssize_t size
        cdef ssize_t n
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            self.set_separator(sep)
            if limit is not MINUS_ONE and (size := to_limit(limit, "limit")) >= 0:
                most = size
            n = self.separator_end(most, False)
            if n == MORE:
                self.start(&call, timeout)
            while n == MORE:
                n = self.separator_end(most, self.fill_for_separator(&call, most) == 0)
            return take(self, n)
        finally:
            leave_reading(self)

    cdef ssize_t fill_for_separator(self, rio_call *call, size_t limit) except -1:
        """Make one read for a frame that ends in ``sep``. Returns the number of bytes added, 0 at EOF."""
        cdef bytes separator
        if type(self.sep) is tuple:   # with a buffer of one byte, read them one by one
            return self.fill_once(call, buffer_held(&self.inp) + 1)
        separator = self.sep
        return self.fill_towards(call, separator[len(separator) - 1], limit)
