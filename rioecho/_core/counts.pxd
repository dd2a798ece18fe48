# The statistics of a server; see _core/counts.pyx.

from libc.stdint cimport uint64_t


cdef struct counts_t:
    uint64_t closed
    uint64_t errors
    uint64_t refused
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t lines


cdef class Counts:
    cdef counts_t *c   # valid as long as the object exists
