"""The reading methods for bytes that are given to the object, not read by it: one attempt of each.

A ``request`` is a call with its arguments. ``answer()`` tries it with the bytes that are held, by the rules of
framing.pyx: it returns what the method returns, and MISSING, with nothing consumed, where bytes are missing. A Feed
then returns ``None``; a Rio of asyncio waits and tries again.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport SIZE_MAX
from libc.string cimport memcpy

from rioecho._core.buffer cimport (
    FOUND,
    NEED_MORE,
    TOO_LONG,
    buffer_held,
    buffer_put,
    buffer_reserve,
    buffer_start,
    buffer_trim,
    find_frame,
    find_line,
    framing,
)
from rioecho._core.convert cimport to_limit, to_size
from rioecho._core.posix cimport rio_assert
from rioecho._rio.framing cimport MORE, to_frame_width
from rioecho._rio.input cimport consume, enter, leave_reading, take

from rioecho.errors import LineTooLong


MISSING = type("missing", (), {"__doc__": "The answer of a call for which bytes are missing."})()


# ---- the arguments


cdef int ask_line(request *r, Fed self, object limit) except -1:
    """Convert the arguments of ``readline()``: with a ``limit``, a longer line is returned cut."""
    cdef Py_ssize_t most = to_limit(limit, "limit")
    ask(r, LINE, self.line_limit if most < 0 else <size_t>most)
    r.cut = most >= 0
    return 0


cdef int ask_until(request *r, Fed self, object sep, object limit) except -1:
    """Convert the arguments of ``readuntil()``. The first attempt checks ``sep``, which the caller keeps alive."""
    cdef Py_ssize_t most = to_limit(limit, "limit")
    ask(r, UNTIL, self.line_limit if most < 0 else <size_t>most)
    r.sep = <PyObject *>sep
    return 0


cdef int ask_payload(request *r, Fed self, object width, object byteorder, object limit) except -1:
    """Convert the arguments of ``readframe()``."""
    cdef bint little = False
    cdef size_t size = to_frame_width(width, byteorder, &little)
    ask(r, PAYLOAD, self.line_limit if limit is ... else SIZE_MAX if limit is None else to_size(limit, "limit"))
    r.width = size
    r.little = little
    return 0


cdef class Fed(Framing):
    cdef int put(self, const char *data, size_t n) except -1:
        """Add a copy of n bytes behind those held, for a caller that has entered. On an error nothing was added."""
        cdef size_t held = buffer_held(&self.inp)
        rio_assert(n <= SIZE_MAX - held)   # both are sizes of objects that exist
        buffer_trim(&self.inp, held + n)
        if buffer_reserve(&self.inp, held + n) < 0:
            raise MemoryError
        buffer_put(&self.inp, data, n)
        return 0

    cdef int add(self, object data, bint late) except -1:
        """Add a copy of a bytes-like object. If the input has ended and ``late`` is false, raise ``ValueError``."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            enter(self, &self.reading)
            try:
                if self.ended and not late:
                    raise ValueError("feed() after feed_eof(): the input has ended")
                if view.len:
                    self.put(<const char *>view.buf, view.len)
            finally:
                leave_reading(self)
        finally:
            PyBuffer_Release(&view)
        return 0

    cdef object answer(self, request *r):
        """Try a call. Returns its result, or MISSING."""
        cdef ssize_t n = 0
        cdef size_t held, need = 0
        cdef object count
        enter(self, &self.reading)
        try:
            if r.what == LINE:
                n = self.line_end(r.n, r.cut, self.ended)
            elif r.what == LINES:
                n = self.line_end(r.n, False, self.ended)
                return MISSING if n == MORE else self.take_lines(n)
            elif r.what == UNTIL:
                if r.sep != NULL:
                    self.set_separator(<object>r.sep)
                    r.sep = NULL
                n = self.separator_end(r.n, self.ended)
            elif r.what == NUMBER:
                n = self.bytes_end(r.n, r.strict, self.ended)
            elif r.what == SOME:
                held = buffer_held(&self.inp)
                n = MORE if not (held or self.ended or r.n == 0) else <ssize_t>min(held, r.n)
            elif r.what == PAYLOAD:
                n = self.payload_end(r.width, r.little, r.n, self.ended, &need)
                return MISSING if n == MORE else self.take_payload(r.width, n)
            elif r.what == SKIP:
                n = self.skip_end(r.n, self.ended)
                return MISSING if n == MORE else self.drop(n)
            elif r.what == SKIPLINE:
                n = self.skipline_end(self.ended)
                return MISSING if n == MORE else self.drop(n)
            elif r.what == PEEK:
                held = buffer_held(&self.inp)
                if not (held or self.ended):
                    return MISSING
                return PyBytes_FromStringAndSize(buffer_start(&self.inp), held)
            elif r.what == HOLD:
                held = buffer_held(&self.inp)
                return held if held >= r.n or self.ended else MISSING
            elif r.what == INTO:
                held = buffer_held(&self.inp)
                if held < r.n and not self.ended and (r.strict or not held):
                    return MISSING
                n = min(held, r.n)
                count = n   # created before anything is consumed, because allocating an int can fail
                if n:
                    memcpy(r.into, buffer_start(&self.inp), n)
                consume(self, n)
                return count
            else:
                return self.all_lines(r)
            return MISSING if n == MORE else take(self, n)
        finally:
            leave_reading(self)

    cdef object all_lines(self, request *r):
        """Try ``readlines()``: all lines up to the end of the input, or until they have more than ``n`` bytes."""
        cdef list lines
        cdef const char *data = buffer_start(&self.inp)
        cdef size_t held = buffer_held(&self.inp), n = 0, at = 0
        cdef framing found
        while r.whole <= r.n:
            found = find_frame(data + r.whole, held - r.whole, b"\n", 1, &r.scanned, self.line_limit, &n)
            if found == TOO_LONG:
                raise LineTooLong(self.line_limit, held)
            if found != FOUND:
                if not self.ended:
                    return MISSING
                n = held - r.whole
                if n == 0:
                    break
            r.whole += n
            r.scanned = 0
        lines = []
        while at < r.whole:
            n = r.whole - at   # the last line has no newline if the input has ended
            r.scanned = 0
            find_frame(data + at, n, b"\n", 1, &r.scanned, SIZE_MAX, &n)
            lines.append(PyBytes_FromStringAndSize(data + at, n))
            at += n
        consume(self, r.whole)
        return lines

    cdef bint may_have(self, request *r) noexcept:
        """Report whether ``answer()`` may succeed, or fail, with what is held: without, it need not be called."""
        cdef size_t n
        if self.ended:
            return True
        if r.what == LINE:
            return find_line(&self.inp, r.n, &n) != NEED_MORE or (r.cut and buffer_held(&self.inp) >= r.n)
        if r.what == NUMBER or r.what == HOLD or (r.what == INTO and r.strict):
            return buffer_held(&self.inp) >= r.n
        return True
