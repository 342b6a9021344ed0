# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
"""Step curves a fitted estimator remembers: loss or score per iteration."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_ATTRIBUTES = {
    "train_score_": "train_score",  # histogram and plain gradient boosting
    "validation_score_": "validation_score",
    "oob_scores_": "oob_score",
    "estimator_errors_": "estimator_error",  # AdaBoost
    "loss_curve_": "loss",  # multi-layer perceptron
    "validation_scores_": "validation_score",
}
MAX_STEPS = 10_000


def step_curves(estimator: Any) -> dict[str, list[float]]:
    """Return curve name to one finite value per iteration; empty when the estimator keeps none.

    Reads sklearn's boosting and perceptron attributes and the evaluation results of LightGBM and XGBoost. A curve
    longer than `MAX_STEPS` is thinned evenly, its last value kept.
    """
    curves: dict[str, list[float]] = {}
    for attribute, name in _ATTRIBUTES.items():
        values = getattr(estimator, attribute, None)
        if values is not None and name not in curves:
            _add(curves, name, values)
    results = getattr(estimator, "evals_result_", None)
    if isinstance(results, Mapping):
        for part, metrics in results.items():
            for metric, values in metrics.items():
                _add(curves, f"{_part_name(str(part))}_{metric}", values)
    return curves


def _part_name(name: str) -> str:
    return {"training": "train", "valid_0": "train", "validation_0": "train", "valid_1": "validation", "validation_1": "validation"}.get(
        name, name
    )


def _add(curves: dict[str, list[float]], name: str, values: Any) -> None:
    numbers = [float(value) for value in np.ravel(np.asarray(values, dtype=np.float64)) if math.isfinite(float(value))]
    if len(numbers) > MAX_STEPS:
        kept = np.unique(np.linspace(0, len(numbers) - 1, MAX_STEPS).astype(int))
        numbers = [numbers[i] for i in kept]
    if numbers:
        curves[name] = numbers
