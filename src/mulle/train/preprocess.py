# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What the training table says about turning compiled features into a matrix: levels, fills, missing columns.

Fitted on the training side only; the result is plain data, exported into the graph as it stands.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import polars as pl

from mulle.core.errors import SpecError
from mulle.core.preprocess import CategoryFeature, NumericFeature, Preprocess

Kind = Literal["number", "category"]
DEFAULT_MAX_LEVELS = 64


def fit_preprocess(
    table: pl.DataFrame,
    kinds: Mapping[str, Kind],
    *,
    allow_nan: bool,
    max_levels: int = DEFAULT_MAX_LEVELS,
    min_frequency: int = 1,
) -> Preprocess:
    """Return how each feature becomes one or more float32 columns, learnt from `table`.

    A number keeps NaN when the estimator can take it; otherwise its missing values are filled with the median of the
    present ones, computed on float32 values and rounded to float32, so that the graph holds the very same number.
    A category becomes one column per level, in sorted order; levels beyond `max_levels` (the rarer first, ties by
    name) or seen fewer than `min_frequency` times are treated like levels never seen: all zeros. Missing gets a
    column of its own when training saw it.

    Args:
        table: Compiled features of the training rows: Float32 with NaN for missing, String with null.
        kinds: Feature name to kind, in the order of the matrix.
        allow_nan: Whether the estimator takes NaN (`not needs_fill(estimator)`).
        max_levels: Most levels kept of one category, >= 1.
        min_frequency: Fewest rows a level needs, >= 1.

    Raises:
        SpecError: no rows, a feature that is missing in every row, or a category without one usable level.
    """
    if table.height == 0:
        raise SpecError("train-empty", "there are no training rows to learn the preprocessing from", fix="check the source and the split")
    features: list[NumericFeature | CategoryFeature] = []
    for name, kind in kinds.items():
        if name not in table.columns:
            near = difflib.get_close_matches(name, table.columns, n=1)
            raise SpecError(
                "train-feature", f"the table has no feature {name!r}", fix=f"did you mean {near[0]!r}?" if near else "compute it first"
            )
        column = table.get_column(name)
        if kind == "number":
            features.append(_numeric(name, column, allow_nan=allow_nan))
        else:
            features.append(_category(name, column, max_levels=max_levels, min_frequency=min_frequency))
    return Preprocess(features=tuple(features))


def needs_fill(estimator: Any) -> bool:
    """Return whether missing numbers must be filled before `estimator` sees them.

    The answer is the estimator's own (`__sklearn_tags__().input_tags.allow_nan`), with two corrections. A pipeline
    answers for its first step only, while a scaler hands NaN on to the next: every step up to an imputer is asked. And
    sklearn's plain trees and forests take NaN, but the branch they send it down has no export: they are filled.
    """
    steps = getattr(estimator, "steps", None)
    if isinstance(steps, list):
        for _, step in steps:
            if step is None or step == "passthrough":
                continue
            if _imputes(step):
                return False
            if needs_fill(step):
                return True
        return False
    return not _allows_nan(estimator) or any(type(part).__name__ in _TREES for part in _parts(estimator))


_TREES = frozenset(
    {
        *(f"{kind}{task}" for kind in ("DecisionTree", "ExtraTree", "ExtraTrees", "RandomForest") for task in ("Classifier", "Regressor")),
        "BaggingClassifier",
        "BaggingRegressor",
    }
)


def _parts(estimator: Any) -> list[Any]:
    """Return the estimator and every estimator among its parameters, nested ones too."""
    if not hasattr(estimator, "get_params"):
        return [estimator]
    return [estimator, *(value for value in estimator.get_params(deep=True).values() if hasattr(value, "fit"))]


def _imputes(step: Any) -> bool:
    return any(type(part).__name__.endswith("Imputer") for part in _parts(step))


def _allows_nan(estimator: Any) -> bool:
    tags = getattr(estimator, "__sklearn_tags__", None)
    if tags is None:
        return False
    try:
        return bool(tags().input_tags.allow_nan)
    except AttributeError:
        return False


def _numeric(name: str, column: pl.Series, *, allow_nan: bool) -> NumericFeature:
    values = column.cast(pl.Float32).to_numpy()
    present = values[~np.isnan(values)]
    if present.size == 0:
        raise SpecError(
            "train-all-missing",
            f"the feature {name!r} is missing in every one of the {column.len():,} training rows",
            fix="fill it (`.fill_null(0)`), drop it from the features, or mend the source",
        )
    if allow_nan:
        return NumericFeature(name, fill=None)
    return NumericFeature(name, fill=float(np.float32(np.median(present))))


def _category(name: str, column: pl.Series, *, max_levels: int, min_frequency: int) -> CategoryFeature:
    counts = column.drop_nulls().value_counts(name="count")
    ranked = sorted(counts.rows(), key=lambda row: (-int(row[1]), str(row[0])))
    kept = [str(level) for level, count in ranked[:max_levels] if int(count) >= min_frequency]
    if not kept:
        raise SpecError(
            "train-all-missing",
            f"the category {name!r} has no level that occurs at least {min_frequency} times in {column.len():,} training rows",
            fix="drop it from the features, lower `min_frequency`, or mend the source",
        )
    return CategoryFeature(name, levels=tuple(sorted(kept)), missing_level=column.null_count() > 0)
