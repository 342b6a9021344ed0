# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""Adoption of graphs that take pictures or tensors: what requests carry, golden requests, and proof that the graph answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mulle.bundle.adopt_graph import answer_output, insert_before, require_answers, shape_of
from mulle.bundle.image_options import complete_image, parse_image_options
from mulle.bundle.onnx_file import load_onnx, quiet_session
from mulle.core.canonical import digest_bytes
from mulle.core.errors import SpecError
from mulle.core.user_code import bounded
from mulle.formats.bundle import BundleTask, Graph, GraphInput, GraphOutput, TensorType
from mulle.formats.golden import MAX_GOLDEN_BYTES
from mulle.formats.golden_tensors import DEFAULT_TOLERANCE, GoldenCase, GoldenTensors, golden_case
from mulle.formats.image_read import ImageLimits, preprocess
from mulle.formats.image_spec import ImageInput
from mulle.formats.tensors import check_tensors

TENSOR_TYPES: dict[int, TensorType] = {
    TensorProto.DOUBLE: "double",
    TensorProto.FLOAT: "float",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "string",
}
N_GOLDEN = 16
GOLDEN_ROWS = 8
_SAMPLE_LIMITS = ImageLimits(max_bytes=64 << 20, max_pixels=200_000_000)
_BATCH = 16
HALF_TOLERANCE = 1e-2
"""Of graphs in half precision, whose processors round differently."""
_FREE = 8
"""What a free dimension is in made-up tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedTensors:
    """A model of pictures or tensors taken in, ready to be sealed by `loop/adopt_tensors.py`.

    Attributes:
        graph: One ONNX file's bytes.
        info: Its inputs and outputs.
        task: `binary` or `multiclass` for pictures, else `tensor`.
        golden: Requests and the graph's own answers.
        classes: Labels in the order of the probabilities, for pictures.
        positive: For `binary`: the label that counts as 1.
        image: How a picture becomes the input.
        scores: What the graph answers on every sample picture, shape (n, k).
        n_samples: Pictures, or rows of tensors.
        notes: What a person should know.
        origin: What it was made from, as plain JSON.
    """

    graph: bytes
    info: Graph
    task: BundleTask
    golden: GoldenTensors
    classes: tuple[str, ...] = ()
    positive: str | None = None
    image: ImageInput | None = None
    scores: NDArray[np.float32] | None = None
    n_samples: int = 0
    notes: tuple[str, ...] = ()
    origin: dict[str, object] = field(default_factory=dict[str, object])


def adopt_image(
    path: str | Path,
    pictures: Mapping[str, bytes],
    *,
    image: str = "auto",
    classes: Sequence[str] | None = None,
    positive: str | None = None,
    logits: bool = False,
) -> AdoptedTensors:
    """Return the ONNX file at `path` as an adopted classifier of pictures.

    Args:
        path: The file; external data may lie beside it.
        pictures: File name to encoded picture, as requests will carry them. Up to 16 travel in the bundle, as golden requests.
        image: How a picture becomes the input, as `parse_image_options` reads it.
        classes: The labels in the order of the probabilities. None: read off the graph, else 0 … k-1.
        positive: Of two classes: the one that counts as 1. None: the last.
        logits: The graph answers scores before softmax: add it.

    Raises:
        SpecError: not ONNX, unsafe, not one input of pictures, no probabilities, or a picture that cannot be read.
    """
    path = Path(path)
    where = str(path)
    options = parse_image_options(image)
    model = load_onnx(path)
    value, *more = _inputs(model, where)
    if more:
        raise SpecError(
            "adopt-image-shape", f"the graph has {1 + len(more)} inputs; a picture is one", fix="adopt it with --tensors", where=where
        )
    tolerance = HALF_TOLERANCE if value.type.tensor_type.elem_type == TensorProto.FLOAT16 else DEFAULT_TOLERANCE
    spec = _fit_input(model, value, options, where)
    task = None if classes is None else "binary" if len(classes) == 2 else "multiclass"  # noqa: PLR2004  (what binary means)
    found = answer_output(model, task, logits=logits, where=where)
    if found.task == "regression":
        raise SpecError(
            "adopt-answers",
            "the graph gives one number, or does not say how many: pictures are given a class",
            fix="name the classes in order (--classes a,b,c or a file), or adopt it with --tensors",
            where=where,
        )
    pixels = _read_all(spec, pictures)
    fixed = shape_of(value)[0]
    scores = _score(found.graph, value.name, pixels, 1 if fixed is not None else _BATCH, where)
    binary = scores.ndim == 2 and scores.shape[1] == 2  # noqa: PLR2004  (what binary means)
    require_answers(scores, "binary" if binary else "multiclass", len(pixels), where)
    names = _classes(scores.shape[1], classes, found.classes, where)
    if positive is not None and (not binary or positive not in names):
        raise SpecError("adopt-positive", f"{positive!r} is not one of two classes", fix=f"use one of {', '.join(map(repr, names[:20]))}")
    notes = [note for note in found.notes if "--task" not in note]
    if fixed is not None:
        notes.append("the graph takes one picture at a time: export it with a free first dimension to answer several together")
    tensor = GraphInput(value.name, spec.tensor_type, shape=spec.shape)
    return AdoptedTensors(
        graph=found.graph,
        info=Graph(inputs=(tensor,), output="probabilities"),
        task="binary" if binary else "multiclass",
        golden=GoldenTensors(cases=_golden_pictures(list(pictures.values()), scores), tolerance=tolerance),
        classes=names,
        positive=(positive or names[-1]) if binary else None,
        image=spec,
        scores=scores,
        n_samples=len(pixels),
        notes=tuple(notes),
        origin={"kind": "onnx", "file": path.name, "sha256": digest_bytes(path.read_bytes()), "image": image},
    )


def adopt_tensors(path: str | Path, sample: Mapping[str, NDArray[Any]] | None = None, *, seed: int = 0) -> AdoptedTensors:
    """Return the ONNX file at `path` as an adopted graph from tensors to tensors: every input and every output as it is.

    Args:
        path: The file; external data may lie beside it.
        sample: Input name to tensor, the batch axis first. None: made up from `seed`.
        seed: Of the made-up tensors.

    Raises:
        SpecError: not ONNX, unsafe, an element type or shape no bundle carries, or a sample that does not fit.
    """
    path = Path(path)
    where = str(path)
    model = load_onnx(path)
    values = _inputs(model, where)
    inputs = tuple(GraphInput(value.name, _type_of(value, where, given=True), shape=_row_shape(value, where)) for value in values)
    types: dict[str, TensorType] = {value.name: _type_of(value, where, given=False) for value in model.graph.output}
    firsts = {shape_of(value)[0] for value in values}
    fixed = next((first for first in firsts if first is not None), None)
    tensors = _made_up(values, inputs, seed) if sample is None else {name: _as_fed(value) for name, value in sample.items()}
    n_rows = check_tensors(tensors, inputs, fixed)
    graph = model.SerializeToString(deterministic=True)
    names = [value.name for value in model.graph.output]
    cut = {name: value[: fixed or GOLDEN_ROWS] for name, value in tensors.items()}
    asked = [cut] if n_rows == 1 or fixed is not None else [cut, {name: value[:1] for name, value in tensors.items()}]
    cases, answers = [], {}
    for request in asked:
        answers = _run(graph, names, request, where, made_up=sample is None)
        cases.append(golden_case(request, answers))
    flat = next((name for name, answer in answers.items() if answer.ndim == 0), None)
    if flat is not None:
        raise SpecError(
            "adopt-output",
            f"the output {flat[:80]!r} is one number for all rows together",
            fix="export the model without that output: every output has rows first",
            where=where,
        )
    outputs = tuple(GraphOutput(value.name, types[value.name], _out_shape(value, answers[value.name])) for value in model.graph.output)
    notes = () if sample is not None else ("golden requests are made-up tensors: give real ones for a stricter proof (--sample file.npz)",)
    return AdoptedTensors(
        graph=graph,
        info=Graph(inputs=inputs, output=names[0], outputs=outputs),
        task="tensor",
        golden=GoldenTensors(cases=tuple(cases), tolerance=HALF_TOLERANCE if "float16" in types.values() else DEFAULT_TOLERANCE),
        n_samples=n_rows,
        notes=notes,
        origin={
            "kind": "onnx",
            "file": path.name,
            "sha256": digest_bytes(path.read_bytes()),
            "sample": "given" if sample else f"seed {seed}",
        },
    )


def _inputs(model: Any, where: str) -> list[Any]:
    held = {initializer.name for initializer in model.graph.initializer}
    found = [value for value in model.graph.input if value.name not in held]
    if not found:
        raise SpecError("adopt-no-inputs", "the graph has no inputs", fix="export the model again, with its inputs", where=where)
    return found


def _fit_input(model: Any, value: Any, options: Mapping[str, Any], where: str) -> ImageInput:
    """Return the declaration of the picture; a half or double input is fed as float and cast inside."""
    kind = value.type.tensor_type.elem_type
    if kind not in {TensorProto.FLOAT, TensorProto.UINT8, TensorProto.FLOAT16, TensorProto.DOUBLE}:
        raise SpecError(
            "adopt-input-type", f"the input {value.name[:80]!r} has a type no picture has", fix="export it with a float input", where=where
        )
    shape = shape_of(value)
    spec = complete_image(options, shape, "uint8" if kind == TensorProto.UINT8 else "float32", where=where)
    if shape[0] not in {None, 1}:
        raise SpecError(
            "adopt-batch", f"the graph takes {shape[0]} pictures at a time", fix="export it with a dynamic first dimension", where=where
        )
    fed = TensorProto.UINT8 if kind == TensorProto.UINT8 else TensorProto.FLOAT
    if fed != kind:
        insert_before(model, value.name, value.name, "Cast", [], to=kind)
    value.type.CopyFrom(helper.make_tensor_type_proto(fed, [shape[0], *spec.shape]))
    return spec


def _read_all(spec: ImageInput, pictures: Mapping[str, bytes]) -> NDArray[Any]:
    if not pictures:
        raise SpecError("adopt-sample-empty", "the sample has no pictures", fix="give a picture or a folder of them: --sample pictures/")
    pixels = np.empty((len(pictures), *spec.shape), np.float32 if spec.dtype == "float32" else np.uint8)
    for place, (name, data) in zip(pixels, pictures.items(), strict=True):
        try:
            preprocess(spec, data, out=place, limits=_SAMPLE_LIMITS)
        except SpecError as error:
            error.where = name
            raise
    return pixels


def _score(graph: bytes, name: str, pixels: NDArray[Any], size: int, where: str) -> NDArray[np.float32]:
    parts = [
        _run(graph, ["probabilities"], {name: pixels[i : i + size]}, where, made_up=False)["probabilities"]
        for i in range(0, len(pixels), size)
    ]
    try:
        return np.concatenate(parts)
    except ValueError as error:
        raise SpecError(
            "adopt-answers",
            "the graph gives answers of changing shapes",
            fix="export it with one row of probabilities per picture",
            where=where,
        ) from error


def _run(graph: bytes, names: Sequence[str], request: Mapping[str, NDArray[Any]], where: str, *, made_up: bool) -> dict[str, NDArray[Any]]:
    try:
        found = quiet_session(graph).run(list(names), dict(request))
    # onnxruntime raises plain and private classes; their text is what a person needs.
    except Exception as error:
        raise SpecError(
            "adopt-run",
            f"onnxruntime cannot run the graph: {bounded(str(error), 240)}",
            fix="give tensors the model takes: --sample file.npz" if made_up else "check the shapes and values the model was exported for",
            where=where,
        ) from error
    return {name: np.asarray(value) for name, value in zip(names, found, strict=True)}


def _classes(k: int, given: Sequence[str] | None, inside: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    names = tuple(given) if given else inside or tuple(str(i) for i in range(k))
    if len(names) != k or len(set(names)) != k:
        raise SpecError(
            "adopt-classes",
            f"the graph gives {k} probabilities, and there are {len(set(names))} different classes",
            fix="give one name per probability, in order: --classes a,b or --classes names.txt",
            where=where,
        )
    return names


def _golden_pictures(pictures: Sequence[bytes], scores: NDArray[np.float32]) -> tuple[GoldenCase, ...]:
    """Return golden requests spread evenly over the most probable classes' scores, as many as a bundle may carry."""
    order = np.lexsort((scores.max(axis=1), scores.argmax(axis=1)))
    chosen = np.unique(order[np.linspace(0, len(order) - 1, min(N_GOLDEN, len(order))).astype(np.int64)])
    cases: list[GoldenCase] = []
    room = MAX_GOLDEN_BYTES // 2
    for i in sorted(chosen.tolist(), key=lambda i: len(pictures[i])):
        room -= len(pictures[i]) + 8 * scores.shape[1]
        if room < 0 and cases:
            break
        cases.append(golden_case({}, {"probabilities": scores[i : i + 1]}, image=pictures[i]))
    return tuple(cases)


