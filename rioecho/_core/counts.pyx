"""The statistics of a server, in memory shared with forked children, so that they are always up to date.

Threads without the GIL and processes add to them with atomic instructions as bytes are received and sent.
"""

cimport cython

from rioecho._core.posix cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
    rio_atomic_add,
    rio_atomic_load,
)


@cython.final
cdef class Counts:
    """Six counters: ``closed`` connections, ``errors`` and ``refused`` among them, ``bytes_in``, ``bytes_out`` and
    ``lines``."""

    def __cinit__(self):
        cdef void *page = mmap(
            NULL, sizeof(counts_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0
        )
        if page == MAP_FAILED:
            raise MemoryError("no shared memory available")
        self.c = <counts_t *>page

    def __dealloc__(self):
        if self.c != NULL:
            munmap(self.c, sizeof(counts_t))

    @property
    def refused(self):
        """The number of closed connections that were refused after they had been accepted."""
        return rio_atomic_load(&self.c.refused)

    def one_refused(self):
        """Count a connection that is about to be closed unserved."""
        rio_atomic_add(&self.c.refused, 1)

    def now(self):
        """Return the counters by name, without ``refused``."""
        return {
            # Read in the opposite order of counting, so that errors <= closed and bytes_out <= bytes_in.
            "errors": rio_atomic_load(&self.c.errors),
            "closed": rio_atomic_load(&self.c.closed),
            "bytes_out": rio_atomic_load(&self.c.bytes_out),
            "bytes_in": rio_atomic_load(&self.c.bytes_in),
            "lines": rio_atomic_load(&self.c.lines),
        }
