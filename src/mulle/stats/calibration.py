"""Are probabilities honest? Reliability in bins of equal mass, and the expected calibration error."""

from dataclasses import dataclass

import numpy as np

from mulle.core.errors import SpecError
from mulle.stats.types import FloatArray, IntArray

DEFAULT_BINS = 10


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Rows whose probabilities are neighbours: what was promised, what happened, how many."""

    low: float
    high: float
    mean_probability: float
    observed_share: float
    n: int


def confidence_and_hit(y: IntArray, probabilities: FloatArray, *, positive: int = 1) -> tuple[FloatArray, FloatArray]:
    """Return what is compared: a probability and whether it came true, each of shape (n,).

    With two classes it is the positive class's probability; with more, that of the answer given (top-label calibration).
    """
    if probabilities.shape[1] == 2:  # noqa: PLR2004 - two classes
        return probabilities[:, positive], (y == positive).astype(np.float64)
    answer = probabilities.argmax(axis=1)
    return probabilities[np.arange(len(y)), answer], (answer == y).astype(np.float64)


def equal_mass_bins(probability: FloatArray, n_bins: int = DEFAULT_BINS) -> IntArray:
    """Return the bin of each row, 0 … at most `n_bins`-1, shape (n,): bins hold about equally many rows.

    Rows of one probability never part, so that coarse scores (a tree's) fill fewer bins.

    Raises:
        SpecError: fewer than two bins are asked for, or there are no rows.
    """
    if n_bins < 2 or len(probability) == 0:  # noqa: PLR2004 - one bin tells nothing
        raise SpecError("calibration-bins", f"{n_bins!r} bins over {len(probability):,} rows", fix="use at least 2 bins and one row")
    cuts = np.unique(np.quantile(probability, np.arange(1, n_bins) / n_bins, method="higher"))
    raw = np.searchsorted(cuts, probability, side="left")
    return np.unique(raw, return_inverse=True)[1].astype(np.int64)


def reliability(probability: FloatArray, hit: FloatArray, *, n_bins: int = DEFAULT_BINS) -> tuple[ReliabilityBin, ...]:
    """Return promised and observed frequency per bin of equal mass, by rising probability.

    Args:
        probability: In [0, 1], shape (n,), n >= 1.
        hit: 1.0 where it came true, shape (n,).
        n_bins: >= 2.
    """
    bins = equal_mass_bins(probability, n_bins)
    result: list[ReliabilityBin] = []
    for b in range(int(bins.max()) + 1):
        p, h = probability[bins == b], hit[bins == b]
        result.append(ReliabilityBin(float(p.min()), float(p.max()), float(p.mean()), float(h.mean()), len(p)))
    return tuple(result)


def calibration_error(
    probability: FloatArray, hit: FloatArray, weights: FloatArray | None = None, *, n_bins: int = DEFAULT_BINS
) -> FloatArray:
    """Return the expected calibration error, in [0, 1], shape (b,): the mean over rows of |promised - observed| per bin.

    Args:
        probability: In [0, 1], shape (n,), n >= 1.
        hit: 1.0 where it came true, shape (n,).
        weights: Shape (b, n); None: every row once. Bins are those of the unweighted sample.
        n_bins: >= 2.

    Note:
        Absolute values make it grow with noise: about sqrt(n_bins * p * (1 - p) * 2 / (pi * n)) for a perfect model,
        and more in a resample, whose rows are noisier than the sample. `evaluate` therefore reports a basic interval.

    Source: M. P. Naeini et al., AAAI 2015; equal-mass bins after K. Nguyen and B. O'Connor, EMNLP 2015.
    """
    w = np.ones((1, len(probability))) if weights is None else weights
    bins = equal_mass_bins(probability, n_bins)
    order = np.argsort(bins, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(bins[order]) > 0])
    gaps = np.add.reduceat((w * (probability - hit))[:, order], starts, axis=1)
    return np.abs(gaps).sum(axis=1) / w.sum(axis=1)
