"""The objects that all Rios over one source share, found by the source: the state of a TLS connection, for example.

Such an object lives as long as a Rio uses it, and keeps its source alive. It is in one of ``CHAINS`` chains, by the
address of the source. The registry owns no reference and allocates nothing, so finding, adding and removing an object
cannot fail and run no Python code: no signal handler or finalizer can come in between. A chain may contain an object
that is being freed; ``reference_to()`` refuses that. The lock is held for a few instructions.

After a fork ``forked()`` of each object is called in the child, after the flags of other threads have been reset
(_core/flag.pyx).
"""

import os

import rioecho._core.flag  # no-cython-lint: imported for its handler of a fork, which is to run first

from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint64_t, uintptr_t

from rioecho._core.posix cimport RIO_HAS_GIL, rio_assert, rio_mutex, rio_mutex_lock, rio_mutex_unlock


cdef extern from *:
    """
    /* Return a new reference to an object that may be about to be freed, then NULL. */
    static inline PyObject *rio_reference_to(PyObject *object, PyObject *weak)
    {
    #ifdef Py_GIL_DISABLED
        PyObject *found = NULL;
        (void)object;
        /* The garbage collector may have cleared `weak`. */
        return PyWeakref_Check(weak) && PyWeakref_GetRef(weak, &found) == 1 ? found : NULL;
    #else
        (void)weak;
        return Py_REFCNT(object) > 0 ? Py_NewRef(object) : NULL;
    #endif
    }
    """
    PyObject *reference_to "rio_reference_to"(PyObject *candidate, PyObject *weak) noexcept
    object PyWeakref_NewRef(object target, PyObject *callback)


cdef enum:
    CHAINS = 1024


cdef rio_mutex guard
cdef PyObject *chains[CHAINS]


cdef Registered registered(object source, type kind):
    """Return the object of class ``kind`` that belongs to ``source``, or None."""
    cdef PyObject *found
    rio_mutex_lock(&guard)
    found = find(<PyObject *>source, <PyTypeObject *>kind)
    rio_mutex_unlock(&guard)
    return None if found == NULL else owned(found)


cdef Registered register(Registered made):
    """Add an object. Returns the one to use, which is another one if ``source`` has got one in the meantime."""
    cdef PyObject *found
    if not RIO_HAS_GIL:
        made.weak = PyWeakref_NewRef(made, NULL)
    rio_assert(made.chain == 0)
    rio_mutex_lock(&guard)
    found = find(<PyObject *>made.source, (<PyObject *>made).ob_type)
    if found == NULL:
        made.chain = chain_of(<PyObject *>made.source) + 1
        made.next = chains[made.chain - 1]
        chains[made.chain - 1] = <PyObject *>made
    rio_mutex_unlock(&guard)
    return made if found == NULL else owned(found)


cdef Registered owned(PyObject *reference):
    """Take over a reference from C."""
    found = <Registered>reference
    Py_DECREF(found)
    return found


cdef size_t chain_of(PyObject *source) noexcept:
    """Return the number of a source's chain, from 0."""
    return ((<uint64_t><uintptr_t>source >> 4) * <uint64_t>0x9E3779B97F4A7C15) >> 54


cdef PyObject *find(PyObject *source, PyTypeObject *kind) noexcept:
    """Return a new reference to the object of a source, or NULL. The caller holds the lock."""
    cdef PyObject *at = chains[chain_of(source)]
    cdef PyObject *found
    while at != NULL:
        # The garbage collector clears `source` before it frees the object.
        if <PyObject *>(<Registered>at).source == source and at.ob_type == kind:
            found = reference_to(at, <PyObject *>(<Registered>at).weak)
            if found != NULL:
                return found
        at = (<Registered>at).next
    return NULL


cdef PyObject *first_from(PyObject *at) noexcept:
    """Return a new reference to the first object of a chain from ``at`` on, or NULL."""
    cdef PyObject *found = NULL
    while at != NULL and found == NULL:
        found = reference_to(at, <PyObject *>(<Registered>at).weak)
        at = (<Registered>at).next
    return found


def _after_fork_in_child():
    cdef size_t chain
    cdef PyObject *at
    cdef PyObject *after
    for chain in range(<size_t>CHAINS):
        at = first_from(chains[chain])
        while at != NULL:   # it is kept alive, so its place in the chain stays valid
            (<Registered>at).forked()
            after = first_from((<Registered>at).next)
            Py_DECREF(<object>at)
            at = after


os.register_at_fork(after_in_child=_after_fork_in_child)


cdef class Registered:
    """An object that belongs to one source. ``register()`` adds it; it is removed when it is freed."""

    def __dealloc__(self):
        cdef PyObject **place
        if self.chain == 0:
            return
        rio_mutex_lock(&guard)
        place = &chains[self.chain - 1]
        while place[0] != <PyObject *>self:
            place = &(<Registered>place[0]).next
        place[0] = self.next
        rio_mutex_unlock(&guard)

    cdef void forked(self) noexcept:
        """Adapt to being in the child of a fork, which has only the thread that forked."""
