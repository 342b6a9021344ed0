"""All metrics of a task at once, on one sample or on many resamples of it: what evaluation, parity and folds share."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mulle.core.errors import SpecError
from mulle.stats import metrics
from mulle.stats.calibration import calibration_error, confidence_and_hit
from mulle.stats.metric_names import Task
from mulle.stats.metrics import MetricUndefinedError
from mulle.stats.types import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Problem:
    """What turns scores into answers.

    Attributes:
        task: `binary`, `multiclass` or `regression`.
        positive: Index of the positive class; binary only.
        threshold: Probability from which the positive class is answered; binary only.
    """

    task: Task
    positive: int = 1
    threshold: float = 0.5


def predicted_classes(scores: FloatArray, problem: Problem) -> IntArray:
    """Return the class answered per row, 0 … k-1, shape (n,): by threshold for two classes, the likeliest for more."""
    if problem.task == "binary":
        up = scores[:, problem.positive] >= problem.threshold
        return np.where(up, problem.positive, 1 - problem.positive).astype(np.int64)
    return scores.argmax(axis=1).astype(np.int64)


def measure(y: FloatArray | IntArray, scores: FloatArray, problem: Problem, weights: FloatArray | None = None) -> dict[str, FloatArray]:
    """Return every metric that has a value on these rows, by name, each of shape (b,).

    A metric without a value (ROC-AUC of one class, R² of a constant target, MAPE with a target of 0) is left out; bad
    input raises.

    Args:
        y: Labels 0 … k-1 (integers), or for regression targets, shape (n,).
        scores: Probabilities (n, k), or for regression predictions (n, 1).
        problem: The task, and for two classes the threshold.
        weights: Shape (b, n); None: every row once, b = 1.

    Raises:
        MetricUndefinedError: no rows, NaN, or shapes that do not fit.
    """
    if problem.task == "regression":
        return _measure_regression(np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64), weights)
    return _measure_classes(np.asarray(y, dtype=np.int64), np.asarray(scores, dtype=np.float64), problem, weights)


def measure_once(y: FloatArray | IntArray, scores: FloatArray, problem: Problem) -> dict[str, float]:
    """Return every metric that has a value on these rows, as plain numbers."""
    return {name: float(values[0]) for name, values in measure(y, scores, problem).items()}


def measure_resamples(
    y: FloatArray | IntArray, scores: FloatArray, problem: Problem, weights: Iterable[FloatArray]
) -> dict[str, FloatArray]:
    """Return every metric on every resample, by name, each of shape (n_resamples,); `weights` come in pieces (b, n)."""
    pieces = [measure(y, scores, problem, w) for w in weights]
    if not pieces:
        raise SpecError("resampling-shape", "there are no resamples", fix="draw at least one")
    names = [name for name in pieces[0] if all(name in piece for piece in pieces)]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}


def row_losses(y: FloatArray | IntArray, scores: FloatArray, problem: Problem) -> FloatArray:
    """Return how wrong each row is, shape (n,): its log-loss in nats, or its absolute error."""
    if problem.task == "regression":
        return np.abs(np.asarray(y, dtype=np.float64) - scores[:, 0])
    return metrics.log_losses(np.asarray(y, dtype=np.int64), scores)


def strata_of(y: FloatArray | IntArray, task: Task, *, n_bins: int = 10) -> IntArray:
    """Return the stratum of each row for resampling and folds: its class, or for regression the quantile bin of its target."""
    if task != "regression":
        return np.asarray(y, dtype=np.int64)
    values = np.asarray(y, dtype=np.float64)
    cuts = np.unique(np.quantile(values, np.arange(1, n_bins) / n_bins))
    return np.searchsorted(cuts, values, side="right").astype(np.int64)


def _measure_classes(y: IntArray, scores: FloatArray, problem: Problem, weights: FloatArray | None) -> dict[str, FloatArray]:
    metrics.require_scores(y, scores)
    n_classes = scores.shape[1]
    table = metrics.confusion(y, predicted_classes(scores, problem), n_classes, weights)
    precision, recall, f1 = metrics.per_class(table)
    result: dict[str, FloatArray] = {}
    for name, area in (("roc_auc", metrics.roc_auc), ("pr_auc", metrics.average_precision)):
        try:
            result[name] = area(y, scores, weights, positive=problem.positive)
        except MetricUndefinedError:
            continue
    result |= {
        "accuracy": metrics.accuracy(table),
        "balanced_accuracy": metrics.balanced_accuracy(table),
        "precision": metrics.weighted_average(precision, table),
        "recall": metrics.weighted_average(recall, table),
        "f1": metrics.weighted_average(f1, table),
    }
    if problem.task == "binary":
        result |= {
            "positive_precision": precision[:, problem.positive],
            "positive_recall": recall[:, problem.positive],
            "positive_f1": f1[:, problem.positive],
        }
    probability, hit = confidence_and_hit(y, scores, positive=problem.positive)
    result |= {
        "log_loss": metrics.mean(metrics.log_losses(y, scores), weights),
        "brier": metrics.mean(metrics.brier_losses(y, scores), weights),
        "calibration_error": calibration_error(probability, hit, weights),
    }
    return result


def _measure_regression(y: FloatArray, scores: FloatArray, weights: FloatArray | None) -> dict[str, FloatArray]:
    predicted = scores[:, 0] if scores.ndim == 2 else scores  # noqa: PLR2004 - a matrix of one column
    metrics.require_targets(y, predicted)
    result = {"rmse": metrics.rmse(y, predicted, weights), "mae": metrics.mae(y, predicted, weights)}
    for name, function in (("mape", metrics.mape), ("r2", metrics.r2)):
        try:
            result[name] = function(y, predicted, weights)
        except MetricUndefinedError:
            continue
    return result
