"""Reading lines, and frames that end in any other separator: RIO's rio_readlineb() and what grew from it.

The finder is in _core/buffer.pxd and never looks at a byte twice; the shape of every method is said in _rio/reader.pyx.
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
    # How much more than max_line skipline() holds of a line before it throws the beginning away, at least.
    SKIP_AT_ONCE = 1 << 16

cdef object MINUS_ONE = -1   # the default of a size, compared by identity: the usual call converts nothing


cdef class LineReader(Reader):
    # ---- lines

    def readline(self, limit=-1, *, timeout=...):
        """Read one line, its newline included (RIO's rio_readlineb, CS:APP 10.5.2).

        Returns the line as bytes; at most `limit` bytes of it if `limit` is not negative, and then the rest comes with
        the next call. At the end of the input: what is left without a newline, then b"".

        Raises LineTooLong, if no limit is given, for a line of more than max_line bytes; TimeoutError, or
        BlockingIOError with a timeout of 0; OSError. The bytes stay held, and the next call goes on.
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
        """The next line, as from readline(); stops at the end of the input."""
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
        """Read every whole line that is there after at most one read, as a list; wait for the first one.

        At the end of the input: a list of the unterminated last line, then an empty list. Raises as readline() does;
        lines before one that is too long are returned first.
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
        """Read lines to the end of the input, or until they are more than `hint` bytes, as a list.

        Nothing is consumed before the list is complete. Raises as readline() does.
        """
        cdef rio_call call
        cdef size_t whole = 0   # how many of the held bytes are in `lines` already
        cdef size_t scanned = 0, n = 0, held
        cdef framing answer
        cdef Py_ssize_t enough
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
                    if self.fill_once(&call, held + 1):
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
        """Throw away the bytes through the next newline: the way on after LineTooLong.

        Returns their number; at the end of the input, the number of those that were left. They are thrown away once
        the newline is there, so an interruption (TimeoutError and so on) loses nothing. Only of a line that is longer
        than max_line by more than a buffer is the beginning thrown away before, so that the memory stays bounded; it
        counts in what the next skipline() returns.
        """
        cdef rio_call call
        cdef size_t n = 0
        cdef framing answer
        cdef object count   # made before anything is consumed: an int needs memory, too
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
                if self.fill_once(&call, n + 1) == 0:
                    break
            count = n + self.skipped
            consume(self, n)
            return count
        finally:
            leave_reading(self)

    def has_line(self):
        """Is a whole line held, so that readline() would not touch the descriptor?"""
        cdef size_t n
        enter(self, &self.reading)
        try:
            return find_line(&self.inp, SIZE_MAX, &n) == FOUND
        finally:
            leave_reading(self)

    cdef ssize_t wait_line(self, size_t limit, bint cut, object timeout) except -1:
        """No newline is in the first `limit` held bytes. Read on until there is: the line's length.

        With `cut`, `limit` bytes are enough; without, more than `limit` bytes are an error. 0 at the end of the input.
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
            if self.fill_once(&call, held + 1) == 0:
                return held

    cdef list take_lines(self, size_t n):
        """The first held line, of n bytes, and every whole line after it, consumed."""
        # In variables of their own: for all the compiler knows, making a bytes object may change a field.
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
        """Read through the separator, one byte or more.

        Returns the bytes, separator included. Raises IncompleteRead at the end of the input, with what was left in
        `.partial`; LineTooLong if no separator ends within `limit` bytes (max_line, if no limit is given), and the
        bytes stay held; TimeoutError, BlockingIOError and OSError as readline() does.
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
                if self.fill_once(&call, held + 1) == 0:
                    self.incomplete(None)
        finally:
            leave_reading(self)
