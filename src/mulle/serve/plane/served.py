"""A revision, loaded and proven: its runtime, what the log says about it, and what it costs."""

import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.bundle import Manifest
from mulle.formats.prediction_log import LoggedColumn, Source
from mulle.serve.plane.costs import CostCurve
from mulle.serve.plane.jobs import ARRAYS, IMAGES, ROWS, TENSORS, Batch
from mulle.serve.runtimes.images import ImageReader
from mulle.serve.runtimes.onnx import OnnxRuntime

if TYPE_CHECKING:
    from mulle.serve.plane.batcher import Lane
    from mulle.serve.plane.deployment import Deployment

_MAX_LOGGED_OUTPUTS = 1_024


class Served:
    """One revision of a deployment.

    Args:
        source: What the log says about it.
        runtime: Its graph.
        curve: What batches cost here.
        weight: Per cent of the requests.

    Attributes:
        home: The deployment it belongs to; set when it is installed.
        lane: Where its jobs wait; the batcher's.
        face: Of a protocol: what it worked out once for this revision.
    """

    home: "Deployment"
    lane: "Lane | None" = None
    face: Any = None

    def __init__(self, source: Source, runtime: OnnxRuntime, curve: CostCurve, *, weight: int = 100) -> None:
        self.source = source
        self.runtime = runtime
        self.manifest: Manifest = runtime.manifest
        self.curve = curve
        self.weight = weight
        self.number = source.revision
        self.categories: Mapping[str, frozenset[str]] = {
            c.name: frozenset(c.categories) for c in self.manifest.columns if c.categories is not None
        }
        image = self.manifest.image
        self._reader = None if image is None else ImageReader(image)
        columns = self.manifest.columns
        number_at = [i for i, c in enumerate(columns) if c.type is not ColumnType.TEXT]
        self._n_numbers = len(number_at)
        self._only_numbers = len(number_at) == len(columns)
        self._texts = [(c.name, i) for i, c in enumerate(columns) if c.type is ColumnType.TEXT]
        self._cut = itemgetter(*number_at) if len(number_at) > 1 else None
        self._single = number_at[0] if len(number_at) == 1 else -1
        self._number_names = [columns[i].name for i in number_at]
        self._pack = struct.Struct(f"={len(number_at)}d").pack
        bounds = [(columns[i].minimum, columns[i].maximum) for i in number_at]
        self._low = np.array([-np.inf if low is None else low for low, _ in bounds])
        self._high = np.array([np.inf if high is None else high for _, high in bounds])
        manifest = self.manifest
        binary = len(manifest.classes) == 2 and manifest.positive in manifest.classes  # noqa: PLR2004 - a binary model
        self._positive = manifest.classes.index(str(manifest.positive)) if binary else -1
        # As float64: a threshold rounded to float32 would decide the rows that lie on it the other way.
        self._threshold = np.float64(manifest.threshold)
        self._bounded = any(low is not None or high is not None for low, high in bounds)

    def run(self, jobs: list[Any], *, alone: bool = False) -> Batch:
        """Return what `jobs`, which share kind and key, become together; may be called from any thread.

        Args:
            jobs: At least one.
            alone: Whether nothing else runs: then a large model takes all cores.

        Raises:
            MulleError: something in it does not fit, or the graph failed. Whose fault it was is found by running them one by one.
        """
        kind = jobs[0].kind
        runtime = (self.runtime.wide or self.runtime) if alone else self.runtime
        if kind == ROWS:
            rows: list[Any] = jobs[0].inputs if len(jobs) == 1 else list(chain.from_iterable([job.inputs for job in jobs]))
            numbers, texts = self.stack(rows)
            return Batch(self, jobs, _scores(runtime, numbers, texts), numbers=numbers, texts=texts)
        if kind == ARRAYS:
            numbers, texts = self.split(_joined([job.inputs for job in jobs]))
            return Batch(self, jobs, _scores(runtime, numbers, texts), numbers=numbers, texts=texts)
        if kind == IMAGES:
            pictures: list[bytes] = [picture for job in jobs for picture in job.inputs]
            return Batch(self, jobs, runtime.require_rows(runtime.run_pixels(self.pixels(pictures))))
        return self._run_tensors(jobs, runtime)

    def pixels(self, pictures: Sequence[bytes]) -> NDArray[Any]:
        """Return encoded pictures as the graph takes them, shape (n, *image.shape).

        Raises:
            SpecError: `image-…`: a picture cannot be read.
        """
        if self._reader is None:
            raise SpecError("bundle-kind", f"{self.manifest.model!r} takes no pictures", fix="send rows, or use another model")
        return self._reader.read(pictures)

    def stack(self, rows: Sequence[Sequence[Any]]) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
        """Return rows of checked values as the matrix of their numbers, shape (n, m), and one array per text column."""
        n = len(rows)
        cut = rows if self._only_numbers else None
        if cut is None:
            cut = [self._cut(row) for row in rows] if self._cut is not None else [(row[self._single],) for row in rows]
        if not self._n_numbers:
            numbers = np.empty((n, 0))
        else:
            pack = self._pack
            try:
                numbers = np.frombuffer(b"".join([pack(*row) for row in cut]), np.float64).reshape(n, self._n_numbers)
            except struct.error:
                # None where a value is missing: slower, and NaN.
                numbers = np.array(cut, dtype=np.float64)
        texts: dict[str, NDArray[Any]] = {}
        for name, at in self._texts:
            column = texts[name] = np.empty(n, dtype=object)
            column[:] = [MISSING_TEXT if row[at] is None else row[at] for row in rows]
        return numbers, texts

    def split(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
        """Return arrays by column as the matrix of the numbers and the text columns."""
        names = self._number_names
        n = int(next(iter(arrays.values())).shape[0]) if arrays else 0
        numbers = np.empty((n, len(names)))
        for j, name in enumerate(names):
            numbers[:, j] = arrays[name]
        return numbers, {name: arrays[name] for name, _ in self._texts}

    def anomalies(self, batches: Sequence[Batch]) -> list[tuple[str, str, int]]:
        """Return (column, kind, how many) for the values of batches that training never saw the like of."""
        found: list[tuple[str, str, int]] = []
        numbers = [batch.numbers for batch in batches if batch.numbers is not None]
        if self._bounded and numbers:
            # NaN compares false: missing is not out of range.
            block = numbers[0] if len(numbers) == 1 else np.concatenate(numbers)
            outside = (block < self._low) | (block > self._high)
            if outside.any():
                sums = outside.sum(axis=0).tolist()
                found += [(name, "out_of_range", n) for name, n in zip(self._number_names, sums, strict=True) if n]
        for name, known in self.categories.items():
            columns = [batch.texts[name] for batch in batches if batch.texts and name in batch.texts]
            n = sum(v not in known and v != MISSING_TEXT for column in columns for v in column)
            if n:
                found.append((name, "new_category", n))
        return found

    def label_indices(self, scores: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the index of the class each row is given, shape (n,): by the threshold of a positive class of two, else the largest."""
        if self._positive >= 0:
            above = scores[:, self._positive] >= self._threshold
            return np.where(above, self._positive, 1 - self._positive)
        return scores.argmax(axis=1)

    def few_labels(self, rows: Sequence[Sequence[float]]) -> list[int]:
        """Return what `label_indices` does, for so few rows that arrays would cost more.

        Args:
            rows: The float32 scores as Python floats, from `tolist`.
        """
        positive = self._positive
        if positive >= 0:
            threshold = float(self._threshold)
            return [positive if row[positive] >= threshold else 1 - positive for row in rows]
        return [max(range(len(row)), key=row.__getitem__) for row in rows]

    def _run_tensors(self, jobs: list[Any], runtime: OnnxRuntime) -> Batch:
        first: dict[str, NDArray[Any]] = jobs[0].inputs
        tensors = first if len(jobs) == 1 else {name: np.concatenate([job.inputs[name] for job in jobs]) for name in first}
        outputs = runtime.run_tensors(tensors)
        if self.manifest.task != "tensor":
            return Batch(self, jobs, runtime.require_rows(outputs[self.manifest.graph.output]))
        return Batch(self, jobs, np.empty((sum(job.n_rows for job in jobs), 0), np.float32), outputs=outputs)


def logged_outputs(batch: Batch) -> NDArray[np.float32]:
    """Return what the log keeps of a batch's answers, shape (n, k): the scores, or a tensor graph's first small numeric output."""
    if not batch.outputs:
        return batch.scores
    for array in batch.outputs.values():
        if array.dtype.kind in "fiub" and array.size <= _MAX_LOGGED_OUTPUTS * max(1, batch.n_rows):
            return array.reshape(batch.n_rows, -1).astype(np.float32)
    return np.empty((batch.n_rows, 0), np.float32)


def make_served(
    runtime: OnnxRuntime, curve: CostCurve, *, revision: int, model_version: int, run_id: str = "", weight: int = 100
) -> Served:
    """Return a revision ready to be installed."""
    manifest = runtime.manifest
    source = Source(
        source=0,
        revision=revision,
        model=manifest.model,
        model_version=model_version,
        bundle_digest=manifest.digest(),
        run_id=run_id,
        task=manifest.task,
        classes=manifest.classes,
        positive=manifest.positive,
        entity=manifest.entity,
        columns=tuple(LoggedColumn(c.name, c.type) for c in manifest.columns),
    )
    return Served(source, runtime, curve, weight=weight)


def tensor_key(tensors: Mapping[str, NDArray[Any]]) -> object:
    """Return the key under which jobs with these tensors may share a batch: equal names, types and shapes behind the batch axis."""
    return (TENSORS, tuple((name, array.dtype.char, array.shape[1:]) for name, array in sorted(tensors.items())))


def _joined(parts: list[Mapping[str, NDArray[Any]]]) -> Mapping[str, NDArray[Any]]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _scores(runtime: OnnxRuntime, numbers: NDArray[np.float64], texts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    return runtime.require_rows(runtime.run_block(numbers, texts))
