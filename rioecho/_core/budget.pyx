"""One account of memory for all who serve the connections of a server: threads, and processes that were forked.

It is kept in memory that they share. Each has a share, whose number says what it has taken: what a child process had
when it was killed is given back by its parent.
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
    CHUNK = 1 << 16        # received at once, beside a line
    SHARES_MAX = 1 << 16   # threads or processes that one server can have; their pages are touched as they are used


cdef size_t MAPPING = sizeof(budget_t) + SHARES_MAX * sizeof(uint64_t)


@cython.final
cdef class MemoryBudget:
    """How many bytes buffers may take, all together; a limit of 0 is none."""

    def __cinit__(self, limit):
        cdef size_t most = to_size(limit, "max_memory")
        cdef void *page = mmap(NULL, MAPPING, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
        if page == MAP_FAILED:
            raise MemoryError("no memory that processes can share")
        self.budget = <budget_t *>page
        self.budget.limit = most if most else UINT64_MAX
        self.taken = <uint64_t *>(self.budget + 1)

    def __dealloc__(self):
        if self.budget != NULL:
            munmap(self.budget, MAPPING)

    @property
    def used(self):
        """The bytes that are taken now."""
        return rio_load_relaxed(&self.budget.used)

    @property
    def limit(self):
        """The bytes that may be; 0: no limit."""
        return 0 if self.budget.limit == UINT64_MAX else self.budget.limit


@cython.final
@cython.no_gc_clear   # __dealloc__ uses the budget
cdef class Share:
    """What one who serves connections has taken of a budget; of None, without a limit. Dropping it gives that back.

    max_line: of this size the reserve is, so that one line can always be received to its end; but no more than half of
    the limit. Raises MemoryError where there are as many shares as can be.
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
            raise MemoryError("no more threads or processes can share the server's memory")
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
            # A process that was killed between the two additions of share_add() has not noted what it took last, and
            # so much is lost. In the other order the account could fall below 0.
            rio_atomic_add(&self.s.budget.used, <uint64_t>1 - rio_load_relaxed(self.s.taken))
            rio_store_relaxed(self.s.taken, 0)

    @property
    def taken(self):
        """The bytes that it has taken."""
        return rio_load_relaxed(self.s.taken) - 1 if self.s.budget != NULL else 0
