"""Reading text: lines and characters of UTF-8, Latin-1 or ASCII from the input buffer of a Rio.

There is no second buffer of decoded text, which an error could lose. A line is found in the bytes of the Rio's buffer
and decoded as a whole, and its bytes are consumed only after the result has been created. This is possible because in
these encodings a newline is one byte that is never a part of another character.
"""

import io

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.number cimport PyNumber_AsSsize_t
from libc.string cimport memchr

from rioecho._core.buffer cimport FOUND, buffer_held, buffer_start, find_frame
from rioecho._core.characters cimport (
    CR,
    CRLF,
    LF,
    copy_with_lf,
    find_any_newline,
    newline_at_end,
    newlines_in,
    span_characters,
)
from rioecho._core.posix cimport rio_flag_closed
from rioecho._core.utf8 cimport is_ascii
from rioecho._rio.decoding cimport UTF8, charset, decode, decode_begun
from rioecho._rio.input cimport consume, enter, leave_reading
from rioecho._rio.limits cimport rio_call
from rioecho._rio.writer cimport Writer


cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX


cdef object MINUS_ONE = -1   # as in lines.pyx
cdef bytes ONE_CR = b"\r"


cdef enum:
    SIMPLE = 256   # maximum size in bytes of a read for which is_simple() looks at the data


cdef inline bint find_end(
    TextReader self, Writer rio, const char *data, size_t held, bint eof, size_t *no_lf, size_t *no_sep, size_t *n
):
    """Search for the end of a line and store its length. ``no_lf`` and ``no_sep`` are as in ``find_any_newline``."""
    if self.sep is None:
        return find_any_newline(data, held, eof, no_lf, no_sep, n)
    if len(self.sep) == 1 and self.sep[0] == c'\n':
        return find_frame(data, held, b"\n", 1, no_lf, held, n) == FOUND
    return find_frame(data, held, self.sep, len(self.sep), no_sep, held, n) == FOUND


cdef inline bint find_next(TextReader self, Writer rio, bint eof, size_t *n):
    """Search the buffer for the end of the next line and store its length."""
    cdef bytes sep = ONE_CR if self.sep is None else self.sep
    if rio.sep is not sep:
        rio.sep = sep
        rio.inp.sep_scanned = 0
    return find_end(
        self, rio, buffer_start(&rio.inp), buffer_held(&rio.inp), eof, &rio.inp.scanned, &rio.inp.sep_scanned, n
    )


cdef inline str line_text(TextReader self, char *data, size_t n, int newline):
    """Decode a line of n bytes and translate its newline, of the kind ``newline``."""
    if newline == 0 or newline == LF or not self.translate:
        return decode(self.codec, self.handler, data, n)
    return translated_line(self, data, n - 2 if newline == CRLF else n - 1)


cdef str translated_line(TextReader self, char *data, size_t n):
    """Decode the n bytes before the newline of a line, and append an LF."""
    cdef str line
    if self.handler != NULL:
        return decode(self.codec, self.handler, data, n) + "\n"
    data[n] = c'\n'   # for as long as the line is decoded, during which no Python code runs
    try:
        line = decode(self.codec, self.handler, data, n + 1)
    finally:
        data[n] = c'\r'
    return line


cdef inline str take_line(TextReader self, Writer rio, size_t n):
    """Return the first line of the buffer, of n bytes, and remove it."""
    cdef char *data = buffer_start(&rio.inp)
    cdef int newline = newline_at_end(data, n) if self.sep is None else 0
    cdef str line = line_text(self, data, n, newline)
    saw(self, newline)
    consume(rio, n)
    return line


