# The life of a connection; see aio/_connection.pyx.

from libc.stdint cimport int64_t

from rioecho.aio._output cimport Output


cdef class Connection(Output):
    cdef object described   # the last transport, for get_extra_info() after the end

    cdef int check_clear(self) except -1
    cdef int part(self) except -1
    cdef int cut(self) except -1
