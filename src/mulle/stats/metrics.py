"""Metrics of classification and regression, each for one sample or for many weightings of it at once.

Every function takes `weights` of shape (b, n): one row of weights per resample (see `stats/resampling.py`); it then
returns shape (b,). Without weights every row counts once and shape (1,) comes back. Working on all resamples together
is what makes a thousand bootstrap resamples of every metric cheap: rows are sorted once, not once per resample.

A metric that has no value (no rows, one class only, NaN among the scores) raises `MetricUndefinedError`; it never returns a
number that looks like a result.
"""

import math
from typing import Protocol

import numpy as np

from mulle.core.errors import SpecError
from mulle.stats.types import FloatArray, IntArray

LOG_LOSS_FLOOR = float(np.finfo(np.float32).eps)
"""Probabilities are clipped to [floor, 1]: 1.2e-7, the step of the served graph's own float32.

A graph answers exactly 0 where float32 has no smaller step left; one such row may cost 15.9 nats, not infinity.
"""


class MetricUndefinedError(SpecError):
    """A metric has no value on these rows."""


def require_scores(y: IntArray, scores: FloatArray) -> None:
    """Raise unless `scores` (n, k) are usable probabilities for the labels `y` (n,) in 0 … k-1.

    Raises:
        MetricUndefinedError: no rows, shapes that do not fit, NaN or infinite scores, or labels outside 0 … k-1.
    """
    if scores.ndim != 2 or y.ndim != 1 or len(y) != len(scores):  # noqa: PLR2004 - a matrix
        raise MetricUndefinedError(
            "metric-shape",
            f"labels of shape {y.shape!r} do not fit scores of shape {scores.shape!r}",
            fix="give one row of class probabilities per label",
        )
    if len(y) == 0:
        raise MetricUndefinedError("metric-empty", "there are no rows to measure on", fix="give at least one row with a known target")
    if not bool(np.isfinite(scores).all()):
        bad = int((~np.isfinite(scores).all(axis=1)).sum())
        raise MetricUndefinedError(
            "metric-not-finite",
            f"{bad:,} of {len(y):,} rows have NaN or infinite scores",
            fix="find out which inputs make the model answer NaN",
        )
    if int(y.min()) < 0 or int(y.max()) >= scores.shape[1]:
        raise MetricUndefinedError(
            "metric-label", f"a label lies outside 0 … {scores.shape[1] - 1}", fix="use the classes in the order of the model's output"
        )


def require_targets(y: FloatArray, predicted: FloatArray) -> None:
    """Raise unless `y` and `predicted` are finite and of one shape (n,), n >= 1.

    Raises:
        MetricUndefinedError: they are not.
    """
    if y.shape != predicted.shape or y.ndim != 1:
        raise MetricUndefinedError(
            "metric-shape",
            f"targets of shape {y.shape!r} do not fit predictions of shape {predicted.shape!r}",
            fix="give one prediction per target",
        )
    if len(y) == 0:
        raise MetricUndefinedError("metric-empty", "there are no rows to measure on", fix="give at least one row with a known target")
    bad = int((~(np.isfinite(y) & np.isfinite(predicted))).sum())
    if bad:
        raise MetricUndefinedError(
            "metric-not-finite",
            f"{bad:,} of {len(y):,} rows have NaN or infinite values",
            fix="find out which inputs make the model answer NaN",
        )


def confusion(y: IntArray, predicted: IntArray, n_classes: int, weights: FloatArray | None = None) -> FloatArray:
    """Return how often each class (row) was given each answer (column), shape (b, k, k).

    Args:
        y: Labels 0 … k-1, shape (n,).
        predicted: Answers 0 … k-1, shape (n,).
        n_classes: k.
        weights: Shape (b, n).
    """
    cell = y * n_classes + predicted
    w = _weights(weights, len(y))
    order = np.argsort(cell, kind="stable")
    present, starts = np.unique(cell[order], return_index=True)
    table = np.zeros((len(w), n_classes * n_classes))
    table[:, present] = np.add.reduceat(w[:, order], starts, axis=1)
    return table.reshape(-1, n_classes, n_classes)


