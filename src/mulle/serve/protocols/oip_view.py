"""What a revision looks like in the Open Inference Protocol: its tensors, and the way from them to a job and back.

| bundle  | takes                                                                   | gives                                               |
|---------|-------------------------------------------------------------------------|-----------------------------------------------------|
| columns | one tensor per column; or `features` [n, k], if no column is text       | `probabilities`, `label` or `value`; `prediction_id` |
| image   | the graph's own tensor; or `image`, BYTES [n]: encoded pictures         | `probabilities`, `label`, `prediction_id`           |
| tensors | the graph's own tensors                                                 | the graph's own tensors                             |
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.bundle import ColumnInfo, Manifest
from mulle.formats.rows import encode_matrix, nearest, shown
from mulle.serve.plane.jobs import ARRAYS, IMAGES, ROWS, TENSORS, Job
from mulle.serve.plane.served import Served, tensor_key
from mulle.serve.protocols.codec_json import choose_labels
from mulle.serve.protocols.oip import GRAPH_DATATYPES, OutputTensor, RequestedOutput, Tensor, TensorInfo, text_of

FEATURES = "features"
IMAGE = "image"
_FEW_ROWS = 16
_FLAT, _SINGLE = 1, 2
_COLUMN_DATATYPES = {
    ColumnType.NUMBER: "FP64",
    ColumnType.BOOLEAN: "BOOL",
    ColumnType.DATETIME: "FP64",
    ColumnType.TEXT: "BYTES",
}


class Work:
    """What a job is made of: see `Job`."""

    __slots__ = ("data", "entity", "key", "kind", "n_bytes", "n_rows")

    def __init__(self, kind: str, data: Any, n_rows: int, *, key: object, n_bytes: int, entity: Sequence[str | None] | None = None) -> None:
        self.kind = kind
        self.data = data
        self.n_rows = n_rows
        self.key = key
        self.n_bytes = n_bytes
        self.entity = entity


class View(Protocol):
    """One revision's face in the protocol."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def accept(self, tensors: Sequence[Tensor], *, max_rows: int) -> Work:
        """Return the work the tensors ask for.

        Raises:
            SpecError: `oip-input-unknown`, `oip-input-missing`, `oip-input-twice`, `oip-datatype`, `oip-shape`, `oip-data`,
                `rows-too-many`, and what `formats/rows.py` says of values.
        """
        ...

    def select(self, asked: Sequence[RequestedOutput] | None) -> tuple[tuple[str, int], ...]:
        """Return (name, classification) of the outputs to answer, in the order asked.

        Raises:
            SpecError: `oip-output-unknown`, `oip-output-twice`.
        """
        ...

    def render(self, job: Job, wanted: Sequence[tuple[str, int]]) -> list[OutputTensor]:
        """Return the outputs of an answered job.

        Raises:
            SpecError: `oip-parameter`: a classification of something that is not numbers by class.
        """
        ...


def view_of(served: Served) -> View:
    """Return the face of a revision; made once."""
    found = _VIEWS.get(served)
    if found is None:
        manifest = served.manifest
        found = ColumnsView(manifest) if manifest.kind == "columns" else TensorsView(manifest, batchable=served.runtime.batchable)
        _VIEWS[served] = found
    return found


