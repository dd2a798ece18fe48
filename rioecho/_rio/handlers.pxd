# Python's signal handlers: in which thread they run, and what they raise; see _rio/handlers.pyx.

from libc.stdint cimport uintptr_t


cdef bint runs_handlers(uintptr_t *other_thread) except -1
cdef bint raised_outside(object error, str modules) except -1
cdef bint raised_by_handler(object error, str modules) except -1
