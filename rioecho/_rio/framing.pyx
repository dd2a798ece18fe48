"""The rules by which received bytes are taken: in lines, through separators, by number, with a length in front.

Each rule is written once, for every way that bytes may come: a Rio reads them from a descriptor, a Feed is given them.
A rule looks at the bytes that are held and at whether the input has ended. It returns how many bytes the answer has, or
MORE; the caller then gets more bytes and asks again. It consumes nothing, so an exception at any point leaves all bytes
in the buffer, in order.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.stdint cimport SIZE_MAX, uint64_t

from rioecho._core.buffer cimport (
    FOUND,
    NEED_MORE,
    TOO_LONG,
    buffer_consume,
    buffer_held,
    buffer_start,
    find_frame,
    find_line,
    framing,
)
from rioecho._core.convert cimport to_size
from rioecho._rio.input cimport Input, consume, enter, in_frame, leave_reading

from rioecho.errors import FrameTooLong, IncompleteRead, LineTooLong


cdef enum:
    # Minimum number of bytes that skip() and skipline() hold before they discard the beginning of what they skip.
    SKIP_AT_ONCE = 1 << 16
    # Number of bytes in which several separators are first searched, one after the other; then twice as many.
    WINDOW = 64


cdef size_t to_line_limit(object max_line) except 0:
    """Convert a ``max_line`` argument; None means no limit."""
    cdef size_t longest = SIZE_MAX if max_line is None else to_size(max_line, "max_line")
    if longest == 0:
        raise ValueError("max_line must be at least 1")
    return longest


cdef size_t to_frame_width(object width, object byteorder, bint *little) except 0:
    """Convert the arguments of ``readframe()`` that say what is in front of a payload."""
    cdef size_t n = to_size(width, "width")
    if not 1 <= n <= 8:
        raise ValueError(f"width must be from 1 to 8 bytes, not {width}")
    if not isinstance(byteorder, str):
        raise TypeError(f"byteorder must be a str, not {type(byteorder).__name__}")
    if byteorder not in ("big", "little"):
        raise ValueError(f"byteorder must be 'big' or 'little', not {byteorder!r}")
    little[0] = byteorder == "little"
    return n


cdef framing find_first(
    const char *data, size_t held, tuple separators, size_t *scanned, size_t limit, size_t *n
) noexcept:
    """Search as ``find_frame()`` does for the separator that ends first.

    All are searched in a small window, then in one twice as large: the cost does not depend on where the others are.
    """
    cdef size_t span = min(held, limit)
    cdef size_t start = scanned[0], end, window = WINDOW, seen, found = 0
    cdef framing answer = TOO_LONG if held > limit else NEED_MORE
    while start < span and not found:
        end = start + min(window, span - start)
        for sep in separators:
            seen = start
            if (
                find_frame(
                    data, end, PyBytes_AS_STRING(<bytes>sep), PyBytes_GET_SIZE(<bytes>sep), &seen, end, n
                ) == FOUND
            ):
                found = n[0]
                end = found - 1   # only one that ends before is better
        start = end
        window *= 2
    if found:
        n[0] = found
        return FOUND
    scanned[0] = max(scanned[0], span)
    return answer


cdef class Framing(Input):
    @property
    def max_line(self):
        """The maximum length of a line in bytes, including the newline; ``None`` for no limit."""
        return None if self.line_limit == SIZE_MAX else self.line_limit

    def has_line(self):
        """Report whether the buffer has a complete line, so that ``readline()`` would return it at once."""
        cdef size_t n
        enter(self, &self.reading)
        try:
            return find_line(&self.inp, SIZE_MAX, &n) == FOUND
        finally:
            leave_reading(self)

    # ---- the rules

    cdef ssize_t line_end(self, size_t limit, bint cut, bint ended) except -1:
        """Return the length of the first line, newline included; at the end, that of the remaining bytes.

        A line longer than ``limit`` is returned cut there if ``cut``; else ``LineTooLong`` is raised.
        """
        cdef size_t n = 0, held = buffer_held(&self.inp)
        cdef framing answer = find_line(&self.inp, limit, &n)
        if answer == FOUND:
            return n
        if cut and held >= limit:
            return limit
        if answer == TOO_LONG:
            raise LineTooLong(limit, held)
        return held if ended else MORE

    cdef ssize_t separator_end(self, size_t limit, bint ended) except -1:
        """Return the number of bytes through the first of the separators of ``set_separator()``.

        Raises ``LineTooLong`` if none ends within ``limit`` bytes, and ``IncompleteRead`` at the end of the input.
        """
        cdef size_t n = 0, held = buffer_held(&self.inp)
        cdef const char *data = buffer_start(&self.inp)
        cdef framing answer
        if type(self.sep) is tuple:
            answer = find_first(data, held, <tuple>self.sep, &self.inp.sep_scanned, limit, &n)
        else:
            answer = find_frame(
                data,
                held,
                PyBytes_AS_STRING(<bytes>self.sep),
                PyBytes_GET_SIZE(<bytes>self.sep),
                &self.inp.sep_scanned,
                limit,
                &n,
            )
        if answer == FOUND:
            return n
        if answer == TOO_LONG:
            raise LineTooLong(limit, held)
        if ended:
            self.incomplete(None)
        return MORE

    cdef int set_separator(self, object sep) except -1:
        """Check the separator of a call, bytes-like or a tuple of such, and store it."""
        cdef object separator
        if isinstance(sep, tuple):
            if not sep:
                raise ValueError("sep must not be an empty tuple")
            separator = tuple([one_separator(each) for each in <tuple>sep])
        else:
            separator = one_separator(sep)
        if self.sep != separator:
            self.sep = separator
            self.inp.sep_scanned = 0
        return 0

    cdef ssize_t bytes_end(self, size_t n, bint exactly, bint ended) except -1:
        """Return n when n bytes are held; at the end of the input fewer, or ``IncompleteRead`` if ``exactly``."""
        cdef size_t held = buffer_held(&self.inp)
        if held >= n:
            return n
        if not ended:
            return MORE
        if exactly:
            self.incomplete(n)
        return held

    cdef ssize_t payload_end(self, size_t width, bint little, size_t limit, bint ended, size_t *need) except -1:
        """Return the length of a frame of a length in ``width`` bytes and a payload, or 0 at the end of the input.

        MORE: ``need`` is the number of bytes of the frame that are known of. Raises ``FrameTooLong`` if the payload is
        longer than ``limit``, ``IncompleteRead`` if the input ends inside a frame.
        """
        cdef const unsigned char *data = <const unsigned char *>buffer_start(&self.inp)
        cdef size_t held = buffer_held(&self.inp), i
        cdef uint64_t size = 0
        if held >= width:
            for i in range(width):
                size = size << 8 | data[width - 1 - i if little else i]
            if size > limit or size > <uint64_t>(PY_SSIZE_T_MAX - 8):
                raise FrameTooLong(min(limit, <size_t>PY_SSIZE_T_MAX), size)
        need[0] = width + <size_t>size
        if held >= width and held >= need[0]:
            return need[0]
        if not ended:
            return MORE
        if held:
            self.incomplete(need[0])
        return 0

    cdef object take_payload(self, size_t width, ssize_t n):
        """Return the payload of a frame of n bytes and remove it with its length; None for the end of the input."""
        cdef bytes payload
        if n == 0:
            return None
        payload = PyBytes_FromStringAndSize(buffer_start(&self.inp) + width, n - width)
        consume(self, n)
        return payload

    cdef ssize_t skipline_end(self, bint ended) except -1:
        """Return the length of the first line, as ``line_end()`` does, or discard the beginning of one too long."""
        cdef size_t n = 0
        if find_line(&self.inp, SIZE_MAX, &n) == FOUND:
            return n
        n = buffer_held(&self.inp)
        if ended:
            return n
        if n > self.line_limit and n - self.line_limit > max(self.inp.base, <size_t>SKIP_AT_ONCE):
            self.discard(n)
        return MORE

    cdef ssize_t skip_end(self, size_t n, bint ended) except -1:
        """Return how many bytes are to be discarded now for n in all; at the end of the input fewer.

        So that a large n takes no memory, bytes are discarded before all have come. They count for the next call.
        """
        cdef size_t held = buffer_held(&self.inp)
        cdef size_t left = n - min(n, self.skipped)
        if held >= left or ended:
            return min(held, left)
        if held > max(self.inp.base, <size_t>SKIP_AT_ONCE):
            self.discard(held)
        return MORE

    cdef void discard(self, size_t n) noexcept:
        """Discard the first n bytes of what is skipped before the rest has come; not in a frame, which keeps them."""
        if not in_frame(self):
            buffer_consume(&self.inp, n)
            self.skipped += n

    cdef object drop(self, size_t n):
        """Remove n bytes, and return their number with those that were discarded before."""
        cdef object count = n + self.skipped   # created before anything is consumed: allocating an int can fail
        consume(self, n)
        return count

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

    cdef int incomplete(self, object expected) except -1:
        """Raise ``IncompleteRead`` with all buffered bytes. They are consumed after the error has been created."""
        cdef size_t held = buffer_held(&self.inp)
        error = IncompleteRead(PyBytes_FromStringAndSize(buffer_start(&self.inp), held), expected)
        consume(self, held)
        raise error


cdef bytes one_separator(object sep):
    if type(sep) is not bytes:
        try:
            sep = bytes(memoryview(sep))   # bytes() of an int would be so many zeros
        except TypeError:
            raise TypeError(f"sep must be bytes-like, or a tuple of such, not {type(sep).__name__}") from None
    if not sep:
        raise ValueError("sep must not be empty")
    return sep