class _Outputs:
    """Scores as tensors, for every bundle whose answers are classes or numbers."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.outputs: tuple[TensorInfo, ...]
        if manifest.kind == "tensors":
            self.outputs = tuple(TensorInfo(o.name, GRAPH_DATATYPES[o.dtype], (-1, *o.shape)) for o in manifest.graph.outputs)
        elif manifest.classes:
            self.outputs = (
                TensorInfo("probabilities", "FP32", (-1, len(manifest.classes))),
                TensorInfo("label", "BYTES", (-1,)),
                TensorInfo("prediction_id", "BYTES", (-1,)),
            )
        else:
            self.outputs = (TensorInfo("value", "FP32", (-1,)), TensorInfo("prediction_id", "BYTES", (-1,)))
        self._datatypes = {info.name: info.datatype for info in self.outputs}
        self._all = tuple((info.name, 0) for info in self.outputs)

    def select(self, asked: Sequence[RequestedOutput] | None) -> tuple[tuple[str, int], ...]:
        """Return (name, classification) of the outputs to answer."""
        if asked is None:
            return self._all
        names = [item.name for item in asked]
        for name in names:
            if name not in self._datatypes:
                raise _unknown("output", name, list(self._datatypes))
        if len(set(names)) != len(names):
            raise _twice("output", next(name for i, name in enumerate(names) if name in names[:i]))
        return tuple((item.name, item.classification) for item in asked)

    def render(self, job: Job, wanted: Sequence[tuple[str, int]]) -> list[OutputTensor]:
        """Return the outputs of an answered job."""
        outputs = job.outputs if self._manifest.kind == "tensors" else None
        found: list[OutputTensor] = []
        for name, best in wanted:
            values = self._score(name, job) if outputs is None else outputs[name]
            if best:
                found.append(OutputTensor(name, "BYTES", _best(name, values, best, self._manifest.classes)))
            else:
                found.append(OutputTensor(name, self._datatypes[name], values))
        return found

    def _score(self, name: str, job: Job) -> NDArray[Any]:
        if name == "probabilities":
            return job.scores
        if name == "value":
            return job.scores[:, 0]
        texts = np.empty(job.n_rows, dtype=object)
        texts[:] = choose_labels(self._manifest, job.scores) if name == "label" else job.prediction_ids()
        return texts


class ColumnsView(_Outputs):
    """The face of a tabular bundle."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        columns = manifest.columns
        self.inputs = tuple(TensorInfo(c.name, _COLUMN_DATATYPES[c.type], (-1,)) for c in columns)
        self._columns = {c.name: c for c in columns}
        self._required = [c.name for c in columns if not c.nullable]
        self._matrix = FEATURES not in self._columns and all(c.type is not ColumnType.TEXT for c in columns)
        self._plain = all(c.type in {ColumnType.NUMBER, ColumnType.DATETIME} for c in columns)

    def accept(self, tensors: Sequence[Tensor], *, max_rows: int) -> Work:
        """Return the work the tensors ask for."""
        if self._matrix and len(tensors) == 1 and tensors[0].name == FEATURES:
            return self._accept_matrix(tensors[0], max_rows)
        known = self._columns
        n_rows = tensors[0].shape[0] if tensors else 0
        found: dict[str, Tensor] = {}
        for tensor in tensors:
            name = tensor.name
            if name == FEATURES and self._matrix:
                raise SpecError(
                    "oip-input-twice",
                    "the matrix 'features' holds every column, and there are other inputs beside it",
                    fix="send the matrix alone, or one tensor per column",
                    where="inputs, 'features'",
                )
            if name not in known and name != self._manifest.entity:
                raise _unknown("input", name, [*known, FEATURES] if self._matrix else list(known))
            if name in found:
                raise _twice("input", name)
            shape = tensor.shape
            if len(shape) != _FLAT and not (len(shape) == _SINGLE and shape[1] == 1):
                raise _bad_shape(tensor, "[n] or [n, 1]")
            if shape[0] != n_rows:
                raise _bad_shape(tensor, f"[{n_rows}], as the first input has")
            found[name] = tensor
        missing = next((name for name in self._required if name not in found), None)
        if missing is not None or not found:
            raise _missing(missing or next(iter(known)))
        _require_rows(n_rows, max_rows)
        entity = _entity_of(found.pop(self._manifest.entity)) if self._manifest.entity in found.keys() - known.keys() else None
        arrays = {name: _column(found.get(name), column, n_rows) for name, column in known.items()}
        return self._work(arrays, n_rows, entity)

    def _accept_matrix(self, tensor: Tensor, max_rows: int) -> Work:
        spec = tensor.spec
        if len(spec.shape) != _SINGLE or spec.shape[1] != len(self._columns):
            raise _bad_shape(tensor, f"[n, {len(self._columns)}], the columns in this order: {', '.join(self._columns)[:300]}")
        n_rows = spec.shape[0]
        _require_rows(n_rows, max_rows)
        if spec.dtype.kind == "O":
            raise _bad_datatype(tensor, "FP32 or FP64")
        values = tensor.values()
        if self._plain and n_rows <= _FEW_ROWS:
            rows: list[list[float]] = values.tolist()
            if all(all(map(math.isfinite, row)) for row in rows):
                return Work(ROWS, rows, n_rows, key=ROWS, n_bytes=values.nbytes)
        matrix = values.astype(np.float64, copy=False)
        if not (self._plain and bool(np.isfinite(matrix).all())):
            return self._work({c.name: _checked(matrix[:, j], c) for j, c in enumerate(self._manifest.columns)}, n_rows, None)
        return Work(ARRAYS, {name: matrix[:, j] for j, name in enumerate(self._columns)}, n_rows, key=ARRAYS, n_bytes=matrix.nbytes)

    def _work(self, arrays: dict[str, NDArray[Any]], n_rows: int, entity: Sequence[str | None] | None) -> Work:
        n_bytes = 8 * n_rows * len(arrays)
        if n_rows > _FEW_ROWS:
            return Work(ARRAYS, arrays, n_rows, key=ARRAYS, n_bytes=n_bytes, entity=entity)
        # Few rows go the way of JSON's rows, and share its batches.
        columns = [array.tolist() for array in arrays.values()]
        rows = [tuple(None if value == MISSING_TEXT else value for value in row) for row in zip(*columns, strict=True)]
        return Work(ROWS, rows, n_rows, key=ROWS, n_bytes=n_bytes, entity=entity)


