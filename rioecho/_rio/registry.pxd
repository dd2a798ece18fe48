# The objects that all Rios over one source share; see _rio/registry.pyx.

from cpython.object cimport PyObject


cdef class Registered:
    cdef object source      # the object that it belongs to, which it keeps alive
    cdef PyObject *next     # the next one of its chain
    cdef size_t chain       # the number of its chain, from 1; 0 if it is in none
    cdef object weak        # without the GIL: a weak reference to it
    cdef object __weakref__

    cdef void forked(self) noexcept


cdef Registered registered(object source, type kind)
cdef Registered register(Registered made)
