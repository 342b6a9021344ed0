"""The rows of a segment after the keeper: merged per source, column by column, compressed.

    payload = length of meta u32 | meta (MessagePack) | sections

Each section is one array of one column. Numbers that rise row by row (time, running numbers) are stored as differences. Most
numbers get smaller with their bytes sorted by significance, because exponents and upper digits repeat and lower ones do not;
prices and the like, whole values that come again, do not: each column's first rows decide. Every section carries the
checksum of its bytes before compression: what comes out is what went in.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.prediction_block import PREFIX_DIGITS, Rows, Source, code_type, objects, unreadable

LEVEL = 1
"""Of zlib. Measured on logged rows: higher levels cost two to six times the time and save less than a tenth of the bytes."""
MAX_ROWS = 1 << 16
"""Rows of one merged block: what finding a single prediction has to unpack."""
MAX_SECTION_BYTES = 1 << 30
_LENGTH = struct.Struct("<I")
_PROBE = 4096


class Section(msgspec.Struct, frozen=True, array_like=True):
    """One array of a merged block.

    Attributes:
        kind: numpy type of the elements; `words` for MessagePack.
        n_bytes: Of the section as it is stored.
        n_raw_bytes: Of the array.
        crc: CRC-32 of the array's bytes.
        packed: Whether zlib has compressed it.
        delta: Whether differences are stored.
        shuffled: Whether the first byte of all elements comes first, then the second.
    """

    kind: str
    n_bytes: int
    n_raw_bytes: int
    crc: int
    packed: bool
    delta: bool = False
    shuffled: bool = False


class ColumnsMeta(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a merged block."""

    source: int
    n_rows: int
    since_ns: int
    until_ns: int
    first: int
    last: int
    n_outputs: int
    has_ids: bool
    has_entity: bool
    sections: list[Section]


class OutcomeTotals(msgspec.Struct, frozen=True, kw_only=True):
    """The last frame of an encoded segment: what it must hold, and what its raw segment lacked.

    Attributes:
        n_rows: Rows of all merged blocks.
        n_blocks: Frames of merged blocks.
        n_outcomes: Stretches of counted outcomes.
        raw_bytes: Size of the raw segment.
        missing_frames: As the reader of the raw segment counted them.
        torn_tails: The same.
        corrupt_frames: The same.
        lost_bytes: The same.
    """

    n_rows: int
    n_blocks: int
    n_outcomes: int
    raw_bytes: int
    missing_frames: int = 0
    torn_tails: int = 0
    corrupt_frames: int = 0
    lost_bytes: int = 0