def _type_of(value: Any, where: str, *, given: bool) -> TensorType:
    found = TENSOR_TYPES.get(value.type.tensor_type.elem_type) if value.type.HasField("tensor_type") else None
    if found is None:
        raise SpecError(
            "adopt-input-type" if given else "adopt-output-type",
            f"the {'input' if given else 'output'} {value.name[:80]!r} has a type no bundle carries",
            fix=f"export it with one of {', '.join(TENSOR_TYPES.values())}",
            where=where,
        )
    return found


def _row_shape(value: Any, where: str) -> tuple[int, ...]:
    shape = shape_of(value)
    if not shape:
        raise SpecError(
            "adopt-input-shape",
            f"the input {value.name[:80]!r} has no axis of rows",
            fix="export it with the batch as the first dimension of every input",
            where=where,
        )
    return tuple(-1 if side is None else side for side in shape[1:])


def _out_shape(value: Any, answer: NDArray[Any]) -> tuple[int, ...]:
    shape = shape_of(value)
    declared = shape[1:] if len(shape) == answer.ndim else (None,) * (answer.ndim - 1)
    return tuple(-1 if side is None else side for side in declared)


def _made_up(values: Sequence[Any], inputs: Sequence[GraphInput], seed: int) -> dict[str, NDArray[Any]]:
    """Return tensors for every input: small whole numbers, so that what is an index is a valid one; equal names are equal sizes."""
    rng = np.random.default_rng(seed)
    found: dict[str, NDArray[Any]] = {}
    fixed = next((first for value in values if (first := shape_of(value)[0]) is not None), 2)
    for tensor in inputs:
        shape = (fixed, *(_FREE if side == -1 else side for side in tensor.shape or ()))
        if tensor.dtype == "string":
            found[tensor.name] = np.full(shape, "a", dtype=object)
        elif tensor.dtype in {"float", "double", "float16"}:
            kind = {"float": np.float32, "double": np.float64, "float16": np.float16}[tensor.dtype]
            found[tensor.name] = rng.normal(size=shape).astype(kind)
        else:
            high = 256 if tensor.dtype == "uint8" else 2
            found[tensor.name] = rng.integers(0, high, size=shape).astype(tensor.dtype)
    return found


def _as_fed(value: NDArray[Any]) -> NDArray[Any]:
    """Return texts as objects, which is how graphs take them; other tensors as they are."""
    if value.dtype.kind == "S":
        value = np.char.decode(value, "utf-8")
    return value.astype(object) if value.dtype.kind == "U" else value
