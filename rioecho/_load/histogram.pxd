# A histogram of latencies in constant memory: counts of values from 1 ns to 1 hour, to three significant digits.
#
# The layout is that of HdrHistogram (G. Tene, hdrhistogram.org). The first 2048 counts are for the values 0 to 2047,
# one value each. Every further 1024 counts are for the values up to the next power of two; each of them covers twice
# as many values as a count of the block before.
#
# One thread records. Other threads may read at any time: they see each number whole, but not all numbers at one time.

from cpython.mem cimport PyMem_RawCalloc
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t

from rioecho._core.posix cimport rio_add_relaxed, rio_assert, rio_bit_length, rio_load_relaxed, rio_store_relaxed


cdef enum:
    HALF_BITS = 10
    HALF = 1 << HALF_BITS        # 1024: the minimum for three digits
    BUCKETS = 32                 # powers of two: 2048 << 31 ns is more than an hour
    HIST_LEN = (BUCKETS + 1) * HALF


cdef struct hist_t:
    uint64_t counts[HIST_LEN]
    uint64_t sum                 # of the values in nanoseconds, modulo 2**64
    uint64_t max
    uint64_t min                 # UINT64_MAX: the histogram is empty


cdef inline hist_t *hist_new() except NULL:
    """Return an empty histogram. The caller frees it with PyMem_RawFree. Raises MemoryError."""
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
    """Return the lowest value counted at an index; that of the next index is the highest value plus one."""
    cdef size_t bucket = index >> HALF_BITS
    rio_assert(index <= HIST_LEN)
    if bucket == 0:
        return index
    return (<uint64_t>(index & (HALF - 1)) + HALF) << (bucket - 1)


cdef inline uint64_t hist_highest(size_t index) noexcept nogil:
    return hist_lowest(index + 1) - 1


cdef inline void hist_record_row(hist_t *h, uint64_t high, uint64_t low, uint64_t n) noexcept nogil:
    """Count n values evenly spaced from high down to low; both have the same index."""
    rio_assert(hist_index(high) < HIST_LEN and hist_index(low) == hist_index(high) and low <= high)
    rio_add_relaxed(&h.counts[hist_index(high)], n)
    rio_add_relaxed(&h.sum, low * n + (high - low) * n // 2)
    if high > h.max:
        rio_store_relaxed(&h.max, high)
    if low < h.min:
        rio_store_relaxed(&h.min, low)


cdef inline void hist_record(hist_t *h, int64_t nanoseconds, uint64_t n) noexcept nogil:
    """Count a value n times. A negative value, the result of clock readings in another order, counts as 0."""
    cdef uint64_t value = <uint64_t>max(nanoseconds, <int64_t>0)
    hist_record_row(h, value, value, n)


cdef inline void hist_record_falling(hist_t *h, int64_t high, double step, uint64_t n) noexcept nogil:
    """Count n values: the first is high, and each one after it lower by step; below 0 they count as 0.

    There may be billions of them, so all that have the same index are recorded at once.
    """
    cdef uint64_t i = 0, some
    cdef int64_t value, least
    while i < n:
        value = max(high - <int64_t>(<double>i * step), <int64_t>0)
        least = <int64_t>hist_lowest(hist_index(<uint64_t>value))
        some = min(n - i, <uint64_t>(<double>(value - least) / step) + 1)
        # The last value is at least `least`, except for rounding errors.
        hist_record_row(
            h, <uint64_t>value, <uint64_t>max(high - <int64_t>(<double>(i + some - 1) * step), least), some
        )
        i += some


cdef inline void hist_add(hist_t *to, const hist_t *h) noexcept nogil:
    """Add the counts of another histogram, which may be recorded into at the same time."""
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
