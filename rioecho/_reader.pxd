# The reading half of class Rio; see _reader.pyx.

from rioecho._channel cimport Channel, rio_call


cdef class Reader(Channel):
    cdef bytes sep         # the separator that inp.sep_scanned is about
    cdef size_t skipped    # bytes of a line that an interrupted skipline() has thrown away

    cdef list take_lines(self, size_t n)
    cdef ssize_t wait_line(self, size_t limit, bint cut, object timeout) except -1
    cdef size_t hold(self, size_t n, object timeout) except? 0
    cdef size_t hold_some(self, object timeout) except? 0
    cdef object read_buffer(self, object buffer, bint full, object timeout)
    cdef ssize_t read_direct(self, rio_call *call, char *data, size_t got, size_t n) except -1
    cdef bytes read_large(self, size_t n, object timeout, bint exactly)
    cdef bytes read_all(self, object timeout)
    cdef bytes read_n(self, size_t n, object timeout, bint exactly)
    cdef bint goes_direct(self, size_t n) noexcept
    cdef int incomplete(self, object expected) except -1


cdef Py_ssize_t to_size(object n, object name) except -1
