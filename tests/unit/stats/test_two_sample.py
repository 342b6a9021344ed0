"""Two-sample tests against scipy, against counting by hand, and against their own promises."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from mulle.core.errors import SpecError
from mulle.stats.two_sample import (
    beyond_p_value,
    bin_counts,
    chi_square_two_sample,
    jensen_shannon,
    ks_against_points,
    ks_p_value,
    ks_two_sample,
    novelty_p_value,
    psi,
    psi_cut,
    quantile_edges,
    rising,
    share_test,
    total_variation,
    wasserstein,
)

VALUES = st.lists(st.floats(allow_nan=False) | st.integers(-3, 3).map(float), min_size=1, max_size=60).map(np.array)
COUNTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=12)


def counts(*values: int) -> np.ndarray:
    """Return a row of counts."""
    return np.array(values, dtype=np.int64)


@given(VALUES, VALUES)
def test_ks_distance_is_the_largest_difference_of_shares(x, y):
    """The distance is what comparing every value with every other gives, ties and infinities included."""
    expected = max(abs((x <= z).mean() - (y <= z).mean()) for z in np.concatenate([x, y]))

    assert ks_two_sample(x, y).statistic == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "m", "shift", "tolerance"),
    [
        pytest.param(40, 50, 0.29, 0.006, id="small samples in the body"),
        pytest.param(400, 300, 0.11, 0.002, id="middling samples near five per cent"),
        pytest.param(3000, 100, 0.16, 0.002, id="a large reference and a small window"),
        pytest.param(2000, 2000, 0.07, 0.0002, id="large samples in the tail"),
    ],
)
def test_ks_p_value_is_near_the_exact_one(n, m, shift, tolerance):
    """Stephens's correction brings the asymptotic p-value close to the exact distribution of continuous samples."""
    x, y = np.arange(n) / n, np.arange(m) / m + shift + 1e-5
    exact = stats.ks_2samp(x, y, method="exact")

    assert ks_p_value(exact.statistic, n, m) == pytest.approx(exact.pvalue, abs=tolerance)


@given(VALUES, VALUES, st.integers(1, 30))
def test_ks_against_points_is_a_lower_bound_and_short_by_one_step_at_most(x, y, n_points):
    """Knowing the reference at some of its values never enlarges the distance; knowing it at all of them changes nothing."""
    ordered = np.sort(x)
    points = np.unique(ordered[np.round(np.linspace(0, x.size - 1, min(n_points, x.size))).astype(int)])
    below, upto = np.searchsorted(ordered, points, side="left"), np.searchsorted(ordered, points, side="right")
    exact = ks_two_sample(x, y).statistic
    found = ks_against_points(points, below, upto, x.size, y).statistic
    inside = np.concatenate([[below[0]], below[1:] - upto[:-1], [x.size - upto[-1]]]).max() / x.size

    assert found <= exact + 1e-12
    assert found >= exact - inside - 1e-12


def test_missing_values_are_left_out_and_infinities_stay():
    """NaN is not part of a distribution; an infinity is a value at its end."""
    result = ks_two_sample(np.array([1.0, 2.0, np.nan, -np.inf]), np.array([np.inf, np.nan]))

    assert (result.n_reference, result.n_current, result.statistic) == (3, 1, 1.0)


def test_rising_sorts_and_keeps_what_is_sorted():
    """A rising array comes back as it is, NaN at its end included."""
    ordered = np.array([1.0, 2.0, 2.0])

    assert rising(ordered) is ordered
    assert rising(np.array([2.0, np.nan, 1.0])).tolist() == [1.0, 2.0]
    assert rising(np.array([1.0, np.nan])).tolist() == [1.0]


