# The bytes that a StreamReader holds; see aio/_held.pyx.

from rioecho.aio._room cimport Lender


cdef class Holder(Lender):
    cdef int drop_first(self, size_t n) except -1
    cdef bytes held(self)


cdef class Held:
    cdef Holder owner
