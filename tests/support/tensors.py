"""Small sealed bundles of tensors and pictures: real graphs, golden requests that plain ONNX Runtime answered, a signature.

The tensor graph: sums = rowsum(a) + b, doubled = 2 a, names as they came. The picture graph: softmax of the means of the
three channels, so that its class says which channel is brightest after preprocessing.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mulle.bundle.seal import BundleContent, SealedBundle, seal_bundle
from mulle.formats.bundle import Graph, GraphInput, GraphOutput
from mulle.formats.golden_tensors import GoldenTensors, golden_case
from mulle.formats.image_spec import ImageInput
from support.bundles import private_key

TENSOR_GRAPH = Graph(
    inputs=(GraphInput("a", "float", shape=(-1,)), GraphInput("b", "int64", shape=(1,)), GraphInput("names", "string", shape=())),
    output="sums",
    outputs=(GraphOutput("sums", "float", (1,)), GraphOutput("doubled", "float", (-1,)), GraphOutput("said", "string", ())),
)
COLOURS = ("red", "green", "blue")
IMAGE = ImageInput(size=(8, 12), mean=(0.5,), std=(0.25,))


def finish(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], constants: Mapping[str, NDArray[Any]] | None = None
) -> bytes:
    """Return the ONNX bytes of a graph, checked."""
    initializers = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tensor_graph(*, rows: int | str = "n", mixes: bool = False) -> bytes:
    """Return the tensor graph; `mixes` makes every answer depend on the whole batch."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("ReduceSum", ["a", "axis"], ["total"], keepdims=1),
        node("Cast", ["b"], ["b32"], to=TensorProto.FLOAT),
        node("Add", ["total", "b32"], ["own"]),
        node("Add", ["a", "a"], ["doubled"]),
        node("Identity", ["names"], ["said"]),
    ]
    constants = {"axis": np.array([1], np.int64)}
    if mixes:
        nodes += [node("ReduceMean", ["own", "rows_axis"], ["mean"], keepdims=1), node("Sub", ["own", "mean"], ["sums"])]
        constants["rows_axis"] = np.array([0], np.int64)
    else:
        nodes.append(node("Identity", ["own"], ["sums"]))
    inputs = [
        value("a", TensorProto.FLOAT, [rows, "w"]),
        value("b", TensorProto.INT64, [rows, 1]),
        value("names", TensorProto.STRING, [rows]),
    ]
    outputs = [
        value("sums", TensorProto.FLOAT, [rows, 1]),
        value("doubled", TensorProto.FLOAT, [rows, "w"]),
        value("said", TensorProto.STRING, [rows]),
    ]
    return finish(nodes, inputs, outputs, constants)


def tensor_request(n: int, *, width: int = 5, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return tensors the tensor graph takes."""
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(n, width)).astype(np.float32),
        "b": rng.integers(-9, 9, size=(n, 1)),
        "names": np.array([f"이름 {i}" for i in range(n)], dtype=object),
    }


def plain_answer(graph: bytes, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return what plain ONNX Runtime answers."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(tensors)), strict=True))


def seal_tensors(root: Path, *, rows: int | str = "n", mixes: bool = False, n: int = 2, golden: bytes | None = None) -> SealedBundle:
    """Return a sealed bundle of the tensor graph, with one golden request of `n` rows."""
    graph = tensor_graph(rows=rows, mixes=mixes)
    request = tensor_request(n)
    content = BundleContent(
        model_name="sums",
        task="tensor",
        graph=graph,
        graph_info=TENSOR_GRAPH,
        columns=(),
        baseline=None,
        golden=GoldenTensors(cases=(golden_case(request, plain_answer(graph, request)),)).to_bytes() if golden is None else golden,
    )
    return seal_bundle(root, content, attestations={}, private_key=private_key())


def image_graph(spec: ImageInput = IMAGE, *, rows: int | str = "n", mixes: bool = False) -> bytes:
    """Return the picture graph for a spec of three channels; `mixes` makes every answer depend on the whole batch."""
    node, value = helper.make_node, helper.make_tensor_value_info
    axes = [2, 3] if spec.layout == "NCHW" else [1, 2]
    element = TensorProto.FLOAT if spec.dtype == "float32" else TensorProto.UINT8
    nodes = [node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT), node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0)]
    constants = {"axes": np.array(axes, np.int64), "steep": np.array(4.0 if spec.dtype == "float32" else 0.1, np.float32)}
    source = "means"
    if mixes:
        nodes += [node("ReduceMean", ["means", "rows_axis"], ["mean"], keepdims=1), node("Sub", ["means", "mean"], ["centred"])]
        constants["rows_axis"] = np.array([0], np.int64)
        source = "centred"
    nodes += [node("Mul", [source, "steep"], ["logits"]), node("Softmax", ["logits"], ["probabilities"], axis=1)]
    return finish(
        nodes,
        [value("image", element, [rows, *spec.shape])],
        [value("probabilities", TensorProto.FLOAT, [rows, spec.channels])],
        constants,
    )


def picture(colour: tuple[int, int, int] = (200, 60, 30), *, size: tuple[int, int] = (40, 30), kind: str = "PNG", **options: Any) -> bytes:
    """Return an encoded picture of one colour with a grey frame, width and height as in `size`."""
    from PIL import Image

    image = Image.new("RGB", size, (90, 90, 90))
    image.paste(colour, (2, 2, size[0] - 2, size[1] - 2))
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain_pixels(data: bytes, spec: ImageInput = IMAGE) -> NDArray[Any]:
    """Return the tensor of a picture by a plain pipeline, for `exact` RGB pictures without EXIF."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB").resize((spec.size[1], spec.size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    if spec.dtype == "float32":
        factor, offset = (np.array(values, np.float32) for values in spec.factors())
        pixels = pixels.astype(np.float32) * factor + offset
    return pixels.transpose(2, 0, 1) if spec.layout == "NCHW" else pixels


def seal_image(
    root: Path, *, spec: ImageInput = IMAGE, rows: int | str = "n", mixes: bool = False, golden: bytes | None = None
) -> SealedBundle:
    """Return a sealed bundle of the picture graph, with two golden pictures answered by plain Pillow and ONNX Runtime."""
    graph = image_graph(spec, rows=rows, mixes=mixes)
    pictures = [picture(), picture((20, 40, 220), kind="JPEG", quality=90)]
    cases = tuple(golden_case({}, plain_answer(graph, {"image": plain_pixels(data, spec)[None]}), image=data) for data in pictures)
    content = BundleContent(
        model_name="colours",
        task="multiclass",
        graph=graph,
        graph_info=Graph(inputs=(GraphInput("image", spec.tensor_type, shape=spec.shape),), output="probabilities"),
        columns=(),
        baseline=b"{}",
        golden=GoldenTensors(cases=cases).to_bytes() if golden is None else golden,
        classes=COLOURS,
        image=spec,
    )
    return seal_bundle(root, content, attestations={}, private_key=private_key())
