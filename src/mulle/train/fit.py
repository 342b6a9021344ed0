# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""Fitting: any sklearn-like estimator on the matrix the exported preprocessing puts out, deterministic under a seed.

The point of this module is what it does to a `Pipeline`. A tree fitted behind sklearn's own `StandardScaler` splits
between values computed in double precision; the graph computes them in single precision, and rows that sit on a split
fall to the other side (measured: 336 of 1,443 rows of a scaled forest on real customers). So the transformers are
fitted first and *exported*, the export is run over the training matrix, and the last step learns from what came out:
the numbers it will be served.
"""

import inspect
import random
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.core.project import Task
from mulle.core.user_code import bounded, user_code
from mulle.train.boundary import build_estimator, recipe_parameters, require_task, seeded
from mulle.train.curves import step_curves
from mulle.train.target import class_values, encode_target, label_text

__all__ = ["Fitted", "TransformExport", "build_estimator", "fit_estimator", "label_text", "predict_scores", "recipe_parameters"]

Matrix = NDArray[np.float32]
Transform = Callable[[Matrix], Matrix]


class TransformExport(Protocol):
    """Turns fitted transformers into the function their exported graph computes (`bundle/convert.py: export_transform`)."""

    def __call__(self, transformers: Any, n_features: int) -> Transform:
        """Return the function from (n, n_features) float32 to (n, m) float32 that the graph computes."""
        ...


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted estimator and how to score with it as the graph will.

    Attributes:
        estimator: The whole fitted estimator, ready for `bundle/convert.py`.
        classes: The labels as texts, in the order of the probabilities; empty for regression.
        curves: Name to one value per iteration.
        transform: What stands before `final`: the exported transformers; None when the estimator has none.
        final: What predicts on the transformed matrix; the estimator itself when there is no transform.
        seconds: How long fitting took, in seconds.
        feature_names: The matrix's columns.
    """

    estimator: Any
    classes: tuple[str, ...]
    curves: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    transform: Transform | None = None
    final: Any = None
    seconds: float = 0.0
    feature_names: tuple[str, ...] = ()


def fit_estimator(
    estimator: Any,
    x: Matrix,
    y: Any,
    *,
    names: Sequence[str],
    task: Task = "binary",
    seed: int = 0,
    export: TransformExport | None = None,
) -> Fitted:
    """Return `estimator` fitted on `x`; the estimator given is left unfitted.

    Args:
        estimator: Unfitted; parameters that name columns (a `ColumnTransformer`, `monotonic_cst`) may use `names`.
        x: Shape (n, D), float32: what the exported preprocessing put out.
        y: Shape (n,): labels as the user has them (class weights keep their meaning), or finite numbers for regression.
        names: The D column names of `x`.
        task: What is learnt.
        seed: Seeds every unset `random_state`, and Python's and numpy's global generators while fitting.
        export: Exports the transformers of a pipeline, so that its last step learns from the graph's own numbers.

    Raises:
        SpecError: an empty or mis-shaped matrix, one class only, no probabilities, a transformer without an export.
        UserCodeError: the estimator raised while fitting.
    """
    _require_matrix(x, y, names, needs_finite=not _takes_nan(estimator))
    require_task(estimator, task)
    ready = by_position(seeded(estimator, seed), names)
    values = class_values(y, task)
    # XGBoost takes class numbers only, and LightGBM wants them beside an evaluation set; all others keep the user's labels.
    as_codes = task != "regression" and (_contains(ready, "xgboost") or _module(_deepest(ready)) == "lightgbm")
    if as_codes:
        _weigh_codes(ready, values)
    target = encode_target(y, task, values, as_codes=as_codes)
    what = f"fitting {type(ready).__name__}"
    start = time.perf_counter()
    transform: Transform | None = None
    with global_seed(seed), user_code(what):
        before, final = _split_pipeline(ready)
        if before is not None and export is not None:
            before.fit(x, target)
            transform = export(before, x.shape[1])
            inner = transform(x)
            _fit_final(final, inner, target, task=task, seed=seed)
            whole = _joined(before, final)
        else:
            _fit_final(ready, x, target, task=task, seed=seed)
            whole = final = ready
    require_task(whole, task)
    return Fitted(
        estimator=whole,
        classes=tuple(label_text(value) for value in values),
        curves=step_curves(_deepest(final)),
        transform=transform,
        final=final,
        seconds=time.perf_counter() - start,
        feature_names=tuple(names),
    )


def predict_scores(fitted: Fitted, x: Matrix, task: Task) -> NDArray[np.float64]:
    """Return the estimator's own answer on `x`: probabilities (n, k) in the order of `classes`, or predictions (n, 1).

    Transformers run as exported: this is what the estimator says about the numbers the graph gives it.
    """
    inner = x if fitted.transform is None else fitted.transform(x)
    final = fitted.estimator if fitted.final is None else fitted.final
    with user_code(f"scoring with {type(final).__name__}"):
        if task == "regression":
            return np.asarray(final.predict(inner), dtype=np.float64).reshape(len(x), -1)
        return np.asarray(final.predict_proba(inner), dtype=np.float64)


@contextmanager
def global_seed(seed: int) -> Generator[None]:
    """Seed Python's and numpy's global generators for the block, and give them back as they were.

    Code that asks for no generator of its own draws from these two.
    """
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  (the global one is what must be seeded)
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002  (as above)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002  (as above)


