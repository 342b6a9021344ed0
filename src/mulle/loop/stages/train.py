"""Stage 4: a model of the training rows, as a graph; nothing fitted is ever pickled.

The features are compiled into the preprocessing graph first; the estimator learns from what that graph puts out, in its
own precision. The fitted estimator is converted in this process, and its own answers on the holdout are kept for the
comparison with the graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.core.preprocess import Preprocess
from mulle.core.project import ModelRecipe, Project
from mulle.core.schema import Schema
from mulle.loop.paths import StatePaths
from mulle.loop.stage import StageContext, StageResult
from mulle.loop.stages.files import HOLDOUT_SIDE, TRAIN_SIDE, load_side, read_version, write_array, write_bytes, write_json

if TYPE_CHECKING:
    import polars as pl

    from mulle.core.expr import Expr
    from mulle.train.fit import Fitted

PREPROCESSING, ESTIMATOR = "preprocessing.onnx", "estimator.onnx"
RECORD, SCORES = "train.json", "python_scores.npy"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a fit depends on but the rows."""

    project: Project
    model: ModelRecipe
    params: Mapping[str, Any]
    seed: int
    features: Mapping[str, "Expr"]
    schema: Schema


@dataclass(frozen=True, slots=True)
class Made:
    """A fit: the preprocessing as values and as a graph, and the estimator behind it."""

    preprocess: Preprocess
    graph: bytes
    fitted: "Fitted"

    def matrix(self, rows: "pl.DataFrame", schema: Schema) -> NDArray[np.float32]:
        """Return the estimator's input for `rows`, shape (n, D), as the graph computes it."""
        from mulle.bundle.graph import run_graph
        from mulle.data.arrays import to_arrays

        return run_graph(self.graph, to_arrays(rows, schema), output="features")


def run(context: StageContext) -> StageResult:
    """Fit the chosen model and convert it."""
    from mulle.bundle.convert import estimator_to_onnx
    from mulle.train.fit import predict_scores

    project = context.load_project()
    recipe = _recipe(context, project)
    _require_slices(context, recipe.schema)
    datasets = StatePaths(context.state_dir).datasets
    rows, held = (load_side(context.inputs["snapshot"], context.inputs["split"], datasets, side) for side in (TRAIN_SIDE, HOLDOUT_SIDE))
    context.report(f"fitting {recipe.model.name!r} on {rows.height:,} rows")
    made = make(recipe, rows)
    context.report("converting to ONNX")
    graph = estimator_to_onnx(made.fitted.estimator, len(made.preprocess.output_names), project.task)
    scores = predict_scores(made.fitted, made.matrix(held, recipe.schema), project.task)
    folds = _fold_metrics(context, recipe, rows)
    write_array(context.output / SCORES, scores)
    outputs = {
        "preprocessing": write_bytes(context.output / PREPROCESSING, made.graph),
        "estimator": write_bytes(context.output / ESTIMATOR, graph),
    }
    record = {
        "model": recipe.model.name,
        "estimator": type(made.fitted.estimator).__name__,
        "params": {name: _plain(value) for name, value in recipe.params.items()},
        "seed": recipe.seed,
        "classes": list(made.fitted.classes),
        "positive": positive_class(project, made.fitted.classes),
        "features": {name: repr(expr) for name, expr in recipe.features.items()},
        "raw_columns": sorted({name for expr in recipe.features.values() for name in expr.columns()}),
        "preprocess": made.preprocess.to_dict(),
        "curves": made.fitted.curves,
        "folds": folds,
        "seconds": made.fitted.seconds,
        "n_train": rows.height,
        "n_holdout": held.height,
        "task": project.task,
        "target": project.target,
        "entity": project.entity,
        "distributions": _distributions(made.fitted.estimator),
    }
    write_json(context.output / RECORD, record)
    outputs["record"] = _identity(record)
    record["mlflow_run_id"] = _track(context, recipe, record)
    write_json(context.output / RECORD, record)
    facts = {
        "model": recipe.model.name,
        "rows": rows.height,
        "matrix columns": len(made.preprocess.output_names),
        "mlflow_run_id": record["mlflow_run_id"],
    }
    return StageResult(outputs=outputs, facts=facts)


def make(recipe: Recipe, rows: "pl.DataFrame") -> Made:
    """Return a fit of `recipe` on `rows`: the very same steps for the model and for each fold of its cross-validation."""
    from mulle.bundle.convert import export_transform
    from mulle.bundle.graph import build_preprocessing, run_graph
    from mulle.core.expr import check_features
    from mulle.data.arrays import to_arrays
    from mulle.data.expr_polars import compute_features
    from mulle.train.boundary import build_estimator
    from mulle.train.fit import fit_estimator
    from mulle.train.preprocess import fit_preprocess, needs_fill

    task = recipe.project.task
    kinds = check_features(recipe.features, recipe.schema, target=recipe.project.target)
    estimator = build_estimator(recipe.model, recipe.params, seed=recipe.seed, task=task)
    table = compute_features(rows, recipe.features, recipe.schema)
    preprocess = fit_preprocess(table, kinds, allow_nan=not needs_fill(estimator))
    graph = build_preprocessing(recipe.features, recipe.schema, preprocess)
    x = run_graph(graph, to_arrays(rows, recipe.schema), output="features")
    y = rows.get_column(recipe.project.target)
    fitted = fit_estimator(estimator, x, y, names=preprocess.output_names, task=task, seed=recipe.seed, export=export_transform)
    return Made(preprocess, graph, fitted)


