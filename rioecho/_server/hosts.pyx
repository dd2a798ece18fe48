"""The number of connections of each address, which the accept loop and the engines keep within a limit.

An event loop counts without the GIL, so the table has a lock of its own. Each claim of a connection is released by
the owner of the connection when it closes it.
"""

import os

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.string cimport memcpy

from rioecho._core.posix cimport getpid, pthread_mutex_destroy, pthread_mutex_init


cdef enum:
    BUCKETS = 1 << 14   # unused ones take no memory


@cython.final
cdef class HostTable:
    """The numbers of connections of all addresses, each at most ``limit``."""

    def __cinit__(self, limit):
        cdef bytes seed = os.urandom(sizeof(self.h.seed))
        self.h.limit = limit
        self.h.size = BUCKETS
        self.h.owner = getpid()
        memcpy(self.h.seed, <const char *>seed, sizeof(self.h.seed))
        self.h.buckets = <host_t **>PyMem_RawCalloc(BUCKETS, sizeof(host_t *))
        if self.h.buckets == NULL:
            raise MemoryError
        pthread_mutex_init(&self.h.lock, NULL)

    def __dealloc__(self):
        cdef host_t *host
        cdef size_t i
        if self.h.buckets == NULL:
            return
        pthread_mutex_destroy(&self.h.lock)
        for i in range(self.h.size):
            while self.h.buckets[i] != NULL:
                host = self.h.buckets[i]
                self.h.buckets[i] = host.next
                PyMem_RawFree(host)
        PyMem_RawFree(self.h.buckets)

    @property
    def limit(self):
        """The maximum number of connections of an address."""
        return self.h.limit
