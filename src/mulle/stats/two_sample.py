"""Has the distribution changed? Tests and distances of two samples: a reference (n values) and a current window (m).

A reference is itself a sample: its size enters every p-value. Missing values (NaN) are never part of a distribution
here: they are left out, and their share is compared by `share_test`. Infinities are ordinary values at the ends.
Everything is deterministic; nothing is drawn.

Each test answers for *one* look at *one* window. Looking again and again at new windows multiplies the false alarms,
as with any test of fixed size.
"""

import math
from dataclasses import dataclass

import numpy as np

from mulle.core.errors import SpecError
from mulle.stats.distributions import chi2_isf, chi2_sf, kolmogorov_sf, log_choose, normal_two_sided
from mulle.stats.types import FloatArray, IntArray

MIN_EXPECTED = 5.0
"""Cells below this expected count are pooled before a chi-square test (Cochran's customary bound)."""
_EXACT_SUPPORT = 100_000
_GRID = 4_096


@dataclass(frozen=True, slots=True)
class TwoSample:
    """One comparison: `statistic` as its test defines it, `p_value` in [0, 1], and the sizes it rests on."""

    statistic: float
    p_value: float
    n_reference: int
    n_current: int
    df: int = 0


def without_missing(values: FloatArray) -> FloatArray:
    """Return the values that are not NaN; infinities stay."""
    kept = ~np.isnan(values)
    return values if bool(kept.all()) else values[kept]


def rising(values: FloatArray) -> FloatArray:
    """Return the values that are not NaN in rising order; what is so already is returned as it is, five times quicker."""
    if bool((values[1:] >= values[:-1]).all()) and not (values.size and math.isnan(values[-1])):
        return values
    return np.sort(without_missing(values))


def ks_two_sample(reference: FloatArray, current: FloatArray) -> TwoSample:
    """Return Kolmogorov and Smirnov's two-sample test: the largest distance of the two distribution functions.

    The distance is exact. The p-value is the asymptotic one with Stephens's correction; with ties it is too large, never
    too small, so that the test keeps its size on rounded values.

    Args:
        reference: Shape (n,); NaN is left out.
        current: Shape (m,); NaN is left out.

    Raises:
        SpecError: a side has no value.

    Source: M. A. Stephens, J. R. Statist. Soc. B 32 (1970), 115-122.
    """
    x, y = rising(reference), rising(current)
    _require_values(x.size, y.size)
    points = np.concatenate([x, y])
    distance = np.abs(np.searchsorted(x, points, side="right") / x.size - np.searchsorted(y, points, side="right") / y.size)
    statistic = float(distance.max())
    return TwoSample(statistic, ks_p_value(statistic, x.size, y.size), x.size, y.size)


def ks_against_points(points: FloatArray, below: IntArray, at_or_below: IntArray, n: int, current: FloatArray) -> TwoSample:
    """Return the same test against a reference known only at some of its values.

    The distance is taken on both sides of each known value, so it is a lower bound of the exact one and short of it by at
    most the largest step between known values (1/2,000 for 2,000 of them): the size is kept, and next to no power is lost.

    Args:
        points: Shape (k,), rising: values of the reference.
        below: Shape (k,): how many reference values are < each point.
        at_or_below: Shape (k,): how many are <= each point.
        n: Size of the whole reference.
        current: Shape (m,); NaN is left out.

    Raises:
        SpecError: a side has no value.
    """
    y = rising(current)
    _require_values(n if points.size else 0, y.size)
    left = np.abs(below / n - np.searchsorted(y, points, side="left") / y.size)
    right = np.abs(at_or_below / n - np.searchsorted(y, points, side="right") / y.size)
    statistic = float(max(left.max(), right.max()))
    return TwoSample(statistic, ks_p_value(statistic, n, y.size), n, y.size)


def ks_p_value(distance: float, n: int, m: int) -> float:
    """Return the asymptotic p-value of a two-sample KS distance in [0, 1] between samples of sizes n and m."""
    root = math.sqrt(n * m / (n + m))
    return min(1.0, kolmogorov_sf((root + 0.12 + 0.11 / root) * distance))


def quantile_edges(reference: FloatArray, *, bins: int = 10) -> FloatArray:
    """Return the inner edges, shape (<= bins - 1,), strictly rising, which cut `reference` into about equal counts.

    Heavy ties leave fewer bins. A value equal to an edge belongs to the bin below it.
    """
    values = without_missing(reference)
    finite = values[np.isfinite(values)]
    if finite.size == 0 or bins < 2:  # noqa: PLR2004 - one bin has no inner edge
        return np.empty(0)
    edges = np.unique(np.quantile(finite, np.arange(1, bins) / bins, method="inverted_cdf"))
    # An edge at the maximum would leave the last bin empty for ever.
    return edges[edges < finite.max()]


