"""Churn bundles that answer like the plain one but take as long as a test wants: a chain of nodes whose sum counts for nothing."""

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from mulle.bundle.seal import SealedBundle
from support.bundles import COLUMNS, GOLDEN_ROWS, GRAPH, churn_graph, seal_churn

_PROBE_LAYERS = 20
_NARROW, _WIDE, _DEAR_MS = 8_192, 65_536, 2.0


def slow_churn_graph(n_layers: int, width: int, *, shift: float = 0.0) -> bytes:
    """Return the churn graph with `n_layers` layers of `width` values per row beside it; what they cost grows with the rows."""
    model = onnx.load_model_from_string(churn_graph(shift=shift))
    graph = model.graph
    at = next(i for i, node in enumerate(graph.node) if node.op_type == "Sigmoid")
    graph.node[at].input[0] = "logit_after"
    node = helper.make_node
    nodes = [node("Mul", ["logit32", "spread"], ["wide_0"])]
    nodes += [node("Tanh", [f"wide_{i}"], [f"wide_{i + 1}"]) for i in range(n_layers)]
    nodes += [
        node("ReduceMean", [f"wide_{n_layers}", "wide_axis"], ["wide_mean"], keepdims=1),
        node("Mul", ["wide_mean", "nothing"], ["no_difference"]),
        node("Add", ["logit32", "no_difference"], ["logit_after"]),
    ]
    for i, made in enumerate(nodes):
        graph.node.insert(at + i, made)
    constants = {
        "spread": np.linspace(0.1, 1.0, width, dtype=np.float32)[None, :],
        "wide_axis": np.array([1], np.int64),
        "nothing": np.zeros((1, 1), np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(model)
    return model.SerializeToString()


def layers_for(cost_ms: float, width: int) -> int:
    """Return how many layers of `width` values take about `cost_ms` per row on this machine, as fast as it is now."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(slow_churn_graph(_PROBE_LAYERS, width), options)
    from mulle.formats.rows import encode_rows, feeds

    given = feeds(encode_rows(GOLDEN_ROWS[:1], COLUMNS, absent_is_missing=True), GRAPH)
    best = min(_seconds(session, given) for _ in range(9))
    return max(1, round(cost_ms / (best * 1e3 / _PROBE_LAYERS)))


def seal_slow_churn(root: Path, cost_ms: float, *, shift: float = 0.0) -> SealedBundle:
    """Return a sealed churn bundle whose answers cost about `cost_ms` per row."""
    width = _WIDE if cost_ms >= _DEAR_MS else _NARROW
    return seal_churn(root, shift=shift, graph=slow_churn_graph(layers_for(cost_ms, width), width, shift=shift))


def _seconds(session: "onnxruntime.InferenceSession", given: object) -> float:
    began = time.perf_counter()
    session.run(None, given)
    return time.perf_counter() - began
