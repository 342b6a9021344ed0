"""One block of the prediction log: the rows of one batch, many requests together, as the server writes them.

    payload = length of meta u32 | meta (MessagePack) | numbers float64 (n, m) | outputs float32 (n, k) | latency u32 (n)
              | status u16 (n), where rows differ | row numbers u32 (n), where rows were left out | text codes, column by column

Numbers are one copy of the matrix they were computed from, row by row. A text column, and the entity, is a dictionary in
`meta` and one unsigned code per row; code 0 is *missing*. Each block stands alone: losing one loses no other.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import CheckError, SpecError
from mulle.core.schema import MISSING_TEXT, ColumnType

_LENGTH = struct.Struct("<I")
PREFIX_DIGITS = 16
_COUNTER_DIGITS = 12
ID_DIGITS = PREFIX_DIGITS + _COUNTER_DIGITS


class LoggedColumn(msgspec.Struct, frozen=True):
    """A raw column as it is logged."""

    name: str
    type: ColumnType


class Source(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """What answered: a revision, and everything needed to read its rows without any other file."""

    source: int
    """Number of this source within its segment; blocks point at it."""
    revision: int
    model: str
    model_version: int
    bundle_digest: str
    run_id: str = ""
    task: Literal["binary", "multiclass", "regression", "tensor"]
    classes: tuple[str, ...] = ()
    positive: str | None = None
    entity: str | None = None
    columns: tuple[LoggedColumn, ...]
    redacted: tuple[str, ...] = ()
    """Columns, and the entity's, whose values were kept out of the log: missing here does not mean missing in the request."""

    @property
    def n_numbers(self) -> int:
        """How many columns are numbers: the width of a block's matrix."""
        return sum(column.type is not ColumnType.TEXT for column in self.columns)


class PredictionBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one batch, of one request or of many, before they are logged.

    Attributes:
        source: What answered; its `source` number is set by the writer.
        time_ns: When the answers were computed, nanoseconds since 1970-01-01 UTC.
        latency_us: Microseconds from request to answer: shape (n,) uint32, or one number for all rows.
        outputs: Shape (n, k) float32.
        first: The number of the first row in the writer's sequence; rows have consecutive numbers.
        numbers: Shape (n, m) float64: the columns that are not text, in the order of the source; None where there are none.
        texts: Name of a text column to shape (n,) str objects, `MISSING_TEXT` for missing.
        arrays: Instead of `numbers` and `texts`: raw column name to shape (n,), as `formats/rows.py` makes them.
        ids: The client's own ids; None for a row without one, and for all rows where no client gave any.
        entity: The entity's value per row; None where not sent.
        status: The HTTP status of the answers: shape (n,) uint16, or one number for all rows.
        n_requests: How many requests the rows came with.
    """

    source: Source
    time_ns: int
    latency_us: NDArray[np.uint32] | int
    outputs: NDArray[np.float32]
    first: int
    numbers: NDArray[np.float64] | None = None
    texts: Mapping[str, NDArray[Any]] | None = None
    arrays: Mapping[str, NDArray[Any]] | None = None
    ids: Sequence[str | None] | None = None
    entity: Sequence[str | None] | None = None
    status: NDArray[np.uint16] | int = 200
    n_requests: int = 1

    def matrix(self) -> NDArray[np.float64] | None:
        """Return the numbers as one matrix; None where no column is a number."""
        if self.arrays is None:
            return self.numbers
        columns = [self.arrays[column.name] for column in self.source.columns if column.type is not ColumnType.TEXT]
        return np.column_stack(columns).astype(np.float64, copy=False) if columns else None

    def words(self) -> Mapping[str, NDArray[Any]]:
        """Return the text columns."""
        return (self.texts or {}) if self.arrays is None else self.arrays


class BlockMeta(msgspec.Struct, frozen=True, array_like=True):
    """The head of a block.

    Attributes:
        sequence: The writer's running number of the block.
        source: Which source's rows these are.
        n_rows: Rows of the block.
        time_ns: As in `PredictionBatch`.
        first: Number of the first row.
        ids: As in `PredictionBatch`.
        texts: Dictionary of each text column in turn, then the entity's.
        has_entity: Whether the entity was given.
        n_outputs: Columns of the outputs.
        status: Of all rows; 0: each has its own.
        picked: Whether rows were left out, so that each says its offset from `first`.
    """

    sequence: int
    source: int
    n_rows: int
    time_ns: int
    first: int
    ids: Sequence[str | None] | None
    texts: list[list[str]]
    has_entity: bool
    n_outputs: int
    status: int = 200
    picked: bool = False


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one source as read back; every array has one element per row.

    Attributes:
        source: What answered them.
        prefix: The writer's.
        sequence: int64: the running number of the block each row came in.
        time_ns: int64.
        number: int64: the row's number in the writer's sequence.
        latency_us: uint32.
        status: uint16.
        ids: The client's own ids, None where it gave none; None for no row at all.
        arrays: Raw column name to float64 or str objects.
        outputs: Shape (n, k) float32.
        entity: str objects or None; None for no row at all.
    """

    source: Source
    prefix: int
    sequence: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    number: NDArray[np.int64]
    latency_us: NDArray[np.uint32]
    status: NDArray[np.uint16]
    ids: NDArray[Any] | None
    arrays: dict[str, NDArray[Any]]
    outputs: NDArray[np.float32]
    entity: NDArray[Any] | None

    def __len__(self) -> int:
        return int(self.time_ns.shape[0])

    def id_at(self, row: int) -> str:
        """Return the prediction id of a row."""
        own = None if self.ids is None else self.ids[row]
        return format_id(self.prefix, int(self.number[row])) if own is None else own

    def all_ids(self) -> list[str]:
        """Return every row's prediction id."""
        head = f"{self.prefix:0{PREFIX_DIGITS}x}"
        own = [f"{head}{number:0{_COUNTER_DIGITS}x}" for number in self.number.tolist()]
        if self.ids is None:
            return own
        return [number if chosen is None else chosen for chosen, number in zip(self.ids.tolist(), own, strict=True)]


