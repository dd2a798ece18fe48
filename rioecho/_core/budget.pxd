# The memory limit of all connections of a server together; see _core/budget.pyx.

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
    uint64_t favoured    # number, from 1, of the share that may use the reserve; 0: none


cdef struct share_t:
    # The part of a budget that one loop, thread or child process has taken. Only the owner writes `taken`.
    budget_t *budget     # NULL: no limit, and nothing is counted
    uint64_t *taken      # number of bytes, plus 1
    uint64_t number
    size_t reserve       # the part of the limit that only the favoured share may use


cdef inline size_t share_left(const share_t *s) noexcept nogil:
    """Return the number of free bytes of the budget, the reserve included."""
    cdef uint64_t used
    if s.budget == NULL:
        return SIZE_MAX
    used = rio_load_relaxed(&s.budget.used)
    return <size_t>min(s.budget.limit - used, <uint64_t>SIZE_MAX) if used < s.budget.limit else 0


cdef inline size_t share_room(const share_t *s) noexcept nogil:
    """Return the number of free bytes of the budget without the reserve. Others may take them at any time."""
    cdef size_t left = share_left(s)
    return left - s.reserve if left > s.reserve else 0


cdef inline bint share_may_have(const share_t *s, size_t n) noexcept nogil:
    """Report whether n bytes are free, without the reserve, when nothing is taken."""
    return s.budget == NULL or s.budget.limit >= s.reserve + n


cdef inline bint share_favour(share_t *s, size_t cap) noexcept nogil:
    """Claim the reserve for a connection whose buffer has cap bytes. Reports whether that succeeded.

    One connection at a time has the reserve, until it has sent its line. Without the reserve, all connections that have
    received the beginning of a line could wait for memory that only a complete line releases.
    """
    return (
        s.budget != NULL
        and (cap < s.reserve or share_left(s) > 0)
        and rio_atomic_claim(&s.budget.favoured, s.number)
    )


cdef inline void share_favour_no_more(share_t *s) noexcept nogil:
    """Release the reserve. For its owner only."""
    rio_assert(rio_load_relaxed(&s.budget.favoured) == s.number)
    rio_store_relaxed(&s.budget.favoured, 0)


cdef inline size_t share_reserve_room(const share_t *s, size_t cap) noexcept nogil:
    """Return the number of bytes by which the favoured connection's buffer of cap bytes may grow: all that is left."""
    return max(share_left(s), s.reserve - cap if s.reserve > cap else 0)


cdef inline void share_add(share_t *s, size_t n) noexcept nogil:
    """Take n bytes, even beyond the limit."""
    if s.budget != NULL:
        rio_atomic_add(&s.budget.used, n)
        rio_add_relaxed(s.taken, n)


cdef inline bint share_take(share_t *s, size_t n) noexcept nogil:
    """Take n bytes if that many are free. Reports whether they were."""
    if s.budget == NULL:
        return True
    if share_room(s) < n:
        return False
    if rio_atomic_add(&s.budget.used, n) + s.reserve > s.budget.limit:   # another share was faster
        rio_atomic_add(&s.budget.used, <uint64_t>0 - n)
        return False
    rio_add_relaxed(s.taken, n)
    return True


cdef inline void share_give(share_t *s, size_t n) noexcept nogil:
    """Return n bytes to the budget."""
    if s.budget != NULL:
        rio_assert(rio_load_relaxed(s.taken) > n)
        rio_add_relaxed(s.taken, <uint64_t>0 - n)
        rio_atomic_add(&s.budget.used, <uint64_t>0 - n)


cdef class MemoryBudget:
    cdef budget_t *budget    # the beginning of a mapping; the array `taken` follows
    cdef uint64_t *taken
    cdef uint64_t next       # where to start looking for a free number


cdef class Share:
    cdef share_t s           # valid as long as the object exists
    cdef MemoryBudget owner
    cdef int pid
