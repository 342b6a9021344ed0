"""One column of numbers: the window beside the baseline."""

import numpy as np

from mulle.core.schema import ColumnType
from mulle.formats.baseline import NumberProfile
from mulle.monitor.categories import compare_counts, picture_shares
from mulle.monitor.result import ColumnReport, Comparison, DriftSettings, TestResult
from mulle.monitor.wording import say_exact, say_number, say_share, say_time
from mulle.stats.two_sample import (
    beyond_p_value,
    bin_counts,
    ks_against_points,
    psi,
    psi_cut,
    rising,
    share_test,
    wasserstein,
)
from mulle.stats.types import FloatArray, IntArray

FEW_DISTINCT = 20
"""A column with no more different values than this is compared value by value, not by its distribution function."""
MIN_PRESENT = 20
"""Fewer values than this on a side say too little about a distribution."""
_PICTURE_BINS = 20


def compare_numbers(profile: NumberProfile, values: FloatArray, settings: DriftSettings, *, answer: bool = False) -> ColumnReport:
    """Return what the window's values, shape (m,), say beside `profile`. NaN is missing.

    Tests: the distribution (KS, or chi-square where there are few different values), values out of the reference's range or
    never seen, and the share of missing ones. Timestamps move by their nature: only their missing ones are tested.

    Args:
        profile: The reference.
        values: The window.
        settings: How it is judged.
        answer: The values are what the model answered: none can be missing.
    """
    present = rising(values)
    n_missing = values.size - present.size
    tests: list[TestResult] = []
    anomalies: list[str] = []
    figures: dict[str, float | None] = {
        "median_reference": _finite_or_none(profile.quantile(0.5)),
        "median_current": _finite_or_none(_quantile(present, 0.5)) if present.size else None,
    }
    picture = _picture(profile, present)
    if profile.n and present.size:
        figures.update(_distances(profile, present, settings.alpha))
        enough = min(profile.n, present.size) >= MIN_PRESENT
        if profile.type is ColumnType.DATETIME:
            anomalies += _before_earliest(profile, present)
        elif profile.complete and profile.n_distinct <= FEW_DISTINCT:
            by_value, odd, picture = _compare_values(profile, present, settings)
            tests += by_value if enough else []
            anomalies += odd
        else:
            tests += [_distribution(profile, present)] if enough else []
            beyond, odd = _range(profile, present)
            tests.append(beyond)
            anomalies += odd
    if not answer:
        missing, odd = compare_missing(profile.name, profile.n_missing, profile.n + profile.n_missing, n_missing, values.size)
        tests += [missing] if missing else []
        anomalies += [odd] if odd else []
    return ColumnReport(
        name=profile.name,
        type=profile.type.value,
        n=int(present.size),
        n_missing=int(n_missing),
        n_reference=profile.n,
        tests=tuple(tests),
        sentence="",
        anomalies=tuple(anomalies),
        figures=figures,
        comparison=picture,
    )


def compare_missing(name: str, n_missing_reference: int, n: int, n_missing: int, m: int) -> tuple[TestResult | None, str]:
    """Return the test of the share of missing values, and the oddity to report; (None, "") where none is missing on either side."""
    if n_missing_reference + n_missing == 0 or n == 0 or m == 0:
        return None, ""
    result = share_test(n_missing_reference, n, n_missing, m)
    before, now = say_share(n_missing_reference / n), say_share(n_missing / m)
    sentence = f"{name}: missing in {before} of rows before, {now} now ({n_missing:,} of {m:,})"
    odd = f"{n_missing:,} missing where the reference had none" if n_missing_reference == 0 else ""
    return TestResult("missing", "Fisher exact", result.statistic, result.p_value, abs(result.statistic), sentence), odd


def _distribution(profile: NumberProfile, present: FloatArray) -> TestResult:
    points, below, at_or_below = _points(profile)
    result = ks_against_points(points, below, at_or_below, profile.n, present)
    before, now = profile.quantile(0.5), _quantile(present, 0.5)
    if say_number(before) == say_number(now):
        low, high = _quantile(present, 0.1), _quantile(present, 0.9)
        moved = f"10th to 90th percentile {say_number(profile.quantile(0.1))} … {say_number(profile.quantile(0.9))} → "
        moved += f"{say_number(low)} … {say_number(high)}"
    else:
        moved = f"median {say_number(before)} → {say_number(now)}"
    sentence = f"{profile.name}: {moved}, KS {result.statistic:.2f}"
    return TestResult("distribution", "KS", result.statistic, result.p_value, result.statistic, sentence)


