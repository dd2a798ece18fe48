"""What was measured, as counts of latencies: percentiles, mean and classes for a picture, in microseconds."""

cimport cython
from cpython.mem cimport PyMem_RawFree
from libc.math cimport ceil, exp, floor, log, log2, nextafter, pow, sqrt
from libc.stdint cimport UINT64_MAX, uint64_t


cdef double WRAP = 2.0 ** 64


cdef inline double microseconds(uint64_t nanoseconds) noexcept nogil:
    return <double>nanoseconds / 1000


cdef inline double middle(size_t index) noexcept nogil:
    """The value that stands for all of those that are counted there, in nanoseconds."""
    return (<double>hist_lowest(index) + <double>hist_highest(index)) / 2


@cython.final
cdef class Histogram:
    """Latencies in microseconds, as floats: three significant digits up to an hour; count, min and max exact, and the
    mean too unless the sum is beyond 2**64 ns.

    Its size is constant, about 270 KB. Where nothing is recorded every answer is 0.0, and every list is empty.
    """

    #: As HdrHistogram calls them.
    BUCKETS = HIST_LEN // HALF - 1
    SUB_BUCKETS = 2 * HALF

    def __cinit__(self):
        self.h = hist_new()

    def __dealloc__(self):
        PyMem_RawFree(self.h)

    cdef void take(self, const hist_t *h) noexcept:
        """Add what was recorded there until now."""
        with nogil:
            hist_add(self.h, h)

    def record(self, double us, uint64_t n=1):
        """Count a latency of so many microseconds, 0 or more, n times."""
        if not 0 <= us < 1e15:
            raise ValueError(f"a latency is 0 or more microseconds, not {us!r}")
        if n:
            hist_record(self.h, <int64_t>floor(us * 1000 + 0.5), n)

    def add(self, Histogram other not None):
        """Count all that the other has counted too."""
        self.take(other.h)

    def since(self, Histogram earlier not None):
        """Return a new one, of what has been counted since an earlier state of this one; ValueError for another.

        Its min and max are to three digits.
        """
        cdef Histogram new = Histogram()
        cdef size_t i
        for i in range(<size_t>HIST_LEN):
            if self.h.counts[i] < earlier.h.counts[i]:
                raise ValueError("not an earlier state of this histogram: it has counted what this one has not")
            new.h.counts[i] = self.h.counts[i] - earlier.h.counts[i]
            if new.h.counts[i]:
                new.h.min = min(new.h.min, hist_lowest(i))
                new.h.max = min(hist_highest(i), self.h.max)
        new.h.sum = self.h.sum - earlier.h.sum
        return new

    @property
    def count(self):
        """How many latencies have been counted."""
        cdef uint64_t total = 0
        cdef size_t i
        for i in range(<size_t>HIST_LEN):
            total += self.h.counts[i]
        return total

    @property
    def mean(self):
        """The sum divided by the count."""
        cdef double about = 0
        cdef uint64_t total = 0
        cdef size_t i
        for i in range(<size_t>HIST_LEN):
            if self.h.counts[i]:
                total += self.h.counts[i]
                about += middle(i) * <double>self.h.counts[i]
        if not total:
            return 0.0
        # A backlog's ages can add up to more than 64 bits hold; how often they went over, the middle values tell.
        about = max(floor((about - <double>self.h.sum) / WRAP + 0.5), 0.0)
        return (<double>self.h.sum + about * WRAP) / 1000 / <double>total

    @property
    def min(self):
        """The lowest."""
        return 0.0 if self.h.min == UINT64_MAX else microseconds(self.h.min)

    @property
    def max(self):
        """The highest."""
        return microseconds(self.h.max)

    @property
    def stddev(self):
        """The standard deviation, to three digits: of the counts' middle values."""
        cdef double mean, value, squares = 0
        cdef uint64_t total = 0
        cdef size_t i
        mean = self.mean * 1000
        for i in range(<size_t>HIST_LEN):
            if self.h.counts[i]:
                total += self.h.counts[i]
                value = min(max(middle(i), <double>self.h.min), <double>self.h.max)
                squares += (value - mean) ** 2 * <double>self.h.counts[i]
        return sqrt(squares / <double>total) / 1000 if total else 0.0

    cdef size_t index_of(self, double p) except? 0:
        """Where the value is that p percent of the values do not exceed."""
        cdef uint64_t total, wanted, so_far = 0
        cdef size_t i
        if not 0 <= p <= 100:
            raise ValueError(f"a percentile is 0 to 100, not {p!r}")
        total = self.count
        # As HdrHistogram does it: 99.9 percent of 1000 values are 999, whatever 99.9 is in binary.
        wanted = <uint64_t>ceil(max(nextafter(p, -1.0), 0.0) * <double>total / 100)
        wanted = min(max(wanted, <uint64_t>1), total)
        for i in range(<size_t>HIST_LEN):
            so_far += self.h.counts[i]
            if so_far >= wanted:
                return i
        return HIST_LEN - 1

    def percentile(self, double p):
        """The latency that p percent (0 to 100) of the messages did not exceed, as HdrHistogram defines it: the highest
        value that is counted with it, but never more than the maximum."""
        cdef size_t index = self.index_of(p)
        return microseconds(min(hist_highest(index), self.h.max))

    def buckets(self, Py_ssize_t n):
        """At most n classes (low, high, count) from min to max, without a gap, each as wide as the others on a
        logarithmic scale."""
        cdef double low, high, step
        cdef size_t i
        cdef Py_ssize_t place
        if n < 1:
            raise ValueError(f"at least one class, not {n}")
        if self.h.min == UINT64_MAX:
            return []
        low, high = max(microseconds(self.h.min), 0.001), max(self.max, 0.001)
        step = log(high / low) / n
        if step <= 0:
            return [(self.min, self.max, self.count)]
        counts = [0] * n
        for i in range(<size_t>HIST_LEN):
            if self.h.counts[i]:
                place = <Py_ssize_t>floor(log(max(middle(i) / 1000, low) / low) / step)
                counts[min(place, n - 1)] += self.h.counts[i]
        edges = [self.min, *(low * exp(step * place) for place in range(1, n)), self.max]
        return [(edges[place], edges[place + 1], counts[place]) for place in range(n)]

    def percentiles(self, int ticks_per_half=5):
        """The curve of latency by percentile: a list of (latency, percentile, how many messages up to there).

        The steps are HdrHistogram's, so many for each half of what is left up to 100 percent. The last one is
        (max, 100.0, count).
        """
        cdef double level = 0, step
        cdef uint64_t total, so_far = 0
        cdef size_t i
        if ticks_per_half < 1:
            raise ValueError(f"at least one step, not {ticks_per_half}")
        total = self.count
        curve = []
        for i in range(<size_t>HIST_LEN):
            if self.h.counts[i] == 0:
                continue
            so_far += self.h.counts[i]
            while so_far < total and level < 100 and 100.0 * <double>so_far / <double>total >= level:
                curve.append((microseconds(min(hist_highest(i), self.h.max)), level, so_far))
                step = 100 / (ticks_per_half * pow(2, floor(log2(100 / (100 - level))) + 1))
                # Of more than 1e15 the next step may be smaller than what a double can go.
                level = max(level + step, nextafter(level, 100.0))
        if total:
            curve.append((self.max, 100.0, total))
        return curve
