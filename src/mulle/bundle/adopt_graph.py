# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""A foreign graph made to fit: which columns its inputs are, which output is the answer, and proof that it answers."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mulle.bundle.convert import single_output
from mulle.bundle.onnx_file import all_nodes, quiet_session
from mulle.core.errors import SpecError
from mulle.core.project import Task
from mulle.core.schema import Column, ColumnType, Schema
from mulle.core.user_code import bounded
from mulle.formats.bundle import Graph, GraphInput

if TYPE_CHECKING:
    import polars as pl

TensorName = Literal["double", "float", "int64", "string", "bool"]
_DIRECT: dict[int, TensorName] = {
    TensorProto.DOUBLE: "double",
    TensorProto.FLOAT: "float",
    TensorProto.INT64: "int64",
    TensorProto.STRING: "string",
    TensorProto.BOOL: "bool",
}
_SMALL_INTEGERS = (TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32)
# What a bundle's tensors cannot be is fed as its wider relative and cast inside the graph.
_CAST: dict[int, tuple[TensorName, int]] = {
    TensorProto.FLOAT16: ("float", TensorProto.FLOAT),
    TensorProto.BFLOAT16: ("float", TensorProto.FLOAT),
    **dict.fromkeys(_SMALL_INTEGERS, ("int64", TensorProto.INT64)),
}
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LABELS = (TensorProto.INT64, TensorProto.STRING, TensorProto.INT32)
_SUM_TOLERANCE = 1e-3
_CHECKED_ROWS = 3
_BATCH = 4096


