# The memory that the connections of a server may take together; see _core/budget.pyx.

from libc.stdint cimport SIZE_MAX, uint64_t

from rioecho._core.posix cimport (
    rio_add_relaxed,
    rio_assert,
    rio_atomic_add,
    rio_atomic_claim,
    rio_load_relaxed,
    rio_store_relaxed,
)


cdef struct budget_t:
    uint64_t used
    uint64_t limit
    uint64_t favoured    # the number of the share whose owner may use the reserve, counted from 1; 0: none


cdef struct share_t:
    # What one loop, thread or child process has taken of a budget. It alone writes `taken`.
    budget_t *budget     # NULL: there is no limit, and nothing is counted
    uint64_t *taken      # bytes, and 1 more
    uint64_t number
    size_t reserve       # the part of the limit that is left to the favoured one


cdef inline size_t share_room(const share_t *s) noexcept nogil:
    """Return how many bytes are left of the budget, but for the reserve. Others may take them at any time."""
    cdef uint64_t used
    if s.budget == NULL:
        return SIZE_MAX
    used = rio_load_relaxed(&s.budget.used) + s.reserve
    return <size_t>min(s.budget.limit - used, <uint64_t>SIZE_MAX) if used < s.budget.limit else 0


cdef inline bint share_favour(share_t *s, size_t cap) noexcept nogil:
    """Claim the reserve for one that has cap bytes, and report whether it may use it: one at a time may, until what it
    holds has gone.

    Without it all who hold the beginning of a line could wait for memory that only the end of a line sets free.
    """
    return s.budget != NULL and cap < s.reserve and rio_atomic_claim(&s.budget.favoured, s.number)


cdef inline void share_favour_no_more(share_t *s) noexcept nogil:
    """Let another one have the reserve. For its owner only."""
    rio_assert(rio_load_relaxed(&s.budget.favoured) == s.number)
    rio_store_relaxed(&s.budget.favoured, 0)


cdef inline size_t share_reserve_room(const share_t *s, size_t cap) noexcept nogil:
    """Return by how many bytes the favoured one, which has cap bytes, may grow."""
    cdef size_t room = share_room(s)
    return max(room, s.reserve - cap if s.reserve > cap else 0)


cdef inline void share_add(share_t *s, size_t n) noexcept nogil:
    """Take n bytes, whether or not they are left."""
    if s.budget != NULL:
        rio_atomic_add(&s.budget.used, n)
        rio_add_relaxed(s.taken, n)


cdef inline bint share_take(share_t *s, size_t n) noexcept nogil:
    """Take n bytes if they are left, and report whether they were."""
    if s.budget == NULL:
        return True
    if share_room(s) < n:
        return False
    if rio_atomic_add(&s.budget.used, n) + s.reserve > s.budget.limit:   # another one was faster
        rio_atomic_add(&s.budget.used, <uint64_t>0 - n)
        return False
    rio_add_relaxed(s.taken, n)
    return True


cdef inline void share_give(share_t *s, size_t n) noexcept nogil:
    """Give n bytes back."""
    if s.budget != NULL:
        rio_assert(rio_load_relaxed(s.taken) > n)
        rio_add_relaxed(s.taken, <uint64_t>0 - n)
        rio_atomic_add(&s.budget.used, <uint64_t>0 - n)


cdef class MemoryBudget:
    cdef budget_t *budget    # the first bytes of a mapping; the shares' numbers follow
    cdef uint64_t *taken
    cdef uint64_t next       # where to look for a number that is free


cdef class Share:
    cdef share_t s           # good for as long as the object lives
    cdef MemoryBudget owner
    cdef int pid
