"""The histogram of latencies, compared with the sorted list of values (nanoseconds here, microseconds in the API)."""

import itertools
import math

import pytest

from rioecho._load.histogram import Histogram
from support.properties import given, st

HOUR = 3600 * 10**9
VALUES = st.lists(
    st.one_of(st.integers(0, 5000), st.integers(0, HOUR), st.integers(0, 42).map(lambda bits: (1 << bits) - 1)),
    min_size=1,
    max_size=60,
)
PERCENTILES = st.one_of(st.floats(0, 100), st.sampled_from([0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0]))


def counted(values):
    h = Histogram()
    for value in values:
        h.record(value / 1000)
    return h


def highest_equivalent(value):
    """Return the highest value that HdrHistogram, with three digits, counts in the same bucket as ``value``."""
    bits = max(value.bit_length() - 11, 0)
    return (((value >> bits) + 1) << bits) - 1


@pytest.mark.long
@given(VALUES, PERCENTILES)
def test_a_percentile_is_the_highest_equivalent_of_the_value_at_its_rank(values, p):
    h = counted(values)
    rank = max(math.ceil(math.nextafter(p, -1) * len(values) / 100), 1)
    exact = sorted(values)[rank - 1]
    assert h.percentile(p) == min(highest_equivalent(exact), max(values)) / 1000
    assert exact <= round(h.percentile(p) * 1000) <= exact + exact / 1000


@pytest.mark.long
@given(VALUES)
def test_count_mean_minimum_and_maximum_are_exact(values):
    h = counted(values)
    assert h.count == len(values)
    assert h.mean == pytest.approx(sum(values) / len(values) / 1000, rel=1e-12)
    assert h.min == min(values) / 1000
    assert h.max == max(values) / 1000
    mean = sum(values) / len(values)
    exact = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    assert h.stddev * 1000 == pytest.approx(exact, rel=0.01, abs=max(values) / 1000)


@pytest.mark.long
@given(VALUES, VALUES)
def test_add_merges_two_histograms_and_since_subtracts_one(first, second):
    both, earlier = counted(first), counted(first)
    both.add(counted(second))
    assert [both.percentile(p) for p in (0, 50, 99, 100)] == [
        counted(first + second).percentile(p) for p in (0, 50, 99, 100)
    ]
    assert both.max == max(first + second) / 1000
    since = both.since(earlier)
    assert since.count == len(second)
    assert since.percentile(50) == pytest.approx(counted(second).percentile(50), rel=0.001, abs=0.001)
    assert since.max >= max(second) / 1000
    assert since.max <= highest_equivalent(max(second)) / 1000


@pytest.mark.long
@given(VALUES, st.integers(1, 40))
def test_buckets_are_contiguous_and_hold_every_value(values, n):
    h = counted(values)
    buckets = h.buckets(n)
    assert 1 <= len(buckets) <= n
    assert sum(count for _, _, count in buckets) == len(values)
    assert buckets[0][0] == h.min
    assert buckets[-1][1] == h.max
    for (_, high, _), (low, _, _) in itertools.pairwise(buckets):
        assert high == low
    assert all(low <= high for low, high, _ in buckets)


@pytest.mark.long
@given(VALUES, st.integers(1, 10))
def test_percentiles_rise_to_the_maximum_with_exact_counts(values, ticks):
    h = counted(values)
    curve = h.percentiles(ticks)
    assert curve[-1] == (h.max, 100.0, len(values))
    for (value, level, count), (next_value, next_level, next_count) in itertools.pairwise(curve):
        assert value <= next_value
        assert level < next_level
        assert count <= next_count
    for value, level, count in curve:
        assert count == sum(1 for each in values if each <= round(value * 1000))
        assert 100 * count / len(values) >= level


def test_a_value_above_an_hour_is_counted_and_is_the_maximum():
    h = counted([5 * HOUR, 1000])
    assert (h.count, h.max, h.percentile(50)) == (2, 5 * HOUR / 1000, 1.0)


def test_one_call_records_a_value_many_times():
    h = Histogram()
    h.record(7.5, 10**12)
    h.record(7.5, 0)
    assert (h.count, h.mean, h.min, h.max, h.stddev) == (10**12, 7.5, 7.5, 7.5, 0)
    assert h.buckets(10) == [(7.5, 7.5, 10**12)]


def test_the_mean_has_three_digits_when_the_sum_exceeds_64_bits():
    h, earlier = Histogram(), Histogram()
    h.record(1e9, 10**9)  # 1e21 nanoseconds
    h.record(3e9, 10**9)
    assert h.mean == pytest.approx(2e9, rel=1e-3)
    earlier.add(h)
    h.record(5.0, 10**6)
    assert h.since(earlier).mean == 5.0


def test_an_empty_histogram_returns_zeros_and_empty_lists():
    h = Histogram()
    assert (h.count, h.mean, h.min, h.max, h.stddev, h.percentile(99)) == (0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert h.buckets(5) == []
    assert h.percentiles() == []


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("record", -1),
        ("record", math.nan),
        ("record", math.inf),
        ("percentile", -0.1),
        ("percentile", 100.1),
        ("percentile", math.nan),
        ("buckets", 0),
        ("percentiles", 0),
    ],
)
def test_an_invalid_latency_or_percentile_is_refused(method, value):
    with pytest.raises(ValueError, match="not"):
        getattr(Histogram(), method)(value)


def test_percentiles_in_steps_of_a_tenth_suffer_no_rounding_error():
    h = counted(range(1, 1001))
    assert [h.percentile(tenths / 10) for tenths in range(1, 1001)] == [n / 1000 for n in range(1, 1001)]


@pytest.mark.parametrize("n", [10**15, 10**17, 2**63])
def test_percentiles_of_very_many_values_are_a_short_list(n):
    h = Histogram()
    h.record(1, n)
    h.record(2)
    curve = h.percentiles()
    assert curve[-1] == (2.0, 100.0, n + 1)
    assert len(curve) < 400
    assert all(a[1] < b[1] for a, b in itertools.pairwise(curve))


def test_since_refuses_what_is_no_earlier_state():
    earlier, later = counted([1000, 2000]), counted([1000])
    with pytest.raises(ValueError, match="not an earlier state"):
        later.since(earlier)
