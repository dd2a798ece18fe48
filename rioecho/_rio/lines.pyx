"""Reading lines, and frames that end in any other separator: ``rio_readlineb()`` of the book and its extensions.

The search is in _core/buffer.pxd and scans no byte twice. The structure common to all methods is described in
_rio/reader.pyx.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport SIZE_MAX

from rioecho._core.buffer cimport (
    FOUND,
    TOO_LONG,
    buffer_consume,
    buffer_held,
    buffer_start,
    find_frame,
    find_line,
    framing,
)
from rioecho._core.posix cimport rio_flag_closed
from rioecho._rio.channel cimport enter, leave_reading, rio_call
from rioecho._rio.reader cimport Reader, consume, take
from rioecho._core.convert cimport check_timeout, to_limit, to_size

from rioecho.errors import LineTooLong


cdef enum:
    # Minimum number of bytes beyond max_line that skipline() buffers before it discards the beginning of a line.
    SKIP_AT_ONCE = 1 << 16

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
        cdef Py_ssize_t most
        check_timeout(timeout)
        enter(self, &self.reading)
        try:
            if limit is MINUS_ONE or (most := to_limit(limit, "limit")) < 0:
                if find_line(&self.inp, self.line_limit, &n) != FOUND:
                    n = self.wait_line(self.line_limit, False, timeout)
            elif find_line(&self.inp, most, &n) != FOUND:
                n = self.wait_line(most, True, timeout)
            return take(self, n)
        finally:
            leave_reading(self)

    def __iter__(self):
        if rio_flag_closed(&self.reading):
            self.refuse(&self.reading)
        return self

    def __next__(self):
        """Return the next line, as ``readline()`` does. Raises ``StopIteration`` at EOF."""
        cdef size_t n
        enter(self, &self.reading)
        try:
            if find_line(&self.inp, self.line_limit, &n) != FOUND:
                n = self.wait_line(self.line_limit, False, ...)
                if n == 0:
                    raise StopIteration
            return take(self, n)
        finally:
            leave_reading(self)

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
        cdef size_t n = 0
        cdef framing answer
        cdef object count   # created before anything is consumed, because allocating an int can fail
        enter(self, &self.reading)
        try:
            self.start(&call, timeout)
            while True:
                answer = find_line(&self.inp, SIZE_MAX, &n)
                if answer == FOUND:
                    break
                n = buffer_held(&self.inp)
                if n > self.line_limit and n - self.line_limit > max(self.inp.base, <size_t>SKIP_AT_ONCE):
                    buffer_consume(&self.inp, n)
                    self.skipped += n
                    n = 0
                if self.fill_towards(&call, c"\n", SIZE_MAX) == 0:
                    break
            count = n + self.skipped
            consume(self, n)
            return count
        finally:
            leave_reading(self)

    def has_line(self):
        """Report whether the buffer has a complete line, so that ``readline()`` would not use the descriptor."""
        cdef size_t n
        enter(self, &self.reading)
        try:
            return find_line(&self.inp, SIZE_MAX, &n) == FOUND
        finally:
            leave_reading(self)

    cdef ssize_t wait_line(self, size_t limit, bint cut, object timeout) except -1:
        """Read until the buffer has a complete line, and return its length; the length of the remaining bytes at EOF.

        The first ``limit`` buffered bytes have no newline yet. When ``limit`` is reached, return it if ``cut``; else
        raise ``LineTooLong``.
        """
        cdef rio_call call
        cdef size_t n = 0, held
        cdef framing answer
        self.start(&call, timeout)
        while True:
            answer = find_line(&self.inp, limit, &n)
            if answer == FOUND:
                return n
            held = buffer_held(&self.inp)
            if cut and held >= limit:
                return limit
            if answer == TOO_LONG:
                raise LineTooLong(limit, held)
            if self.fill_towards(&call, c"\n", limit if cut else SIZE_MAX) == 0:
                return held

    cdef list take_lines(self, size_t n):
        """Return the first buffered line, of n bytes, and every complete line after it, and remove them."""
        # Local variables, because the compiler must assume that creating a bytes object changes the fields.
        cdef list lines = []
        cdef const char *line = buffer_start(&self.inp)
        cdef const char *end = line + buffer_held(&self.inp)
        cdef const char *first = line
        cdef size_t limit = self.line_limit
        cdef size_t scanned = 0
        while n:
            lines.append(PyBytes_FromStringAndSize(line, n))
            line += n
            scanned = 0
            if find_frame(line, end - line, b"\n", 1, &scanned, limit, &n) != FOUND:
                break
        consume(self, line - first)
        self.inp.scanned = scanned
        return lines

    # ---- any other separator

    def readuntil(self, sep=b"\n", limit=-1, *, timeout=...):
        """Read through the next separator ``sep``, a bytes-like object of one byte or more.

        Returns the bytes, including the separator.

        Raises ``IncompleteRead`` if the input ends before a separator; its ``partial`` has the remaining bytes, which
        are removed from the buffer. Raises ``LineTooLong`` if no separator ends within ``limit`` bytes (by default
        ``max_line``), and ``TimeoutError``, ``BlockingIOError`` and any other ``OSError`` as ``readline()`` does; the
        bytes received then stay in the buffer.
        """
        cdef rio_call call
        cdef size_t n = 0, held, most
        cdef framing answer
        cdef bytes separator
        if not isinstance(sep, (bytes, bytearray, memoryview)):
            raise TypeError(f"sep must be bytes, not {type(sep).__name__}")
        separator = bytes(sep)
        if not separator:
            raise ValueError("sep must not be empty")
        most = self.line_limit if limit is MINUS_ONE or limit is None else to_size(limit, "limit")
        enter(self, &self.reading)
        try:
            if self.sep != separator:
                self.sep = separator
                self.inp.sep_scanned = 0
            self.start(&call, timeout)
            while True:
                held = buffer_held(&self.inp)
                answer = find_frame(
                    buffer_start(&self.inp), held, separator, len(separator), &self.inp.sep_scanned, most, &n
                )
                if answer == FOUND:
                    return take(self, n)
                if held >= most:
                    raise LineTooLong(most, held)
                if self.fill_towards(&call, (<const char *>separator)[len(separator) - 1], most) == 0:
                    self.incomplete(None)
        finally:
            leave_reading(self)
