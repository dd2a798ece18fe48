# The rules by which received bytes are taken, in lines and frames; see _rio/framing.pyx.

from rioecho._rio.input cimport Input


cdef enum:
    MORE = -2   # as the length of a frame: bytes are missing, and the input has not ended


cdef class Framing(Input):
    cdef size_t line_limit
    cdef object sep          # the separator, or the tuple of them, that inp.sep_scanned refers to

    cdef ssize_t line_end(self, size_t limit, bint cut, bint ended) except -1
    cdef ssize_t separator_end(self, size_t limit, bint ended) except -1
    cdef ssize_t bytes_end(self, size_t n, bint exactly, bint ended) except -1
    cdef ssize_t payload_end(self, size_t width, bint little, size_t limit, bint ended, size_t *need) except -1
    cdef ssize_t skipline_end(self, bint ended) except -1
    cdef ssize_t skip_end(self, size_t n, bint ended) except -1
    cdef void discard(self, size_t n) noexcept
    cdef list take_lines(self, size_t n)
    cdef object take_payload(self, size_t width, ssize_t n)
    cdef object drop(self, size_t n)
    cdef int set_separator(self, object sep) except -1
    cdef int incomplete(self, object expected) except -1


cdef size_t to_line_limit(object max_line) except 0
cdef size_t to_frame_width(object width, object byteorder, bint *little) except 0
