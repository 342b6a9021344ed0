"""Turns a closed raw segment into an encoded one; killed at any instruction it loses nothing and doubles nothing.

    1. read X.mseg, merge its blocks per source, write .X.mcol.tmp, sync it
    2. read that back: every checksum, every count
    3. rename it to X.mcol, sync the folder        from here on readers take X.mcol
    4. delete X.mseg

Before 3 the raw segment counts, after it the encoded one; a keeper that finds both begins again at 2.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from mulle.core.errors import CheckError
from mulle.formats.prediction_block import Rows
from mulle.formats.prediction_columns import LEVEL, MAX_ROWS, OutcomeTotals, encode_columns, merge_rows
from mulle.formats.prediction_frames import (
    ENCODED_SUFFIX,
    FORMAT,
    KIND_COLUMNS,
    KIND_END,
    KIND_HEADER,
    KIND_OUTCOME_LIST,
    KIND_SOURCE,
    VERSION,
    SegmentHeader,
)
from mulle.formats.prediction_reader import SegmentFacts, rows_of
from mulle.formats.segment import MAGIC, frame, lock_closed, sync_folder

DRAFT_SUFFIX = ".tmp"


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of a raw segment.

    Attributes:
        path: The encoded segment; None where the raw one held nothing at all.
        n_rows: Rows in it.
        raw_bytes: Size of the raw segment.
        encoded_bytes: Size of the encoded one.
    """

    path: Path | None
    n_rows: int
    raw_bytes: int
    encoded_bytes: int


@dataclass(slots=True)
class _Draft:
    """An encoded segment being written: rows wait per source until a block is full."""

    out: BinaryIO
    facts: SegmentFacts
    level: int
    waiting: dict[int, list[Rows]] = field(default_factory=dict[int, list[Rows]])
    n_waiting: dict[int, int] = field(default_factory=dict[int, int])
    described: set[int] = field(default_factory=set[int])
    n_rows: int = 0
    n_blocks: int = 0

    def add(self, rows: Rows) -> None:
        """Take rows; write their source's block once it is full."""
        source = rows.source.source
        self.waiting.setdefault(source, []).append(rows)
        self.n_waiting[source] = self.n_waiting.get(source, 0) + len(rows)
        if self.n_waiting[source] >= MAX_ROWS:
            self.flush(source)

    def flush(self, source: int) -> None:
        """Write what waits of one source."""
        rows = merge_rows(self.waiting.pop(source))
        self.n_waiting[source] = 0
        if source not in self.described:
            self.out.write(frame(KIND_SOURCE, msgspec.msgpack.encode(rows.source)))
            self.described.add(source)
        self.out.write(frame(KIND_COLUMNS, encode_columns(rows, source=source, level=self.level)))
        self.n_rows += len(rows)
        self.n_blocks += 1


def encode_segment(raw: Path, *, level: int = LEVEL) -> Encoded | None:
    """Return what became of a raw segment; None while its writer is still at it, or when it is gone.

    Args:
        raw: `<folder>/<stem>.mseg`.
        level: Of zlib.

    Raises:
        CheckError: the segment is of another version, or what was written does not read back (`segment-verify`); it stays.
        OSError: the disk is full or failing; the raw segment stays.
    """
    lock = lock_closed(raw)
    if lock is None:
        return None
    try:
        return _encode(raw, level)
    finally:
        os.close(lock)


