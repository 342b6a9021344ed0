# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The target: which classes there are, in which order, and how each is written."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mulle.core.errors import SpecError
from mulle.core.labels import label_text
from mulle.core.project import Task

__all__ = ["class_values", "encode_target", "label_text"]


def class_values(y: Any, task: Task) -> tuple[Any, ...]:
    """Return the distinct labels in sorted order, as the estimator will have them in `classes_`; () for regression.

    Raises:
        SpecError: missing or mixed labels, one class only, more than two for `binary`, or a number with fractions as a label.
    """
    values = _plain(y)
    if task == "regression":
        _require_numbers(values)
        return ()
    if any(v is None or v != v for v in values):  # noqa: PLR0124  (NaN is not itself)
        raise SpecError("target-missing", "the target is missing in some training rows", fix="drop them in the source, or fill the target")
    distinct = set(values)
    if not (all(isinstance(v, str) for v in distinct) or all(isinstance(v, int | float) for v in distinct)):
        raise SpecError("target-mixed", "the target mixes texts and numbers", fix="make every label a text in the source")
    fractions = sorted(v for v in distinct if isinstance(v, float) and not v.is_integer())
    if fractions:
        raise SpecError(
            "target-continuous",
            f"the target holds {fractions[0]!r}: that is no class",
            fix='use task="regression", or bin the target in the source',
        )
    found = sorted(distinct)
    if len(found) < 2:  # noqa: PLR2004  (nothing can be learnt from one class)
        raise SpecError(
            "target-one-class",
            f"every training row has the label {found[0]!r}",
            fix="check the source and the split: two labels are needed",
        )
    if task == "binary" and len(found) > 2:  # noqa: PLR2004  (what binary means)
        shown = ", ".join(repr(v) for v in found[:5])
        raise SpecError(
            "target-many-classes", f"the task is 'binary' and the target has {len(found)} labels: {shown}", fix='use task="multiclass"'
        )
    return tuple(found)


def encode_target(y: Any, task: Task, values: Sequence[Any], *, as_codes: bool) -> Any:
    """Return the target as the estimator gets it: float64 numbers, the labels themselves, or their codes 0 … k-1.

    Args:
        y: Shape (n,).
        task: What is learnt.
        values: What `class_values` returned.
        as_codes: Class numbers instead of labels.
    """
    plain = _plain(y)
    if task == "regression":
        return np.asarray(plain, dtype=np.float64)
    if as_codes:
        codes = {value: i for i, value in enumerate(values)}
        return np.asarray([codes[value] for value in plain], dtype=np.int64)
    if isinstance(values[0], str):
        return np.asarray(plain, dtype=np.str_)
    if all(isinstance(v, bool) for v in values):
        return np.asarray(plain, dtype=np.bool_)
    return np.asarray([int(v) for v in plain], dtype=np.int64)


def _plain(y: Any) -> list[Any]:
    """Return Python values of a numpy array, a polars or pandas series, or a list."""
    to_list = getattr(y, "to_list", None) or getattr(y, "tolist", None)
    return list(y) if to_list is None else list(to_list())


def _require_numbers(values: Sequence[Any]) -> None:
    for row, value in enumerate(values):
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise SpecError(
                "target-not-number",
                f"the target in training row {row} is {value!r}; a regression needs finite numbers",
                fix="clean the target in the source, or change the task in mulle.Project(…)",
            )