class TensorsView(_Outputs):
    """The face of a bundle whose requests carry the graph's own tensors, or pictures.

    Args:
        manifest: Of the bundle.
        batchable: Whether requests may share a run.
    """

    def __init__(self, manifest: Manifest, *, batchable: bool) -> None:
        super().__init__(manifest)
        self._batchable = batchable
        self.inputs = tuple(TensorInfo(i.name, GRAPH_DATATYPES[i.dtype], (-1, *(i.shape or ()))) for i in manifest.graph.inputs)
        self._known = {info.name: info for info in self.inputs}
        self._pictures = {IMAGE, *self._known} if manifest.image is not None else set[str]()

    def accept(self, tensors: Sequence[Tensor], *, max_rows: int) -> Work:
        """Return the work the tensors ask for."""
        if len(tensors) == 1 and tensors[0].name in self._pictures and tensors[0].spec.datatype == "BYTES":
            return _pictures(tensors[0], max_rows)
        n_rows = tensors[0].shape[0] if tensors else 0
        arrays: dict[str, NDArray[Any]] = {}
        n_bytes = 0
        for tensor in tensors:
            info = self._known.get(tensor.name)
            if info is None:
                raise _unknown("input", tensor.name, list(self._known))
            if tensor.name in arrays:
                raise _twice("input", tensor.name)
            spec = tensor.spec
            if spec.fits is not info and spec.datatype != info.datatype:
                raise _bad_datatype(tensor, info.datatype)
            if spec.shape[0] != n_rows or (spec.fits is not info and not _fits(spec.shape, info.shape)):
                raise _bad_shape(tensor, shown([n_rows if tensors[0] is not tensor else -1, *info.shape[1:]]))
            spec.fits = info
            _require_rows(n_rows, max_rows)
            values = tensor.values()
            arrays[tensor.name] = _whole_texts(tensor).reshape(spec.shape) if spec.datatype == "BYTES" else values
            n_bytes += max(spec.n_bytes, 8 * spec.n_elements)
        if len(arrays) != len(self._known):
            raise _missing(next(name for name in self._known if name not in arrays))
        return Work(TENSORS, arrays, n_rows, key=tensor_key(arrays) if self._batchable else None, n_bytes=n_bytes)


_VIEWS: "WeakKeyDictionary[Served, View]" = WeakKeyDictionary()


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(want in {-1, have} for have, want in zip(shape, wanted, strict=True))


def _pictures(tensor: Tensor, max_rows: int) -> Work:
    shape = tensor.shape
    if len(shape) != _FLAT and not (len(shape) == _SINGLE and shape[1] == 1):
        raise _bad_shape(tensor, "[n]: one encoded picture per row")
    _require_rows(shape[0], max_rows)
    pictures = [v.encode() if isinstance(v, str) else v for v in tensor.values().reshape(-1).tolist()]
    if any(picture is None for picture in pictures):
        raise _missing(tensor.name)
    return Work(IMAGES, pictures, shape[0], key=IMAGES, n_bytes=sum(map(len, pictures)))


def _column(tensor: Tensor | None, column: ColumnInfo, n_rows: int) -> NDArray[Any]:
    """Return a column of the model, shape (n,), as `formats/rows.py` makes it."""
    if tensor is None:
        if column.type is not ColumnType.TEXT:
            return np.full(n_rows, np.nan)
        absent = np.empty(n_rows, dtype=object)
        absent[:] = MISSING_TEXT
        return absent
    is_text = tensor.spec.dtype.kind == "O"
    if is_text and column.type in {ColumnType.TEXT, ColumnType.DATETIME}:
        return encode_matrix([[text] for text in _texts(tensor).tolist()], (column,))[column.name]
    if is_text or column.type is ColumnType.TEXT:
        raise _bad_datatype(tensor, _COLUMN_DATATYPES[column.type])
    values = tensor.values().reshape(-1)
    if values.dtype.kind == "b":
        return values.astype(np.float64)
    return _checked(values.astype(np.float64, copy=False), column)


