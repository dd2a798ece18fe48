# Writing text to the output buffer of a Rio; see _rio/textwriter.pyx.

from rioecho._rio.textreader cimport TextReader
from rioecho._rio.writer cimport Writer


cdef class TextWriter(TextReader):
    cdef readonly str errors
    cdef readonly bint line_buffering
    cdef bint lenient   # whether the error handler encodes any character, without calling Python code
    cdef str linesep    # what "\n" is written as, or None for itself

    cdef int encode_as(self, str errors, object newline) except -1
    cdef object put(self, object text, size_t *taken)
    cdef int put_text(self, Writer rio, str text, size_t *taken) except -1
    cdef int put_piece(self, Writer rio, bytes data, size_t length, size_t *taken) except -1
    cdef int put_large(self, Writer rio, bytes data, str text, size_t *taken) except -1
    cdef list all_pieces(self, Writer rio, str text)
    cdef bytes piece_at(self, Writer rio, str text, Py_ssize_t at, Py_ssize_t *length)
    cdef bytes encode(self, str text, bint handled)
