# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""The served graph: raw columns to the model's matrix, the model behind it, and how either is run.

Inputs are named exactly as the columns, in the schema's order, shape (n, 1), `double` or `string`; only columns that a
feature reads are inputs. The matrix is float32 (n, D), its columns in the order of `Preprocess.output_names`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, TensorProto, helper, version_converter

from mulle.bundle.expr_onnx import ML, Compiled, Rails, compile_expressions, missing_rail, rails_to_number
from mulle.bundle.graph_builder import IR_VERSION, PRODUCER, GraphBuilder, free_name
from mulle.core.errors import SpecError
from mulle.core.expr import Expr, resolve_features
from mulle.core.expr_nodes import bounded
from mulle.core.expr_typed import Typed, walk_typed
from mulle.core.preprocess import CategoryFeature, NumericFeature, Preprocess, level_number
from mulle.core.schema import MISSING_TEXT, ColumnType, Schema
from mulle.formats.bundle import Graph

Array = np.ndarray[Any, np.dtype[Any]]
Inputs = Mapping[str, tuple[Sequence[str], Any]]
Task = Literal["binary", "multiclass", "regression"]

_NAN = float("nan")
_MAX_SPREAD = 128
_DTYPES = {"double": np.float64, "float": np.float32, "int64": np.int64, "bool": np.bool_, "string": np.object_}
_ORT_DTYPES = {f"tensor({name})": dtype for name, dtype in _DTYPES.items()}


def build_preprocessing(features: Mapping[str, Expr], schema: Schema, preprocess: Preprocess) -> bytes:
    """Return the ONNX model from raw columns to the matrix `features`, float32 (n, D).

    The output is called `features` (with underscores behind it if a column has that name: read it off the graph).

    Args:
        features: Feature name to expression.
        schema: The raw columns.
        preprocess: Which features fill which columns of the matrix, and how.

    Raises:
        SpecError: whatever `check_features` raises, or a preprocessing that does not fit the features.
    """
    typed = resolve_features(features, schema)
    _require_fit(typed, preprocess)
    used = [typed[feature.name] for feature in preprocess.features]
    read = {str(value.params[0]) for value in walk_typed(used) if value.op == "column"}
    columns = schema.select(read)
    g = GraphBuilder(reserved=columns.names)
    compiled = compile_expressions(g, used)
    matrix = _assemble(g, preprocess, typed, compiled)
    inputs = [
        helper.make_tensor_value_info(column.name, TensorProto.STRING if column.type is ColumnType.TEXT else TensorProto.DOUBLE, ["n", 1])
        for column in columns
    ]
    output = helper.make_tensor_value_info(free_name("features", columns.names), TensorProto.FLOAT, ["n", len(preprocess.output_names)])
    model = g.finish(inputs, matrix, output)
    onnx.checker.check_model(model, full_check=True)
    return model


def attach_model(preprocessing: bytes, model: bytes, *, task: Task, n_classes: int) -> bytes:
    """Return one graph from raw columns to the model's answer.

    The output is `probabilities` float32 (n, k), or for regression `prediction` float32 (n, 1); with underscores behind it if
    a column has that name (`output_name` reads it off the graph).

    Args:
        preprocessing: What `build_preprocessing` returned.
        model: ONNX with the input `features` float32 (n, D) and the output `probabilities` or `prediction`.
        task: Decides which output is meant.
        n_classes: Columns of `probabilities`; not looked at for regression.

    Raises:
        SpecError: the model lacks that input or output, or has other widths.
    """
    front, back = onnx.load_from_string(preprocessing), onnx.load_from_string(model)
    wanted, width = ("prediction", 1) if task == "regression" else ("probabilities", n_classes)
    matrix = front.graph.output[0]
    _require_model(back, wanted, n_features=matrix.type.tensor_type.shape.dim[1].dim_value, width=width)
    versions = _same_versions(front, back)
    raw = [value.name for value in front.graph.input]
    taken = [*raw, matrix.name, *(name for node in front.graph.node for name in node.output), *(t.name for t in front.graph.initializer)]
    prefix = free_name("model/", taken, starts=True)
    _rename(back.graph, lambda name: matrix.name if name == "features" else prefix + name)
    name = free_name(wanted, raw)
    nodes = [*front.graph.node, *back.graph.node, helper.make_node("Identity", [prefix + wanted], [name], name=f"Identity:{name}")]
    graph = helper.make_graph(
        nodes,
        PRODUCER,
        list(front.graph.input),
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])],
        initializer=[*front.graph.initializer, *back.graph.initializer],
        sparse_initializer=list(back.graph.sparse_initializer),
    )
    merged = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in versions.items()],
        functions=list(back.functions),
        producer_name=PRODUCER,
        ir_version=max(front.ir_version, back.ir_version, IR_VERSION),
    )
    onnx.checker.check_model(merged, full_check=True)
    return merged.SerializeToString(deterministic=True)


