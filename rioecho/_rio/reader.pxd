# Reading a number of bytes; see _rio/reader.pyx.

from rioecho._rio.limits cimport rio_call
from rioecho._rio.receiver cimport Receiver


cdef class Reader(Receiver):
    cdef int check_as_file(self, object n, bint none) except -1
    cdef size_t hold(self, size_t n, object timeout) except? 0
    cdef size_t hold_some(self, object timeout, size_t wanted) except? 0
    cdef size_t next_step(self) noexcept
    cdef size_t step_towards(self, size_t n) noexcept
    cdef object read_buffer(self, object buffer, bint full, object timeout)
    cdef bytes read_all(self, object timeout)
    cdef bytes read_n(self, size_t n, object timeout, bint exactly)
    cdef bint goes_direct(self, size_t n) noexcept
    cdef size_t fill_result(self, rio_call *call, size_t n, size_t size) except? 0
    cdef bytes take_result(self, size_t n)
    cdef object read_direct(self, char *data, size_t n, object timeout)