def by_position(estimator: Any, names: Sequence[str]) -> Any:
    """Return `estimator` with column names in its parameters replaced by positions: the matrix has no names.

    Covers `ColumnTransformer` columns, and `monotonic_cst` / `categorical_features` of histogram boosting.

    Raises:
        SpecError: a column that is not in the matrix; the nearest one is named.
    """
    known = estimator.get_params(deep=True)
    for key in sorted(known, key=lambda name: name.count("__")):
        last, value = key.rpartition("__")[2], known[key]
        if last == "transformers" and isinstance(value, list):
            rows = [(row[0], row[1], _positions(row[2], names)) if len(row) == 3 else row for row in value]  # noqa: PLR2004  (name, step, columns)
            estimator.set_params(**{key: rows})
        elif last == "monotonic_cst" and isinstance(value, dict):
            estimator.set_params(**{key: [int(value.get(name, 0)) for name in names]})
        elif last == "categorical_features" and isinstance(value, list | tuple):
            estimator.set_params(**{key: _positions(value, names)})
    return estimator


def _positions(columns: Any, names: Sequence[str]) -> Any:
    if isinstance(columns, str):
        return _positions([columns], names)[0]
    if not isinstance(columns, list | tuple) or not all(isinstance(c, str) for c in columns):
        return columns
    order = {name: i for i, name in enumerate(names)}
    for column in columns:
        if column not in order:
            import difflib

            near = difflib.get_close_matches(column, names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SpecError(
                "model-column-unknown",
                f"the estimator names the column {column!r}, which the model's matrix does not have",
                fix=f"{hint}the matrix has {bounded(', '.join(map(repr, names)), 300)}",
            )
    return [order[column] for column in columns]


def _fit_final(estimator: Any, x: Matrix, y: Any, *, task: Task, seed: int) -> None:
    """Fit; boosters of LightGBM and XGBoost are shown their own training rows so that they keep a curve.

    With early stopping asked for, they need rows they do not learn from: one in ten is held out, drawn with the seed
    and stratified by class.
    """
    module = _module(estimator)
    if module not in {"lightgbm", "xgboost"}:
        estimator.fit(x, y)
        return
    parameters = estimator.get_params()
    stops = parameters.get("early_stopping_rounds") or parameters.get("early_stopping_round") or parameters.get("n_iter_no_change")
    learn_x, learn_y, sets = x, y, [(x, y)]
    if stops:
        from sklearn.model_selection import train_test_split

        learn_x, held_x, learn_y, held_y = train_test_split(
            x, y, test_size=0.1, random_state=seed, stratify=None if task == "regression" else y
        )
        sets = [(learn_x, learn_y), (held_x, held_y)]
    extra: dict[str, Any] = {"eval_set": sets}
    if module == "xgboost":
        extra["verbose"] = False
    elif "eval_X" in inspect.signature(estimator.fit).parameters:
        # LightGBM from 4.7 on deprecates `eval_set` for these two.
        extra = {"eval_X": tuple(part for part, _ in sets), "eval_y": tuple(part for _, part in sets)}
    estimator.fit(learn_x, learn_y, **extra)


def _split_pipeline(estimator: Any) -> tuple[Any | None, Any]:
    """Return the steps before the last as a pipeline (None when there are none), and the last step."""
    from sklearn.pipeline import Pipeline

    if not isinstance(estimator, Pipeline):
        return None, estimator
    steps = [(name, step) for name, step in estimator.steps if step is not None and step != "passthrough"]
    if len(steps) < 2:  # noqa: PLR2004  (nothing stands before the last step)
        return None, steps[-1][1]
    return Pipeline(steps[:-1]), steps[-1][1]


def _joined(before: Any, final: Any) -> Any:
    from sklearn.pipeline import Pipeline

    last = final.steps if isinstance(final, Pipeline) else [("model", final)]
    taken = {name for name, _ in before.steps}
    return Pipeline([*before.steps, *((name if name not in taken else f"{name}_final", step) for name, step in last)])


def _deepest(estimator: Any) -> Any:
    steps = getattr(estimator, "steps", None)
    return _deepest(steps[-1][1]) if steps else estimator


def _contains(estimator: Any, module: str) -> bool:
    return any(_module(part) == module for part in [estimator, *estimator.get_params(deep=True).values()])


def _module(part: Any) -> str:
    return type(part).__module__.partition(".")[0]


def _weigh_codes(estimator: Any, values: Sequence[Any]) -> None:
    """Rewrite class weights given by label into weights by class number."""
    codes = {value: i for i, value in enumerate(values)}
    for key, weights in estimator.get_params(deep=True).items():
        if key.rpartition("__")[2] == "class_weight" and isinstance(weights, dict):
            estimator.set_params(**{key: {codes.get(label, label): weight for label, weight in weights.items()}})


def _takes_nan(estimator: Any) -> bool:
    from mulle.train.preprocess import needs_fill

    return not needs_fill(estimator)


def _require_matrix(x: Matrix, y: Any, names: Sequence[str], *, needs_finite: bool) -> None:
    if x.ndim != 2 or x.dtype != np.float32 or x.shape[1] != len(names) or len(x) != len(y):  # noqa: PLR2004  (rows and columns)
        raise SpecError(
            "train-matrix",
            f"the training matrix is {x.dtype} of shape {x.shape} for {len(names)} names and {len(y)} targets",
            fix="give float32 of shape (n, D), D names and n targets",
        )
    if len(x) == 0:
        raise SpecError("train-empty", "there are no training rows", fix="check the source, the expectations and the split")
    bad = ~np.isfinite(x) if needs_finite else np.isinf(x)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise SpecError(
            "train-not-finite",
            f"{int(bad.sum()):,} values of the matrix are not finite; the first: {x[row, column]} in row {row} of {names[column]!r}",
            fix="fill missing values (`.fill_null(…)`), or use an estimator that takes them",
        )
