"""Two models on the same rows: differences are far surer than the two figures apart.

Direction: a difference is *challenger minus champion*, as measured; whether more is better is the metric's business
(`stats/metric_names.py`).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from mulle.core.errors import SpecError
from mulle.stats.metrics import MetricUndefinedError
from mulle.stats.resampling import percentile_interval
from mulle.stats.types import BoolArray, FloatArray, IntArray

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """One metric of two models on the same rows.

    Attributes:
        challenger: The challenger's value.
        champion: The champion's value.
        difference: challenger - champion.
        low: Lower end of the two-sided interval of the difference.
        high: Upper end.
        se: Standard error of the difference, rows paired.
        se_unpaired: What it would be if the two had been measured on different rows: the scale of what the sample can tell.
    """

    challenger: float
    champion: float
    difference: float
    low: float
    high: float
    se: float
    se_unpaired: float


def paired_bootstrap(
    challenger: Callable[[FloatArray], FloatArray],
    champion: Callable[[FloatArray], FloatArray],
    n: int,
    weights: Iterable[FloatArray],
    *,
    confidence: float = 0.95,
) -> PairedDifference:
    """Return the difference of a metric with its bootstrap interval, both models seeing the same resamples.

    Args:
        challenger: Weights (b, n) to the metric's values (b,).
        champion: The same for the other model.
        n: Number of rows.
        weights: Pieces of shape (b, n) from `bootstrap_weights`, stratified by class for classification.
        confidence: Of the two-sided interval.
    """
    pieces = [(challenger(w), champion(w)) for w in weights]
    ones = np.ones((1, n))
    return difference_of(
        (float(challenger(ones)[0]), np.concatenate([a for a, _ in pieces])),
        (float(champion(ones)[0]), np.concatenate([b for _, b in pieces])),
        confidence=confidence,
    )


def difference_of(
    challenger: tuple[float, FloatArray], champion: tuple[float, FloatArray], *, confidence: float = 0.95
) -> PairedDifference:
    """Return the difference of two models from their values and their values on the *same* resamples, each (point, samples (b,))."""
    a, samples_a = challenger
    b, samples_b = champion
    gap = samples_a - samples_b
    low, high = percentile_interval(gap, confidence=confidence)
    se_unpaired = math.hypot(_sd(samples_a), _sd(samples_b))
    return PairedDifference(a, b, a - b, low, high, _sd(gap), se_unpaired)


@dataclass(frozen=True, slots=True)
class DeLong:
    """Two ROC areas on the same rows: `difference` = challenger - champion, its standard error, two-sided p-value."""

    challenger: float
    champion: float
    difference: float
    se: float
    se_challenger: float
    se_champion: float
    p_value: float


def delong(positive: IntArray, challenger: FloatArray, champion: FloatArray) -> DeLong:
    """Return DeLong's comparison of two correlated ROC areas; no randomness, O(n log n).

    Args:
        positive: 1 for positive rows, 0 for negative; at least two of each, shape (n,).
        challenger: Scores, finite, shape (n,).
        champion: Scores, finite, shape (n,).

    Raises:
        MetricUndefinedError: fewer than two rows of a class.

    Source: E. R. DeLong et al., Biometrics 44 (1988), 837-845; computed by mid-ranks after X. Sun and W. Xu, IEEE Signal
        Processing Letters 21 (2014), 1389-1393.
    """
    up = positive == 1
    m, k = int(up.sum()), int((~up).sum())
    if min(m, k) < 2:  # noqa: PLR2004 - a variance needs two
        raise MetricUndefinedError(
            "metric-one-class", f"{m:,} positive and {k:,} negative rows", fix="compare on at least two rows of each class"
        )
    placed = [_placements(scores, up) for scores in (challenger, champion)]
    area_a, area_b = (float(over.mean()) for over, _ in placed)
    overs = np.cov(np.vstack([over for over, _ in placed]))
    unders = np.cov(np.vstack([under for _, under in placed]))
    covariance = overs / m + unders / k
    variance = max(0.0, float(covariance[0, 0] + covariance[1, 1] - 2.0 * covariance[0, 1]))
    se = math.sqrt(variance)
    gap = area_a - area_b
    # Rounding leaves about 1e-17 of variance between equal models: that is no evidence.
    p_value = 1.0 if se < 1e-12 and abs(gap) < 1e-12 else 2.0 * (1.0 - _NORMAL.cdf(abs(gap) / max(se, 1e-300)))  # noqa: PLR2004
    sds = [math.sqrt(max(0.0, float(covariance[i, i]))) for i in range(2)]
    return DeLong(area_a, area_b, gap, se, sds[0], sds[1], p_value)


@dataclass(frozen=True, slots=True)
class McNemar:
    """Rows only one of two models gets right, and the exact two-sided p-value that both are as often right."""

    only_challenger: int
    only_champion: int
    p_value: float


def mcnemar_exact(challenger_right: BoolArray, champion_right: BoolArray) -> McNemar:
    """Return McNemar's exact test of two models' accuracy on the same rows.

    Args:
        challenger_right: Whether the challenger's answer is right, shape (n,).
        champion_right: Whether the champion's is, shape (n,).

    Raises:
        SpecError: different lengths.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157, with the binomial distribution instead of its approximation.
    """
    if challenger_right.shape != champion_right.shape:
        raise SpecError(
            "paired-shape",
            f"{len(challenger_right):,} and {len(champion_right):,} answers are not about the same rows",
            fix="score both models on the same rows",
        )
    a = int((challenger_right & ~champion_right).sum())
    b = int((champion_right & ~challenger_right).sum())
    n = a + b
    if n == 0:
        return McNemar(0, 0, 1.0)
    k = np.arange(0, min(a, b) + 1)
    steps = np.log(n - k[:-1]) - np.log(k[:-1] + 1.0)
    log_terms = np.r_[0.0, np.cumsum(steps)] - n * math.log(2.0)
    return McNemar(a, b, min(1.0, 2.0 * float(np.exp(log_terms).sum())))


def midranks(values: FloatArray) -> FloatArray:
    """Return ranks from 1, ties sharing their mean rank, shape (n,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]


def _placements(scores: FloatArray, up: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return, per positive row, the share of negatives below it, and per negative row the share of positives above it."""
    m, k = int(up.sum()), int((~up).sum())
    everyone = midranks(scores)
    over = (everyone[up] - midranks(scores[up])) / k
    under = 1.0 - (everyone[~up] - midranks(scores[~up])) / m
    return over, under


def _sd(samples: FloatArray) -> float:
    return float(samples.std(ddof=1))
