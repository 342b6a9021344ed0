# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""ONNX Runtime behind one method: arrays of raw columns in, checked scores out.

The bytes come from a bundle whose digests and signature were verified; they are scanned again before the runtime sees
them, because a bundle can be sealed by somebody careless.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mulle.core.errors import CheckError, SpecError
from mulle.formats.bundle import GOLDEN, MAX_GRAPH_BYTES, Manifest
from mulle.formats.envelope import read_limited
from mulle.formats.golden import read_golden
from mulle.formats.onnx_scan import require_plain_onnx
from mulle.formats.rows import encode_rows, feeds, shown

_ORT_TYPES = {
    "double": "tensor(double)",
    "float": "tensor(float)",
    "int64": "tensor(int64)",
    "string": "tensor(string)",
    "bool": "tensor(bool)",
}
SUM_TOLERANCE = 1e-3
"""How far the probabilities of a row may be from summing to 1: float32 over many classes."""


class OnnxRuntime:
    """One loaded graph. `run` may be called from one thread at a time.

    Args:
        folder: The bundle.
        manifest: Its manifest, verified.
        threads: Threads within an operator. 1 unless the model is large: they cost a small model more than they give.

    Raises:
        SpecError: the graph's file is missing.
        CheckError: not ONNX, external data, or not the graph the manifest describes.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int = 1) -> None:
        path = folder / manifest.graph.file
        data = read_limited(path, max_bytes=MAX_GRAPH_BYTES)
        require_plain_onnx(data, where=str(path))
        self.folder = folder
        self.manifest = manifest
        self.n_outputs = len(manifest.classes) or 1
        self._output = [manifest.graph.output]
        try:
            self._session = ort.InferenceSession(data, session_options(threads), providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors have no common base
            raise CheckError(
                "model-unloadable",
                f"ONNX Runtime {ort.__version__} refuses the graph: {_bounded(error)}",
                fix="seal the bundle again with this version installed (`mulle run --from export`)",
                where=str(path),
            ) from error
        self._require_interface(str(path))

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the scores: float32, shape (n, k) probabilities in the order of the classes, or (n, 1) predictions.

        Args:
            arrays: Raw column name to shape (n,), as `formats/rows.py` makes them.

        Raises:
            SpecError: a value does not fit the graph's tensor.
            CheckError: `model-failed`, `model-output`: the graph broke on these values, or answered nonsense.
        """
        tensors = feeds(arrays, self.manifest.graph)
        n_rows = int(next(iter(tensors.values())).shape[0]) if tensors else 0
        if n_rows == 0:
            return np.empty((0, self.n_outputs), dtype=np.float32)
        try:
            raw = self._session.run(self._output, tensors)[0]
        except Exception as error:  # the runtime's errors have no common base
            raise CheckError(
                "model-failed", f"the graph failed: {_bounded(error)}", fix="report the row that does it; see `mulle trace`"
            ) from error
        scores = np.ascontiguousarray(raw, dtype=np.float32)
        if scores.ndim == 1 and self.n_outputs == 1:
            scores = scores[:, None]
        if scores.shape != (n_rows, self.n_outputs):
            raise _bad_output(f"shape {scores.shape} instead of {(n_rows, self.n_outputs)}")
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            raise _bad_output(f"row {int(np.argmin(finite))} holds {shown(scores[int(np.argmin(finite))].tolist())}")
        if self.manifest.classes:
            off = np.abs(scores.sum(axis=1) - 1.0) > SUM_TOLERANCE
            if off.any():
                raise _bad_output(f"the probabilities of row {int(np.argmax(off))} sum to {float(scores[int(np.argmax(off))].sum()):.4f}")
        return scores

    def _require_interface(self, where: str) -> None:
        wanted = {tensor.name: _ORT_TYPES[tensor.dtype] for tensor in self.manifest.graph.inputs}
        found = {tensor.name: tensor.type for tensor in self._session.get_inputs()}
        outputs = [tensor.name for tensor in self._session.get_outputs()]
        if wanted != found or self._output[0] not in outputs:
            raise CheckError(
                "model-interface",
                "the graph is not the one the manifest describes",
                fix="seal the bundle again",
                where=where,
                facts={
                    "manifest": f"{shown(wanted, 300)} -> {self._output[0]!r}",
                    "graph": f"{shown(found, 300)} -> {shown(outputs, 100)}",
                },
            )


def session_options(threads: int) -> Any:
    """Return options for serving: sequential, `threads` threads that sleep when idle instead of spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def require_golden(folder: Path, runtime: OnnxRuntime) -> int:
    """Return the number of golden requests after all of them reproduced on this host.

    Raises:
        CheckError: `golden-differs`, with the worst row; `golden-empty`: a bundle without any proves nothing.
    """
    golden = read_golden(folder / GOLDEN)
    manifest = runtime.manifest
    if not golden.rows or len(golden.rows) != len(golden.outputs):
        raise CheckError("golden-empty", "the bundle carries no golden requests", fix="seal the bundle again", where=str(folder / GOLDEN))
    try:
        scores = runtime.run(encode_rows(golden.rows, manifest.columns, absent_is_missing=True))
        expected = np.array(golden.outputs, dtype=np.float64).reshape(len(golden.rows), runtime.n_outputs)
    except (SpecError, ValueError) as error:
        raise CheckError(
            "golden-differs",
            f"the golden requests do not fit the bundle's own columns: {_bounded(error)}",
            fix="seal the bundle again",
            where=str(folder / GOLDEN),
        ) from error
    gaps = np.abs(scores - expected).max(axis=1)
    worst = int(np.argmax(gaps))
    if gaps[worst] > golden.tolerance:
        raise CheckError(
            "golden-differs",
            f"{int((gaps > golden.tolerance).sum())} of {len(golden.rows)} golden requests do not reproduce on this host",
            fix="compare the versions (`mulle doctor`), or seal the bundle again here",
            where=str(folder / GOLDEN),
            facts={
                "worst row": str(worst),
                "sealed": shown([round(v, 6) for v in expected[worst].tolist()], 120),
                "found": shown([round(v, 6) for v in scores[worst].tolist()], 120),
                "allowed": f"{golden.tolerance:g}",
            },
        )
    return len(golden.rows)


def _bad_output(problem: str) -> CheckError:
    return CheckError("model-output", f"the graph's answer cannot be served: {problem}", fix="roll back (`mulle models rollback`)")


def _bounded(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