cdef class TextReader:
    cdef int decode_as(self, charset codec, object errors, object newline) except -1:
        """Set the encoding, the error handler and the newlines, whose names the caller has checked."""
        cdef bytes name = None if errors == "strict" else errors.encode()
        self.codec = codec
        self.handler = NULL if name is None else PyBytes_AS_STRING(name)
        self.handler_name = name
        self.newline = newline
        self.sep = newline.encode() if newline else None
        self.translate = newline is None
        return 0

    cdef int check_open(self) except -1:
        cdef Writer rio = attached(self)
        if rio_flag_closed(&rio.reading):
            rio.refuse(&rio.reading)
        return 0

    cdef int unreadable(self, Writer rio) except -1:
        if not rio.can_read:
            raise io.UnsupportedOperation("not readable")
        return 0

    # ---- lines

    def readline(self, size=-1, /):
        """Read a line, at most ``size`` characters of it unless ``size`` is negative. Returns ``""`` at EOF.

        A universal newline is returned as ``"\\n"``. At EOF, an unterminated last line is returned as it is.

        Raises ``TimeoutError``, ``BlockingIOError`` and any other ``OSError``; what has been received of the line is
        kept, and the next call continues. Raises ``UnicodeDecodeError`` for a line that cannot be decoded, which is
        kept too: each call raises it again until the line has been read through ``buffer``.
        """
        cdef Py_ssize_t most
        cdef size_t n = 0
        cdef Writer rio
        if size is MINUS_ONE:
            return self.next_line()
        most = PyNumber_AsSsize_t(size, OverflowError)
        if most < 0:
            return self.next_line()
        rio = attached(self)
        enter(rio, &rio.reading)
        try:
            if self.plain and self.handler == NULL and find_next(self, rio, False, &n) and n <= <size_t>most:
                return take_line(self, rio, n)   # it has at most n characters
            return self.gather(rio, most, True)
        finally:
            leave_reading(rio)

    def __iter__(self):
        self.check_open()
        return self

    def __next__(self):
        """Return the next line, as ``readline()`` does. Raises ``StopIteration`` at EOF."""
        cdef str line = self.next_line()
        if not line:
            raise StopIteration
        return line

    def readlines(self, hint=-1, /):
        """Return a list of all lines up to EOF; if ``hint`` is positive, stop after more than ``hint`` characters.

        Raises the errors of ``readline()``; nothing is consumed before the list is complete.
        """
        cdef Py_ssize_t most = -1 if hint is None else PyNumber_AsSsize_t(hint, OverflowError)
        cdef Writer rio = attached(self)
        enter(rio, &rio.reading)
        try:
            return self.all_lines(rio, most if most > 0 else PY_SSIZE_T_MAX)
        finally:
            leave_reading(rio)

    cdef str next_line(self):
        cdef Writer rio = attached(self)
        cdef size_t n = 0
        enter(rio, &rio.reading)
        try:
            if not self.plain:
                return self.gather(rio, PY_SSIZE_T_MAX, True)
            if not find_next(self, rio, False, &n):
                n = self.wait_line(rio)
            return take_line(self, rio, n)
        finally:
            leave_reading(rio)

    cdef size_t wait_line(self, Writer rio) except? 0:
        """Read until the buffer has a line, and return its length; the length of the remaining bytes at EOF."""
        cdef rio_call call
        cdef size_t n = 0
        self.unreadable(rio)
        rio.start(&call, ...)
        while rio.fill_once(&call, buffer_held(&rio.inp) + 1):
            if find_next(self, rio, False, &n):
                return n
        return n if find_next(self, rio, True, &n) else buffer_held(&rio.inp)

    cdef list all_lines(self, Writer rio, Py_ssize_t hint):
        cdef rio_call call
        cdef size_t no_lf = 0, no_sep = 0, n = 0, held, whole = 0
        cdef Py_ssize_t length = 0, end
        cdef bint started = False, eof = False
        cdef char *data
        cdef str line, first = self.rest or ""
        cdef list lines = []
        self.unreadable(rio)
        while length <= hint:
            line = None
            end = self.end_of(first)
            if end:
                line, first = first[:end], first[end:]
                lines.append(line)
                length += end
                continue
            held = buffer_held(&rio.inp) - whole
            if not find_end(self, rio, buffer_start(&rio.inp) + whole, held, eof, &no_lf, &no_sep, &n):
                if not eof:
                    if not started:
                        rio.start(&call, ...)
                        started = True
                    eof = rio.fill_once(&call, buffer_held(&rio.inp) + 1) == 0
                    continue
                n = held
            data = buffer_start(&rio.inp) + whole
            line = line_text(self, data, n, newline_at_end(data, n) if self.sep is None else 0)
            if first:
                line, first = first + line, ""
            whole += n
            if not line:
                break
            lines.append(line)
            length += len(line)
            no_lf = no_lf - n if no_lf > n else 0
            no_sep = no_sep - n if no_sep > n else 0
        self.book(rio, whole, first, eof)
        return lines

    # ---- characters

    def read(self, size=-1, /):
        """Read exactly ``size`` characters, or up to EOF if ``size`` is negative or ``None``.

        Returns fewer characters only at EOF. Raises the errors of ``readline()``, and keeps all that was received.
        """
        cdef Py_ssize_t most = -1 if size is None else PyNumber_AsSsize_t(size, OverflowError)
        cdef Writer rio = attached(self)
        cdef str text
        cdef const char *data
        enter(rio, &rio.reading)
        try:
            if most < 0:
                return self.read_all(rio)
            data = buffer_start(&rio.inp)
            if self.plain and 0 < <size_t>most <= buffer_held(&rio.inp) and self.is_simple(data, most):
                text = decode(self.codec, self.handler, data, most)
                self.book(rio, most, None, False)
                return text
            return self.gather(rio, most, False)
        finally:
            leave_reading(rio)

    cdef bint is_simple(self, const char *data, size_t n) noexcept:
        """Report whether each of n bytes is a character, none of them a CR that may be read as something else."""
        return (
            n <= SIMPLE
            and is_ascii(data, n)
            and (self.sep is not None or n == 0 or memchr(data, c'\r', n) == NULL)
        )

    cdef str read_all(self, Writer rio):
        cdef rio_call call
        cdef size_t held, used = 0
        cdef str text
        self.unreadable(rio)
        rio.start(&call, ...)
        while rio.fill_once(&call, buffer_held(&rio.inp) + 1):
            pass
        held = buffer_held(&rio.inp)
        text = self.decode_some(buffer_start(&rio.inp), held, True, &used)
        if self.rest:
            text = self.rest + text
        self.book(rio, held, None, True)
        return text

    cdef str gather(self, Writer rio, size_t most, bint line):
        """Read ``most`` characters, or up to the end of the line if ``line``. Returns fewer only at EOF.

        The text is decoded as it arrives, but the bytes stay in the buffer until the result is complete.
        """
        cdef rio_call call
        cdef size_t off = 0, have = 0, held, stop = 0, used = 0, n = 0
        cdef bint started = False, eof = False, ended = False, final
        cdef char *data
        cdef str text = "", rest = None, more
        cdef list parts = None
        self.unreadable(rio)
        if self.rest:
            n = self.end_of(self.rest) if line else 0
            ended = n > 0
            text = self.rest[:n] if ended else self.rest
            rest = self.rest[n:] if ended else None
            have = len(text)
        while have < most and not (ended and off == stop):
            data = buffer_start(&rio.inp)
            held = buffer_held(&rio.inp)
            if not ended:
                stop = held
                if line and find_next(self, rio, eof, &n):
                    stop = n
                    ended = True
            used = 0
            if off < stop:
                final = eof or ended
                n = span_characters(data + off, stop - off, most - have, self.codec == UTF8, self.translate, final)
                more = self.decode_some(data + off, n, final, &used)
                off += used
                have += len(more)
                if parts is not None:
                    parts.append(more)
                elif text:
                    parts = [text, more]
                else:
                    text = more
            if used == 0:
                if eof:
                    break
                if not started:
                    rio.start(&call, ...)
                    started = True
                eof = rio.fill_once(&call, buffer_held(&rio.inp) + 1) == 0
        if parts is not None:
            text = "".join(parts)
        if have > most:
            rest = text[most:] if rest is None else text[most:] + rest
            text = text[:most]
            # The LF of a CR may be in the buffer, or still to come: leave the CR there too. That of an error handler's
            # own text has none.
            while off and rest.endswith("\r") and buffer_start(&rio.inp)[off - 1] == c'\r':
                rest = rest[: len(rest) - 1]
                off -= 1
        self.book(rio, off, rest, eof)
        return text

    cdef void book(self, Writer rio, size_t n, str rest, bint eof) noexcept:
        """Consume the first n bytes of the buffer. ``rest`` is the end of their text that has not been returned."""
        cdef const char *data = buffer_start(&rio.inp)
        cdef size_t held = buffer_held(&rio.inp), start = 0, end = n
        if self.sep is None:
            if self.after_cr and (n or eof):
                start = n and data[0] == c'\n'
                saw(self, CRLF if start else CR)
                self.after_cr = False
            if end > start and data[end - 1] == c'\r' and (data[end] == c'\n' if end < held else not eof):
                self.after_cr = True
                end -= 1
            saw(self, newlines_in(data + start, end - start))
        self.rest = rest
        self.plain = not rest and not self.after_cr
        consume(rio, n)

    # ---- decoding

    cdef str decode_some(self, const char *data, size_t n, bint final, size_t *used):
        """Decode as much as is complete; all if ``final``. Translates newlines, and stores the number of bytes used."""
        cdef Py_ssize_t complete
        cdef char *copy = NULL
        cdef size_t size = n
        cdef str text
        try:
            if self.translate and n and memchr(data, c'\r', n) != NULL:
                copy = <char *>PyMem_RawMalloc(n)
                if copy == NULL:
                    raise MemoryError
                size = copy_with_lf(copy, data, n)
                data = copy
            complete = size
            if final:
                text = decode(self.codec, self.handler, data, size)
            else:
                text = decode_begun(self.codec, self.handler, data, size, &complete)
        finally:
            PyMem_RawFree(copy)
        used[0] = n - (size - <size_t>complete)   # a character that is cut off has no newline in it
        return text

    cdef Py_ssize_t end_of(self, str text) except -1:
        """Return the length of the first line of text that has been decoded and translated; 0 if it has no newline."""
        cdef Py_ssize_t end
        if self.sep is not None:
            end = text.find(self.newline)
            return 0 if end < 0 else end + len(self.sep)
        end = text.find("\n") + 1
        if not self.translate:
            cr = text.find("\r", 0, end if end else len(text)) + 1
            if cr and cr + 1 != end:
                return cr
        return end