def output_name(model: bytes) -> str:
    """Return the name of a graph's first output."""
    return onnx.load_from_string(model).graph.output[0].name


def run_graph(
    model: bytes | Path, arrays: Mapping[str, Array], graph: Graph | None = None, *, output: str, batch: int = 16384, threads: int = 1
) -> Array:
    """Return one output of a graph for all rows.

    Args:
        model: ONNX bytes or file.
        arrays: Column name to shape (n,): float64 with NaN, or objects of text with `MISSING_TEXT`.
        graph: Which columns each input stacks; None: every input is the column of its name.
        output: The output's name.
        batch: Rows per call, >= 1.
        threads: Threads within an operator.

    Raises:
        SpecError: bytes that are no graph, a column or output that is not there, or columns of different lengths.
    """
    session = _session(model, threads)
    if output not in {value.name for value in session.get_outputs()}:
        raise SpecError("graph-output", f"the graph has no output {bounded(output)}", fix=f"use {session.get_outputs()[0].name!r}")
    stacks = {item.name: item.columns for item in graph.inputs} if graph is not None else {}
    inputs = {value.name: (stacks.get(value.name, (value.name,)), _ORT_DTYPES[value.type]) for value in session.get_inputs()}
    missing = [name for names, _ in inputs.values() for name in names if name not in arrays]
    if missing:
        raise SpecError(
            "graph-column", f"the graph reads the column {bounded(missing[0])}, which is not there", fix="give every column of the schema"
        )
    lengths = {len(arrays[name]) for names, _ in inputs.values() for name in names}
    if len(lengths) != 1:
        raise SpecError("graph-rows", f"the columns have {bounded(sorted(lengths))} rows", fix="give every column as many rows")
    (n,) = lengths
    parts = list(_answers(session, arrays, inputs, output, n=n, batch=batch))
    if parts:
        return np.concatenate(parts)
    shape = next(value.shape for value in session.get_outputs() if value.name == output)
    return np.empty((0, shape[1] if isinstance(shape[1], int) else 0), dtype=np.float32)


def _answers(
    session: ort.InferenceSession, arrays: Mapping[str, Array], inputs: Inputs, output: str, *, n: int, batch: int
) -> Iterator[Array]:
    for start in range(0, n, batch):
        feeds = {
            name: np.column_stack([arrays[column][start : start + batch] for column in columns]).astype(dtype, copy=False)
            for name, (columns, dtype) in inputs.items()
        }
        yield np.asarray(session.run([output], feeds)[0])


