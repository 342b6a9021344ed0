# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""Adoption: a model somebody already has becomes a graph Mulle can seal, without a rewrite.

Three ways in: an ONNX file, an MLflow model (`bundle/adopt_mlflow.py`), or an estimator fitted in the caller's own
process. A pickle on disk is never loaded: whoever writes one decides what the reader runs.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mulle.bundle.adopt_graph import GraphInputs, answer_output, map_inputs, score
from mulle.bundle.onnx_file import load_onnx
from mulle.core.canonical import digest_bytes
from mulle.core.errors import CheckError, SpecError
from mulle.core.labels import label_text
from mulle.core.project import TASKS, Task
from mulle.core.schema import Column, ColumnType, Schema
from mulle.core.user_code import bounded, user_code
from mulle.formats.bundle import Graph, GraphInput

if TYPE_CHECKING:
    import polars as pl

    from mulle.bundle.parity import Parity

DEFAULT_DISAGREEING_SHARE = 0.05
"""Rows of a pipeline fitted elsewhere that may differ: its trees did not learn from the graph's own numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """A model taken in, ready to be sealed by `loop/adopt.py`.

    Attributes:
        graph: One ONNX file's bytes: raw columns to `probabilities` or `prediction`.
        info: Its inputs and its output.
        schema: The columns a request carries. Those that travel in integer or boolean tensors cannot be missing.
        task: What it answers.
        classes: Labels in the order of the probabilities; empty for regression.
        positive: For `binary`: the label that counts as 1.
        target: The sample's column with the truth, if it was named.
        rows: The sample's rows, normalised.
        scores: What the graph answers on them, shape (n, k) or (n, 1).
        parity: The comparison with the estimator; None for a file, where there is nothing to compare with.
        notes: What a person should know.
        origin: What it was made from, as plain JSON.
    """

    graph: bytes
    info: Graph
    schema: Schema
    task: Task
    classes: tuple[str, ...]
    positive: str | None
    target: str | None
    rows: "pl.DataFrame"
    scores: NDArray[Any]
    parity: "Parity | None" = None
    notes: tuple[str, ...] = ()
    origin: dict[str, object] = field(default_factory=dict[str, object])


def adopt_onnx(
    path: str | Path,
    sample: Any,
    *,
    target: str | None = None,
    task: Task | None = None,
    columns: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    positive: str | None = None,
    logits: bool = False,
) -> Adopted:
    """Return the ONNX file at `path` as an adopted model; nothing in it is executed but standard operators.

    Args:
        path: The file; external data may lie beside it.
        sample: A table (polars, pandas, Arrow) of raw rows, as requests will carry them. Rows the model has not learnt
            from make an honest baseline.
        target: The sample's column with the truth; it is left out of the inputs and gives the labels' names.
        task: None: read off the graph's outputs.
        columns: For a graph with one matrix input: its columns in order. None: the sample's.
        classes: The labels in the order of the probabilities. None: read off the graph, else the target's, else 0 … k-1.
        positive: For `binary`: the label that counts as 1. None: the last.
        logits: The graph answers scores before softmax (or before the sigmoid): add it.

    Raises:
        SpecError: not ONNX, unsafe, or inputs and outputs that do not fit the sample.
    """
    path = Path(path)
    model = load_onnx(path)
    frame, labels = read_sample(sample, target, task)
    prepared = map_inputs(model, frame, columns, where=str(path))
    found = answer_output(model, task, logits=logits, where=str(path))
    scores = score(found.graph, prepared, frame, found.task, where=str(path))
    names = _class_names(found.task, scores.shape[1], classes, found.classes, labels)
    notes = [*prepared.notes, *found.notes]
    source = {"kind": "onnx", "file": path.name, "sha256": digest_bytes(path.read_bytes())}
    return _adopted(
        found.graph,
        prepared,
        task=found.task,
        classes=names,
        positive=positive,
        target=target,
        frame=frame,
        scores=scores,
        origin=source,
        notes=notes,
    )


def adopt_estimator(
    estimator: Any,
    sample: Any,
    *,
    target: str | None = None,
    columns: Sequence[str] | None = None,
    positive: str | None = None,
    max_disagreeing_share: float = DEFAULT_DISAGREEING_SHARE,
) -> Adopted:
    """Return a fitted sklearn, LightGBM or XGBoost estimator (or pipeline) as an adopted model.

    Called in the process that fitted it, so that nothing is pickled:

        from mulle.bundle.adopt import adopt_estimator
        from mulle.loop.adopt import seal_adopted
        print(seal_adopted(adopt_estimator(model, sample), name="churn"))

    Args:
        estimator: Fitted on columns by name, or on a plain matrix whose columns the sample has in order.
        sample: A table of raw rows, as requests will carry them.
        target: The sample's column with the truth: metrics are compared too, not only rows.
        columns: The estimator's columns in order. None: the names it was fitted with, else the sample's.
        positive: For `binary`: the label that counts as 1. None: the last.
        max_disagreeing_share: Share of sample rows whose score may differ by more than 1e-4, in [0, 1].

    Raises:
        SpecError: not fitted, a step without export, no probabilities, or columns that are not in the sample.
        CheckError: the graph does not say what the estimator says.
    """
    from sklearn.base import is_classifier

    from mulle.bundle.convert import require_fitted
    from mulle.bundle.parity import check_parity, require_parity

    require_fitted(estimator)
    classifies = bool(is_classifier(estimator))
    if classifies and not hasattr(estimator, "predict_proba"):
        raise SpecError(
            "model-no-probabilities",
            f"{type(estimator).__name__} gives no probabilities",
            fix="fit it inside CalibratedClassifierCV, then adopt that",
        )
    classes = tuple(label_text(value) for value in np.asarray(estimator.classes_)) if classifies else ()
    task: Task = "regression" if not classifies else "binary" if len(classes) == 2 else "multiclass"  # noqa: PLR2004  (what binary means)
    frame, labels = read_sample(sample, target, task)
    names = _estimator_columns(estimator, frame, columns)
    graph, inputs = _convert(estimator, frame.select(names), task)
    prepared = GraphInputs(inputs, _schema(frame, inputs), ())
    scores = score(graph, prepared, frame, task, where=type(estimator).__name__)
    with user_code(f"scoring the sample with {type(estimator).__name__}"):
        table = frame.select(names).to_pandas()
        known = getattr(estimator, "feature_names_in_", None)
        given: Any = table if known is not None or _selects_by_name(estimator) else table.to_numpy()
        own = estimator.predict_proba(given) if classifies else np.reshape(estimator.predict(given), (-1, 1))
    parity = check_parity(own, scores, labels, task=task, classes=classes, positive=positive, max_disagreeing_share=max_disagreeing_share)
    require_parity(
        parity,
        fix="its trees split numbers its scaler computed in double precision: fit it under @project.model, where it learns from the "
        "graph's own numbers; or leave the scaler out; or allow more: max_disagreeing_share=…",
    )
    source = {"kind": "estimator", "class": f"{type(estimator).__module__}.{type(estimator).__qualname__}"}
    return _adopted(
        graph,
        prepared,
        task=task,
        classes=classes,
        positive=positive,
        target=target,
        frame=frame,
        scores=scores,
        origin=source,
        parity=parity,
    )


def read_sample(sample: Any, target: str | None, task: Task | None) -> tuple["pl.DataFrame", list[Any] | None]:
    """Return the sample normalised and without its target, and the target's values (labels as texts) if it is named.

    Raises:
        SpecError: no rows, or no such column.
    """
    from mulle.data.dataset import normalise

    frame = normalise(sample)
    if frame.height == 0 or frame.width == 0:
        raise SpecError("adopt-sample-empty", "the sample has no rows", fix="give a few hundred rows as requests will carry them")
    if task is not None and task not in TASKS:
        raise SpecError("project-task", f"unknown task {task!r}", fix=f"use one of {', '.join(TASKS)}")
    if target is None:
        return frame, None
    if target not in frame.columns:
        near = difflib.get_close_matches(target, frame.columns, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SpecError(
            "adopt-target", f"the sample has no column {target!r}", fix=f"{hint}it has {bounded(', '.join(frame.columns), 200)}"
        )
    values = frame.get_column(target).to_list()
    labels = values if task == "regression" else [None if value is None else label_text(value) for value in values]
    return frame.drop(target), labels


def _adopted(  # noqa: PLR0913  (every field of the result, from two callers)
    graph: bytes,
    prepared: GraphInputs,
    *,
    task: Task,
    classes: tuple[str, ...],
    positive: str | None,
    target: str | None,
    frame: "pl.DataFrame",
    scores: NDArray[Any],
    origin: Mapping[str, object],
    notes: Sequence[str] = (),
    parity: "Parity | None" = None,
) -> Adopted:
    if positive is not None and (task != "binary" or positive not in classes):
        raise SpecError(
            "adopt-positive",
            f"{positive!r} is not one of two classes",
            fix=f"use one of {', '.join(map(repr, classes)) or 'none: a regression'}",
        )
    chosen = (positive or classes[-1]) if task == "binary" else None
    info = Graph(inputs=prepared.inputs, output="prediction" if task == "regression" else "probabilities")
    return Adopted(
        graph=graph,
        info=info,
        schema=prepared.schema,
        task=task,
        classes=classes,
        positive=chosen,
        target=target,
        rows=frame,
        scores=scores,
        parity=parity,
        notes=tuple(notes),
        origin=dict(origin),
    )


def _class_names(
    task: Task, k: int, given: Sequence[str] | None, inside: tuple[str, ...] | None, labels: list[Any] | None
) -> tuple[str, ...]:
    if task == "regression":
        return ()
    seen = tuple(sorted({value for value in labels if value is not None})) if labels is not None else None
    if inside == ("0", "1") and seen == ("False", "True"):
        # Exports write truth values as 0 and 1; the sample says what they are.
        inside = seen
    names = tuple(given) if given else inside or (seen if seen is not None and len(seen) == k else None) or tuple(str(i) for i in range(k))
    if len(names) != k or len(set(names)) != k:
        raise SpecError(
            "adopt-classes",
            f"the graph gives {k} probabilities, and there are {len(set(names))} classes: {names!r}",
            fix="give them in order: --classes a,b",
        )
    strange = sorted(set(seen or ()) - set(names))
    if strange:
        raise SpecError(
            "adopt-classes",
            f"the sample's target holds {strange[0]!r}, and the graph's classes are {', '.join(map(repr, names))}",
            fix="give the classes in the graph's order: --classes a,b, or name another target",
        )
    return names


def _estimator_columns(estimator: Any, frame: "pl.DataFrame", columns: Sequence[str] | None) -> list[str]:
    known = getattr(estimator, "feature_names_in_", None)
    names = list(columns) if columns else [str(name) for name in known] if known is not None else list(frame.columns)
    missing = [name for name in names if name not in frame.columns]
    if missing:
        near = difflib.get_close_matches(missing[0], frame.columns, n=1)
        hint = f"rename {near[0]!r}, or " if near else ""
        raise SpecError(
            "adopt-column", f"the sample has no column {missing[0]!r}", fix=f"{hint}give a sample with every column the model was fitted on"
        )
    wanted = getattr(estimator, "n_features_in_", len(names))
    if len(names) != wanted:
        raise SpecError(
            "adopt-column-count",
            f"the model was fitted on {wanted} columns, and the sample has {len(names)}: {bounded(', '.join(names), 160)}",
            fix="name the model's columns in order (columns=[…]), or the one that is the truth (target=…)",
        )
    return names


def _convert(estimator: Any, frame: "pl.DataFrame", task: Task) -> tuple[bytes, tuple[GraphInput, ...]]:
    """Convert with one input per column where columns are chosen by name or hold text, else with one matrix."""
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    from mulle.bundle.convert import INPUT, convert_fitted
    from mulle.bundle.onnx_file import parse_onnx
    from mulle.data.dataset import infer_schema

    schema = infer_schema(frame)
    texts = {column.name for column in schema if column.type is ColumnType.TEXT}
    if not texts and not _selects_by_name(estimator):
        return convert_fitted(estimator, [(INPUT, FloatTensorType([None, len(schema)]))], task), (GraphInput(INPUT, "float", schema.names),)
    types = [(name, (StringTensorType if name in texts else FloatTensorType)([None, 1])) for name in schema.names]
    graph = convert_fitted(estimator, types, task)
    # skl2onnx respells names it finds unusual ('월 요금' becomes '월_요금') and keeps their order.
    inputs = [value.name for value in parse_onnx(graph).graph.input]
    if len(inputs) != len(schema):
        raise CheckError(
            "adopt-inputs",
            f"the export has {len(inputs)} inputs for {len(schema)} columns",
            fix="select plain columns in the ColumnTransformer",
        )
    pairs = zip(inputs, schema.names, strict=True)
    return graph, tuple(GraphInput(name, "string" if column in texts else "float", (column,)) for name, column in pairs)


def _selects_by_name(estimator: Any) -> bool:
    parts = [estimator, *(estimator.get_params(deep=True).values() if hasattr(estimator, "get_params") else ())]
    for part in parts:
        for row in getattr(part, "transformers", None) or ():
            chosen = row[2]
            if isinstance(chosen, str) or (
                not isinstance(chosen, slice) and any(isinstance(c, str) for c in np.ravel(np.asarray(chosen, dtype=object)))
            ):
                return True
    return False


def _schema(frame: "pl.DataFrame", inputs: Sequence[GraphInput]) -> Schema:
    from mulle.data.dataset import infer_schema

    known = infer_schema(frame)
    columns = (known.get(name) for item in inputs for name in item.columns)
    return Schema(tuple(Column(c.name, c.type, c.nullable) for c in columns if c is not None))
