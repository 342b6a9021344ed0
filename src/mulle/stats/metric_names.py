"""The metrics by name: for which task, which way is better, between which bounds. Gates, search and reports read it."""

import difflib
import math
from dataclasses import dataclass
from typing import Literal

from mulle.core.errors import SpecError

Task = Literal["binary", "multiclass", "regression"]


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """What a metric is called and how to read it.

    Attributes:
        name: As in `mulle.toml`.
        label: As in a report.
        higher_is_better: Which way is better.
        tasks: Where it has a meaning.
        best: The value of a perfect model.
        points: Whether differences are read in points (0.81 against 0.80) or as a share of the value (an error, a loss).
    """

    name: str
    label: str
    higher_is_better: bool
    tasks: frozenset[Task]
    best: float
    points: bool


_CLASSES: frozenset[Task] = frozenset({"binary", "multiclass"})
_BINARY: frozenset[Task] = frozenset({"binary"})
_REGRESSION: frozenset[Task] = frozenset({"regression"})

METRICS: dict[str, MetricInfo] = {
    info.name: info
    for info in (
        MetricInfo("roc_auc", "ROC-AUC", True, _CLASSES, 1.0, True),
        MetricInfo("pr_auc", "PR-AUC", True, _CLASSES, 1.0, True),
        MetricInfo("accuracy", "Accuracy", True, _CLASSES, 1.0, True),
        MetricInfo("balanced_accuracy", "Balanced accuracy", True, _CLASSES, 1.0, True),
        MetricInfo("precision", "Precision (weighted)", True, _CLASSES, 1.0, True),
        MetricInfo("recall", "Recall (weighted)", True, _CLASSES, 1.0, True),
        MetricInfo("f1", "F1 (weighted)", True, _CLASSES, 1.0, True),
        MetricInfo("positive_precision", "Precision, positive class", True, _BINARY, 1.0, True),
        MetricInfo("positive_recall", "Recall, positive class", True, _BINARY, 1.0, True),
        MetricInfo("positive_f1", "F1, positive class", True, _BINARY, 1.0, True),
        MetricInfo("log_loss", "Log-loss", False, _CLASSES, 0.0, False),
        MetricInfo("brier", "Brier score", False, _CLASSES, 0.0, False),
        MetricInfo("calibration_error", "Calibration error", False, _CLASSES, 0.0, True),
        MetricInfo("rmse", "RMSE", False, _REGRESSION, 0.0, False),
        MetricInfo("mae", "Mean absolute error", False, _REGRESSION, 0.0, False),
        MetricInfo("mape", "Mean absolute percentage error", False, _REGRESSION, 0.0, False),
        MetricInfo("r2", "R²", True, _REGRESSION, 1.0, True),
    )
}

MAIN_METRIC: dict[Task, str] = {"binary": "roc_auc", "multiclass": "roc_auc", "regression": "rmse"}


def metric_info(name: str, *, task: Task | None = None) -> MetricInfo:
    """Return what is known about the metric `name`.

    Raises:
        SpecError: there is no such metric, or not for this task; the nearest name is offered.
    """
    info = METRICS.get(name)
    known = [m.name for m in METRICS.values() if task is None or task in m.tasks]
    if info is None or (task is not None and task not in info.tasks):
        near = difflib.get_close_matches(name, known, n=1)
        about = "" if task is None or info is None else f" for a {task} task"
        raise SpecError(
            "metric-unknown",
            f"there is no metric {name[:60]!r}{about}",
            fix=f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}",
        )
    return info


def gain(name: str, difference: float) -> float:
    """Return `difference` so that more is better: unchanged where higher is better, with its sign turned otherwise."""
    if math.isnan(difference):
        raise SpecError(
            "metric-not-finite", f"the difference of {name!r} is NaN", fix="measure both models again on rows with a known target"
        )
    return difference if metric_info(name).higher_is_better else -difference
