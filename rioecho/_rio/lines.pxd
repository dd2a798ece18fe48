# Reading lines and frames; see _rio/lines.pyx.

from rioecho._rio.limits cimport rio_call
from rioecho._rio.reader cimport Reader


cdef class LineReader(Reader):
    cdef bytes read_line(self, object limit, object timeout)
    cdef ssize_t wait_line(self, size_t limit, bint cut, object timeout) except -1
    cdef ssize_t fill_for_separator(self, rio_call *call, size_t limit) except -1