@dataclass(frozen=True, slots=True)
class GraphInputs:
    """How the sample's columns enter the graph."""

    inputs: tuple[GraphInput, ...]
    schema: Schema
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The graph with one output, what it answers, and the classes it names itself."""

    graph: bytes
    task: Task
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]


def map_inputs(model: Any, frame: "pl.DataFrame", columns: Sequence[str] | None, *, where: str) -> GraphInputs:
    """Return which columns of `frame` the inputs of `model` are; inputs of unusual types or shapes are adapted in place.

    Raises:
        SpecError: inputs that are no columns, or columns whose values do not fit them.
    """
    held = {initializer.name for initializer in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    if not inputs:
        raise SpecError("adopt-no-inputs", "the graph has no inputs", fix="export the model again, with its inputs", where=where)
    notes: list[str] = []
    columns_of = _columns_by_name([value.name for value in inputs], frame.columns)
    if columns is None and columns_of is not None:
        chosen = [(value, (columns_of[value.name],)) for value in inputs]
        unused = [name for name in frame.columns if name not in set(columns_of.values())]
        if unused:
            notes.append(f"the graph does not read {len(unused)} columns of the sample: {bounded(', '.join(unused), 200)}")
    elif len(inputs) == 1:
        chosen = [(inputs[0], _matrix_columns(inputs[0], frame, columns, where))]
    else:
        missing = [value.name for value in inputs if value.name not in frame.columns]
        lacking = missing[0] if missing else inputs[0].name
        near = difflib.get_close_matches(lacking, frame.columns, n=1)
        hint = f"rename {near[0]!r}, or " if near else ""
        raise SpecError(
            "adopt-column",
            f"the graph reads {lacking[:80]!r}, and the sample has no such column",
            fix=f"{hint}give a sample whose columns are called like the inputs: {bounded(', '.join(v.name for v in inputs), 200)}",
            where=where,
        )
    made = tuple(_adapt(model, value, names, frame, where) for value, names in chosen)
    return GraphInputs(made, _schema(frame, made), tuple(notes))


def answer_output(model: Any, task: Task | None, *, logits: bool, where: str) -> Answer:
    """Return the graph cut down to the output that holds the answer: probabilities (n, k) or a prediction (n, 1), float32.

    A `ZipMap` (skl2onnx's list of dictionaries) is taken off; one column of positive-class probabilities becomes two.

    Raises:
        SpecError: no output of numbers, or several and no way to tell which.
    """
    classes = _unzip(model) or _named_classes(model)
    outputs = list(model.graph.output)
    floats = [o for o in outputs if o.type.tensor_type.elem_type in _FLOATS]
    labelled = any(o.type.tensor_type.elem_type in _LABELS for o in outputs)
    named = [o for o in floats if "prob" in o.name.casefold() or "score" in o.name.casefold()]
    if not floats or (len(floats) > 1 and len(named) != 1):
        shown = bounded(", ".join(o.name for o in outputs), 160)
        raise SpecError(
            "adopt-output",
            f"no single output of the graph is its answer: {shown}",
            fix="export it with one output of probabilities (or predictions), or call that output 'probabilities'",
            where=where,
        )
    chosen = floats[0] if len(floats) == 1 else named[0]
    width = _width(chosen)
    classifies = task != "regression" if task is not None else labelled or logits or (width or 0) > 1 or classes is not None or bool(named)
    notes: list[str] = []
    if task is None:
        what = "probabilities" if classifies else "a prediction (regression)"
        notes.append(f"the output {chosen.name!r} is taken as {what}; say --task if it is not")
    if not classifies:
        return Answer(single_output(model, chosen.name, "regression"), "regression", None, tuple(notes))
    source = _probabilities(model, chosen.name, width, logits=logits)
    k = 2 if width in {None, 1} else width
    decided: Task = task if task is not None else ("binary" if k == 2 else "multiclass")  # noqa: PLR2004  (what binary means)
    return Answer(single_output(model, source, decided), decided, classes, tuple(notes))


def score(graph: bytes, prepared: GraphInputs, frame: "pl.DataFrame", task: Task, *, where: str) -> NDArray[Any]:
    """Return the graph's answers on every row of the sample, after they were found usable as such.

    Raises:
        SpecError: onnxruntime cannot run it, answers of the wrong shape or range, or answers that depend on the batch.
    """
    from mulle.data.arrays import to_arrays
    from mulle.formats.rows import feeds

    arrays = to_arrays(frame, prepared.schema)
    info = Graph(inputs=prepared.inputs, output="prediction" if task == "regression" else "probabilities")
    feeds({name: values[:1] for name, values in arrays.items()}, info)

    def run(start: int, stop: int) -> NDArray[Any]:
        return np.asarray(session.run([info.output], feeds({name: values[start:stop] for name, values in arrays.items()}, info))[0])

    try:
        session = quiet_session(graph)
        scores = np.concatenate([run(i, min(i + _BATCH, frame.height)) for i in range(0, frame.height, _BATCH)])
        alone = [run(i, i + 1) for i in range(min(_CHECKED_ROWS, frame.height))]
    except SpecError:
        raise
    # onnxruntime raises plain and private classes; their text is what a person needs.
    except Exception as error:
        raise SpecError(
            "adopt-run",
            f"onnxruntime cannot run the graph on the sample: {bounded(str(error), 240)}",
            fix="check that the sample has the columns and types the model was exported for",
            where=where,
        ) from error
    require_answers(scores, task, frame.height, where)
    if any(a.shape != (1, scores.shape[1]) or not np.allclose(a[0], scores[i], atol=1e-4, equal_nan=True) for i, a in enumerate(alone)):
        raise SpecError(
            "adopt-batch",
            "the graph answers differently alone and in a batch: its batch size is fixed inside",
            fix="export it with a dynamic first dimension",
            where=where,
        )
    return scores


def require_answers(scores: NDArray[Any], task: Task, n: int, where: str) -> None:
    """Return if `scores` are answers of a task for n rows: finite, of the right width, probabilities that sum to 1.

    Raises:
        SpecError: `adopt-answers`.
    """
    problem = ""
    if scores.ndim != 2 or len(scores) != n:  # noqa: PLR2004  (rows and columns)
        problem = f"answers of shape {scores.shape} for {n} rows"
    elif not np.isfinite(scores).all():
        problem = f"{int((~np.isfinite(scores).all(axis=1)).sum()):,} of {n:,} answers that are not finite"
    elif task == "regression" and scores.shape[1] != 1:
        problem = f"{scores.shape[1]} numbers per row, where a regression has one"
    elif task == "binary" and scores.shape[1] != 2:  # noqa: PLR2004  (what binary means)
        problem = f"{scores.shape[1]} probabilities per row, where a binary task has two"
    elif task != "regression" and (scores.min() < -_SUM_TOLERANCE or np.abs(scores.sum(axis=1) - 1.0).max() > _SUM_TOLERANCE):
        problem = f"numbers from {scores.min():.3g} to {scores.max():.3g} that do not sum to 1: no probabilities"
    if problem:
        raise SpecError(
            "adopt-answers",
            f"the graph gives {problem}",
            fix="say --logits if it answers before softmax or sigmoid, or --task if the task is another",
            where=where,
        )


def _columns_by_name(inputs: Sequence[str], columns: Sequence[str]) -> dict[str, str] | None:
    """Return input to column of the same name; None when some input has none.

    skl2onnx spells '월 요금' as '월_요금': such a column counts when no other could be meant.
    """
    spelled: dict[str, list[str]] = {}
    for column in columns:
        spelled.setdefault(re.sub(r"\W", "_", column), []).append(column)
    found: dict[str, str] = {}
    for name in inputs:
        like = spelled.get(name, [])
        if name in columns:
            found[name] = name
        elif len(like) == 1:
            found[name] = like[0]
    return found if len(found) == len(inputs) == len(set(found.values())) else None


def _matrix_columns(value: Any, frame: "pl.DataFrame", columns: Sequence[str] | None, where: str) -> tuple[str, ...]:
    names = tuple(columns) if columns else tuple(frame.columns)
    for name in names:
        if name not in frame.columns:
            near = difflib.get_close_matches(name, frame.columns, n=1)
            raise SpecError(
                "adopt-column",
                f"the sample has no column {name!r}",
                fix=f"did you mean {near[0]!r}?" if near else "check --columns",
                where=where,
            )
    shape = shape_of(value)
    if len(shape) != 2:  # noqa: PLR2004  (rows and columns)
        raise SpecError(
            "adopt-input-shape",
            f"the input {value.name[:80]!r} has {len(shape)} dimensions; a table has two",
            fix="pictures: --image auto; other tensors: --tensors",
            where=where,
        )
    width = shape[1]
    if width is not None and width != len(names):
        raise SpecError(
            "adopt-column-count",
            f"the graph's matrix {value.name[:80]!r} has {width} columns, and {len(names)} were given: {bounded(', '.join(names), 160)}",
            fix="name its columns in order: --columns a,b,c, or the one that is the truth: --target NAME",
            where=where,
        )
    return names


def _adapt(model: Any, value: Any, names: tuple[str, ...], frame: "pl.DataFrame", where: str) -> GraphInput:
    """Give an input a type and a shape that requests can fill; casts and reshapes go into the graph."""
    kind = value.type.tensor_type.elem_type
    shape = shape_of(value)
    direct = _DIRECT.get(kind)
    tensor, fed = (direct, kind) if direct is not None else _CAST.get(kind, (None, 0))
    if tensor is None:
        raise SpecError(
            "adopt-input-type",
            f"the input {value.name[:80]!r} has a type no column has",
            fix="export it with float or string inputs",
            where=where,
        )
    column = len(names) == 1 and shape[1:] in {(), (None,), (1,)}
    matrix = len(names) > 1 and len(shape) == 2  # noqa: PLR2004  (rows and columns)
    if len(shape) == 0 or not (column or matrix):
        raise SpecError(
            "adopt-input-shape",
            f"the input {value.name[:80]!r} has shape {tuple('?' if d is None else d for d in shape)}; one column is (n, 1)",
            fix="export it with one column per input, or one (n, D) matrix",
            where=where,
        )
    _require_values(value.name, tensor, names, frame, where)
    inner = value.name
    if len(shape) == 1:
        inner = insert_before(model, value.name, inner, "Reshape", [("mulle_flat", [-1])])
    if direct is None:
        inner = insert_before(model, value.name, inner, "Cast", [], to=kind)
    value.type.CopyFrom(helper.make_tensor_type_proto(fed, [None, len(names)]))
    return GraphInput(value.name, tensor, names)


def insert_before(model: Any, name: str, current: str, operator: str, constants: list[tuple[str, list[int]]], **attributes: Any) -> str:
    """Put an operator between the input `name` and everything that reads it; return the new inner name."""
    graph = model.graph
    inner = f"{name}_mulle_{operator.casefold()}"
    for node in all_nodes(graph):
        for i, text in enumerate(node.input):
            if text == current:
                node.input[i] = inner
    for constant, values in constants:
        if constant not in {initializer.name for initializer in graph.initializer}:
            graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype=np.int64), constant))
    node = helper.make_node(operator, [current, *(constant for constant, _ in constants)], [inner], name=f"{inner}_node", **attributes)
    # A stage put in later reads the stage before it, so its place is after it: the first nodes keep that order.
    place = next((i + 1 for i, other in enumerate(graph.node) if current in other.output), 0)
    graph.node.insert(place, node)
    return inner


def _require_values(name: str, tensor: TensorName, columns: tuple[str, ...], frame: "pl.DataFrame", where: str) -> None:
    from mulle.data.dataset import infer_schema

    schema = infer_schema(frame.select(columns))
    for column in schema:
        wants_text = tensor == "string"
        if wants_text is not (column.type is ColumnType.TEXT):
            raise SpecError(
                "adopt-column-type",
                f"the input {name[:80]!r} takes {'text' if wants_text else 'numbers'}; {column.name!r} holds {column.type.value}s",
                fix="convert the column in the sample to what requests will carry, or leave it out (--columns)",
                where=where,
            )


def _schema(frame: "pl.DataFrame", inputs: Sequence[GraphInput]) -> Schema:
    from mulle.data.dataset import infer_schema

    known = infer_schema(frame)
    found = [(known.get(name), item.dtype) for item in inputs for name in item.columns]
    return Schema(tuple(Column(c.name, c.type, c.nullable and dtype not in {"int64", "bool"}) for c, dtype in found if c is not None))


def shape_of(value: Any) -> tuple[int | None, ...]:
    """Return the dimensions an input or output declares; None where one is free."""
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim)


def _width(value: Any) -> int | None:
    shape = shape_of(value)
    return 1 if len(shape) == 1 else shape[1] if len(shape) == 2 else None  # noqa: PLR2004  (rows and columns)


def _unzip(model: Any) -> tuple[str, ...] | None:
    """Take a `ZipMap` off the graph's outputs; return the classes it named."""
    for node in list(model.graph.node):
        if node.op_type != "ZipMap":
            continue
        classes = _labels_of(node)
        for output in model.graph.output:
            if output.name == node.output[0]:
                # Name it for what it is, so that it is found beside a label output.
                output.name = node.input[0]
                output.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [None, len(classes) or None]))
        model.graph.node.remove(node)
        return classes or None
    return None


