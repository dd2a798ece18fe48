# The memory behind the held bytes, lent to the loop; see aio/_room.pyx.

from rioecho._rio.fed cimport request
from rioecho.aio._call cimport Awaited


cdef struct loan:
    # A block of memory that a view shows. An element of a list; the Room owns this memory.
    loan *next
    char *data
    size_t cap
    size_t mapped
    bint abandoned   # whether the buffer has other memory now


cdef class Lender(Awaited):
    cdef char *lent   # where the loop stores what comes; NULL if not in the buffer

    cdef size_t wanted(self, Py_ssize_t hint) noexcept
    cdef object lend(self, Py_ssize_t hint)
    cdef int store(self, size_t n) except -1


cdef class Room:
    cdef Lender owner
    cdef bint lent   # whether there is, or was, a view
    cdef loan block


cdef size_t missing(Lender self, request *r) noexcept