def _checked(values: NDArray[np.float64], column: ColumnInfo) -> NDArray[Any]:
    """Return finite numbers as they are; any others as the rows' encoder judges them, NaN being missing."""
    if column.type is not ColumnType.BOOLEAN:
        few = len(values) <= _FEW_ROWS
        if all(map(math.isfinite, values.tolist())) if few else bool(np.isfinite(values).all()):
            return values
    return encode_matrix([[value] for value in values.tolist()], (column,))[column.name]


def _texts(tensor: Tensor) -> NDArray[Any]:
    texts = np.empty(tensor.spec.n_elements, dtype=object)
    texts[:] = [text_of(value, tensor.spec, i) for i, value in enumerate(tensor.values().reshape(-1).tolist())]
    return texts


def _whole_texts(tensor: Tensor) -> NDArray[Any]:
    """Return texts of which none is missing: a graph would take the missing one for the word "None"."""
    texts = _texts(tensor)
    if any(text is None for text in texts.tolist()):
        raise SpecError(
            "oip-data",
            f"input {shown(tensor.name)} holds null, and the graph knows no missing text",
            fix="send text; the empty one is text too",
            where=f"inputs, {shown(tensor.name)}",
        )
    return texts


def _entity_of(tensor: Tensor) -> list[str | None]:
    if tensor.spec.dtype.kind == "O":
        return _texts(tensor).tolist()
    return [str(value) for value in tensor.values().reshape(-1).tolist()]


def _best(name: str, values: NDArray[Any], n_best: int, classes: Sequence[str]) -> NDArray[Any]:
    """Return the best classes of each row as `value:index` or `value:index:label`, shape (n, at most n_best)."""
    if values.dtype.kind not in "fiu" or values.ndim != _SINGLE:
        raise SpecError(
            "oip-parameter",
            f"output {name!r} has no numbers by class to classify",
            fix="ask for 'probabilities', or leave classification out",
            where=f"outputs, {name!r}",
        )
    order = np.argsort(-values.astype(np.float64), axis=1, kind="stable")[:, :n_best]
    out = np.empty(order.shape, dtype=object)
    for i, row in enumerate(order.tolist()):
        for j, k in enumerate(row):
            label = f":{classes[k]}" if len(classes) == values.shape[1] else ""
            out[i, j] = f"{float(values[i, k]):f}:{k}{label}"
    return out


def _require_rows(n_rows: int, max_rows: int) -> None:
    if n_rows > max_rows:
        raise SpecError(
            "rows-too-many",
            f"{n_rows:,} rows; the limit is {max_rows:,}",
            fix="send fewer at a time, or score a table with `mulle predict`",
            where="inputs",
        )


def _unknown(kind: str, name: str, known: Sequence[str]) -> SpecError:
    like = nearest(name, known)
    return SpecError(
        "oip-input-unknown" if kind == "input" else "oip-output-unknown",
        f"there is no {kind} {shown(name)}",
        fix=f"did you mean {like!r}?" if like else f"use {', '.join(known)[:300]}",
        where=f"{kind}s, {shown(name)}",
    )


def _twice(kind: str, name: str) -> SpecError:
    return SpecError(
        "oip-input-twice" if kind == "input" else "oip-output-twice",
        f"{kind} {shown(name)} is there twice",
        fix="send each once",
        where=f"{kind}s, {shown(name)}",
    )


def _missing(name: str) -> SpecError:
    return SpecError(
        "oip-input-missing",
        f"input {shown(name)} is not there, and the model cannot do without it",
        fix=f"send {shown(name)}; `GET /v2/models/NAME` lists all",
        where=f"inputs, {shown(name)}",
    )


def _bad_shape(tensor: Tensor, wanted: str) -> SpecError:
    return SpecError(
        "oip-shape",
        f"input {shown(tensor.name)} has the shape {shown(list(tensor.shape))}",
        fix=f"send {wanted}",
        where=f"inputs, {shown(tensor.name)}",
    )


def _bad_datatype(tensor: Tensor, wanted: str) -> SpecError:
    return SpecError(
        "oip-datatype",
        f"input {shown(tensor.name)} has the datatype {tensor.spec.datatype}",
        fix=f"send {wanted}",
        where=f"inputs, {shown(tensor.name)}",
    )