def format_id(prefix: int, number: int) -> str:
    """Return the prediction id of a writer's row: 28 hexadecimal digits, the writer's prefix first."""
    return f"{prefix:016x}{number:012x}"


def encode_block(
    batch: PredictionBatch, *, sequence: int, source: int, n_numbers: int, texts: Sequence[str], kept: NDArray[np.bool_] | None = None
) -> bytes:
    """Return the payload of one block.

    Args:
        batch: The rows.
        sequence: The writer's running number.
        source: Number of the source in its segment.
        n_numbers: `source.n_numbers`, worked out once per source.
        texts: Names of the source's text columns, in order.
        kept: The rows to log; None: all of them.

    Raises:
        SpecError: `log-batch-shape`: an array has another shape than the source says.
    """
    outputs = batch.outputs
    matrix = batch.numbers if batch.arrays is None else batch.matrix()
    n_rows, n_outputs = outputs.shape
    if n_numbers and (matrix is None or matrix.shape != (n_rows, n_numbers)):
        shape = None if matrix is None else matrix.shape
        raise SpecError(
            "log-batch-shape", f"numbers of shape {shape} for {n_rows} rows of {n_numbers} numbers", fix="this is a bug: report it"
        )
    latency, status, ids, entity = batch.latency_us, batch.status, batch.ids, batch.entity
    if isinstance(latency, int):
        latency = np.full(n_rows, latency, dtype=np.uint32)
    rest: list[bytes] = []
    common = 0
    if isinstance(status, int):
        common = status
    else:
        rest.append(np.ascontiguousarray(status if kept is None else status[kept], dtype="<u2").tobytes())
    codes: list[list[str]] = []
    words: Mapping[str, NDArray[Any]] = batch.words() if texts else {}
    columns: list[NDArray[Any]] = [words[name] for name in texts]
    if kept is not None:
        (offsets,) = np.nonzero(kept)
        rest.append(offsets.astype("<u4").tobytes())
        columns = [values[kept] for values in columns]
        matrix, outputs, latency = None if matrix is None else matrix[kept], outputs[kept], latency[kept]
        ids = None if ids is None else [ids[i] for i in offsets.tolist()]
        entity = None if entity is None else [entity[i] for i in offsets.tolist()]
        n_rows = len(offsets)
    for values in columns:
        _encode_text([None if v == MISSING_TEXT else v for v in values.tolist()], codes, rest)
    if entity is not None:
        _encode_text(entity, codes, rest)
    meta = BlockMeta(
        sequence, source, n_rows, batch.time_ns, batch.first, ids, codes, entity is not None, n_outputs, common, kept is not None
    )
    head = msgspec.msgpack.encode(meta)
    return b"".join(
        (
            _LENGTH.pack(len(head)),
            head,
            b"" if matrix is None or not n_numbers else np.ascontiguousarray(matrix, dtype="<f8").tobytes(),
            np.ascontiguousarray(outputs, dtype="<f4").tobytes(),
            np.ascontiguousarray(latency, dtype="<u4").tobytes(),
            *rest,
        )
    )