@given(COUNTS)
def test_chi_square_without_pooling_is_scipys(pairs):
    """With every cell kept the statistic and the p-value are those of the contingency table."""
    before, now = counts(*(a + 1 for a, _ in pairs)), counts(*(b + 1 for _, b in pairs))
    found = chi_square_two_sample(before, now, min_expected=0)
    if len(pairs) == 1:
        assert (found.statistic, found.p_value, found.df) == (0.0, 1.0, 0)
        return
    expected = stats.chi2_contingency(np.stack([before, now]), correction=False)

    assert found.statistic == pytest.approx(expected.statistic, abs=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    assert found.df == expected.dof


@given(COUNTS)
def test_chi_square_pools_until_every_expected_count_is_large_enough(pairs):
    """The pooled table equals one in which no expected count is below the bound; which cells are pooled depends on totals only."""
    before, now = counts(*(a for a, _ in pairs)), counts(*(b for _, b in pairs))
    if not before.sum() or not now.sum():
        with pytest.raises(SpecError):
            chi_square_two_sample(before, now)
        return
    found, swapped = chi_square_two_sample(before, now), chi_square_two_sample(now, before)
    smaller = min(before.sum(), now.sum())

    assert found.p_value == pytest.approx(swapped.p_value, abs=1e-9)
    assert (found.df + 1) * 5 <= smaller or found.df == 0
    assert 0 <= found.p_value <= 1


def test_chi_square_pools_the_rare_by_hand():
    """Two rare categories become one cell: 95/5 against 90/10 in one degree of freedom."""
    pooled = chi_square_two_sample(counts(95, 3, 2), counts(90, 5, 5))
    by_hand = stats.chi2_contingency([[95, 5], [90, 10]], correction=False)

    assert pooled.df == 1
    assert pooled.p_value == pytest.approx(by_hand.pvalue)


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_share_test_is_fishers(n, m, data):
    """The two-sided p-value is Fisher's exact one, tables as rare as the one seen included."""
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))

    assert share_test(a, n, b, m).p_value == pytest.approx(stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue, rel=1e-6)


def test_share_test_of_huge_counts_is_near_the_normal_one():
    """Above the exact bound the normal approximation takes over without a jump."""
    n = 2_000_000
    exact = share_test(99_000, n, 99_600, n).p_value
    normal = share_test(199_000, n, 199_850, n).p_value

    assert exact == pytest.approx(stats.norm.sf(600 / math.sqrt(198_600 * (1 - 198_600 / (2 * n)))) * 2, rel=0.01)
    assert normal == pytest.approx(stats.norm.sf(850 / math.sqrt(398_850 * (1 - 398_850 / (2 * n)))) * 2, rel=0.01)


@pytest.mark.parametrize(("n", "m"), [(4, 3), (2, 5), (6, 1)])
def test_beyond_p_value_counts_orders(n, m):
    """The chance that the k largest of n + m are all of the window is what counting all arrangements says."""
    arrangements = list(itertools.combinations(range(n + m), m))
    for k in range(m + 1):
        hits = sum(all(position in chosen for position in range(n + m - k, n + m)) for chosen in arrangements)

        assert beyond_p_value(k, n, m) == pytest.approx(hits / len(arrangements))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 5))
def test_novelty_bound_is_never_below_the_exact_chance(totals, m):
    """Over all ways to deal the rows to reference and window, a p-value <= p has at most probability p."""
    rows = [category for category, total in enumerate(totals) for _ in range(total)]
    if not m < len(rows):
        return
    p_values = []
    for chosen in itertools.combinations(range(len(rows)), m):
        now = np.bincount([rows[i] for i in chosen], minlength=len(totals))
        p_values.append(novelty_p_value(np.array(totals) - now, now))
    found = np.array(p_values)

    assert all((found <= p + 1e-12).mean() <= p + 1e-9 for p in found)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        pytest.param(counts(5, 5), counts(5, 5), 0.0, id="equal shares: nothing would have to move"),
        pytest.param(counts(10, 0), counts(0, 7), 1.0, id="disjoint: every row would have to move"),
        pytest.param(counts(50, 50), counts(60, 40), 0.1, id="a tenth of the rows"),
    ],
)
def test_total_variation_is_the_share_that_would_have_to_move(before, now, expected):
    """Total variation is half the summed differences of shares."""
    assert total_variation(before, now) == pytest.approx(expected)


