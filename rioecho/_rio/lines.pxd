# Reading lines and frames; see _rio/lines.pyx.

from rioecho._rio.reader cimport Reader


cdef class LineReader(Reader):
    cdef bytes sep         # the separator that inp.sep_scanned refers to

    cdef list take_lines(self, size_t n)
    cdef ssize_t wait_line(self, size_t limit, bint cut, object timeout) except -1