def decode_meta(payload: memoryview) -> tuple[BlockMeta, int]:
    """Return the head of a block, and where its arrays begin.

    Raises:
        CheckError: `segment-unreadable`.
    """
    try:
        (length,) = _LENGTH.unpack_from(payload, 0)
        return msgspec.msgpack.decode(payload[_LENGTH.size : _LENGTH.size + length], type=BlockMeta), _LENGTH.size + length
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable(str(error)) from error


def decode_block(payload: memoryview, source: Source, prefix: int) -> Rows:
    """Return the rows of a block.

    Raises:
        CheckError: `segment-unreadable`: the checksum is right and the content is not: another writer's format.
    """
    meta, at = decode_meta(payload)
    n = meta.n_rows
    numeric = [column.name for column in source.columns if column.type is not ColumnType.TEXT]
    try:
        matrix = np.frombuffer(payload, "<f8", n * len(numeric), at).reshape(n, len(numeric))
        at += matrix.nbytes
        outputs = np.frombuffer(payload, "<f4", n * meta.n_outputs, at).reshape(n, meta.n_outputs)
        at += outputs.nbytes
        latency = np.frombuffer(payload, "<u4", n, at)
        at += latency.nbytes
        if meta.status:
            status = np.full(n, meta.status, dtype=np.uint16)
        else:
            status = np.frombuffer(payload, "<u2", n, at)
            at += status.nbytes
        if meta.picked:
            number = meta.first + np.frombuffer(payload, "<u4", n, at).astype(np.int64)
            at += 4 * n
        else:
            number = np.arange(meta.first, meta.first + n, dtype=np.int64)
        found: dict[str, NDArray[Any]] = {name: matrix[:, j] for j, name in enumerate(numeric)}
        texts = iter(meta.texts)
        for column in source.columns:
            if column.type is ColumnType.TEXT:
                found[column.name], at = _decode_text(payload, at, n, next(texts), MISSING_TEXT)
        entity = None
        if meta.has_entity:
            entity, at = _decode_text(payload, at, n, next(texts), None)
        return Rows(
            source=source,
            prefix=prefix,
            sequence=np.full(n, meta.sequence, dtype=np.int64),
            time_ns=np.full(n, meta.time_ns, dtype=np.int64),
            number=number,
            latency_us=latency,
            status=status,
            ids=None if meta.ids is None else objects(meta.ids),
            arrays={column.name: found[column.name] for column in source.columns},
            outputs=outputs,
            entity=entity,
        )
    except (ValueError, IndexError, StopIteration) as error:
        raise unreadable(str(error)) from error


def objects(values: Sequence[Any]) -> NDArray[Any]:
    """Return the values as an array of objects, shape (n,), whatever they are."""
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def code_type(n_codes: int) -> str:
    """Return the smallest unsigned type that holds `n_codes` dictionary codes."""
    if n_codes <= 1 << 8:
        return "<u1"
    return "<u2" if n_codes <= 1 << 16 else "<u4"


def unreadable(reason: str) -> CheckError:
    """Return the error for bytes whose checksum is right and whose content is not."""
    return CheckError(
        "segment-unreadable", f"a block of the log cannot be read: {reason[:200]}", fix="upgrade Mulle: another version wrote it"
    )


def _encode_text(values: Sequence[str | None], texts: list[list[str]], codes: list[bytes]) -> None:
    seen: dict[str | None, int] = {None: 0}
    numbers = [seen.setdefault(value, len(seen)) for value in values]
    texts.append([value for value in seen if value is not None])
    codes.append(np.array(numbers, dtype=code_type(len(seen))).tobytes())


def _decode_text(payload: memoryview, at: int, n: int, words: list[str], missing: str | None) -> tuple[NDArray[Any], int]:
    kind = code_type(len(words) + 1)
    table = np.empty(len(words) + 1, dtype=object)
    table[0] = missing
    table[1:] = words
    codes = np.frombuffer(payload, kind, n, at)
    return table[codes], at + n * np.dtype(kind).itemsize