def accuracy(table: FloatArray) -> FloatArray:
    """Return the share of right answers, in [0, 1], shape (b,), from confusion matrices (b, k, k)."""
    return np.trace(table, axis1=1, axis2=2) / table.sum(axis=(1, 2))


def per_class(table: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return precision, recall and F1 of every class, each of shape (b, k), in [0, 1].

    A class that is never answered has precision 0, one that never occurs has recall 0, and F1 is 0 where both are: the
    customary reading (scikit-learn's `zero_division=0`), which keeps averages defined.
    """
    hits = np.diagonal(table, axis1=1, axis2=2)
    precision = _ratio(hits, table.sum(axis=1))
    recall = _ratio(hits, table.sum(axis=2))
    f1 = _ratio(2.0 * hits, table.sum(axis=1) + table.sum(axis=2))
    return precision, recall, f1


def weighted_average(values: FloatArray, table: FloatArray) -> FloatArray:
    """Return per-class values (b, k) averaged by how often each class occurs, shape (b,)."""
    support = table.sum(axis=2)
    return (values * support).sum(axis=1) / support.sum(axis=1)


def balanced_accuracy(table: FloatArray) -> FloatArray:
    """Return the mean recall over the classes that occur, in [0, 1], shape (b,)."""
    support = table.sum(axis=2) > 0
    recall = per_class(table)[1]
    return (recall * support).sum(axis=1) / support.sum(axis=1)


def roc_auc_binary(positive: IntArray, score: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return the chance that a positive row scores above a negative one, ties counted half, in [0, 1], shape (b,).

    Args:
        positive: 1 for positive rows, 0 for negative, shape (n,).
        score: The higher, the more positive; finite, shape (n,).
        weights: Shape (b, n).

    Raises:
        MetricUndefinedError: only one class has weight.

    Source: Mann and Whitney's statistic; T. Fawcett, Pattern Recognition Letters 27 (2006), 861-874.
    """
    up, down = _by_score(positive, score, weights)
    n_up, n_down = up.sum(axis=1), down.sum(axis=1)
    _require_both_classes(n_up, n_down, "ROC-AUC")
    below = np.cumsum(down, axis=1) - down
    return ((below + 0.5 * down) * up).sum(axis=1) / (n_up * n_down)


def average_precision_binary(positive: IntArray, score: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return the area under the precision-recall curve as a step function, in [0, 1], shape (b,).

    Args:
        positive: 1 for positive rows, 0 for negative, shape (n,).
        score: The higher, the more positive; finite, shape (n,).
        weights: Shape (b, n).

    Raises:
        MetricUndefinedError: no positive row has weight.
    """
    up, down = _by_score(positive, score, weights)
    up, down = up[:, ::-1], down[:, ::-1]
    n_up = up.sum(axis=1)
    if not bool((n_up > 0).all()):
        raise MetricUndefinedError(
            "metric-one-class", "the precision-recall area needs a positive row", fix="measure on rows of both classes"
        )
    hits = np.cumsum(up, axis=1)
    precision = _ratio(hits, hits + np.cumsum(down, axis=1))
    return (precision * up).sum(axis=1) / n_up


def roc_auc(y: IntArray, probabilities: FloatArray, weights: FloatArray | None = None, *, positive: int = 1) -> FloatArray:
    """Return ROC-AUC, shape (b,): of the positive class when there are two, else one against the rest, weighted by support."""
    return _over_classes(roc_auc_binary, y, probabilities, weights, positive)


def average_precision(y: IntArray, probabilities: FloatArray, weights: FloatArray | None = None, *, positive: int = 1) -> FloatArray:
    """Return the precision-recall area, shape (b,): of the positive class, else one against the rest, weighted by support."""
    return _over_classes(average_precision_binary, y, probabilities, weights, positive)


def log_losses(y: IntArray, probabilities: FloatArray) -> FloatArray:
    """Return each row's surprise in nats, shape (n,): minus the logarithm of the true class's probability.

    Probabilities are scaled to sum 1 and clipped to [`LOG_LOSS_FLOOR`, 1].
    """
    given = probabilities[np.arange(len(y)), y] / probabilities.sum(axis=1)
    return -np.log(np.clip(given, LOG_LOSS_FLOOR, 1.0))


def brier_losses(y: IntArray, probabilities: FloatArray) -> FloatArray:
    """Return each row's squared distance between probabilities and truth, shape (n,).

    With two classes it is that of the positive one, in [0, 1]; with more the sum over classes, in [0, 2].
    """
    truth = np.zeros_like(probabilities)
    truth[np.arange(len(y)), y] = 1.0
    total = np.square(probabilities - truth).sum(axis=1)
    return total / 2.0 if probabilities.shape[1] == 2 else total  # noqa: PLR2004 - two classes


def mean(values: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return the weighted mean of `values` (n,), shape (b,)."""
    w = _weights(weights, len(values))
    return (w @ values) / w.sum(axis=1)


def rmse(y: FloatArray, predicted: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return the root of the mean squared error, in the target's unit, shape (b,)."""
    return np.sqrt(mean(np.square(y - predicted), weights))


def mae(y: FloatArray, predicted: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return the mean absolute error, in the target's unit, shape (b,)."""
    return mean(np.abs(y - predicted), weights)


def r2(y: FloatArray, predicted: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return the share of the target's variance that is explained, at most 1, shape (b,).

    Raises:
        MetricUndefinedError: the target is the same in every row that has weight.
    """
    w = _weights(weights, len(y))
    total = w.sum(axis=1)
    # Centring first keeps the difference of squares from cancelling when the target is far from zero.
    centred = y - y.mean()
    variance = (w @ np.square(centred)) / total - np.square((w @ centred) / total)
    if not bool((variance > 0).all()) or bool((y == y[0]).all()):
        raise MetricUndefinedError("metric-constant", "R² needs a target that varies", fix="measure on rows with different targets")
    return 1.0 - mean(np.square(y - predicted), w) / variance


def mape(y: FloatArray, predicted: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return the mean absolute error as a share of the target's size, shape (b,).

    Raises:
        MetricUndefinedError: a target is 0, where a share has no meaning.
    """
    if bool((y == 0).any()):
        raise MetricUndefinedError(
            "metric-zero-target", f"{int((y == 0).sum()):,} targets are 0: no percentage of them exists", fix="use mae or rmse"
        )
    return mean(np.abs((y - predicted) / y), weights)


def _weights(weights: FloatArray | None, n: int) -> FloatArray:
    return np.ones((1, n)) if weights is None else weights


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole > 0)


def _by_score(positive: IntArray, score: FloatArray, weights: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    """Return the weight of positive and of negative rows per distinct score, rising, each of shape (b, groups)."""
    w = _weights(weights, len(score))
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    truth = positive[order].astype(np.float64)
    w = w[:, order]
    up = w * truth
    down = w - up
    if len(starts) == len(score):
        return up, down
    return np.add.reduceat(up, starts, axis=1), np.add.reduceat(down, starts, axis=1)


class _Binary(Protocol):
    def __call__(self, positive: IntArray, score: FloatArray, weights: FloatArray | None = None, /) -> FloatArray: ...


def _over_classes(measure: _Binary, y: IntArray, probabilities: FloatArray, weights: FloatArray | None, positive: int) -> FloatArray:
    n_classes = probabilities.shape[1]
    if n_classes == 2:  # noqa: PLR2004 - two classes
        return measure((y == positive).astype(np.int64), probabilities[:, positive], weights)
    w = _weights(weights, len(y))
    total = np.zeros(len(w))
    support = np.zeros(len(w))
    for c in range(n_classes):
        truth = (y == c).astype(np.int64)
        if not bool(truth.any()):
            continue
        share = w @ truth.astype(np.float64)
        total += share * measure(truth, probabilities[:, c], w)
        support += share
    return total / support


def _require_both_classes(n_up: FloatArray, n_down: FloatArray, what: str) -> None:
    if not (bool((n_up > 0).all()) and bool((n_down > 0).all())):
        present = "positive" if math.isclose(float(n_down.min()), 0.0) else "negative"
        raise MetricUndefinedError(
            "metric-one-class", f"{what} needs two classes; all rows are {present}", fix="measure on rows of both classes"
        )
