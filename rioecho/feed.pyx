"""The reading methods of a Rio for bytes that come from elsewhere: class Feed, for any event loop.

The rules of the methods are in _rio/framing.pyx, which class Rio has too.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport SIZE_MAX

from rioecho._core.buffer cimport buffer_held, buffer_init, buffer_put, buffer_reserve, buffer_start, buffer_trim
from rioecho._core.convert cimport to_limit, to_size
from rioecho._rio.framing cimport MORE, Framing, to_frame_width, to_line_limit
from rioecho._rio.input cimport Mark, enter, leave_reading, take


cdef enum:
    BASE = 8192   # size of the first allocation in bytes


@cython.final
cdef class Feed(Framing):
    """Feed(*, max_line=1048576)\n--\n
    The reading methods of a Rio without I/O, for trio, Twisted, Tornado, Qt and any other event loop.

    Pass what has been received to ``feed()`` and its end to ``feed_eof()``. Each reading method returns what it returns
    on a ``Rio``, or ``None`` where a Rio would have to wait; nothing is consumed then, and the same call is made again
    after the next ``feed()``. It raises the same errors, which lose no byte either.

    A ``frame()`` in which a method has returned ``None`` is incomplete: however it ends, what was read in it is held
    again.

    ``max_line`` is the maximum length in bytes of a line, including its newline; ``None`` for no limit.

    One call at a time may use a Feed; a second one, in another thread, raises ``ConcurrentCall``.
    """

    cdef bint ended   # whether feed_eof() was called

    def __cinit__(self, *, max_line=1 << 20):
        buffer_init(&self.inp, BASE)
        self.line_limit = to_line_limit(max_line)

    def __repr__(self):
        return f"<rioecho.Feed holding {self.buffered} bytes{' at the end' if self.ended else ''}>"

    # ---- the input

    def feed(self, data, /):
        """Add ``data``, a bytes-like object, behind the bytes that are held. It is copied.

        Raises ``ValueError`` after ``feed_eof()``. On ``MemoryError`` nothing has been added.
        """
        cdef Py_buffer view
        cdef size_t n
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            enter(self, &self.reading)
            try:
                if self.ended:
                    raise ValueError("feed() after feed_eof(): the input has ended")
                n = view.len
                if n:
                    if n > SIZE_MAX - buffer_held(&self.inp):
                        raise MemoryError
                    buffer_trim(&self.inp, buffer_held(&self.inp) + n)
                    if buffer_reserve(&self.inp, buffer_held(&self.inp) + n) < 0:
                        raise MemoryError
                    buffer_put(&self.inp, <const char *>view.buf, n)
            finally:
                leave_reading(self)
        finally:
            PyBuffer_Release(&view)

    def feed_eof(self):
        """Mark the end of the input, so that the methods return what is left instead of ``None``.

        Calling it again has no effect.
        """
        enter(self, &self.reading)
        self.ended = True
        leave_reading(self)

    cdef object starve(self):
        """Return ``None`` from a call for which bytes are missing; the open frames are incomplete."""
        cdef Mark mark = self.innermost
        while mark is not None:
            mark.starved = True
            mark = mark.outer
        return None

    cdef object taken(self, ssize_t n):
        """Return the first n bytes and remove them, or ``None`` if n is MORE."""
        return self.starve() if n == MORE else take(self, n)

    # ---- reading

    def readline(self, limit=-1):
        """Return a line, including its newline, as ``Rio.readline()`` does; ``None`` if it is not complete."""
        cdef Py_ssize_t most
        enter(self, &self.reading)
        try:
            most = to_limit(limit, "limit")
            return self.taken(self.line_end(self.line_limit if most < 0 else <size_t>most, most >= 0, self.ended))
        finally:
            leave_reading(self)

    def readlines1(self):
        """Return a list of all complete lines, as ``Rio.readlines1()`` does; ``None`` if there are none yet."""
        cdef ssize_t n
        enter(self, &self.reading)
        try:
            n = self.line_end(self.line_limit, False, self.ended)
            return self.starve() if n == MORE else self.take_lines(n)
        finally:
            leave_reading(self)

    def readuntil(self, sep=b"\n", limit=-1):
        """Return the bytes through the next separator, as ``Rio.readuntil()`` does; ``None`` if there is none yet."""
        cdef Py_ssize_t most
        enter(self, &self.reading)
        try:
            self.set_separator(sep)
            most = to_limit(limit, "limit")
            return self.taken(self.separator_end(self.line_limit if most < 0 else <size_t>most, self.ended))
        finally:
            leave_reading(self)

    def read(self, n=-1):
        """Return exactly ``n`` bytes, all up to the end if ``n`` is negative, as ``Rio.read()`` does.

        Returns ``None`` if they are not all here.
        """
        cdef Py_ssize_t size
        enter(self, &self.reading)
        try:
            size = to_limit(n, "n")
            return self.taken(self.bytes_end(SIZE_MAX if size < 0 else <size_t>size, False, self.ended))
        finally:
            leave_reading(self)

    def readexactly(self, n):
        """Return exactly ``n`` bytes, as ``Rio.readexactly()`` does; ``None`` if they are not all here."""
        cdef Py_ssize_t size = to_size(n, "n")
        enter(self, &self.reading)
        try:
            return self.taken(self.bytes_end(size, True, self.ended))
        finally:
            leave_reading(self)

    def readframe(self, width=4, byteorder="big", *, limit=...):
        """Return the payload of a frame, as ``Rio.readframe()`` does; ``None`` if it is not complete.

        At the end of the input between two frames it returns ``None`` too.
        """
        cdef bint little = False
        cdef size_t size = to_frame_width(width, byteorder, &little)
        cdef size_t most = self.line_limit if limit is ... else SIZE_MAX if limit is None else to_size(limit, "limit")
        cdef size_t need = 0
        cdef ssize_t n
        enter(self, &self.reading)
        try:
            n = self.payload_end(size, little, most, self.ended, &need)
            return self.starve() if n == MORE else self.take_payload(size, n)
        finally:
            leave_reading(self)

    def skip(self, n):
        """Discard ``n`` bytes and return their number, as ``Rio.skip()`` does; ``None`` if they are not all here."""
        cdef size_t size = to_size(n, "n")
        cdef ssize_t found
        enter(self, &self.reading)
        try:
            found = self.skip_end(size, self.ended)
            return self.starve() if found == MORE else self.drop(found)
        finally:
            leave_reading(self)

    def skipline(self):
        """Discard the bytes through the next newline and return their number, as ``Rio.skipline()`` does.

        Returns ``None`` if there is no newline yet.
        """
        cdef ssize_t n
        enter(self, &self.reading)
        try:
            n = self.skipline_end(self.ended)
            return self.starve() if n == MORE else self.drop(n)
        finally:
            leave_reading(self)

    def peek(self, n=0):
        """Return all bytes that are held without consuming them, ``b""`` at the end; ``None`` if there are none yet.

        ``n`` is ignored, as by ``Rio.peek()``.
        """
        cdef size_t held
        to_limit(n, "n")
        enter(self, &self.reading)
        try:
            held = buffer_held(&self.inp)
            if held == 0 and not self.ended:
                return self.starve()
            return PyBytes_FromStringAndSize(buffer_start(&self.inp), held)
        finally:
            leave_reading(self)
