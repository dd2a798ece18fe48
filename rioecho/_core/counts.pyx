"""The numbers of what has been served, in memory that forked children share: they are never out of date.

Whoever serves adds to them as bytes move, threads without the GIL and processes alike, by atomic instructions.
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
    """closed, errors (of those closed), bytes_in, bytes_out, lines; all 0 at first."""

    def __cinit__(self):
        cdef void *page = mmap(
            NULL, sizeof(counts_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0
        )
        if page == MAP_FAILED:
            raise MemoryError("no memory that processes can share")
        self.c = <counts_t *>page

    def __dealloc__(self):
        if self.c != NULL:
            munmap(self.c, sizeof(counts_t))

    def one_closed(self, *, bint failed):
        """Count a connection that has been served, and whether it ended in an error."""
        if failed:
            rio_atomic_add(&self.c.errors, 1)
        rio_atomic_add(&self.c.closed, 1)

    def now(self):
        """The numbers by name."""
        return {
            # In this order, the opposite of the counting: so no more seem to have failed than were closed, nor more
            # bytes to have gone out than had come in.
            "errors": rio_atomic_load(&self.c.errors),
            "closed": rio_atomic_load(&self.c.closed),
            "bytes_out": rio_atomic_load(&self.c.bytes_out),
            "bytes_in": rio_atomic_load(&self.c.bytes_in),
            "lines": rio_atomic_load(&self.c.lines),
        }
