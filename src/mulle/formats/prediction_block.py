"""One block of the prediction log: the rows of one request, column by column.

    payload = length of meta u32 | meta (MessagePack) | float64 columns | text codes | float32 outputs

Numbers are copied as the float64 block they were computed from. A text column, and the entity, is a dictionary in
`meta` and one unsigned code per row; code 0 is *missing*. Each block stands alone: losing one loses no other.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import CheckError
from mulle.core.schema import MISSING_TEXT, ColumnType

_LENGTH = struct.Struct("<I")
_PREFIX_DIGITS = 16
_COUNTER_DIGITS = 12
ID_DIGITS = _PREFIX_DIGITS + _COUNTER_DIGITS


class LoggedColumn(msgspec.Struct, frozen=True):
    """A raw column as it is logged."""

    name: str
    type: ColumnType


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What answered: a revision, and everything needed to read its rows without any other file."""

    source: int
    """Number of this source within its segment; blocks point at it."""
    revision: int
    model: str
    model_version: int
    bundle_digest: str
    run_id: str = ""
    task: Literal["binary", "multiclass", "regression"]
    classes: tuple[str, ...] = ()
    positive: str | None = None
    entity: str | None = None
    columns: tuple[LoggedColumn, ...]


class PredictionBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one answered request, before they are logged.

    Attributes:
        source: What answered; its `source` number is set by the writer.
        time_ns: When the answer was computed, nanoseconds since 1970-01-01 UTC.
        latency_us: Microseconds from request to answer.
        arrays: Raw column name to shape (n,), as `formats/rows.py` makes them.
        outputs: Shape (n, k) float32.
        first: The number of the first row in the writer's sequence; rows have consecutive numbers.
        ids: The client's own ids, where it gave any; then `first` is not used.
        entity: The entity's value per row; None where not sent.
        status: The HTTP status of the answer.
    """

    source: Source
    time_ns: int
    latency_us: int
    arrays: Mapping[str, NDArray[Any]]
    outputs: NDArray[np.float32]
    first: int
    ids: Sequence[str] | None = None
    entity: Sequence[str | None] | None = None
    status: int = 200


class BlockMeta(msgspec.Struct, frozen=True, array_like=True):
    """The head of a block."""

    sequence: int
    source: int
    n_rows: int
    time_ns: int
    latency_us: int
    status: int
    first: int
    ids: list[str] | None
    texts: list[list[str]]
    has_entity: bool
    n_outputs: int


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A block as read back."""

    meta: BlockMeta
    arrays: dict[str, NDArray[Any]]
    outputs: NDArray[np.float32]
    entity: NDArray[Any] | None


def format_id(prefix: int, number: int) -> str:
    """Return the prediction id of a writer's row: 28 hexadecimal digits, the writer's prefix first."""
    return f"{prefix:016x}{number:012x}"


def encode_block(batch: PredictionBatch, *, sequence: int, source: int) -> bytes:
    """Return the payload of one block."""
    n_rows = int(batch.outputs.shape[0])
    numbers: list[bytes] = []
    codes: list[bytes] = []
    texts: list[list[str]] = []
    for column in batch.source.columns:
        values = batch.arrays[column.name]
        if column.type is ColumnType.TEXT:
            _encode_text([None if v == MISSING_TEXT else v for v in values.tolist()], texts, codes)
        else:
            numbers.append(np.ascontiguousarray(values, dtype="<f8").tobytes())
    if batch.entity is not None:
        _encode_text(batch.entity, texts, codes)
    meta = BlockMeta(
        sequence,
        source,
        n_rows,
        batch.time_ns,
        batch.latency_us,
        batch.status,
        batch.first,
        None if batch.ids is None else list(batch.ids),
        texts,
        batch.entity is not None,
        int(batch.outputs.shape[1]),
    )
    head = msgspec.msgpack.encode(meta)
    return b"".join([_LENGTH.pack(len(head)), head, *numbers, *codes, np.ascontiguousarray(batch.outputs, dtype="<f4").tobytes()])


def decode_meta(payload: memoryview) -> tuple[BlockMeta, int]:
    """Return the head of a block, and where its columns begin.

    Raises:
        CheckError: `segment-unreadable`.
    """
    try:
        (length,) = _LENGTH.unpack_from(payload, 0)
        return msgspec.msgpack.decode(payload[_LENGTH.size : _LENGTH.size + length], type=BlockMeta), _LENGTH.size + length
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable(str(error)) from error


def decode_block(payload: memoryview, sources: Mapping[int, Source]) -> Block:
    """Return a block with its columns as arrays.

    Raises:
        CheckError: `segment-unreadable`: the checksum is right and the content is not: another writer's format.
    """
    meta, at = decode_meta(payload)
    source = sources.get(meta.source)
    if source is None:
        raise _unreadable(f"no source {meta.source}")
    n = meta.n_rows
    arrays: dict[str, NDArray[Any]] = {}
    try:
        for column in source.columns:
            if column.type is not ColumnType.TEXT:
                arrays[column.name] = np.frombuffer(payload, "<f8", n, at)
                at += 8 * n
        texts = iter(meta.texts)
        for column in source.columns:
            if column.type is ColumnType.TEXT:
                arrays[column.name], at = _decode_text(payload, at, n, next(texts), MISSING_TEXT)
        entity = None
        if meta.has_entity:
            entity, at = _decode_text(payload, at, n, next(texts), None)
        outputs = np.frombuffer(payload, "<f4", n * meta.n_outputs, at).reshape(n, meta.n_outputs)
    except (ValueError, IndexError, StopIteration) as error:
        raise _unreadable(str(error)) from error
    return Block(meta=meta, arrays={c.name: arrays[c.name] for c in source.columns}, outputs=outputs, entity=entity)


def _encode_text(values: Sequence[str | None], texts: list[list[str]], codes: list[bytes]) -> None:
    seen: dict[str | None, int] = {None: 0}
    numbers = [seen.setdefault(value, len(seen)) for value in values]
    texts.append([value for value in seen if value is not None])
    codes.append(np.array(numbers, dtype=_code_type(len(seen))).tobytes())


def _decode_text(payload: memoryview, at: int, n: int, words: list[str], missing: str | None) -> tuple[NDArray[Any], int]:
    kind = _code_type(len(words) + 1)
    table = np.empty(len(words) + 1, dtype=object)
    table[0] = missing
    table[1:] = words
    codes = np.frombuffer(payload, kind, n, at)
    return table[codes], at + n * np.dtype(kind).itemsize


def _code_type(n_codes: int) -> str:
    if n_codes <= 1 << 8:
        return "<u1"
    return "<u2" if n_codes <= 1 << 16 else "<u4"


def _unreadable(reason: str) -> CheckError:
    return CheckError(
        "segment-unreadable", f"a block of the log cannot be read: {reason[:200]}", fix="upgrade Mulle: another version wrote it"
    )
