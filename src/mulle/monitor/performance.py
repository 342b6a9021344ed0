"""How the model did on the rows whose label has arrived."""

from collections.abc import Mapping, Sequence

import numpy as np

from mulle.monitor.baseline import AnswerSpec
from mulle.monitor.result import Performance
from mulle.stats.measure import Problem, measure_once
from mulle.stats.metric_names import gain
from mulle.stats.types import AnyArray

MAIN_METRICS = {"binary": ("accuracy", "roc_auc"), "multiclass": ("accuracy", "roc_auc"), "regression": ("rmse", "mae")}


def judge_labelled(
    labels: AnyArray,
    scores: AnyArray,
    n_rows: int,
    *,
    answer: AnswerSpec,
    evaluation: Mapping[str, float] | None = None,
    also: Sequence[str] = (),
) -> Performance | None:
    """Return the main metrics on labelled rows beside those of the evaluation; None when no label has arrived.

    Args:
        labels: Shape (n,): classes as text, or for regression numbers; a class the model does not know is left out and said.
        scores: Shape (n, k) or (n, 1): the logged answers of the same rows.
        n_rows: Rows of the whole window.
        answer: What the columns of `scores` mean.
        evaluation: Metric to value on the holdout.
        also: Names of more metrics to show, as `stats/metric_names.py` has them.
    """
    if not len(labels):
        return None
    notes: list[str] = []
    if answer.task == "regression":
        truth = np.asarray(labels, dtype=np.float64)
        kept = np.isfinite(truth)
    else:
        index = {name: i for i, name in enumerate(answer.classes)}
        truth = np.array([index.get(str(label), -1) for label in labels.tolist()], dtype=np.int64)
        kept = truth >= 0
    if not kept.all():
        notes.append(f"{int((~kept).sum()):,} labels are no class of this model and were left out")
    positive = answer.classes.index(answer.positive) if answer.positive in answer.classes else 1
    problem = Problem(answer.task, positive, answer.threshold)
    n = int(kept.sum())
    found = measure_once(truth[kept], np.asarray(scores, dtype=np.float64)[kept], problem) if n else {}
    names = tuple(dict.fromkeys((*MAIN_METRICS[answer.task], *also)))
    if n < n_rows:
        notes.append("labels often arrive sooner for some outcomes than for others")
    return Performance(
        n_labelled=n,
        n_rows=n_rows,
        metrics={name: found.get(name) for name in names},
        evaluation={name: float(value) for name, value in (evaluation or {}).items() if name in names},
        note="; ".join(notes),
    )


def say_drop(performance: Performance, metric: str, max_drop: float) -> str:
    """Return one sentence when `metric` on labelled rows is worse than at evaluation by more than `max_drop`; else empty.

    It is said and does not decide: labels that have arrived are rarely a fair sample, and this has no known error rate.
    """
    now, promised = performance.metrics.get(metric), performance.evaluation.get(metric)
    if now is None or promised is None:
        return ""
    if -gain(metric, now - promised) <= max_drop:
        return ""
    compared = f"{metric} {now:.3f} on labelled rows, {promised:.3f} at evaluation"
    return f"{compared}: worse by more than max_drop = {max_drop:g}; said, not decided on"