def merge_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several blocks of one source, in the order given."""
    first = parts[0]
    if len(parts) == 1:
        return first
    n = sum(len(part) for part in parts)
    return Rows(
        source=first.source,
        prefix=first.prefix,
        sequence=np.concatenate([part.sequence for part in parts]),
        time_ns=np.concatenate([part.time_ns for part in parts]),
        number=np.concatenate([part.number for part in parts]),
        latency_us=np.concatenate([part.latency_us for part in parts]),
        status=np.concatenate([part.status for part in parts]),
        ids=_some([(part.ids, len(part)) for part in parts], n),
        arrays={column.name: np.concatenate([part.arrays[column.name] for part in parts]) for column in first.source.columns},
        outputs=np.concatenate([part.outputs for part in parts]),
        entity=_some([(part.entity, len(part)) for part in parts], n),
    )


def encode_columns(rows: Rows, *, source: int, level: int = LEVEL) -> bytes:
    """Return the payload of one merged block.

    Args:
        rows: At least one.
        source: Number of their source in the segment.
        level: Of zlib, 1 to 9.
    """
    sections: list[Section] = []
    bodies: list[bytes] = []

    def put(values: NDArray[Any], kind: str, *, delta: bool = False) -> None:
        section, body = _pack(values.astype(kind, copy=False), kind, delta=delta, level=level)
        sections.append(section)
        bodies.append(body)

    def put_text(values: Sequence[str | None]) -> None:
        seen: dict[str | None, int] = {None: 0}
        numbers = [seen.setdefault(value, len(seen)) for value in values]
        put_words([value for value in seen if value is not None])
        put(np.array(numbers), code_type(len(seen)))

    def put_words(words: list[Any]) -> None:
        data = msgspec.msgpack.encode(words)
        packed = zlib.compress(data, level)
        sections.append(Section("words", len(packed), len(data), zlib.crc32(data), packed=True))
        bodies.append(packed)

    put(rows.sequence, "<i8", delta=True)
    put(rows.time_ns, "<i8", delta=True)
    put(rows.number, "<i8", delta=True)
    put(rows.latency_us, "<u4")
    put(rows.status, "<u2")
    for j in range(rows.outputs.shape[1]):
        put(rows.outputs[:, j], "<f4")
    for column in rows.source.columns:
        values = rows.arrays[column.name]
        if column.type is ColumnType.TEXT:
            put_text([None if v == MISSING_TEXT else v for v in values.tolist()])
        else:
            put(values, "<f8")
    if rows.ids is not None:
        put_words(rows.ids.tolist())
    if rows.entity is not None:
        put_text(rows.entity.tolist())
    meta = ColumnsMeta(
        source=source,
        n_rows=len(rows),
        since_ns=int(rows.time_ns.min()),
        until_ns=int(rows.time_ns.max()),
        first=int(rows.number.min()),
        last=int(rows.number.max()),
        n_outputs=int(rows.outputs.shape[1]),
        has_ids=rows.ids is not None,
        has_entity=rows.entity is not None,
        sections=sections,
    )
    head = msgspec.msgpack.encode(meta)
    return b"".join((_LENGTH.pack(len(head)), head, *bodies))


def decode_columns_meta(payload: memoryview) -> tuple[ColumnsMeta, int]:
    """Return the head of a merged block, and where its sections begin.

    Raises:
        CheckError: `segment-unreadable`.
    """
    try:
        (length,) = _LENGTH.unpack_from(payload, 0)
        return msgspec.msgpack.decode(payload[_LENGTH.size : _LENGTH.size + length], type=ColumnsMeta), _LENGTH.size + length
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable(str(error)) from error


def decode_columns(payload: memoryview, source: Source, prefix: int) -> Rows:
    """Return the rows of a merged block, every section's checksum compared.

    Raises:
        CheckError: `segment-unreadable`.
    """
    meta, at = decode_columns_meta(payload)
    sections = _Sections(payload, meta, at)
    sequence, time_ns, number, latency, status = (sections.array() for _ in range(5))
    outputs = np.empty((meta.n_rows, meta.n_outputs), dtype=np.float32)
    for j in range(meta.n_outputs):
        outputs[:, j] = sections.array()
    arrays: dict[str, NDArray[Any]] = {}
    for column in source.columns:
        arrays[column.name] = sections.text(MISSING_TEXT) if column.type is ColumnType.TEXT else sections.array()
    return Rows(
        source=source,
        prefix=prefix,
        sequence=sequence,
        time_ns=time_ns,
        number=number,
        latency_us=latency,
        status=status,
        ids=objects(sections.words()) if meta.has_ids else None,
        arrays=arrays,
        outputs=outputs,
        entity=sections.text(None) if meta.has_entity else None,
    )


def may_hold(meta: ColumnsMeta, prediction_id: str, prefix: int) -> bool:
    """Return whether a merged block can hold the row of a prediction id, without unpacking it."""
    if meta.has_ids:
        return True
    head = f"{prefix:0{PREFIX_DIGITS}x}"
    if not prediction_id.startswith(head):
        return False
    try:
        return meta.first <= int(prediction_id[PREFIX_DIGITS:], 16) <= meta.last
    except ValueError:
        return False


class _Sections:
    """The sections of a merged block, unpacked one after the other."""

    def __init__(self, payload: memoryview, meta: ColumnsMeta, at: int) -> None:
        self._payload, self._meta, self._at, self._next = payload, meta, at, 0

    def array(self) -> NDArray[Any]:
        """Return the next section as an array with one element per row."""
        section, data = self._take()
        try:
            kind = np.dtype(section.kind)
            values = np.frombuffer(data, kind)
        except (ValueError, TypeError) as error:
            raise unreadable(str(error)) from error
        if values.shape[0] != self._meta.n_rows:
            raise unreadable(f"{values.shape[0]} values for {self._meta.n_rows} rows")
        return values

    def words(self) -> list[Any]:
        """Return the next section as a list."""
        try:
            return msgspec.msgpack.decode(self._take()[1], type=list[Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise unreadable(str(error)) from error

    def text(self, missing: str | None) -> NDArray[Any]:
        """Return the next two sections, dictionary and codes, as an array of objects."""
        table = objects([missing, *self.words()])
        try:
            return table[self.array()]
        except IndexError as error:
            raise unreadable(str(error)) from error

    def _take(self) -> tuple[Section, bytes]:
        if self._next >= len(self._meta.sections):
            raise unreadable("sections are missing")
        section = self._meta.sections[self._next]
        body = self._payload[self._at : self._at + section.n_bytes]
        self._next += 1
        self._at += section.n_bytes
        if section.n_raw_bytes > MAX_SECTION_BYTES:
            raise unreadable(f"a section of {section.n_raw_bytes} bytes")
        try:
            data = _unpack(section, body)
        except (zlib.error, ValueError, TypeError) as error:
            raise unreadable(str(error)) from error
        if len(data) != section.n_raw_bytes or zlib.crc32(data) != section.crc:
            raise unreadable("a section is not what was written")
        return section, data


def _pack(values: NDArray[Any], kind: str, *, delta: bool, level: int) -> tuple[Section, bytes]:
    values = np.ascontiguousarray(values)
    raw = values.tobytes()
    stored = np.diff(values, prepend=values.dtype.type(0)) if delta else values
    probe = stored[:_PROBE]
    shuffled = values.dtype.itemsize > 1 and len(zlib.compress(_shuffled(probe), level)) < len(zlib.compress(probe.tobytes(), level))
    data = _shuffled(stored) if shuffled else stored.tobytes()
    body = zlib.compress(data, level)
    # Noise does not get smaller: reading it back should not cost a decompression.
    packed = len(body) < len(data)
    body = body if packed else data
    return Section(kind, len(body), len(raw), zlib.crc32(raw), packed, delta, shuffled), body


def _unpack(section: Section, body: memoryview) -> bytes:
    # Bounded: a changed length must not fill the memory.
    data = zlib.decompressobj().decompress(body, section.n_raw_bytes + 1) if section.packed else bytes(body)
    if section.kind == "words":
        return data
    kind = np.dtype(section.kind)
    if section.shuffled:
        data = np.frombuffer(data, np.uint8).reshape(kind.itemsize, -1).T.tobytes()
    return np.cumsum(np.frombuffer(data, kind), dtype=kind).tobytes() if section.delta else data


def _shuffled(values: NDArray[Any]) -> bytes:
    """Return the bytes of the values, the first byte of all of them first."""
    return values.view(np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()


def _some(parts: Sequence[tuple[NDArray[Any] | None, int]], n: int) -> NDArray[Any] | None:
    if all(values is None for values, _ in parts):
        return None
    out = np.full(n, None, dtype=object)
    at = 0
    for values, size in parts:
        if values is not None:
            out[at : at + size] = values
        at += size
    return out
