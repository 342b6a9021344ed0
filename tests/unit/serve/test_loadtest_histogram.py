"""The histogram of the load generator: quantiles within its promised error, merging is adding."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mulle.serve.loadtest.histogram import N_BUCKETS, RELATIVE_ERROR, Histogram, bucket_of, bucket_range, is_rough

VALUES = st.integers(min_value=0, max_value=(1 << 63) - 1)
LATENCIES = st.lists(st.one_of(st.integers(0, 2000), st.integers(0, 10**11)), min_size=1, max_size=300)
SHARES = st.floats(min_value=0.0, max_value=1.0)


def counted(values):
    """Return a histogram of `values`."""
    made = Histogram()
    for value in values:
        made.record(value)
    return made


def ranked(values, q):
    """Return the value of rank ceil(q n), by sorting."""
    return sorted(values)[max(1, math.ceil(round(q * len(values), 6))) - 1]


@given(VALUES)
@example(0)
@example(255)
@example(256)
@example((1 << 63) - 1)
def test_every_latency_has_one_narrow_bucket(value):
    """A bucket holds its value, exists, and is less than one per cent wide."""
    bucket = bucket_of(value)
    low, high = bucket_range(bucket)

    assert low <= value < high
    assert 0 <= bucket < N_BUCKETS
    assert high - low - 1 <= value / 127


@given(VALUES, VALUES)
def test_buckets_keep_the_order(a, b):
    """A larger latency is never in an earlier bucket."""
    assert (bucket_of(min(a, b))) <= bucket_of(max(a, b))


@given(LATENCIES, SHARES)
@example([5] * 100 + [7], 0.99)
def test_a_quantile_is_as_near_as_promised(values, q):
    """The quantile is that of sorting, at most half a bucket off."""
    exact, found = ranked(values, q), counted(values).quantile(q)

    assert abs(exact - found) <= max(0.5, exact * RELATIVE_ERROR * 1.01)


@given(LATENCIES, LATENCIES)
def test_merging_is_counting_together(first, second):
    """Two processes' histograms make that of all their values; taking one away leaves the other."""
    both = counted(first).merged(counted(second))

    assert counted(first + second).counts == both.counts
    assert counted(second).counts == both.minus(counted(first)).counts
    assert both.counts == Histogram.from_pairs(both.to_pairs()).counts


@given(LATENCIES, st.lists(SHARES, min_size=1, max_size=8))
def test_many_quantiles_are_those_asked_alone(values, shares):
    """Asking for several in one pass, in any order, changes none of them."""
    made = counted(values)

    assert [made.quantile(q) for q in shares] == made.quantiles(shares)


def test_an_empty_histogram_says_nothing():
    """Without values there is no quantile, no mean, no share."""
    empty = Histogram()

    assert 0 == empty.n
    assert all(map(math.isnan, (empty.quantile(0.5), empty.mean(), empty.largest(), empty.share_within(10))))


def test_mean_and_share_are_of_the_values():
    """Means rest on the middles of buckets; a share counts whole buckets."""
    made = counted([100] * 99 + [1_000_000])

    assert pytest.approx((99 * 100 + 1_000_000) / 100, rel=RELATIVE_ERROR) == made.mean()
    assert 0.99 == made.share_within(100)


@pytest.mark.parametrize(
    ("n", "q", "expected"),
    [
        pytest.param(10_000, 0.99, False, id="a hundred beyond p99"),
        pytest.param(9_999, 0.99, True, id="one too few for p99"),
        pytest.param(200, 0.5, False, id="a median needs little"),
        pytest.param(10_000, 0.999, True, id="ten beyond p99.9"),
    ],
)
def test_a_percentile_of_few_samples_is_rough(n, q, expected):
    """Fewer than a hundred samples beyond a percentile make it rough."""
    assert expected == is_rough(n, q)
