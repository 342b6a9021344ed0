"""The target column as what metrics need: class numbers or finite numbers, and which rows have none."""

from collections.abc import Sequence

import numpy as np

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT
from mulle.stats.measure import Problem
from mulle.stats.metric_names import Task
from mulle.stats.types import AnyArray, BoolArray, FloatArray, IntArray

_SHOWN = 60


def known_targets(y: AnyArray) -> BoolArray:
    """Return which rows have a target, shape (n,): not NaN, not None and not the marker of a missing text."""
    if y.dtype.kind == "f":
        return ~np.isnan(y)
    if y.dtype.kind in "iub":
        return np.ones(len(y), dtype=np.bool_)
    return np.array([v is not None and v != MISSING_TEXT and not (isinstance(v, float) and v != v) for v in y], dtype=np.bool_)  # noqa: PLR0124


def encode_target(y: AnyArray, *, task: Task, classes: Sequence[str]) -> FloatArray | IntArray:
    """Return class numbers 0 … k-1 in the order of `classes`, or for regression the numbers themselves, shape (n,).

    Integer arrays are class numbers already. Texts are looked up as they stand; floats by their number (1.0 is "1"), or,
    where the classes are "true" and "false" in any spelling, by their truth.

    Args:
        y: Targets, none missing, shape (n,).
        task: `binary`, `multiclass` or `regression`.
        classes: Names of the model's outputs in order.

    Raises:
        SpecError: a label the model does not know, or a target that is no number.
    """
    if task == "regression":
        try:
            values = np.asarray(y, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise SpecError(
                "evaluate-target", f"the target is not numeric: {error}"[:200], fix="use a numeric target for regression"
            ) from error
        if not bool(np.isfinite(values).all()):
            raise SpecError("evaluate-target", "the target has infinite values", fix="drop or cap those rows in the source")
        return values
    if y.dtype.kind in "iu":
        if len(y) and (int(y.min()) < 0 or int(y.max()) >= len(classes)):
            _refuse(int(y.max()) if int(y.max()) >= len(classes) else int(y.min()), classes)
        return y.astype(np.int64)
    values, inverse = np.unique(y.astype(str) if y.dtype.kind not in "fb" else y, return_inverse=True)
    places = np.array([_place(value, classes) for value in values.tolist()], dtype=np.int64)
    return places[inverse] if len(places) else np.zeros(0, dtype=np.int64)


def problem_of(task: Task, classes: Sequence[str], positive: str | None, threshold: float) -> Problem:
    """Return what turns scores into answers.

    Raises:
        SpecError: too few classes, a positive class the model does not have, or a threshold outside (0, 1).
    """
    if task == "regression":
        return Problem(task)
    if len(classes) < 2 or (task == "binary" and len(classes) != 2):  # noqa: PLR2004 - a choice needs two
        raise SpecError(
            "evaluate-classes", f"a {task} task with {len(classes)} classes", fix="give the classes in the order of the model's output"
        )
    if task == "multiclass":
        return Problem(task)
    if not 0.0 < threshold < 1.0:
        raise SpecError("evaluate-threshold", f"the threshold is {threshold!r}", fix="use a probability between 0 and 1")
    return Problem(task, 1 if positive is None else _place(positive, classes), threshold)


def _place(value: object, classes: Sequence[str]) -> int:
    for text in _spellings(value):
        if text in classes:
            return classes.index(text)
    return _refuse(value, classes)


def _spellings(value: object) -> tuple[str, ...]:
    if isinstance(value, bool) or (isinstance(value, float) and value in {0.0, 1.0}):
        truth = bool(value)
        return (str(int(truth)), str(float(truth)), str(truth), str(truth).lower(), str(truth).upper())
    if isinstance(value, float) and value.is_integer():
        return (str(int(value)), str(value))
    return (str(value),)


def _refuse(value: object, classes: Sequence[str]) -> int:
    known = ", ".join(repr(c[:_SHOWN]) for c in classes[:10])
    raise SpecError(
        "evaluate-unknown-class",
        f"the target holds {str(value)[:_SHOWN]!r}, which the model does not know",
        fix="train on data that has every class, or drop those rows",
        facts={"classes": known},
    )
