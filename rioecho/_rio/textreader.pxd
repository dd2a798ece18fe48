# Reading text from the input buffer of a Rio; see _rio/textreader.pyx.

cimport cython

from rioecho._core.posix cimport rio_size_get, rio_size_set
from rioecho._rio.decoding cimport charset
from rioecho._rio.writer cimport Writer


cdef class TextReader:
    cdef Writer rio            # None after detach()
    cdef charset codec
    cdef object handler_name   # the name of the error handler as bytes, or None for "strict"
    cdef const char *handler   # the same, or NULL
    cdef object newline        # as it was passed
    cdef bytes sep             # what a line ends in; None if in any newline
    cdef bint translate        # whether each newline is read as "\n"
    # The state of reading beside the buffer of the Rio. The flag `reading` of the Rio guards it.
    cdef str rest              # the end of a replacement that a sized read has cut; no CR received ends it
    cdef bint after_cr         # the last character read was a CR, and an LF that follows belongs to the same newline
    cdef bint plain            # whether neither of these two is set
    cdef size_t seen           # the kinds of newlines read, as in _core/characters.pxd

    cdef int decode_as(self, charset codec, object errors, object newline) except -1
    cdef int check_open(self) except -1
    cdef int unreadable(self, Writer rio) except -1
    cdef str next_line(self)
    cdef bint is_simple(self, const char *data, size_t n) noexcept
    cdef size_t wait_line(self, Writer rio) except? 0
    cdef str decode_some(self, const char *data, size_t n, bint final, size_t *used)
    cdef str gather(self, Writer rio, size_t most, bint line)
    cdef str read_all(self, Writer rio)
    cdef list all_lines(self, Writer rio, Py_ssize_t hint)
    cdef Py_ssize_t end_of(self, str text) except -1
    cdef void book(self, Writer rio, size_t n, str rest, bint eof) noexcept


cdef inline Writer attached(TextReader self):
    """Return the Rio. Raises ``ValueError`` after ``detach()``."""
    cdef Writer rio
    with cython.critical_section(self):   # another thread may be detaching it
        rio = self.rio
    if rio is None:
        raise ValueError("underlying buffer has been detached")
    return rio


cdef inline void saw(TextReader self, int kinds) noexcept:
    if kinds & ~rio_size_get(&self.seen):
        rio_size_set(&self.seen, rio_size_get(&self.seen) | kinds)