def positive_class(project: Project, classes: tuple[str, ...]) -> str | None:
    """Return the class that counts as 1 for a binary task; None otherwise.

    Raises:
        SpecError: the project names a class the target does not have.
    """
    from mulle.train.target import label_text

    if project.task != "binary":
        return None
    if project.positive is None:
        return classes[-1]
    text = label_text(project.positive)
    if text not in classes:
        raise SpecError(
            "project-positive",
            f"the positive class {project.positive!r} is not among the labels {', '.join(map(repr, classes))}",
            fix="set positive= in mulle.Project(…) to one of them",
            where="project.py",
        )
    return text


def _recipe(context: StageContext, project: Project) -> Recipe:
    from mulle.core.user_code import user_code
    from mulle.train.boundary import recipe_parameters

    settings = context.settings.train
    model = choose_model(project, settings.model)
    if project.features_function is None:
        raise SpecError(
            "project-no-features",
            "the project has no features",
            fix="write a function that returns {name: mulle.col(…)}, under @project.features",
            where=str(context.project_dir / "project.py"),
        )
    with user_code(f"the features {project.features_function.__name__!r}", root=context.project_dir):
        features = project.features_function()
    schema = read_version(context.inputs["snapshot"]).schema
    from mulle.core.expr import check_features

    check_features(features, schema, target=project.target)
    return Recipe(project, model, recipe_parameters(model, settings.params, seed=settings.seed), settings.seed, features, schema)


def _require_slices(context: StageContext, schema: Schema) -> None:
    """Refuse a misspelt slice before the minutes of training, not after them."""
    import difflib

    settings = context.settings
    wanted = [*settings.evaluate.slices, *(settings.gates.fairness.slice_by if settings.gates.fairness else ())]
    unknown = next((name for name in wanted if name not in schema), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, schema.names, n=1)
        raise SpecError(
            "train-slice",
            f"[evaluate] slices or [gates.fairness] slice_by names {unknown[:80]!r}, which the dataset does not have",
            fix=f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(schema.names[:12])}",
            where=str(context.project_dir / "mulle.toml"),
        )


def choose_model(project: Project, name: str | None) -> ModelRecipe:
    """Return the model to train.

    Raises:
        SpecError: there is none, several and no choice, or none with that name.
    """
    known = ", ".join(project.models) or "none"
    if name is None:
        if len(project.models) == 1:
            return next(iter(project.models.values()))
        problem = "the project has no model" if not project.models else f"the project has {len(project.models)} models: {known}"
        fix = "write a function that returns an estimator, under @project.model" if not project.models else "choose one: [train] model = …"
        raise SpecError("project-model-choice", problem, fix=fix, where="mulle.toml")
    if name not in project.models:
        raise SpecError(
            "project-model-choice", f"the project has no model {name!r}", fix=f"set [train] model to one of: {known}", where="mulle.toml"
        )
    return project.models[name]


def _fold_metrics(context: StageContext, recipe: Recipe, rows: "pl.DataFrame") -> list[dict[str, float]]:
    """Return the metrics of each fold of a stratified cross-validation over the training rows; an entity stays in one fold."""
    from mulle.evaluate.folds import k_fold
    from mulle.evaluate.labels import encode_target, problem_of
    from mulle.train.fit import predict_scores
    from mulle.train.target import label_text

    k = context.settings.train.k_folds
    if k < 2:  # noqa: PLR2004  (one fold compares nothing)
        return []
    project = recipe.project
    column = rows.get_column(project.target)
    labels: NDArray[Any] = (
        column.to_numpy() if project.task == "regression" else np.array([label_text(value) for value in column.to_list()], dtype=object)
    )
    classes = tuple(sorted(set(labels.tolist()))) if project.task != "regression" else ()
    problem = problem_of(project.task, classes, positive_class(project, classes), context.settings.evaluate.threshold)
    groups = None
    if project.entity is not None:
        groups = rows.get_column(project.entity).rank("dense").to_numpy().astype(np.int64)
    done = 0

    def fit_and_score(train: NDArray[np.int64], test: NDArray[np.int64]) -> NDArray[Any]:
        nonlocal done
        part = make(recipe, rows[train])
        done += 1
        context.report("cross-validation", done, k)
        scores = predict_scores(part.fitted, part.matrix(rows[test], recipe.schema), project.task)
        return _in_order(scores, part.fitted.classes, classes)

    y = encode_target(labels, task=project.task, classes=classes)
    return list(k_fold(fit_and_score, y, k, np.random.default_rng(recipe.seed), problem=problem, groups=groups))


def _in_order(scores: NDArray[Any], given: tuple[str, ...], wanted: tuple[str, ...]) -> NDArray[Any]:
    """Return the probabilities in the order of `wanted`; a class the fold never saw gets zero."""
    if given == wanted or not wanted:
        return scores
    out = np.zeros((len(scores), len(wanted)), dtype=scores.dtype)
    for i, name in enumerate(given):
        out[:, wanted.index(name)] = scores[:, i]
    return out


def _identity(record: Mapping[str, Any]) -> str:
    """Return the digest of what counts in the record: not how long it took, nor where it was tracked."""
    from mulle.core.canonical import digest_value

    return digest_value({key: value for key, value in record.items() if key not in {"seconds", "curves", "mlflow_run_id"}})


def _track(context: StageContext, recipe: Recipe, record: Mapping[str, Any]) -> str:
    from mulle.loop.stages.tracking import track_training

    context.report("tracking the run")
    return track_training(context, recipe.params, record)


def _distributions(estimator: Any) -> dict[str, str]:
    from mulle.train.environment import used_distributions

    return used_distributions(
        [estimator.__module__.split(".", maxsplit=1)[0], "numpy", "onnx", "onnxruntime", "polars", "skl2onnx", "mulle"]
    )


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) or value is None else repr(value)
