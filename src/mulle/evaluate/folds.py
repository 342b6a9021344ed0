"""Stratified cross-validation around the caller's own fitting, and its summary."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mulle.evaluate.result import FoldSummary
from mulle.stats.measure import Problem, measure_once, strata_of
from mulle.stats.resampling import stratified_folds
from mulle.stats.types import AnyArray, FloatArray, IntArray

FitAndScore = Callable[[IntArray, IntArray], AnyArray]


def k_fold(
    fit_and_score: FitAndScore,
    y: FloatArray | IntArray,
    k: int,
    rng: np.random.Generator,
    *,
    problem: Problem,
    groups: IntArray | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, float], ...]:
    """Return every metric per fold.

    Args:
        fit_and_score: Training rows and test rows to the scores of the test rows: probabilities (m, classes) or (m, 1).
        y: Class numbers, or for regression targets, shape (n,).
        k: Number of folds.
        rng: Source of randomness.
        problem: The task, the positive class and the threshold.
        groups: Group (entity) of each row; rows of one group stay together.
        progress: Told before each fold.

    Raises:
        SpecError: more folds than rows or groups.
    """
    results: list[dict[str, float]] = []
    for i, (train, test) in enumerate(stratified_folds(strata_of(y, problem.task), k, rng, groups=groups), start=1):
        if progress is not None:
            progress(f"fold {i} of {k}")
        results.append(measure_once(y[test], np.asarray(fit_and_score(train, test), dtype=np.float64), problem))
    return tuple(results)


def summarise_folds(folds: Sequence[Mapping[str, float]]) -> dict[str, FoldSummary]:
    """Return mean and standard deviation per metric over the folds, for metrics that every fold has."""
    if not folds:
        return {}
    result: dict[str, FoldSummary] = {}
    for name in folds[0]:
        if all(name in fold for fold in folds):
            values = np.asarray([fold[name] for fold in folds], dtype=np.float64)
            sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            result[name] = FoldSummary(float(values.mean()), sd, tuple(float(v) for v in values))
    return result
