"""A file of feature values by entity: the newest row of every customer, machine or shop, ready to complete a request.

    8 bytes     magic
    4 bytes     length of the header, little-endian
    header      MessagePack: format, version, service, entity, columns, number of rows, when it was written; padded to 8 bytes
    n × 8       hashes of the entities, ascending
    (n+1) × 8   where each row begins, and where the last one ends
    rows        MessagePack, one array per row: entity, time in nanoseconds or null, one value per column
    32 bytes    SHA-256 of everything before

It is written beside its place and moved there whole, verified whole when it is read, and held in memory as it is: a row
costs its own bytes and 16 more, and becomes a dictionary only when it is asked for. It is not mapped into memory: somebody
who cuts a mapped file short kills every process that looks at it.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import numpy as np

from mulle.core.errors import CheckError, SpecError
from mulle.core.names import require_name
from mulle.core.schema import Column, ColumnType
from mulle.formats.bundle import ColumnInfo
from mulle.formats.envelope import read_limited
from mulle.formats.rows import decode_value, encode_rows

MAGIC = b"mulle-fr"
FORMAT = "mulle.feature-rows"
VERSION = 1
SUFFIX = ".features"
MAX_FILE_BYTES = 4 << 30
MAX_HEADER_BYTES = 1 << 20
MAX_ENTITY_CHARACTERS = 512
_DIGEST_BYTES = 32
_BATCH = 4096


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """The values of one entity, and since when they hold (nanoseconds since 1970-01-01 UTC; None: not known)."""

    entity: str
    values: Mapping[str, Any]
    time_ns: int | None = None


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: Literal["mulle.feature-rows"] = FORMAT
    version: Literal[1] = VERSION
    service: str
    entity: str
    columns: tuple[tuple[str, ColumnType], ...]
    n_rows: int
    written_ns: int


class FeatureTable:
    """A whole file in memory, by entity. Thread-safe: nothing changes after it was read.

    Attributes:
        service: Whose features these are.
        entity: The name of the key, as `customer_id`.
        columns: Their names and types, in the order of the file.
        n_rows: Number of entities.
        written_ns: When the file was written, nanoseconds since 1970-01-01 UTC.
    """

    def __init__(self, data: bytes, *, where: str = "") -> None:
        header, begin = _read_header(data, where)
        self.service = header.service
        self.entity = header.entity
        self.columns = tuple(Column(name, kind) for name, kind in header.columns)
        self.n_rows = header.n_rows
        self.written_ns = header.written_ns
        self._data = data
        self._names = tuple(name for name, _ in header.columns)
        n = header.n_rows
        self._begin = begin + 8 * n + 8 * (n + 1)
        if n < 0 or self._begin > len(data) - _DIGEST_BYTES:
            raise _unreadable("it names more rows than it holds", where)
        self._hashes = np.frombuffer(data, dtype="<u8", count=n, offset=begin)
        self._offsets = np.frombuffer(data, dtype="<u8", count=n + 1, offset=begin + 8 * n)
        end = len(data) - _DIGEST_BYTES - self._begin
        if int(self._offsets[0]) != 0 or int(self._offsets[-1]) != end or bool((self._offsets[:-1] > self._offsets[1:]).any()):
            raise _unreadable("its rows do not lie one behind the other", where)

    def __len__(self) -> int:
        return self.n_rows

    def get(self, entity: str) -> FeatureRow | None:
        """Return the row of an entity, or None when there is none; values are JSON values, datetimes seconds since 1970."""
        wanted = _hash(entity)
        i = int(np.searchsorted(self._hashes, np.uint64(wanted)))
        while i < self.n_rows and int(self._hashes[i]) == wanted:
            row = self._row(i)
            if row.entity == entity:
                return row
            i += 1
        return None

    def __iter__(self) -> Iterator[FeatureRow]:
        return (self._row(i) for i in range(self.n_rows))

    def _row(self, i: int) -> FeatureRow:
        piece = self._data[self._begin + int(self._offsets[i]) : self._begin + int(self._offsets[i + 1])]
        try:
            entity, time_ns, *values = cast("list[Any]", msgspec.msgpack.decode(piece))
            return FeatureRow(entity, dict(zip(self._names, values, strict=True)), time_ns)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, TypeError) as error:
            raise _unreadable(f"row {i} cannot be read", self.service) from error


def write_feature_rows(path: Path, rows: Iterable[FeatureRow], *, service: str, entity: str, columns: Sequence[Column], now_ns: int) -> int:
    """Return the number of rows written to `path`; readers see the old file or the new one, never a part.

    Args:
        path: Where; by custom `<service>.features`.
        rows: In any order, every entity once. A column that is absent or null is missing.
        service: The feature service the rows belong to.
        entity: The name of the key.
        columns: What the rows hold.
        now_ns: The time of writing, nanoseconds since 1970-01-01 UTC.

    Raises:
        SpecError: a value does not fit its column (as `/predict` would say), `features-entity`, `features-entity-twice`,
            `features-unwritable`.
    """
    require_name(service, "a feature service")
    packed = sorted(_pack(rows, columns))
    for (_, one, _), (_, other, _) in pairwise(packed):
        if one == other:
            raise SpecError("features-entity-twice", f"{entity} {one!r} has two rows", fix="write the newest one only", where=str(path))
    header = msgspec.msgpack.encode(
        _Header(
            service=service,
            entity=entity,
            columns=tuple((column.name, column.type) for column in columns),
            n_rows=len(packed),
            written_ns=now_ns,
        )
    )
    padding = -(len(MAGIC) + 4 + len(header)) % 8
    hashes = np.fromiter((key for key, _, _ in packed), dtype="<u8", count=len(packed))
    offsets = np.zeros(len(packed) + 1, dtype="<u8")
    offsets[1:] = np.cumsum([len(piece) for _, _, piece in packed], dtype=np.uint64)
    # What is behind the header's end is nil bytes: MessagePack's reader is given the exact length.
    parts = [MAGIC, len(header).to_bytes(4, "little"), header, bytes(padding), hashes.tobytes(), offsets.tobytes()]
    _write_whole(path, [*parts, *(piece for _, _, piece in packed)])
    return len(packed)


def read_feature_rows(path: Path) -> FeatureTable:
    """Return the table at `path`, every byte verified.

    Raises:
        SpecError: missing or too large.
        CheckError: `features-unreadable`: another format, a newer version, or not what was written.
    """
    return FeatureTable(read_limited(path, max_bytes=MAX_FILE_BYTES), where=str(path))


def _read_header(data: bytes, where: str) -> tuple[_Header, int]:
    """Return the header, and where what follows it begins."""
    if data[: len(MAGIC)] != MAGIC or len(data) < len(MAGIC) + 4 + _DIGEST_BYTES:
        raise _unreadable("it does not begin like one", where)
    size = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
    begin = len(MAGIC) + 4
    if size > min(MAX_HEADER_BYTES, len(data) - begin - _DIGEST_BYTES):
        raise _unreadable("its header is longer than the file", where)
    if hashlib.sha256(memoryview(data)[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise _unreadable("its bytes are not those that were written", where)
    try:
        header = msgspec.msgpack.decode(data[begin : begin + size], type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable(f"its header does not fit: {error}", where) from error
    return header, begin + size + -(begin + size) % 8


def _pack(rows: Iterable[FeatureRow], columns: Sequence[Column]) -> Iterator[tuple[int, str, bytes]]:
    """Yield hash, entity and bytes of every row, its values checked as a request's would be."""
    infos = [ColumnInfo(column.name, column.type, column.nullable) for column in columns]
    left = iter(rows)
    while batch := list(islice(left, _BATCH)):
        for row in batch:
            if not row.entity or len(row.entity) > MAX_ENTITY_CHARACTERS or not _is_whole(row.entity):
                raise SpecError(
                    "features-entity",
                    f"an entity is called {row.entity[:80]!r}",
                    fix=f"use 1 to {MAX_ENTITY_CHARACTERS} characters of whole Unicode",
                )
        arrays = _encode(batch, infos)
        lists = [[decode_value(value, info.type) for value in arrays[info.name]] for info in infos]
        for i, row in enumerate(batch):
            yield _hash(row.entity), row.entity, msgspec.msgpack.encode([row.entity, row.time_ns, *(values[i] for values in lists)])


def _encode(batch: Sequence[FeatureRow], infos: Sequence[ColumnInfo]) -> Mapping[str, Any]:
    try:
        return encode_rows([row.values for row in batch], infos)
    except SpecError:
        for row in batch:
            try:
                encode_rows([row.values], infos)
            except SpecError as error:
                # A row number within a batch tells nobody which of a million rows it is.
                raise SpecError(
                    error.code, f"entity {row.entity!r}: {error.what}", fix=error.fix, where=f"entity {row.entity!r}"
                ) from error
        raise


def _write_whole(path: Path, parts: Iterable[bytes]) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            for part in parts:
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise SpecError(
            "features-unwritable",
            f"{path.name!r} cannot be written: {error.strerror}",
            fix="check the folder and the free space",
            where=str(path),
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _hash(entity: str) -> int:
    return int.from_bytes(hashlib.blake2b(entity.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _is_whole(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _unreadable(what: str, where: str) -> CheckError:
    return CheckError(
        "features-unreadable", f"this is not a file of feature rows: {what}", fix="write it again where its features come from", where=where
    )