def _session(model: bytes | Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # failures come as exceptions; ONNX Runtime would print them a second time
    try:
        return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        raise SpecError(
            "graph-unreadable", f"this graph cannot be loaded: {bounded(str(error), 200)}", fix="export the model again"
        ) from error


def _require_fit(typed: Mapping[str, Typed], preprocess: Preprocess) -> None:
    for feature in preprocess.features:
        value = typed.get(feature.name)
        kind = "category" if isinstance(feature, CategoryFeature) else "number"
        found = None if value is None else "category" if value.type == "category" else "number"
        if found != kind:
            problem = "is no feature any more" if found is None else f"is a {found} now, and was a {kind} when the preprocessing was fitted"
            raise SpecError(
                "preprocess-features", f"{bounded(feature.name)} {problem}", fix="fit the preprocessing again: `mulle run --from train`"
            )


def _assemble(g: GraphBuilder, preprocess: Preprocess, typed: Mapping[str, Typed], compiled: Mapping[str, Compiled]) -> str:
    """Return the name of the matrix: one block of numbers, one of texts, one of other categories, then into their order."""
    numbers = [feature for feature in preprocess.features if isinstance(feature, NumericFeature)]
    categories = [feature for feature in preprocess.features if isinstance(feature, CategoryFeature)]
    texts = [feature for feature in categories if typed[feature.name].args[0].type == "text"]
    others = [feature for feature in categories if typed[feature.name].args[0].type != "text"]
    blocks: list[str] = []
    if numbers:
        blocks.append(_numbers(g, [_as_number(g, typed[f.name], compiled) for f in numbers], [f.fill for f in numbers]))
    hot = _text_levels(g, texts, [str(compiled[typed[f.name].key]) for f in texts]) if texts else []
    hot += [name for f in others for name in _levels(g, f, compiled[typed[f.name].key])]
    if hot:
        blocks.append(g.emit("Cast", [_beside(g, hot)], to=TensorProto.FLOAT))
    matrix = _beside(g, blocks)
    emitted = [slot for feature in [*numbers, *texts, *others] for slot in _slots(feature)]
    wanted = [slot for feature in preprocess.features for slot in _slots(feature)]
    if emitted == wanted:
        return matrix
    place = {slot: i for i, slot in enumerate(emitted)}
    return g.emit("Gather", [matrix, g.integers([place[slot] for slot in wanted], (len(wanted),))], axis=1)


def _slots(feature: NumericFeature | CategoryFeature) -> list[tuple[str, int]]:
    return [(feature.name, i) for i in range(len(feature.output_names))]


def _beside(g: GraphBuilder, names: list[str]) -> str:
    return names[0] if len(names) == 1 else g.emit("Concat", names, axis=1)


def _as_number(g: GraphBuilder, value: Typed, compiled: Mapping[str, Compiled]) -> str:
    where = compiled[value.key]
    if not isinstance(where, Rails):
        return where
    return str(value.params[0]) if value.op == "column" else rails_to_number(g, where)


def _numbers(g: GraphBuilder, names: list[str], fills: list[float | None]) -> str:
    """Return the block of numbers: rounded to float32, infinities missing, missing filled."""
    narrow = g.emit("Cast", [_beside(g, names)], to=TensorProto.FLOAT)
    gone = g.emit("IsInf", [narrow])
    if all(fill is None for fill in fills):
        return g.emit("Where", [gone, g.floats([_NAN]), narrow])
    gone = g.emit("Or", [gone, g.emit("IsNaN", [narrow])])
    return g.emit("Where", [gone, g.floats([_NAN if fill is None else fill for fill in fills], (1, len(fills))), narrow])


def _text_levels(g: GraphBuilder, features: list[CategoryFeature], names: list[str]) -> list[str]:
    """Return names of boolean tensors that stand beside each other as the columns of all text categories.

    A dictionary turns texts into codes, and a column asks whether the code is its level's; comparing texts level by level
    takes ten times as long. Few columns share one dictionary and one comparison (for 15 features of 4 levels and one row
    that is the quickest form); many do not, since spreading the codes over thousands of columns costs more than it saves.
    """
    keys = [[*feature.levels, *([MISSING_TEXT] if feature.missing_level else [])] for feature in features]
    if sum(len(own) for own in keys) > _MAX_SPREAD:
        return [
            g.emit("Equal", [_codes(g, name, own), g.integers(range(len(own)), (1, len(own)))])
            for name, own in zip(names, keys, strict=True)
        ]
    every = list(dict.fromkeys(key for own in keys for key in own))
    place = {key: i for i, key in enumerate(every)}
    codes = _codes(g, _beside(g, names), every)
    if len(features) > 1:
        codes = g.emit("Gather", [codes, g.integers([i for i, own in enumerate(keys) for _ in own], (-1,))], axis=1)
    return [g.emit("Equal", [codes, g.integers([place[key] for own in keys for key in own], (1, -1))])]


def _codes(g: GraphBuilder, name: str, keys: list[str]) -> str:
    return g.emit("LabelEncoder", [name], domain=ML, keys_strings=keys, values_int64s=list(range(len(keys))), default_int64=-1)


def _levels(g: GraphBuilder, feature: CategoryFeature, where: Compiled) -> list[str]:
    """Return names of boolean tensors that stand beside each other as the columns of a boolean or number category."""
    levels = feature.levels
    if isinstance(where, Rails):
        # An unknown level is still a column; `true` and `false` at once never happens.
        rails = {"true": where.true, "false": where.false}
        never = g.emit("And", [where.true, where.false])
        return [rails.get(level, never) for level in levels] + ([missing_rail(g, where, "boolean")] if feature.missing_level else [])
    hot = [g.emit("Equal", [where, g.doubles([level_number(feature.name, level) for level in levels], (1, len(levels)))])] if levels else []
    if feature.missing_level:
        hot.append(g.emit("Or", [g.emit("IsNaN", [where]), g.emit("IsInf", [where])]))
    return hot


def _require_model(model: ModelProto, wanted: str, *, n_features: int, width: int) -> None:
    inputs = {value.name: value for value in model.graph.input}
    outputs = {value.name: value for value in model.graph.output}
    if set(inputs) != {"features"} or wanted not in outputs:
        raise SpecError(
            "graph-model",
            f"the model has the inputs {bounded(sorted(inputs))} and outputs {bounded(sorted(outputs))}",
            fix=f"export it with the input 'features' and the output {wanted!r}",
        )
    for value, expected in ((inputs["features"], n_features), (outputs[wanted], width)):
        dims = value.type.tensor_type.shape.dim
        found = dims[-1].dim_value if len(dims) else 0
        if found not in (0, expected):
            raise SpecError(
                "graph-model",
                f"{value.name!r} of the model is {found} wide, and {expected} are needed",
                fix="train and export the model again",
            )


def _same_versions(front: ModelProto, back: ModelProto) -> dict[str, int]:
    """Return the version of every operator set of the joined graph, after the model was converted where it is older.

    Our own operators mean the same in every version from `OPSET` on: they are only labelled anew.
    """
    ours, theirs = _versions(front), _versions(back)
    if 0 < theirs.get("", 0) < ours[""]:
        # skl2onnx lists operator sets twice, and the converter would mend one of the two.
        del back.opset_import[:]
        back.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in theirs.items())
        back.CopyFrom(version_converter.convert_version(back, ours[""]))
    return {domain: max(ours.get(domain, 0), theirs.get(domain, 0)) for domain in [*ours, *theirs]}


def _versions(model: ModelProto) -> dict[str, int]:
    versions: dict[str, int] = {}
    for item in model.opset_import:
        versions[item.domain] = max(item.version, versions.get(item.domain, 0))
    return versions


def _rename(graph: GraphProto, rename: Callable[[str], str]) -> None:
    """Give every value of a graph and of the graphs inside it another name; an empty name means "not given" and stays.

    onnx.compose renames too, but not what a loop's body reads from outside.
    """
    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = rename(sparse.values.name)
    for value in [*graph.input, *graph.output]:
        value.name = rename(value.name)
    for node in graph.node:
        node.input[:] = [rename(name) if name else "" for name in node.input]
        node.output[:] = [rename(name) if name else "" for name in node.output]
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                _rename(inner, rename)
