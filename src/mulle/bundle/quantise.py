# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""Smaller variants of a graph: INT8 where there are matrix products, and a plain reason where there are none.

A variant is a proposal: it is kept only where it is measured to be faster and passes the same gates.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import onnx

from mulle.bundle.onnx_file import all_nodes, parse_onnx
from mulle.core.user_code import bounded

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant of a graph, or why there is none.

    Attributes:
        name: `int8`.
        graph: ONNX bytes; None when the variant does not exist.
        reason: What was done, or why it was not.
        size_bytes: Size of the variant's file, in bytes; 0 when there is none.
    """

    name: str
    graph: bytes | None
    reason: str
    size_bytes: int


def quantise_int8(model: bytes) -> Variant:
    """Return the graph with the weights of its matrix products as 8-bit integers (dynamic quantisation).

    Activations are quantised at run time, per call. Everything else, the preprocessing above all, stays as it is.

    Args:
        model: ONNX bytes.

    Raises:
        SpecError: the bytes are no ONNX model.
    """
    parsed = parse_onnx(model)
    weights = {initializer.name for initializer in parsed.graph.initializer}
    products = [node for node in all_nodes(parsed.graph) if node.op_type in _PRODUCTS]
    if not products:
        return Variant("int8", None, "no matrix products to quantise", 0)
    constant = [node for node in products if len(node.input) > 1 and (node.input[1] in weights or node.input[0] in weights)]
    if not constant:
        return Variant("int8", None, "no matrix product has constant weights to quantise", 0)
    try:
        data = _quantised(model)
    # onnxruntime's quantiser raises plain classes of many kinds; a variant that cannot be made is an answer, not an error.
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, onnx.checker.ValidationError) as error:
        return Variant("int8", None, f"onnxruntime cannot quantise this graph: {bounded(str(error), 160)}", 0)
    if not any(
        node.op_type.endswith("Integer") or node.op_type.startswith("DynamicQuantize") for node in all_nodes(parse_onnx(data).graph)
    ):
        return Variant("int8", None, "onnxruntime found no matrix product it can quantise", 0)
    return Variant("int8", data, f"{len(constant)} matrix products with 8-bit weights: {len(model):,} to {len(data):,} bytes", len(data))


def _quantised(model: bytes) -> bytes:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="mulle-int8-") as folder, _quiet():
        source, target = Path(folder) / "source.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model)
        quantize_dynamic(
            source, target, weight_type=QuantType.QInt8, op_types_to_quantize=sorted(_PRODUCTS), extra_options={"DefaultTensorType": 1}
        )
        return target.read_bytes()


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Silence the quantiser's advice to preprocess (already simple graphs gain nothing) for the block."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(before)
