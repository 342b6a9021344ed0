"""Metrics with their intervals, on the whole holdout and on slices of it."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT
from mulle.evaluate.result import SliceResult
from mulle.stats.estimate import Estimate
from mulle.stats.measure import Problem, measure_once, measure_resamples, strata_of
from mulle.stats.metric_names import METRICS
from mulle.stats.resampling import MIN_RESAMPLES, basic_interval, bootstrap_weights, percentile_interval
from mulle.stats.types import AnyArray, BoolArray, FloatArray, IntArray

MAX_SLICE_VALUES = 20
SMALL_SLICE = 30
SLICE_RESAMPLES = 300
_MIN_ROWS_FOR_INTERVAL = 5
_MAX_CELLS = 60_000_000
_QUARTERS = 4
_AGRESTI = 2.0


def affordable_resamples(wanted: int, n: int) -> int:
    """Return how many resamples are drawn: `wanted`, fewer on many rows (intervals of a large sample need fewer), 0 for none.

    At most 60 million cells are drawn in all, but never fewer than 200 resamples.
    """
    return 0 if wanted <= 0 else max(MIN_RESAMPLES, min(wanted, max(200, _MAX_CELLS // max(1, n))))


def bootstrap_metrics(
    y: FloatArray | IntArray, scores: FloatArray, problem: Problem, n_resamples: int, rng: np.random.Generator
) -> dict[str, FloatArray]:
    """Return every metric on `n_resamples` stratified resamples, by name, each of shape (n_resamples,)."""
    weights = bootstrap_weights(len(y), n_resamples, rng, strata=strata_of(y, problem.task))
    return measure_resamples(y, scores, problem, weights)


def estimates_of(points: Mapping[str, float], samples: Mapping[str, FloatArray], n: int, *, confidence: float) -> dict[str, Estimate]:
    """Return each metric with the interval its resamples give; without resamples the bare value.

    Intervals are percentile intervals; that of the calibration error is the basic one, because resampling itself raises
    that metric. A share of exactly 0 or 1 never varies in a resample: it gets Agresti and Coull's standard error and an
    interval as wide as twice that, instead of a false certainty.
    """
    result: dict[str, Estimate] = {}
    for name, value in points.items():
        drawn = samples.get(name)
        if drawn is None:
            result[name] = Estimate(value)
            continue
        se = float(drawn.std(ddof=1))
        if name == "calibration_error":
            low, high = basic_interval(value, drawn, confidence=confidence)
            low, high = max(0.0, min(low, value)), max(high, value)
        else:
            low, high = percentile_interval(drawn, confidence=confidence)
        if se < 1e-12 and METRICS[name].points and n > 0:  # noqa: PLR2004 - rounding
            share = (value * n + _AGRESTI) / (n + 2 * _AGRESTI)
            se = math.sqrt(max(0.0, share * (1.0 - share)) / (n + 2 * _AGRESTI))
            low, high = max(0.0, value - 2 * se), min(1.0, value + 2 * se)
        result[name] = Estimate(value, low, high, se)
    return result


def slices_of(column: str, values: AnyArray) -> tuple[list[tuple[str, BoolArray]], int]:
    """Return name and rows of each slice of a column, the most frequent first, and how many rows are in no slice.

    Text is cut by its values, the 20 most frequent of them. Numbers with at most 20 values are cut by value, others by
    quarters. Missing values are a slice of their own.
    """
    if values.dtype.kind in "fiub":
        return _numeric_slices(np.asarray(values, dtype=np.float64))
    texts = np.array(["(missing)" if v is None or v == MISSING_TEXT else str(v) for v in values], dtype=object)
    if len(texts) != len(values):
        raise SpecError("evaluate-shape", f"the column {column!r} has another length than the target", fix="give one value per row")
    names, inverse, counts = np.unique(texts, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    kept = [(str(names[i]), inverse == i) for i in order[:MAX_SLICE_VALUES]]
    return kept, int(counts[order[MAX_SLICE_VALUES:]].sum())


def measure_slices(
    columns: Mapping[str, AnyArray],
    y: FloatArray | IntArray,
    scores: FloatArray,
    problem: Problem,
    *,
    n_resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[tuple[SliceResult, ...], dict[str, int]]:
    """Return the metrics of every slice with intervals, and per column the rows beyond the 20 most frequent values.

    Args:
        columns: Column name to raw values, shape (n,).
        y: Encoded targets, shape (n,).
        scores: Shape (n, k).
        problem: The task.
        n_resamples: Per slice; 0 for no intervals.
        confidence: Of the intervals.
        rng: Source of randomness.
    """
    results: list[SliceResult] = []
    left_out: dict[str, int] = {}
    for column, values in columns.items():
        found, rest = slices_of(column, values)
        if rest:
            left_out[column] = rest
        for value, rows in found:
            n = int(rows.sum())
            part_y, part_scores = y[rows], scores[rows]
            points = measure_once(part_y, part_scores, problem)
            samples: dict[str, FloatArray] = {}
            if n >= _MIN_ROWS_FOR_INTERVAL and n_resamples:
                samples = bootstrap_metrics(part_y, part_scores, problem, min(n_resamples, SLICE_RESAMPLES), rng)
            estimates = estimates_of(points, samples, n, confidence=confidence)
            results.append(SliceResult(column, value[:120], n, n < SMALL_SLICE, estimates))
    return tuple(results), left_out


def _numeric_slices(values: FloatArray) -> tuple[list[tuple[str, BoolArray]], int]:
    missing = np.isnan(values)
    present = values[~missing]
    levels, counts = np.unique(present, return_counts=True)
    result: list[tuple[str, BoolArray]] = []
    if len(levels) <= MAX_SLICE_VALUES:
        order = np.argsort(-counts, kind="stable")
        result = [(_plain(float(levels[i])), values == levels[i]) for i in order]
    else:
        cuts: Sequence[float] = np.unique(np.quantile(present, np.arange(1, _QUARTERS) / _QUARTERS)).tolist()
        ends = [-math.inf, *cuts, math.inf]
        for low, high in itertools.pairwise(ends):
            rows = (values >= low) & (values < high)
            if math.isinf(high):
                rows |= values == high
            name = (
                f"below {_plain(high)}"
                if math.isinf(low)
                else f"{_plain(low)} and more"
                if math.isinf(high)
                else f"{_plain(low)} to {_plain(high)}"
            )
            if bool(rows.any()):
                result.append((name, rows))
    if bool(missing.any()):
        result.append(("(missing)", missing))
    return result, 0


def _plain(value: float) -> str:
    return f"{value:.6g}"