def _named_classes(model: Any) -> tuple[str, ...] | None:
    """Return the labels a classifier operator carries, if exactly one set of them is in the graph."""
    found = {labels for node in all_nodes(model.graph) if (labels := _labels_of(node))}
    return found.pop() if len(found) == 1 else None


def _labels_of(node: Any) -> tuple[str, ...]:
    for attribute in node.attribute:
        if attribute.name in {"classlabels_strings", "classlabels_int64s", "classlabels_ints"}:
            strings = tuple(text.decode("utf-8", "replace") for text in attribute.strings)
            labels = strings or tuple(str(number) for number in attribute.ints)
            if labels:
                return labels
    return ()


def _probabilities(model: Any, source: str, width: int | None, *, logits: bool) -> str:
    """Append what makes two columns of one, and probabilities of logits; return the name of the result."""
    graph = model.graph
    if width == 1:
        graph.initializer.append(numpy_helper.from_array(np.asarray([-1, 1], dtype=np.int64), "mulle_one_column"))
        graph.initializer.append(numpy_helper.from_array(np.asarray([1.0], dtype=np.float32), "mulle_whole"))
        graph.node.append(helper.make_node("Reshape", [source, "mulle_one_column"], ["mulle_given"]))
        graph.node.append(helper.make_node("Cast", ["mulle_given"], ["mulle_given_float"], to=TensorProto.FLOAT))
        positive = "mulle_given_float"
        if logits:
            graph.node.append(helper.make_node("Sigmoid", [positive], ["mulle_sigmoid"]))
            positive = "mulle_sigmoid"
        graph.node.append(helper.make_node("Sub", ["mulle_whole", positive], ["mulle_negative"]))
        graph.node.append(helper.make_node("Concat", ["mulle_negative", positive], ["mulle_both"], axis=1))
        return "mulle_both"
    if logits:
        graph.node.append(helper.make_node("Softmax", [source], ["mulle_softmax"], axis=1))
        return "mulle_softmax"
    return source