def bin_counts(values: FloatArray, edges: FloatArray) -> IntArray:
    """Return how many values fall in each of the len(edges) + 1 bins, NaN left out."""
    ordered = rising(values)
    cumulated = np.concatenate([[0], np.searchsorted(ordered, edges, side="right"), [ordered.size]])
    return np.diff(cumulated).astype(np.int64)


def psi(reference_counts: IntArray, current_counts: IntArray) -> float:
    """Return the population stability index of two rows of counts, in nats, >= 0.

    Half a count is added to every bin, so that an empty one stays finite.

    Args:
        reference_counts: Shape (bins,), n in total.
        current_counts: Shape (bins,), m in total.

    Note:
        Without drift its mean is about (bins - 1) * (1/n + 1/m): at n=300, m=100 half of all healthy windows exceed the
        customary 0.1. Decide by `psi_cut` or a p-value, report the index.
    """
    r, c = reference_counts + 0.5, current_counts + 0.5
    p, q = r / r.sum(), c / c.sum()
    return float(np.sum((q - p) * np.log(q / p)))


def psi_cut(n: int, m: int, *, bins: int, alpha: float = 0.05) -> float:
    """Return the index that a healthy window of m rows against a reference of n exceeds with probability `alpha`.

    Without drift, PSI / (1/n + 1/m) is about chi-square with bins - 1 degrees of freedom.

    Args:
        n: Rows of the reference, >= 1.
        m: Rows of the window, >= 1.
        bins: >= 2.
        alpha: In (0, 1).
    """
    return chi2_isf(alpha, bins - 1) * (1.0 / n + 1.0 / m)


def chi_square_two_sample(reference_counts: IntArray, current_counts: IntArray, *, min_expected: float = MIN_EXPECTED) -> TwoSample:
    """Return the chi-square test of homogeneity of two rows of counts over the same categories.

    Categories whose expected count is below `min_expected` on either side are pooled into one. Which ones depends on the
    column totals alone, so that pooling does not change the size.

    Args:
        reference_counts: Shape (k,), n in total, n >= 1.
        current_counts: Shape (k,), m in total, m >= 1; 0 where the window has none.
        min_expected: Smallest expected count of a cell kept on its own.

    Returns:
        The statistic, its p-value and `df`; with fewer than two cells left: statistic 0, p-value 1, df 0.

    Raises:
        SpecError: a side has no value.
    """
    n, m = int(reference_counts.sum()), int(current_counts.sum())
    _require_values(n, m)
    r, c = _pooled(reference_counts, current_counts, min_expected * (n + m) / min(n, m))
    df = r.size - 1
    if df < 1:
        return TwoSample(0.0, 1.0, n, m)
    totals = (r + c).astype(np.float64)
    statistic = float(np.sum((r * math.sqrt(m / n) - c * math.sqrt(n / m)) ** 2 / totals))
    return TwoSample(statistic, chi2_sf(statistic, df), n, m, df)


def share_test(n_hits_reference: int, n: int, n_hits_current: int, m: int) -> TwoSample:
    """Return Fisher's exact two-sided test of two shares; `statistic` is current share - reference share.

    Exact whatever the counts: nothing missing among 5,000 and two among 100 is judged rightly. Above 100,000 hits on both
    sides the normal approximation is used instead.

    Args:
        n_hits_reference: Hits in the reference, 0 … n.
        n: Rows of the reference, >= 1.
        n_hits_current: Hits in the window, 0 … m.
        m: Rows of the window, >= 1.

    Raises:
        SpecError: a side has no row.
    """
    _require_values(n, m)
    difference = n_hits_current / m - n_hits_reference / n
    hits = n_hits_reference + n_hits_current
    low, high = max(0, hits - n), min(hits, m)
    if high - low > _EXACT_SUPPORT:
        share = hits / (n + m)
        p_value = normal_two_sided(difference / math.sqrt(share * (1 - share) * (1 / n + 1 / m)))
    else:
        support = np.arange(low, high + 1, dtype=np.float64)
        log_p = log_choose(m, support) + log_choose(n, hits - support)
        weights = np.exp(log_p - log_p.max())
        # Ties in exact arithmetic differ in the last digits of floats: 1e-7 relative keeps them together, as in R.
        as_rare = weights <= weights[n_hits_current - low] * (1 + 1e-7)
        p_value = min(1.0, float(weights[as_rare].sum() / weights.sum()))
    return TwoSample(difference, p_value, n, m)


