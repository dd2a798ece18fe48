"""The memory account of a server, shared by all its threads and forked processes.

It is in shared memory. Each thread or process has a share, which counts the bytes that it has taken. If a child process
is killed, its parent returns the bytes of its share.
"""

cimport cython
from libc.stdint cimport SIZE_MAX, UINT64_MAX, uint64_t

from rioecho._core.convert cimport to_size
from rioecho._core.posix cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    getpid,
    mmap,
    munmap,
    rio_atomic_add,
    rio_atomic_claim,
    rio_load_relaxed,
    rio_store_relaxed,
)


cdef enum:
    CHUNK = 1 << 16        # bytes that one read may receive in addition to a line
    SHARES_MAX = 1 << 16   # maximum number of threads or processes of a server; unused pages take no memory


cdef size_t MAPPING = sizeof(budget_t) + SHARES_MAX * sizeof(uint64_t)


@cython.final
cdef class MemoryBudget:
    """An account of the bytes that all buffers together may take; a ``limit`` of 0 is no limit."""

    def __cinit__(self, limit):
        cdef size_t most = to_size(limit, "max_memory")
        cdef void *page = mmap(NULL, MAPPING, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
        if page == MAP_FAILED:
            raise MemoryError("no shared memory available")
        self.budget = <budget_t *>page
        self.budget.limit = most if most else UINT64_MAX
        self.taken = <uint64_t *>(self.budget + 1)

    def __dealloc__(self):
        if self.budget != NULL:
            munmap(self.budget, MAPPING)

    @property
    def used(self):
        """The number of bytes taken."""
        return rio_load_relaxed(&self.budget.used)

    @property
    def limit(self):
        """The maximum number of bytes; 0 for no limit."""
        return 0 if self.budget.limit == UINT64_MAX else self.budget.limit


@cython.final
@cython.no_gc_clear   # __dealloc__ uses the budget
cdef class Share:
    """The part of a budget that one thread or process has taken; with budget ``None`` there is no limit.

    Deallocating the share returns its bytes to the budget. ``max_line`` determines the size of the reserve, so that one
    line can always be received completely; the reserve is at most half of the limit. Raises ``MemoryError`` if there
    are ``SHARES_MAX`` shares.
    """

    def __cinit__(self, MemoryBudget budget, max_line):
        cdef uint64_t i, place = 0
        cdef size_t longest = to_size(max_line, "max_line")
        if budget is None:
            return
        for i in range(<uint64_t>SHARES_MAX):
            place = (rio_load_relaxed(&budget.next) + i) % SHARES_MAX
            if rio_atomic_claim(&budget.taken[place], 1):
                break
        else:
            raise MemoryError("too many threads or processes share the server's memory account")
        rio_store_relaxed(&budget.next, place + 1)
        self.pid = getpid()
        self.owner = budget
        self.s.taken = &budget.taken[place]
        self.s.number = place + 1
        self.s.budget = budget.budget
        self.s.reserve = <size_t>(self.s.budget.limit // 2)
        if 0 < longest < SIZE_MAX - CHUNK:
            self.s.reserve = min(self.s.reserve, longest + CHUNK)

    def __dealloc__(self):
        # A forked child's copy is the parent's share.
        if self.s.budget != NULL and self.pid == getpid():
            if rio_load_relaxed(&self.s.budget.favoured) == self.s.number:
                share_favour_no_more(&self.s)
            # If a process was killed between the two additions of share_add(), the bytes of the last one are lost to
            # the budget. In the other order the account could fall below 0.
            rio_atomic_add(&self.s.budget.used, <uint64_t>1 - rio_load_relaxed(self.s.taken))
            rio_store_relaxed(self.s.taken, 0)

    @property
    def taken(self):
        """The number of bytes that this share has taken."""
        return rio_load_relaxed(self.s.taken) - 1 if self.s.budget != NULL else 0