def _range(profile: NumberProfile, present: FloatArray) -> tuple[TestResult, list[str]]:
    smallest = -np.inf if profile.n_minus_inf or profile.minimum is None else profile.minimum
    largest = np.inf if profile.n_plus_inf or profile.maximum is None else profile.maximum
    n_low = int(np.searchsorted(present, smallest, side="left"))
    n_high = int(present.size - np.searchsorted(present, largest, side="right"))
    m = present.size
    # Two one-sided questions, one answer: twice the smaller of their p-values.
    p_value = min(1.0, 2 * min(beyond_p_value(n_low, profile.n, m), beyond_p_value(n_high, profile.n, m)))
    odd: list[str] = []
    if n_low:
        odd.append(f"{n_low:,} of {m:,} values below {say_exact(smallest)} (smallest {say_exact(float(present[0]))})")
    if n_high:
        odd.append(f"{n_high:,} of {m:,} values above {say_exact(largest)} (largest {say_exact(float(present[-1]))})")
    share = (n_low + n_high) / m
    sentence = f"{profile.name}: {' and '.join(odd) or 'every value within the range of the reference'}"
    return TestResult("range", "order", share, p_value, share, sentence), odd


def _compare_values(profile: NumberProfile, present: FloatArray, settings: DriftSettings) -> tuple[list[TestResult], list[str], Comparison]:
    reference = dict(zip(profile.points, np.subtract(profile.at_or_below, profile.below).tolist(), strict=True))
    reference.update({end: n for end, n in ((-np.inf, profile.n_minus_inf), (np.inf, profile.n_plus_inf)) if n})
    values, counts = np.unique(present + 0.0, return_counts=True)
    current = dict(zip(values.tolist(), counts.tolist(), strict=True))
    keys = sorted(reference.keys() | current.keys())
    labels = [say_number(key) for key in keys]
    before = np.array([reference.get(key, 0) for key in keys], dtype=np.int64)
    now = np.array([current.get(key, 0) for key in keys], dtype=np.int64)
    tests, odd = compare_counts(profile.name, labels, before, now, settings)
    return tests, odd, picture_shares(labels, before / before.sum(), now / now.sum(), by_size=False)


def _before_earliest(profile: NumberProfile, present: FloatArray) -> list[str]:
    if profile.minimum is None or profile.n_minus_inf:
        return []
    n_before = int((present < profile.minimum).sum())
    if not n_before:
        return []
    return [f"{n_before:,} of {present.size:,} times before {say_time(profile.minimum)}, the earliest of the reference"]


def _distances(profile: NumberProfile, present: FloatArray, alpha: float) -> dict[str, float | None]:
    points, _, at_or_below = _points(profile)
    counts = np.array(profile.counts, dtype=np.int64)
    finite = present[np.isfinite(present)]
    n_finite = profile.n - profile.n_minus_inf - profile.n_plus_inf
    scale = profile.quantile(0.75) - profile.quantile(0.25)
    distance = wasserstein(points, at_or_below - profile.n_minus_inf, n_finite, finite) if n_finite and finite.size else None
    return {
        "psi": psi(counts, bin_counts(present, np.array(profile.edges, dtype=np.float64))) if counts.size > 1 else None,
        "psi_cut": psi_cut(profile.n, present.size, bins=counts.size, alpha=alpha) if counts.size > 1 else None,
        "wasserstein": None if distance is None else _finite_or_none(distance),
        "wasserstein_per_iqr": None if distance is None or not scale > 0 else _finite_or_none(distance / scale),
    }


def _picture(profile: NumberProfile, present: FloatArray) -> Comparison | None:
    finite = present[np.isfinite(present)]
    if not profile.points or not finite.size:
        return None
    low = min(profile.quantile(0.005), _quantile(finite, 0.005))
    high = max(profile.quantile(0.995), _quantile(finite, 0.995))
    if not low < high or not np.isfinite(high - low):
        return None
    edges = np.linspace(low, high, _PICTURE_BINS + 1)
    points, _, at_or_below = _points(profile)
    before = np.concatenate([[0], at_or_below])[np.searchsorted(points, edges[1:-1], side="right")] / profile.n
    now = np.searchsorted(finite, edges[1:-1], side="right") / finite.size
    return Comparison(
        labels=(),
        edges=tuple(edges.tolist()),
        reference=tuple(np.diff(np.concatenate([[0.0], before, [1.0]])).tolist()),
        current=tuple(np.diff(np.concatenate([[0.0], now, [1.0]])).tolist()),
    )


def _points(profile: NumberProfile) -> tuple[FloatArray, IntArray, IntArray]:
    return (
        np.array(profile.points, dtype=np.float64),
        np.array(profile.below, dtype=np.int64),
        np.array(profile.at_or_below, dtype=np.int64),
    )


def _quantile(ordered: FloatArray, q: float) -> float:
    return float(ordered[max(int(np.ceil(q * ordered.size)) - 1, 0)])


def _finite_or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
