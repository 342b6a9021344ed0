"""Resampling: bootstrap weights, intervals made of resamples, and folds. Randomness comes in as a generator."""

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np

from mulle.core.errors import SpecError
from mulle.stats.types import FloatArray, IntArray

MIN_RESAMPLES = 100
_CHUNK_CELLS = 4_000_000
_NORMAL = NormalDist()


def bootstrap_weights(n: int, n_resamples: int, rng: np.random.Generator, *, strata: IntArray | None = None) -> Iterator[FloatArray]:
    """Yield bootstrap resamples as weights: how often each row was drawn, pieces of shape (b, n) that sum to `n_resamples` rows.

    With strata each stratum is resampled by itself, so that every resample has every class and as many rows of it as the
    sample. Pieces hold at most four million cells (32 MB), whatever `n` is.

    Args:
        n: Number of rows, >= 1.
        n_resamples: How many resamples, >= 1.
        rng: Source of randomness.
        strata: Stratum of each row, any integers, shape (n,).

    Raises:
        SpecError: no rows, no resamples, or strata of another length.
    """
    if n < 1 or n_resamples < 1 or (strata is not None and len(strata) != n):
        raise SpecError(
            "resampling-shape",
            f"{n_resamples!r} resamples of {n!r} rows cannot be drawn",
            fix="give at least one row and one stratum per row",
        )
    groups = [np.arange(n)] if strata is None else [np.flatnonzero(strata == s) for s in np.unique(strata)]
    size = max(1, _CHUNK_CELLS // n)
    for start in range(0, n_resamples, size):
        b = min(size, n_resamples - start)
        weights = np.zeros((b, n))
        for rows in groups:
            m = len(rows)
            drawn = rng.integers(m, size=(b, m)) + (np.arange(b) * m)[:, None]
            weights[:, rows] = np.bincount(drawn.ravel(), minlength=b * m).reshape(b, m)
        yield weights


def percentile_interval(samples: FloatArray, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided percentile interval of bootstrap samples, shape (b,), b >= 100."""
    _require_samples(samples, confidence)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, np.asarray([tail, 1.0 - tail]))
    return float(low), float(high)


def basic_interval(point: float, samples: FloatArray, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided basic (reflected) interval: right where resampling itself shifts the statistic, as for calibration error."""
    low, high = percentile_interval(samples, confidence=confidence)
    return 2.0 * point - high, 2.0 * point - low


def bca_interval(point: float, samples: FloatArray, jackknife: FloatArray, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided bias-corrected and accelerated bootstrap interval.

    Args:
        point: The statistic of the sample itself.
        samples: The statistic of each resample, shape (b,), b >= 100.
        jackknife: The statistic with one row (or one block of rows) left out, shape (m,), m >= 2.
        confidence: In (0, 1).

    Returns:
        Low and high; the percentile interval's own ends where all resamples lie on one side of `point`.

    Source: B. Efron, J. Am. Stat. Assoc. 82 (1987), 171-185.
    """
    _require_samples(samples, confidence)
    below = (np.count_nonzero(samples < point) + 0.5 * np.count_nonzero(samples == point)) / len(samples)
    if not 0.0 < below < 1.0 or len(jackknife) < 2:  # noqa: PLR2004 - a spread needs two
        return percentile_interval(samples, confidence=confidence)
    bias = _NORMAL.inv_cdf(below)
    spread: FloatArray = float(jackknife.mean()) - jackknife
    scale = float(np.square(spread).sum()) ** 1.5
    acceleration = float(np.power(spread, 3).sum()) / (6.0 * scale) if scale > 0 else 0.0
    ends: list[float] = []
    for tail in ((1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0):
        z = bias + _NORMAL.inv_cdf(tail)
        ends.append(_NORMAL.cdf(bias + z / (1.0 - acceleration * z)))
    low, high = np.quantile(samples, np.asarray(ends))
    return float(low), float(high)


def jackknife_weights(n: int, n_blocks: int, rng: np.random.Generator) -> FloatArray:
    """Return weights that leave out one random block of rows each, shape (min(n_blocks, n), n)."""
    blocks = min(n_blocks, n)
    assigned = rng.permutation(np.arange(n) % blocks)
    return (assigned[None, :] != np.arange(blocks)[:, None]).astype(np.float64)


def stratified_folds(
    strata: IntArray, n_folds: int, rng: np.random.Generator, *, groups: IntArray | None = None
) -> tuple[tuple[IntArray, IntArray], ...]:
    """Return (training rows, test rows) per fold; every row is tested once, and each stratum is spread evenly.

    Args:
        strata: Stratum of each row (its class; for regression a quantile bin), shape (n,).
        n_folds: >= 2 and at most the number of units.
        rng: Source of randomness.
        groups: Rows of one group (one entity) are never parted; a group counts as its first row's stratum.

    Raises:
        SpecError: fewer than two folds, or more folds than rows or groups.
    """
    n = len(strata)
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_units = int(unit.max()) + 1 if n else 0
    if not 2 <= n_folds <= n_units:  # noqa: PLR2004 - one fold tests nothing
        raise SpecError(
            "folds-number",
            f"{n_units:,} rows or groups cannot be parted into {n_folds!r} folds",
            fix="use at least 2 folds, and at most one per row or group",
        )
    first_row = np.full(n_units, n, dtype=np.int64)
    np.minimum.at(first_row, unit, np.arange(n))
    stratum = strata[first_row]
    fold = np.empty(n_units, dtype=np.int64)
    offset = 0
    for s in np.unique(stratum):
        members = rng.permutation(np.flatnonzero(stratum == s))
        # Going on where the last stratum stopped keeps the folds themselves of equal size.
        fold[members] = (np.arange(len(members)) + offset) % n_folds
        offset += len(members)
    of_row = fold[unit]
    return tuple((np.flatnonzero(of_row != f).astype(np.int64), np.flatnonzero(of_row == f).astype(np.int64)) for f in range(n_folds))


def _require_samples(samples: FloatArray, confidence: float) -> None:
    if len(samples) < MIN_RESAMPLES or not 0.0 < confidence < 1.0:
        raise SpecError(
            "resampling-interval",
            f"no interval at confidence {confidence!r} from {len(samples):,} resamples",
            fix=f"draw at least {MIN_RESAMPLES} resamples, and use a confidence between 0 and 1",
        )
