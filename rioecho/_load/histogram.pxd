# Latencies in memory that does not grow: counts of values of three significant digits, 1 ns to 1 hour.
#
# The layout is HdrHistogram's (G. Tene, hdrhistogram.org). The first 2048 counts are for the values 0..2047, one each;
# every further 1024 are for values of the next power of two, each count for twice as many values as in those before.
#
# One thread records. Others may read at any time: each number by itself is whole, and was true a moment ago.

from cpython.mem cimport PyMem_RawCalloc
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t

from rioecho._core.posix cimport rio_add_relaxed, rio_assert, rio_bit_length, rio_load_relaxed, rio_store_relaxed


cdef enum:
    HALF_BITS = 10
    HALF = 1 << HALF_BITS        # 1024: the least for three digits
    BUCKETS = 32                 # powers of two: 2048 << 31 is above an hour
    HIST_LEN = (BUCKETS + 1) * HALF


cdef struct hist_t:
    uint64_t counts[HIST_LEN]
    uint64_t sum                 # of the values, modulo 2**64
    uint64_t max
    uint64_t min                 # UINT64_MAX: nothing is recorded


cdef inline hist_t *hist_new() except NULL:
    """An empty one, for the caller to free with PyMem_RawFree."""
    cdef hist_t *h = <hist_t *>PyMem_RawCalloc(1, sizeof(hist_t))
    if h == NULL:
        raise MemoryError
    h.min = UINT64_MAX
    return h


cdef inline size_t hist_index(uint64_t value) noexcept nogil:
    cdef int bucket = rio_bit_length(value | (2 * HALF - 1)) - (HALF_BITS + 1)
    if bucket >= BUCKETS:
        return HIST_LEN - 1      # more than an hour
    return ((<size_t>bucket + 1) << HALF_BITS) + <size_t>(value >> bucket) - HALF


cdef inline uint64_t hist_lowest(size_t index) noexcept nogil:
    """The lowest value that is counted there; that of the next index is one more than the highest."""
    cdef size_t bucket = index >> HALF_BITS
    rio_assert(index <= HIST_LEN)
    if bucket == 0:
        return index
    return (<uint64_t>(index & (HALF - 1)) + HALF) << (bucket - 1)


cdef inline uint64_t hist_highest(size_t index) noexcept nogil:
    return hist_lowest(index + 1) - 1


cdef inline void hist_record_row(hist_t *h, uint64_t high, uint64_t low, uint64_t n) noexcept nogil:
    """Count n values that are evenly spaced from high down to low, which are counted at the same place."""
    rio_assert(hist_index(high) < HIST_LEN and hist_index(low) == hist_index(high) and low <= high)
    rio_add_relaxed(&h.counts[hist_index(high)], n)
    rio_add_relaxed(&h.sum, low * n + (high - low) * n // 2)
    if high > h.max:
        rio_store_relaxed(&h.max, high)
    if low < h.min:
        rio_store_relaxed(&h.min, low)


cdef inline void hist_record(hist_t *h, int64_t nanoseconds, uint64_t n) noexcept nogil:
    """Count a value n times; a negative one, of clocks that were read in another order, as 0."""
    cdef uint64_t value = <uint64_t>max(nanoseconds, <int64_t>0)
    hist_record_row(h, value, value, n)


cdef inline void hist_add(hist_t *to, const hist_t *h) noexcept nogil:
    """Add what another has recorded, while it may go on recording."""
    cdef size_t i
    for i in range(<size_t>HIST_LEN):
        to.counts[i] += rio_load_relaxed(&h.counts[i])
    to.sum += rio_load_relaxed(&h.sum)
    to.max = max(to.max, rio_load_relaxed(&h.max))
    to.min = min(to.min, rio_load_relaxed(&h.min))


cdef class Histogram:
    cdef hist_t *h
    cdef void take(self, const hist_t *h) noexcept
    cdef size_t index_of(self, double p) except? 0
