# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""ONNX Runtime behind few methods: raw columns, pictures or tensors in, checked answers out.

The bytes come from a bundle whose digests and signature were verified; they are scanned again before the runtime sees
them, because a bundle can be sealed by somebody careless.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mulle.core.errors import CheckError, MulleError, SpecError
from mulle.formats.bundle import MAX_GRAPH_BYTES, GraphInput, GraphOutput, Kind, Manifest
from mulle.formats.envelope import read_limited
from mulle.formats.onnx_scan import require_plain_onnx
from mulle.formats.rows import feeds, shown
from mulle.formats.tensors import check_tensors
from mulle.serve.runtimes.blocks import BlockPlan, BoundBlocks
from mulle.serve.runtimes.proof import require_golden
from mulle.serve.runtimes.providers import ProviderChoice, open_session, provider_of, session_options
from mulle.serve.runtimes.tensors import find_batch_axis, require_interface

__all__ = ["SUM_TOLERANCE", "OnnxRuntime", "require_golden", "session_options"]

SUM_TOLERANCE = 1e-3
"""How far the probabilities of a row may be from summing to 1: float32 over many classes."""
_NO_TEXTS: dict[str, NDArray[Any]] = {}


class OnnxRuntime:
    """One loaded graph. Its methods may be called from several threads at once: ONNX Runtime lets go of the interpreter while it computes.

    Args:
        folder: The bundle.
        manifest: Its manifest, verified.
        threads: Threads within an operator. 1 unless the model is large: they cost a small model more than they give.
        provider: Where to compute: `cpu`, `cuda`, or `auto`: CUDA where there is one.

    Attributes:
        provider: Where it computes: `cpu` or `cuda`.
        threads: Threads within an operator.
        wide: The same graph with a thread per core, for a request that finds nobody else; None: it gains too little.
        n_outputs: Columns of the scores: the classes, or 1.
        number_columns: The columns of the matrix `run_block` takes, in order.
        text_columns: The columns it takes beside the matrix.
        batchable: Whether requests may be answered together: every input and output has a free batch axis. `require_golden` takes it
            back from a graph whose answers depend on what stands beside them.
        fixed_rows: The rows every call has where the batch axis is not free, else None.
        tensor_inputs: The inputs of a tensor graph.
        tensor_outputs: Its outputs, all of which are answered.

    Raises:
        SpecError: the graph's file is missing.
        CheckError: not ONNX, external data, or not the graph the manifest describes.
        UnavailableError: `provider-missing`.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int = 1, provider: ProviderChoice = "cpu") -> None:
        path = folder / manifest.graph.file
        data = read_limited(path, max_bytes=MAX_GRAPH_BYTES)
        require_plain_onnx(data, where=str(path))
        self.folder = folder
        self.manifest = manifest
        self.n_outputs = len(manifest.classes) or 1
        self.tensor_inputs: tuple[GraphInput, ...] = manifest.graph.inputs if manifest.kind != "columns" else ()
        self.tensor_outputs: tuple[GraphOutput, ...] = manifest.graph.outputs
        self._outputs = [output.name for output in manifest.graph.outputs] or [manifest.graph.output]
        try:
            self._session = open_session(data, threads, provider)
        except MulleError:
            raise
        except Exception as error:  # the runtime's errors have no common base
            raise CheckError(
                "model-unloadable",
                f"ONNX Runtime {ort.__version__} refuses the graph: {_bounded(error)}",
                fix="seal the bundle again with this version installed (`mulle run --from export`)",
                where=str(path),
            ) from error
        self.provider = provider_of(self._session)
        self.threads = threads
        self.wide: OnnxRuntime | None = None
        require_interface(self._session, manifest, self._outputs, str(path))
        self.batchable, self.fixed_rows = find_batch_axis(self._session, self._outputs)
        self._plan = BlockPlan(manifest)
        self.number_columns, self.text_columns = self._plan.number_columns, self._plan.text_columns
        self._ones = np.ones(self.n_outputs, dtype=np.float32)
        self._bound = self._bind()

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the scores: float32, shape (n, k) probabilities in the order of the classes, or (n, 1) predictions.

        Args:
            arrays: Raw column name to shape (n,), as `formats/rows.py` makes them.

        Raises:
            SpecError: a value does not fit the graph's tensor; `bundle-kind`: the bundle takes no columns.
            CheckError: `model-failed`, `model-output`: the graph broke on these values, or answered nonsense.
        """
        self.require_kind("columns")
        tensors = feeds(arrays, self.manifest.graph)
        n_rows = int(next(iter(tensors.values())).shape[0]) if tensors else 0
        return self.require_rows(self._score(tensors, n_rows))

    def run_block(self, numbers: NDArray[np.float64], texts: Mapping[str, NDArray[Any]] = _NO_TEXTS) -> NDArray[np.float32]:
        """Return the scores of a matrix, as `run` does, but not looked at yet: ask `check_rows`.

        Args:
            numbers: Shape (n, len(number_columns)) float64, NaN where missing, no infinities.
            texts: For each of `text_columns` shape (n,) text objects.

        Raises:
            SpecError: `rows-out-of-range`: a value does not fit the graph's tensor; the row is named, no row was answered.
            CheckError: `model-failed`; `model-output` if the answer has another shape than (n, n_outputs).
        """
        n_rows = numbers.shape[0]
        bound = self._bound
        if bound is not None and bound.fits(n_rows):
            try:
                return bound.run(numbers)
            except SpecError:
                raise
            except Exception as error:  # the runtime's errors have no common base
                raise _failed(error) from error
        return self._score(self._plan.feeds(numbers, texts), n_rows)

    def run_pixels(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the scores of pictures, not looked at yet: ask `check_rows`.

        Args:
            pixels: Shape (n, *image.shape), as `formats/image_read.py` makes them.

        Raises:
            SpecError: `bundle-kind`: the bundle takes no pictures.
            CheckError: `model-failed`, `model-output`.
        """
        self.require_kind("image")
        name, n_rows = self.tensor_inputs[0].name, pixels.shape[0]
        if self.batchable or n_rows == 1:
            return self._score({name: pixels}, n_rows)
        # A graph of one row, or one whose answers depend on their neighbours.
        parts = [self._score({name: pixels[i : i + 1]}, 1) for i in range(n_rows)]
        return np.concatenate(parts) if parts else np.empty((0, self.n_outputs), dtype=np.float32)

    def check_tensors(self, tensors: Mapping[str, NDArray[Any]]) -> int:
        """Return the number of rows of a request's tensors: cheap, so that a request that does not fit leaves alone before a batch is made.

        Raises:
            SpecError: `tensor-unknown`, `tensor-missing`, `tensor-dtype`, `tensor-shape`; `bundle-kind`.
        """
        if self.manifest.kind == "columns":
            self.require_kind("tensors")
        return check_tensors(tensors, self.tensor_inputs, self.fixed_rows)

    def run_tensors(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name, the batch axis first; a bundle of pictures answers its `(n, k)` probabilities.

        Args:
            tensors: Each input by name, as `check_tensors` accepts them; requests of equal shapes may be joined along the first axis
                where `batchable`.

        Raises:
            SpecError: as `check_tensors`.
            CheckError: `model-failed`; `model-output`: an output without the rows that were asked for.
        """
        n_rows = self.check_tensors(tensors)
        if self.fixed_rows == 1 and n_rows > 1:
            parts = [self._run({name: value[i : i + 1] for name, value in tensors.items()}) for i in range(n_rows)]
            return {name: np.concatenate([part[j] for part in parts]) for j, name in enumerate(self._outputs)}
        found = dict(zip(self._outputs, self._run(dict(tensors)), strict=True))
        if self.batchable:
            for name, value in found.items():
                if not value.ndim or value.shape[0] != n_rows:
                    raise _bad_output(f"{name!r} has shape {value.shape} for {n_rows} rows")
        return found

    def check_rows(self, scores: NDArray[np.float32]) -> NDArray[np.bool_] | None:
        """Return None when every row can be served, else shape (n,): which ones can.

        A row can be served when its numbers are finite and, for classes, sum to 1 within `SUM_TOLERANCE`.
        """
        if self.manifest.classes:
            off = scores.dot(self._ones)
            off -= 1.0
            # One number for all rows; NaN and infinity fail the comparison.
            if off.dot(off) <= SUM_TOLERANCE**2:
                return None
            with np.errstate(invalid="ignore"):
                good = np.abs(off) <= SUM_TOLERANCE
        else:
            good = np.isfinite(scores[:, 0])
        return None if good.all() else good

    def row_error(self, scores: NDArray[np.float32], row: int) -> CheckError:
        """Return why a row `check_rows` refused cannot be served."""
        values = scores[row]
        if not np.isfinite(values).all():
            return _bad_output(f"row {row} holds {shown(values.tolist())}")
        return _bad_output(f"the probabilities of row {row} sum to {float(values.sum()):.4f}")

    def require_rows(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores when all of them can be served.

        Raises:
            CheckError: `model-output`, with the first row that cannot.
        """
        good = self.check_rows(scores)
        if good is not None:
            raise self.row_error(scores, int(np.argmin(good)))
        return scores

    def require_kind(self, kind: Kind) -> None:
        """Return if requests carry this kind of input.

        Raises:
            SpecError: `bundle-kind`.
        """
        found = self.manifest.kind
        if found != kind:
            raise SpecError(
                "bundle-kind",
                f"{self.manifest.model!r} takes {_KINDS[found]}, not {_KINDS[kind]}",
                fix=f"send {_KINDS[found]}, or use another model",
            )

    def _score(self, tensors: dict[str, NDArray[Any]], n_rows: int) -> NDArray[np.float32]:
        if n_rows == 0:
            return np.empty((0, self.n_outputs), dtype=np.float32)
        scores = np.ascontiguousarray(self._run(tensors)[0], dtype=np.float32)
        if scores.ndim == 1 and self.n_outputs == 1:
            scores = scores[:, None]
        if scores.shape != (n_rows, self.n_outputs):
            raise _bad_output(f"shape {scores.shape} instead of {(n_rows, self.n_outputs)}")
        return scores

    def _run(self, tensors: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            return self._session.run(self._outputs, tensors)
        except Exception as error:  # the runtime's errors have no common base
            raise _failed(error) from error

    def _bind(self) -> BoundBlocks | None:
        """Return bound buffers where the graph's inputs are numbers and a trial shows that it answers into them."""
        if self.manifest.kind != "columns" or self._plan.texts or self.provider != "cpu" or self.manifest.graph.outputs:
            return None
        bound = BoundBlocks(self._session, self._plan, self._outputs[0], self.n_outputs)
        try:
            bound.run(np.zeros((2, len(self.number_columns))))
        except Exception:  # noqa: BLE001 - another element type or shape: such a graph answers into arrays of its own
            return None
        return bound


_KINDS = {"columns": "rows of columns", "image": "pictures", "tensors": "tensors"}


def _failed(error: Exception) -> CheckError:
    return CheckError("model-failed", f"the graph failed: {_bounded(error)}", fix="report the row that does it; see `mulle trace`")


def _bad_output(problem: str) -> CheckError:
    return CheckError("model-output", f"the graph's answer cannot be served: {problem}", fix="roll back (`mulle models rollback`)")


def _bounded(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
