"""The histogram of latencies: counts, percentiles, mean, and classes for a plot, in microseconds."""

cimport cython
from cpython.mem cimport PyMem_RawFree
from libc.math cimport ceil, exp, floor, log, log2, nextafter, pow, sqrt
from libc.stdint cimport UINT64_MAX, uint64_t


cdef double WRAP = 2.0 ** 64


cdef inline double microseconds(uint64_t nanoseconds) noexcept nogil:
    return <double>nanoseconds / 1000


cdef inline double middle(size_t index) noexcept nogil:
    """Return the midpoint of the values counted at an index, in nanoseconds."""
    return (<double>hist_lowest(index) + <double>hist_highest(index)) / 2


@cython.final
cdef class Histogram:
    """A histogram of latencies in microseconds (floats), to three significant digits, up to one hour.

    ``count``, ``min`` and ``max`` are exact; ``mean`` is exact unless the sum exceeds 2**64 ns. The size is constant,
    about 270 KB. For an empty histogram every value is 0.0 and every list is empty.
    """

    #: HdrHistogram's names.
    BUCKETS = HIST_LEN // HALF - 1
    SUB_BUCKETS = 2 * HALF

    def __cinit__(self):
        self.h = hist_new()

    def __dealloc__(self):
        PyMem_RawFree(self.h)

    cdef void take(self, const hist_t *h) noexcept:
        """Add the counts recorded in h so far."""
        with nogil:
            hist_add(self.h, h)

    def record(self, double us, uint64_t n=1):
        """Count a latency of ``us`` microseconds ``n`` times. Raises ValueError if it is negative or too large."""
        if not 0 <= us < 1e15:
            raise ValueError(f"a latency is 0 or more microseconds, not {us!r}")
        if n:
            hist_record(self.h, <int64_t>floor(us * 1000 + 0.5), n)

    def add(self, Histogram other not None):
        """Add the counts of another histogram."""
        self.take(other.h)

    def to_json(self):
        """Return the counts as a dict for ``json.dumps()``, from which from_json() makes an equal histogram.

        ``counts`` is a list of pairs: the lowest value of a class and the number of values in it. All values are whole
        nanoseconds; ``sum`` is that of the values, modulo 2**64.
        """
        cdef size_t i
        counts = [[hist_lowest(i), self.h.counts[i]] for i in range(<size_t>HIST_LEN) if self.h.counts[i]]
        least = None if self.h.min == UINT64_MAX else self.h.min
        return {"unit": "ns", "counts": counts, "min": least, "max": self.h.max, "sum": self.h.sum}

    @staticmethod
    def from_json(data):
        """Return the histogram that to_json() described. Raises ValueError if ``data`` is something else."""
        cdef Histogram new = Histogram()
        cdef uint64_t value, n, before
        cdef size_t index
        try:
            if data["unit"] != "ns":
                raise ValueError
            for pair in data["counts"]:
                value, n = pair
                index = hist_index(value)
                before = new.h.counts[index]
                if not n or hist_lowest(index) != value or before or before + n < n:
                    raise ValueError
                new.h.counts[index] = n
            if data["counts"]:
                new.h.min, new.h.max, new.h.sum = data["min"], data["max"], data["sum"]
                if new.h.min > new.h.max or not (
                    new.h.counts[hist_index(new.h.min)] and new.h.counts[hist_index(new.h.max)]
                ):
                    raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError("it is not a histogram of latencies") from None
        return new

    def since(self, Histogram earlier not None):
        """Return a new histogram of the latencies counted since ``earlier``, an earlier state of this histogram.

        Its ``min`` and ``max`` are exact only to three digits. Raises ValueError if ``earlier`` has counts that this
        histogram does not have.
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
        """The number of latencies counted."""
        cdef uint64_t total = 0
        cdef size_t i
        for i in range(<size_t>HIST_LEN):
            total += self.h.counts[i]
        return total

    @property
    def mean(self):
        """The arithmetic mean."""
        cdef double about = 0
        cdef uint64_t total = 0
        cdef size_t i
        for i in range(<size_t>HIST_LEN):
            if self.h.counts[i]:
                total += self.h.counts[i]
                about += middle(i) * <double>self.h.counts[i]
        if not total:
            return 0.0
        # The sum may wrap, because a backlog of messages has many large ages. Recover the number of wraps from the
        # midpoints.
        about = max(floor((about - <double>self.h.sum) / WRAP + 0.5), 0.0)
        return (<double>self.h.sum + about * WRAP) / 1000 / <double>total

    @property
    def min(self):
        """The lowest latency."""
        return 0.0 if self.h.min == UINT64_MAX else microseconds(self.h.min)

    @property
    def max(self):
        """The highest latency."""
        return microseconds(self.h.max)

    @property
    def stddev(self):
        """The standard deviation of the midpoints of the counts, to three digits."""
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
        """Return the index of the value that p percent of the values do not exceed."""
        cdef uint64_t total, wanted, so_far = 0
        cdef size_t i = 0
        if not 0 <= p <= 100:
            raise ValueError(f"a percentile is 0 to 100, not {p!r}")
        total = self.count
        # As in HdrHistogram: 99.9 percent of 1000 values are 999, although 99.9 is not exact in binary.
        wanted = <uint64_t>ceil(max(nextafter(p, -1.0), 0.0) * <double>total / 100)
        wanted = min(max(wanted, <uint64_t>1), total)
        while so_far + self.h.counts[i] < wanted:   # all counts together are at least `total`
            so_far += self.h.counts[i]
            i += 1
            rio_assert(i < HIST_LEN)
        return i

    def percentile(self, double p):
        """Return the latency that p percent of the messages did not exceed, as HdrHistogram defines it.

        This is the highest value with the same count, or the maximum if that is lower. Raises ValueError unless p is 0
        to 100.
        """
        cdef size_t index = self.index_of(p)
        return microseconds(min(hist_highest(index), self.h.max))

    def buckets(self, Py_ssize_t n):
        """Return at most n classes ``(low, high, count)`` that cover min to max without a gap.

        All classes have the same width on a logarithmic scale. Raises ValueError if n is less than 1.
        """
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
        """Return the curve of latency by percentile: a list of ``(latency, percentile, number of messages so far)``.

        The steps are those of HdrHistogram: ``ticks_per_half`` for each half of the distance that remains to 100
        percent. The last point is ``(max, 100.0, count)``. Raises ValueError if ``ticks_per_half`` is less than 1.
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
                # Beyond 1e15 messages the next step may be smaller than the precision of a double.
                level = max(level + step, nextafter(level, 100.0))
        if total:
            curve.append((self.max, 100.0, total))
        return curve