def beyond_p_value(n_beyond: int, n: int, m: int) -> float:
    """Return the probability that `n_beyond` or more of m window values exceed all n reference values, if nothing changed.

    All orders of the n + m values are then equally likely, so it is the chance that the `n_beyond` largest are all of the
    window: prod (m - i) / (n + m - i). Exact for continuous values, too large (never too small) with ties.
    """
    if n_beyond == 0:
        return 1.0
    return float(np.exp(log_choose(m, n_beyond) - log_choose(n + m, n_beyond)))


def novelty_p_value(reference_counts: IntArray, current_counts: IntArray) -> float:
    """Return a bound on the probability of a category as frequent as the most frequent new one, if nothing changed.

    New: in the window, never in the reference. With T the largest count of a new category, a category of total count c lies
    wholly in the window with probability C(m, c) / C(n + m, c); the bound sums it over all categories with c >= T.

    Args:
        reference_counts: Shape (k,) over every category of either side.
        current_counts: Shape (k,).
    """
    new = (reference_counts == 0) & (current_counts > 0)
    if not new.any():
        return 1.0
    totals = (reference_counts + current_counts).astype(np.float64)
    m, size = float(current_counts.sum()), float(totals.sum())
    as_frequent = totals[(totals >= current_counts[new].max()) & (totals <= m)]
    return min(1.0, float(np.exp(log_choose(m, as_frequent) - log_choose(size, as_frequent)).sum()))


def total_variation(reference_counts: IntArray, current_counts: IntArray) -> float:
    """Return the share of rows, in [0, 1], that would have to change category to make the two rows of counts agree."""
    return float(np.abs(reference_counts / reference_counts.sum() - current_counts / current_counts.sum()).sum() / 2)


def jensen_shannon(reference_counts: IntArray, current_counts: IntArray) -> float:
    """Return the Jensen-Shannon distance of two rows of counts, base 2, in [0, 1] (the square root of the divergence)."""
    p, q = reference_counts / reference_counts.sum(), current_counts / current_counts.sum()
    middle = (p + q) / 2
    divergence = 0.0
    for side in (p, q):
        seen = side > 0
        divergence += float(np.sum(side[seen] * np.log2(side[seen] / middle[seen]))) / 2
    return math.sqrt(max(divergence, 0.0))


def wasserstein(points: FloatArray, at_or_below: IntArray, n: int, current: FloatArray) -> float:
    """Return the earth mover's distance between reference and window, in the unit of the column, over finite values.

    Exact while `points` are all the reference's values and the window has at most 4,096; beyond that the two distribution
    functions are compared at their known points only: good for the eye, nothing is decided by it.

    Args:
        points: Shape (k,), rising: finite values of the reference.
        at_or_below: Shape (k,): how many of the reference's finite values are <= each point.
        n: How many finite values the reference has.
        current: Shape (m,); NaN and infinities are left out.
    """
    y = rising(current[np.isfinite(current)])
    _require_values(n if points.size else 0, y.size)
    seen = y if y.size <= _GRID else y[np.linspace(0, y.size - 1, _GRID).astype(np.int64)]
    grid = np.union1d(points, seen)
    position = np.searchsorted(points, grid, side="right")
    f = np.concatenate([[0], at_or_below])[position] / n
    g = np.searchsorted(y, grid, side="right") / y.size
    return float(np.sum(np.abs(f - g)[:-1] * np.diff(grid)))


def _pooled(reference: IntArray, current: IntArray, min_total: float) -> tuple[IntArray, IntArray]:
    totals = reference + current
    order = np.argsort(-totals, kind="stable")
    order = order[totals[order] > 0]
    r, c, t = reference[order], current[order], totals[order]
    kept = int(np.sum(t >= min_total))
    # The pooled rest must be large enough itself: it takes in kept categories from the small end until it is.
    while 0 < kept < t.size and t[kept:].sum() < min_total:
        kept -= 1
    if kept == t.size:
        return r, c
    return np.append(r[:kept], r[kept:].sum()), np.append(c[:kept], c[kept:].sum())


def _require_values(n: int, m: int) -> None:
    if n < 1 or m < 1:
        side = "reference" if n < 1 else "current window"
        raise SpecError("sample-empty", f"the {side} holds no value to compare", fix="compare columns which have values on both sides")
