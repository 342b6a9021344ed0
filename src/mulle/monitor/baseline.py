"""Makes the drift baseline of a model from the rows it was made with, as they would be served."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mulle.core.errors import SpecError
from mulle.core.project import Task
from mulle.core.schema import MISSING_TEXT, Column, ColumnType, Schema
from mulle.formats.baseline import (
    MAX_CATEGORIES,
    MAX_CATEGORY_CHARS,
    MAX_POINTS,
    Baseline,
    CategoryProfile,
    NumberProfile,
    PredictionProfile,
    Profile,
    bucket_counts,
)
from mulle.stats.two_sample import bin_counts, quantile_edges, without_missing
from mulle.stats.types import AnyArray, FloatArray

Arrays = Mapping[str, AnyArray]

HISTOGRAM_BINS = 10
MIN_POINTS = 100
ALL_POINTS = 800_000
SCORE = "score"
PREDICTED_CLASS = "predicted class"


@dataclass(frozen=True, slots=True)
class AnswerSpec:
    """What the columns of the scores mean: the fields of the same names in a bundle's manifest."""

    task: Task = "binary"
    classes: tuple[str, ...] = ()
    positive: str | None = None
    threshold: float = 0.5


def build_baseline(
    arrays: Arrays,
    schema: Schema,
    scores: AnyArray | None = None,
    *,
    task: Task = "binary",
    classes: Sequence[str] = (),
    positive: str | None = None,
    threshold: float = 0.5,
) -> Baseline:
    """Return the profile of every column of `schema`, and of the scores.

    Args:
        arrays: Column name to shape (n,): the raw columns as served. All rows that training and holdout have: more rows
            make finer tests.
        schema: The columns to profile, in their order.
        scores: Shape (h, k) probabilities or (h, 1) predictions **of holdout rows only**. A model is surer of rows it has
            learnt from: with those in the profile, every healthy window would look changed. h need not be n.
        task: What the scores are.
        classes: Class names in the order of the columns of `scores`; not for regression.
        positive: For `binary`: the class whose probability is profiled. None: the last one.
        threshold: For `binary`: from which probability on a row counts as positive.

    Raises:
        SpecError: a column is not in `arrays`, the lengths differ, or there is no row.
    """
    columns: list[Profile] = []
    # A table of thousands of columns keeps fewer points of each: coarser tests, and never a document nobody can read.
    max_points = min(MAX_POINTS, max(MIN_POINTS, ALL_POINTS // max(1, len(schema))))
    n_rows = -1
    for column in schema:
        values = arrays.get(column.name)
        if values is None:
            raise SpecError(
                "baseline-column",
                f"the rows have no column {column.name[:80]!r}",
                fix="pass every column of the schema",
                where=column.name,
            )
        if n_rows not in {-1, len(values)}:
            raise SpecError(
                "baseline-length",
                f"the column {column.name!r} has {len(values):,} rows, the ones before it {n_rows:,}",
                fix="pass columns of one table",
                where=column.name,
            )
        n_rows = len(values)
        columns.append(profile_column(values, column, max_points=max_points))
    if n_rows < 1:
        raise SpecError("baseline-empty", "there is no row to make a baseline of", fix="pass the rows the model was trained and judged on")
    prediction = None
    if scores is not None and len(scores):
        values, labels = read_scores(scores, AnswerSpec(task, tuple(classes), positive, threshold))
        prediction = PredictionProfile(
            score=profile_numbers(values, SCORE, ColumnType.NUMBER),
            classes=None if labels is None else profile_categories(category_counts(labels), PREDICTED_CLASS, ColumnType.TEXT),
        )
    return Baseline(n_rows=n_rows, columns=tuple(columns), prediction=prediction)


def read_scores(scores: AnyArray, answer: AnswerSpec) -> tuple[FloatArray, AnyArray | None]:
    """Return the one number per row that is watched, shape (n,), and the chosen classes, shape (n,), or None.

    Binary: the probability of the positive class; multiclass: that of the chosen class; regression: the value itself.

    Raises:
        SpecError: the shape does not fit the task and the classes.
    """
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if answer.task == "regression":
        return table[:, 0], None
    classes = answer.classes
    if table.shape[1] != len(classes) or not classes:
        raise SpecError("scores-shape", f"{table.shape[1]} columns of scores for {len(classes)} classes", fix="pass one column per class")
    names: AnyArray = np.array([*classes], dtype=object)
    if answer.task == "multiclass":
        chosen = table.argmax(axis=1)
        return table[np.arange(len(table)), chosen], names[chosen]
    index = classes.index(answer.positive) if answer.positive in classes else len(classes) - 1
    return table[:, index], names[np.where(table[:, index] >= answer.threshold, index, 1 - index)]


def profile_column(values: AnyArray, column: Column, *, max_points: int = MAX_POINTS) -> Profile:
    """Return the profile of one raw column, shape (n,), with the missing markers of `core/schema.py`."""
    if column.type in {ColumnType.NUMBER, ColumnType.DATETIME}:
        return profile_numbers(np.asarray(values, dtype=np.float64), column.name, column.type, max_points=max_points)
    return profile_categories(category_counts(values), column.name, column.type, n_missing=count_missing(values))


def count_missing(values: AnyArray) -> int:
    """Return how many values are missing: NaN, or `MISSING_TEXT` in a text column."""
    if values.dtype.kind == "f":
        return int(np.isnan(values).sum())
    texts: list[Any] = values.tolist()
    return texts.count(MISSING_TEXT)


def category_counts(values: AnyArray) -> dict[str, int]:
    """Return category to count, missing ones left out, in order of first appearance; booleans as `true` and `false`."""
    if values.dtype.kind == "f":
        kept = without_missing(np.asarray(values, dtype=np.float64))
        n_true = int(np.count_nonzero(kept))
        return {name: count for name, count in (("false", kept.size - n_true), ("true", n_true)) if count}
    result: dict[str, int] = {}
    texts: list[Any] = values.tolist()
    for value, count in Counter(texts).items():
        if value != MISSING_TEXT:
            name = str(value)[:MAX_CATEGORY_CHARS]
            result[name] = result.get(name, 0) + count
    return result


def profile_categories(counts: Mapping[str, int], name: str, kind: ColumnType, *, n_missing: int = 0) -> CategoryProfile:
    """Return the profile of a column of categories from its counts."""
    n = sum(counts.values())
    listed = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_CATEGORIES]
    rest = n - sum(count for _, count in listed)
    buckets = tuple(bucket_counts(counts).tolist()) if rest else ()
    return CategoryProfile(
        name=name, type=kind, n=n, n_missing=n_missing, n_distinct=len(counts), counts=dict(listed), n_rest=rest, buckets=buckets
    )


def profile_numbers(values: FloatArray, name: str, kind: ColumnType, *, max_points: int = MAX_POINTS) -> NumberProfile:
    """Return the profile of a column of numbers, shape (n,); NaN is missing."""
    # Adding zero turns -0.0 into 0.0: one value, one spelling, one digest.
    ordered = np.sort(without_missing(values)) + 0.0
    n_minus = int(np.searchsorted(ordered, -np.inf, side="right"))
    n_plus = int(ordered.size - np.searchsorted(ordered, np.inf, side="left"))
    finite = ordered[n_minus : ordered.size - n_plus]
    distinct = np.unique(finite)
    points = distinct
    if distinct.size > max_points:
        points = np.unique(finite[np.round(np.linspace(0, finite.size - 1, max_points)).astype(np.int64)])
    edges = quantile_edges(finite, bins=HISTOGRAM_BINS)
    return NumberProfile(
        name=name,
        type=kind,
        n=int(ordered.size),
        n_missing=int(values.size - ordered.size),
        n_minus_inf=n_minus,
        n_plus_inf=n_plus,
        n_distinct=int(distinct.size),
        minimum=float(finite[0]) if finite.size else None,
        maximum=float(finite[-1]) if finite.size else None,
        points=tuple(points.tolist()),
        below=tuple(np.searchsorted(ordered, points, side="left").tolist()),
        at_or_below=tuple(np.searchsorted(ordered, points, side="right").tolist()),
        edges=tuple(edges.tolist()),
        counts=tuple(bin_counts(ordered, edges).tolist()),
    )
