"""The reading methods of a Rio for bytes that come from elsewhere: class Feed, for any event loop.

One attempt of each method is in _rio/fed.pyx; the rules are in _rio/framing.pyx, which class Rio has too.
"""

cimport cython
from libc.stdint cimport SIZE_MAX

from rioecho._core.buffer cimport buffer_init
from rioecho._core.constructor cimport name_constructor
from rioecho._core.convert cimport to_limit, to_size
from rioecho._rio.fed cimport (
    LINES,
    MISSING,
    NUMBER,
    PEEK,
    SKIP,
    SKIPLINE,
    Fed,
    ask,
    ask_line,
    ask_payload,
    ask_until,
    request,
)
from rioecho._rio.framing cimport to_line_limit
from rioecho._rio.input cimport Mark, enter, leave_reading


cdef enum:
    BASE = 8192   # size of the first allocation in bytes


@cython.final
cdef class Feed(Fed):
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
        self.add(data, False)

    def feed_eof(self):
        """Mark the end of the input, so that the methods return what is left instead of ``None``.

        Calling it again has no effect.
        """
        enter(self, &self.reading)
        self.ended = True
        leave_reading(self)

    cdef object give(self, request *r):
        """Return the answer of a call, or ``None``; then the open frames are incomplete."""
        cdef Mark mark
        result = self.answer(r)
        if result is not MISSING:
            return result
        enter(self, &self.reading)
        mark = self.innermost
        while mark is not None:
            mark.starved = True
            mark = mark.outer
        leave_reading(self)
        return None

    # ---- reading

    def readline(self, limit=-1):
        """Return a line, including its newline, as ``Rio.readline()`` does; ``None`` if it is not complete."""
        cdef request r
        ask_line(&r, self, limit)
        return self.give(&r)

    def readlines1(self):
        """Return a list of all complete lines, as ``Rio.readlines1()`` does; ``None`` if there are none yet."""
        cdef request r
        ask(&r, LINES, self.line_limit)
        return self.give(&r)

    def readuntil(self, sep=b"\n", limit=-1):
        """Return the bytes through the next separator, as ``Rio.readuntil()`` does; ``None`` if there is none yet."""
        cdef request r
        ask_until(&r, self, sep, limit)
        return self.give(&r)

    def read(self, n=-1):
        """Return exactly ``n`` bytes, all up to the end if ``n`` is negative, as ``Rio.read()`` does.

        Returns ``None`` if they are not all here.
        """
        cdef request r
        cdef Py_ssize_t size = to_limit(n, "n")
        ask(&r, NUMBER, SIZE_MAX if size < 0 else <size_t>size)
        return self.give(&r)

    def readexactly(self, n):
        """Return exactly ``n`` bytes, as ``Rio.readexactly()`` does; ``None`` if they are not all here."""
        cdef request r
        ask(&r, NUMBER, to_size(n, "n"))
        r.strict = True
        return self.give(&r)

    def readframe(self, width=4, byteorder="big", *, limit=...):
        """Return the payload of a frame, as ``Rio.readframe()`` does; ``None`` if it is not complete.

        At the end of the input between two frames it returns ``None`` too.
        """
        cdef request r
        ask_payload(&r, self, width, byteorder, limit)
        return self.give(&r)

    def skip(self, n):
        """Discard ``n`` bytes and return their number, as ``Rio.skip()`` does; ``None`` if they are not all here."""
        cdef request r
        ask(&r, SKIP, to_size(n, "n"))
        return self.give(&r)

    def skipline(self):
        """Discard the bytes through the next newline and return their number, as ``Rio.skipline()`` does.

        Returns ``None`` if there is no newline yet.
        """
        cdef request r
        ask(&r, SKIPLINE, 0)
        return self.give(&r)

    def peek(self, n=0):
        """Return all bytes that are held without consuming them, ``b""`` at the end; ``None`` if there are none yet.

        ``n`` is ignored, as by ``Rio.peek()``.
        """
        cdef request r
        to_limit(n, "n")
        ask(&r, PEEK, 0)
        return self.give(&r)


name_constructor(Feed)