@given(COUNTS)
def test_jensen_shannon_is_scipys(pairs):
    """The distance is scipy's in base 2."""
    before, now = counts(*(a + 1 for a, _ in pairs)), counts(*(b for _, b in pairs)) + np.eye(1, len(pairs), dtype=np.int64)[0]

    assert jensen_shannon(before, now) == pytest.approx(jensenshannon(before, now, 2.0), abs=1e-6)


BOUNDED = st.lists(st.floats(-1e6, 1e6) | st.integers(-3, 3).map(float), min_size=1, max_size=60).map(np.array)


@given(BOUNDED, BOUNDED)
def test_wasserstein_is_scipys(x, y):
    """With every value of the reference known the distance is exact, in the unit of the column."""
    points = np.unique(x)
    upto = np.searchsorted(np.sort(x), points, side="right")

    assert wasserstein(points, upto, x.size, y) == pytest.approx(stats.wasserstein_distance(x, y), rel=1e-9, abs=1e-9)


def test_psi_by_hand():
    """Half a count is added to every bin: 10.5/21 against 5.5/21 and 15.5/21."""
    p, q, r = 10.5 / 21, 5.5 / 21, 15.5 / 21
    expected = (q - p) * math.log(q / p) + (r - p) * math.log(r / p)

    assert psi(counts(10, 10), counts(5, 15)) == pytest.approx(expected)


@given(st.lists(st.floats(), max_size=50).map(lambda v: np.array(v, dtype=np.float64)), st.integers(1, 12))
def test_bins_hold_every_value_once(values, bins):
    """Edges rise strictly, and the counts add up to the values present."""
    edges = quantile_edges(values, bins=bins)

    assert (np.diff(edges) > 0).all()
    assert edges.size < bins
    assert bin_counts(values, edges).sum() == (~np.isnan(values)).sum()


@pytest.mark.parametrize(
    ("reference", "current"),
    [pytest.param([], [1.0], id="no reference"), pytest.param([1.0], [math.nan], id="a window of missing values only")],
)
def test_nothing_to_compare_is_an_error(reference, current):
    """A side without a value is refused by name instead of giving a number."""
    with pytest.raises(SpecError) as caught:
        ks_two_sample(np.array(reference, dtype=np.float64), np.array(current, dtype=np.float64))

    assert caught.value.code == "sample-empty"


@pytest.mark.simulation
def test_psi_cut_keeps_five_per_cent_where_the_customary_cut_fails_half_the_time():
    """At n=300 and m=100 without drift: PSI > 0.1 in about half of the windows, above the cut in about one in twenty."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(2000):
        reference = rng.normal(size=300)
        edges = quantile_edges(reference)
        found.append(psi(bin_counts(reference, edges), bin_counts(rng.normal(size=100), edges)))
    exceeded = np.mean(np.array(found) > psi_cut(300, 100, bins=10))

    assert 0.03 <= exceeded <= 0.065
    assert np.mean(np.array(found) > 0.1) > 0.4


@pytest.mark.simulation
@pytest.mark.parametrize(("n", "m"), [(3000, 100), (500, 300)])
@pytest.mark.parametrize("alpha", [0.05, 0.002])
def test_ks_and_chi_square_keep_their_size(n, m, alpha):
    """Without drift, p <= alpha in at most a share alpha of windows, in the tail that Holm's correction uses too."""
    rng = np.random.default_rng(n + m)
    shares = np.array([0.5, 0.25, 0.12, 0.06, 0.03, 0.02, 0.01, 0.01])
    ks, chi = [], []
    for _ in range(3000):
        ks.append(ks_two_sample(rng.normal(size=n), rng.normal(size=m)).p_value)
        chi.append(chi_square_two_sample(rng.multinomial(n, shares), rng.multinomial(m, shares)).p_value)
    tolerance = 3 * math.sqrt(alpha / 3000)

    assert np.mean(np.array(ks) <= alpha) <= alpha + tolerance
    assert np.mean(np.array(chi) <= alpha) <= alpha + tolerance