def _encode(raw: Path, level: int) -> Encoded:
    content = raw.read_bytes()
    encoded = raw.with_suffix(ENCODED_SUFFIX)
    if encoded.exists():
        # A keeper was killed between the last two steps. While the raw one is there it decides what is right.
        facts = SegmentFacts()
        n_rows = sum(len(rows) for rows in rows_of(raw, content, facts))
        with suppress(CheckError):
            _verify(encoded, encoded.read_bytes(), facts, n_rows)
            return _done(raw, encoded, n_rows, len(content))
    draft = raw.with_name(f".{encoded.name}{DRAFT_SUFFIX}")
    try:
        facts, n_rows = _write(draft, raw, content, level)
        if facts.n_rows or facts.outcomes or facts.missing_frames or facts.damage.torn_tails or facts.damage.corrupt_frames:
            _verify(encoded, draft.read_bytes(), facts, n_rows)
            draft.rename(encoded)
            sync_folder(raw.parent)
            return _done(raw, encoded, n_rows, len(content))
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return _done(raw, None, 0, len(content))


def _write(draft: Path, raw: Path, content: bytes, level: int) -> tuple[SegmentFacts, int]:
    facts = SegmentFacts()
    with draft.open("wb") as out:
        os.fchmod(out.fileno(), 0o640)
        out.write(MAGIC)
        target = _Draft(out, facts, level)
        # Its first frame is known once its first rows are.
        for i, rows in enumerate(_all_rows(raw, content, facts)):
            if i == 0:
                out.write(_header(raw, facts))
            if rows is not None:
                target.add(rows)
        for source in list(target.waiting):
            target.flush(source)
        if facts.outcomes:
            out.write(frame(KIND_OUTCOME_LIST, zlib.compress(msgspec.msgpack.encode(facts.outcomes), level)))
        totals = OutcomeTotals(
            n_rows=target.n_rows,
            n_blocks=target.n_blocks,
            n_outcomes=len(facts.outcomes),
            raw_bytes=len(content),
            missing_frames=facts.missing_frames,
            torn_tails=facts.damage.torn_tails,
            corrupt_frames=facts.damage.corrupt_frames,
            lost_bytes=facts.damage.lost_bytes,
        )
        out.write(frame(KIND_END, msgspec.msgpack.encode(totals)))
        out.flush()
        os.fsync(out.fileno())
    return facts, target.n_rows


def _all_rows(raw: Path, content: bytes, facts: SegmentFacts) -> Iterator[Rows | None]:
    """Yield every block, or None once where there is none: the header is written either way."""
    empty = True
    for rows in rows_of(raw, content, facts):
        empty = False
        yield rows
    if empty:
        yield None


def _header(raw: Path, facts: SegmentFacts) -> bytes:
    header = facts.header
    if header is None:
        # Its frame was damaged; the name says the same.
        _, hour, prefix, number = raw.stem.split("-")
        header = SegmentHeader(FORMAT, VERSION, raw.parent.name, prefix, hour, int(number), 0)
    return frame(KIND_HEADER, msgspec.msgpack.encode(header))


def _verify(encoded: Path, content: bytes, raw: SegmentFacts, n_rows: int) -> None:
    """Return if the encoded content holds what the raw segment held, every checksum compared."""
    facts = SegmentFacts()
    found = sum(len(rows) for rows in rows_of(encoded, content, facts))
    pairs = {
        "rows": (n_rows, found),
        "counted stretches": (len(raw.outcomes), len(facts.outcomes)),
        "missing frames": (raw.missing_frames, facts.missing_frames),
        "corrupt frames": (raw.damage.corrupt_frames, facts.damage.corrupt_frames),
        "torn tails": (raw.damage.torn_tails, facts.damage.torn_tails),
    }
    wrong = {name: f"{a:,} raw, {b:,} encoded" for name, (a, b) in pairs.items() if a != b}
    if wrong:
        raise CheckError(
            "segment-verify",
            f"{encoded.name!r} does not read back as the raw segment it was made from",
            fix="the raw segment stays as it is; check the disk, and report this if it is sound",
            where=str(encoded),
            facts=wrong,
        )


def _done(raw: Path, encoded: Path | None, n_rows: int, raw_bytes: int) -> Encoded:
    size = 0 if encoded is None else encoded.stat().st_size
    raw.unlink(missing_ok=True)
    return Encoded(encoded, n_rows, raw_bytes, size)
