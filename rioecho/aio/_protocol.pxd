# What the loop calls; see aio/_protocol.pyx.

from rioecho.aio._room cimport Lender


cdef class Endpoint(Lender):
    cdef bint tls

    cdef int connect(self, object transport) except -1
    cdef object room(self, Py_ssize_t hint)
    cdef int came_in(self, size_t n) except -1
    cdef int came_copy(self, object data) except -1
    cdef int end_input(self) except -1
    cdef int lose(self, object error) except -1
    cdef int stall(self, bint stalled) except -1
    cdef int pump(self) except -1
    cdef int tick(self) except -1


cdef class Protocol:
    cdef object owner         # a weak reference to the Endpoint
    cdef Endpoint reading     # the same while a call waits, so that the loop keeps it alive
    cdef Endpoint writing
    cdef object made          # called when the connection is made, or None


cdef object scratch()
