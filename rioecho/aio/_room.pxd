# The memory behind the held bytes, lent to the loop; see aio/_room.pyx.

from rioecho._rio.framing cimport Framing


cdef struct loan:
    # A block of memory that a view shows. An element of a list; the Room owns this memory.
    loan *next
    char *data
    size_t cap
    size_t mapped
    bint abandoned   # whether the buffer has other memory now


cdef class Room:
    cdef Framing owner
    cdef bint lent   # whether there is, or was, a view
    cdef loan block


cdef object lend(Framing owner)
