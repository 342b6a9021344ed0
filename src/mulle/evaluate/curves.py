"""The lines a report draws: ROC, precision-recall, reliability, histograms; thinned to what a chart can show."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mulle.evaluate.result import Curve, Histogram
from mulle.stats.calibration import ReliabilityBin, confidence_and_hit, equal_mass_bins, reliability
from mulle.stats.measure import Problem
from mulle.stats.types import BoolArray, FloatArray, IntArray

Draw = Callable[[BoolArray, FloatArray], tuple[FloatArray, FloatArray]]

MAX_CLASSES_DRAWN = 6
_POINTS = 160
_BINS = 24


def roc_curves(y: IntArray, scores: FloatArray, classes: Sequence[str], problem: Problem) -> tuple[Curve, ...]:
    """Return the ROC curve of the positive class, or of the six most frequent classes against the rest."""
    return _per_class(y, scores, classes, problem, _roc)


def precision_recall_curves(y: IntArray, scores: FloatArray, classes: Sequence[str], problem: Problem) -> tuple[Curve, ...]:
    """Return the precision-recall curve of the positive class, or of the six most frequent classes against the rest."""
    return _per_class(y, scores, classes, problem, _precision_recall)


def reliability_of(y: IntArray, scores: FloatArray, problem: Problem) -> tuple[ReliabilityBin, ...]:
    """Return promised against observed frequency in ten bins of equal mass."""
    probability, hit = confidence_and_hit(y, scores, positive=problem.positive)
    return reliability(probability, hit)


def score_histogram(y: IntArray, scores: FloatArray, classes: Sequence[str], problem: Problem) -> Histogram:
    """Return how scores are spread: the positive class's probability per true class; for more classes the answer's, right and wrong."""
    probability, hit = confidence_and_hit(y, scores, positive=problem.positive)
    edges = np.linspace(0.0, 1.0, _BINS + 1)
    binary = problem.task == "binary"
    groups = (classes[1 - problem.positive], classes[problem.positive]) if binary else ("wrong", "right")
    label = f"probability of {classes[problem.positive]}" if binary else "probability of the answer given"
    counts = tuple(_counts(probability[hit == value], edges) for value in (0.0, 1.0))
    return Histogram(label, _floats(edges), groups, counts)


def error_histogram(y: FloatArray, predicted: FloatArray) -> Histogram:
    """Return how errors (prediction - target) are spread, between their 0.5 % and 99.5 % quantiles."""
    error = predicted - y
    low, high = (float(v) for v in np.quantile(error, np.asarray([0.005, 0.995])))
    pad = 0.0 if high > low else max(1.0, abs(low)) * 1e-6
    edges = np.linspace(low - pad, high + pad, _BINS + 1)
    return Histogram("prediction - target", _floats(edges), ("errors",), (_counts(np.clip(error, edges[0], edges[-1]), edges),))


def observed_by_prediction(y: FloatArray, predicted: FloatArray) -> tuple[ReliabilityBin, ...]:
    """Return mean prediction against mean target in bins of equal mass of the prediction."""
    bins = equal_mass_bins(predicted)
    result: list[ReliabilityBin] = []
    for b in range(int(bins.max()) + 1):
        p, t = predicted[bins == b], y[bins == b]
        result.append(ReliabilityBin(float(p.min()), float(p.max()), float(p.mean()), float(t.mean()), len(p)))
    return tuple(result)


def _per_class(y: IntArray, scores: FloatArray, classes: Sequence[str], problem: Problem, draw: Draw) -> tuple[Curve, ...]:
    if problem.task == "binary":
        wanted = [problem.positive]
    else:
        counts = np.bincount(y, minlength=len(classes))
        wanted = sorted(int(c) for c in np.argsort(-counts, kind="stable")[:MAX_CLASSES_DRAWN])
    result: list[Curve] = []
    for c in wanted:
        truth = y == c
        if 0 < int(truth.sum()) < len(y):
            x, line = draw(truth, scores[:, c])
            kept = _thin(len(x))
            result.append(Curve(str(classes[c])[:80], _floats(x[kept]), _floats(line[kept])))
    return tuple(result)


def _roc(truth: BoolArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    hits, alarms = _steps(truth, score)
    return np.r_[0.0, alarms / alarms[-1]], np.r_[0.0, hits / hits[-1]]


def _precision_recall(truth: BoolArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    hits, alarms = _steps(truth, score)
    precision = hits / (hits + alarms)
    return np.r_[0.0, hits / hits[-1]], np.r_[precision[0], precision]


def _steps(truth: BoolArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.diff(score[order]) != 0, True]
    hits = np.cumsum(truth[order])[last].astype(np.float64)
    return hits, np.cumsum(~truth[order])[last].astype(np.float64)


def _thin(n: int) -> IntArray:
    return np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(np.int64))


def _counts(values: FloatArray, edges: FloatArray) -> tuple[int, ...]:
    return tuple(int(v) for v in np.histogram(values, bins=edges)[0])


def _floats(values: FloatArray) -> tuple[float, ...]:
    return tuple(_short(float(v)) for v in values)


def _short(value: float) -> float:
    """Round to five significant digits: a line on a screen has no more, and the document stays small."""
    return float(f"{value:.5g}") if math.isfinite(value) else 0.0
