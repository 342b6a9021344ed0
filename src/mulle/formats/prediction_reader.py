"""Reading the prediction log back: a window as arrays, or one prediction by its id. Raw and encoded segments alike.

A segment is one stretch of a writer's rows under one name: raw (`.mseg`), encoded (`.mcol`), and for a moment both. Where both
are there the encoded one counts; where it appears while the folder is being read, each segment is still read exactly once.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from mulle.core.errors import CheckError
from mulle.core.names import require_name
from mulle.formats.prediction_block import PREFIX_DIGITS, BlockMeta, Rows, Source, decode_block, decode_meta, unreadable
from mulle.formats.prediction_columns import OutcomeTotals, decode_columns, decode_columns_meta, may_hold
from mulle.formats.prediction_frames import (
    ENCODED_SUFFIX,
    FORMAT,
    KIND_BLOCK,
    KIND_COLUMNS,
    KIND_END,
    KIND_HEADER,
    KIND_OUTCOME_LIST,
    KIND_OUTCOMES,
    KIND_SOURCE,
    STEM,
    SUFFIX,
    VERSION,
    OutcomeCounts,
    OutcomesFrame,
    SegmentHeader,
    hour_of,
)
from mulle.formats.prediction_policy import is_sampled
from mulle.formats.prediction_table import Gaps, Prediction, PredictionTable, assemble, name_outputs
from mulle.formats.rows import decode_value
from mulle.formats.segment import Damage, iter_frames

_SLACK_NS = 60_000_000_000
"""A flush may begin in one hour and be written in the next."""
_HEAD_BYTES = 64 << 10
"""More than any header takes: a file's policy can be told without reading its rows."""
_MAX_OUTCOME_BYTES = 256 << 20


@dataclass(slots=True)
class SegmentFacts:
    """What is known of a segment besides its rows, once its rows have been read.

    Attributes:
        header: Its first frame; None where that was damaged.
        sources: By their number.
        outcomes: In the order written.
        missing_frames: Frames that were numbered and are not there.
        damage: What could not be read, now or when it was encoded.
        n_rows: Rows that were read.
    """

    header: SegmentHeader | None = None
    sources: dict[int, Source] = field(default_factory=dict[int, Source])
    outcomes: list[OutcomesFrame] = field(default_factory=list[OutcomesFrame])
    missing_frames: int = 0
    damage: Damage = field(default_factory=Damage)
    n_rows: int = 0


def read_predictions(
    root: Path, deployment: str, *, since_ns: int | None = None, until_ns: int | None = None, last: int | None = None
) -> PredictionTable:
    """Return the logged predictions of a window, oldest first.

    Args:
        root: The folder of logs, `.mulle/logs`. A deployment that logged nothing gives an empty table.
        deployment: Whose predictions.
        since_ns: Only rows at or after this moment.
        until_ns: Only rows before this moment.
        last: Only the newest this many rows of those.

    Raises:
        CheckError: a file in the folder was written by another version.
    """
    gaps = Gaps()
    outcomes: dict[int, OutcomeCounts] = {}
    parts: list[tuple[int, Rows]] = []
    n_rows = 0
    folder = root / require_name(deployment, "a deployment")
    by_hour: dict[str, list[tuple[int, str]]] = {}
    for number, stem in enumerate(segment_stems(folder)):
        by_hour.setdefault(_hour_in(stem), []).append((number, stem))
    for hour in sorted(by_hour, reverse=True):
        # A segment holds its own hour and, after the clock was set back, earlier moments; never later ones.
        if until_ns is not None and hour > hour_of(until_ns + _SLACK_NS):
            continue
        if since_ns is not None and hour < hour_of(since_ns):
            break
        for number, stem in by_hour[hour]:
            facts = SegmentFacts()
            found = [(number, rows) for rows in iter_segment(folder, stem, facts, since_ns=since_ns, until_ns=until_ns)]
            parts += found
            n_rows += sum(len(rows) for _, rows in found)
            _add_facts(facts, gaps, outcomes, since_ns, until_ns)
        if last is not None and n_rows >= last:
            break
    gaps.unlogged = sum(counts.unlogged for counts in outcomes.values())
    gaps.dropped = sum(counts.dropped for counts in outcomes.values())
    gaps.sampled_out = sum(counts.sampled_out for counts in outcomes.values())
    parts.sort(key=lambda part: part[0])
    table = assemble(parts, gaps, outcomes)
    return table.take(np.arange(len(table))[-last:] if last else np.arange(0)) if last is not None else table


def find_prediction(root: Path, prediction_id: str, *, deployment: str | None = None) -> Prediction | None:
    """Return the prediction called `prediction_id`, or None. Where a client used an id twice: the first.

    Args:
        root: The folder of logs.
        prediction_id: As it was answered.
        deployment: Where to look; by default everywhere.
    """
    segments = [(folder, stem) for folder in _folders(root, deployment) for stem in segment_stems(folder)]
    # An id of ours says which files can hold it; a client's own id can be anywhere.
    own = [item for item in segments if _prefix_in(item[1]) == prediction_id[:PREFIX_DIGITS]]
    others = [item for item in segments if _prefix_in(item[1]) != prediction_id[:PREFIX_DIGITS]]
    best: Prediction | None = None
    for group in (own, others):
        for folder, stem in group:
            found = _find_in(folder, stem, prediction_id)
            if found is not None and (best is None or found.time_ns < best.time_ns):
                best = found
        if best is not None:
            return best
    return None


def was_sampled_out(root: Path, prediction_id: str, *, deployment: str | None = None) -> bool:
    """Return whether sampling kept a prediction's row out of the log: it was answered, and cannot be found.

    Args:
        root: The folder of logs.
        prediction_id: As it was answered.
        deployment: Where to look; by default everywhere.
    """
    for folder in _folders(root, deployment):
        stems = segment_stems(folder)
        own = [stem for stem in stems if _prefix_in(stem) == prediction_id[:PREFIX_DIGITS]]
        for stem in own or stems:
            header = _header_of(folder, stem)
            if header and header.sample < 1.0 and not is_sampled(prediction_id, sample=header.sample, key=header.sample_key):
                return True
    return False


def known_prefixes(root: Path, deployment: str) -> set[str]:
    """Return the prefixes of the writers that have logged for `deployment`."""
    return {_prefix_in(stem) for stem in segment_stems(root / deployment)}


def segment_stems(folder: Path) -> list[str]:
    """Return the names of a folder's segments without their suffix, in order, each once."""
    # Read twice: a listing under way may miss a file that just got its new name; the next one does not.
    names = [path.name for _ in range(2) for path in folder.glob(f"{STEM}-*-*-*")]
    return sorted({name.rpartition(".")[0] for name in names if name.endswith((SUFFIX, ENCODED_SUFFIX))})


def iter_segment(
    folder: Path, stem: str, facts: SegmentFacts, *, since_ns: int | None = None, until_ns: int | None = None
) -> Iterator[Rows]:
    """Yield the rows of a segment that lie in a window, raw or encoded; the rest is noted in `facts`.

    Raises:
        CheckError: the file is of another version, or unreadable though its checksums are right.
    """
    found = _content(folder, stem)
    if found is not None:
        path, content = found
        yield from rows_of(path, content, facts, since_ns=since_ns, until_ns=until_ns)


def rows_of(path: Path, content: bytes, facts: SegmentFacts, *, since_ns: int | None = None, until_ns: int | None = None) -> Iterator[Rows]:
    """Yield as `iter_segment` from the content of a raw or encoded segment, read before."""
    walk = _Walk(int(_prefix_in(path.name), 16), facts, since_ns, until_ns)
    for kind, payload in _frames(path, content, facts.damage):
        rows = None
        if kind == KIND_BLOCK:
            rows = walk.block(payload)
        elif kind == KIND_COLUMNS:
            rows = walk.columns(payload)
        else:
            walk.note(kind, payload)
        if rows is not None:
            yield rows
    if path.name.endswith(ENCODED_SUFFIX):
        _add_totals(walk.totals, facts, path)


@dataclass(slots=True)
class _Walk:
    """One pass over the frames of a segment."""

    prefix: int
    facts: SegmentFacts
    since_ns: int | None
    until_ns: int | None
    expected: int | None = None
    totals: OutcomeTotals | None = None

    def note(self, kind: int, payload: memoryview) -> None:
        """Take in a frame that is no rows."""
        facts = self.facts
        if kind == KIND_HEADER:
            facts.header = _decoded(payload, SegmentHeader)
            self.expected = facts.header.first_sequence
        elif kind == KIND_SOURCE:
            source = _decoded(payload, Source)
            facts.sources[source.source] = source
        elif kind == KIND_OUTCOMES:
            frame = _decoded(payload, OutcomesFrame)
            self._number(frame.sequence)
            facts.outcomes.append(frame)
        elif kind == KIND_OUTCOME_LIST:
            facts.outcomes += _outcome_list(payload)
        elif kind == KIND_END:
            self.totals = _decoded(payload, OutcomeTotals)

    def block(self, payload: memoryview) -> Rows | None:
        """Return the rows of a raw block; None outside the window."""
        meta, _ = decode_meta(payload)
        self._number(meta.sequence)
        if not self._readable(meta.source, meta.n_rows) or not self._overlaps(meta.time_ns, meta.time_ns):
            return None
        return decode_block(payload, self.facts.sources[meta.source], self.prefix)

    def columns(self, payload: memoryview) -> Rows | None:
        """Return the rows of a merged block that lie in the window; None where it is outside."""
        meta, _ = decode_columns_meta(payload)
        if not self._readable(meta.source, meta.n_rows) or not self._overlaps(meta.since_ns, meta.until_ns):
            return None
        rows = _cut(decode_columns(payload, self.facts.sources[meta.source], self.prefix), self.since_ns, self.until_ns)
        return rows if len(rows) else None

    def _readable(self, source: int, n_rows: int) -> bool:
        if source not in self.facts.sources:
            # Its description was in a damaged frame: the rows cannot be read.
            self.facts.missing_frames += 1
            return False
        self.facts.n_rows += n_rows
        return True

    def _overlaps(self, since_ns: int, until_ns: int) -> bool:
        return (self.since_ns is None or until_ns >= self.since_ns) and (self.until_ns is None or since_ns < self.until_ns)

    def _number(self, sequence: int) -> None:
        self.facts.missing_frames += sequence - (sequence if self.expected is None else self.expected)
        self.expected = sequence + 1


def _folders(root: Path, deployment: str | None) -> list[Path]:
    return [root / deployment] if deployment else sorted(path for path in root.glob("*") if path.is_dir())


def _hour_in(stem: str) -> str:
    return stem.split("-")[1]


def _prefix_in(stem: str) -> str:
    return stem.split("-")[2]


def _content(folder: Path, stem: str, max_bytes: int = -1) -> tuple[Path, bytes] | None:
    """Return the encoded segment, else the raw one; None where retention was faster."""
    for suffix in (ENCODED_SUFFIX, SUFFIX, ENCODED_SUFFIX):
        path = folder / f"{stem}{suffix}"
        try:
            with path.open("rb") as source:
                return path, source.read(max_bytes)
        except FileNotFoundError:
            # The raw segment goes only after the encoded one has come: the third look finds it.
            continue
    return None


def _frames(path: Path, content: bytes, damage: Damage) -> Iterator[tuple[int, memoryview]]:
    """Yield the frames after the header was found to be one this version knows."""
    for kind, payload in iter_frames(content, path, damage):
        if kind == KIND_HEADER:
            header = _decoded(payload, SegmentHeader)
            if header.format != FORMAT or header.version != VERSION:
                raise CheckError(
                    "format-unknown",
                    f"expected {FORMAT} version {VERSION}, found {header.format!r} version {header.version}",
                    fix="read it with the Mulle that wrote it, or move the file out of the log's folder",
                    where=str(path),
                )
        yield kind, payload


def _header_of(folder: Path, stem: str) -> SegmentHeader | None:
    found = _content(folder, stem, _HEAD_BYTES)
    if found is None:
        return None
    for kind, payload in _frames(*found, Damage()):
        if kind == KIND_HEADER:
            return _decoded(payload, SegmentHeader)
    return None


_T = TypeVar("_T", SegmentHeader, Source, OutcomesFrame, OutcomeTotals)


def _decoded(payload: memoryview, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable(str(error)) from error


def _outcome_list(payload: memoryview) -> list[OutcomesFrame]:
    try:
        data = zlib.decompressobj().decompress(payload, _MAX_OUTCOME_BYTES)
        return msgspec.msgpack.decode(data, type=list[OutcomesFrame])
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable(str(error)) from error


def _add_totals(totals: OutcomeTotals | None, facts: SegmentFacts, path: Path) -> None:
    """Add what the raw segment lacked; an encoded one without its last frame was cut off."""
    if totals is None:
        if not facts.damage.torn_tails:
            facts.damage.note(path, "torn", 0)
        return
    facts.missing_frames += totals.missing_frames
    facts.damage.torn_tails += totals.torn_tails
    facts.damage.corrupt_frames += totals.corrupt_frames
    facts.damage.lost_bytes += totals.lost_bytes
    if (totals.torn_tails or totals.corrupt_frames) and path.name not in facts.damage.files:
        facts.damage.files.append(path.name)


def _add_facts(facts: SegmentFacts, gaps: Gaps, outcomes: dict[int, OutcomeCounts], since_ns: int | None, until_ns: int | None) -> None:
    gaps.missing_frames += facts.missing_frames
    gaps.damage.add(facts.damage)
    if facts.header is not None and facts.header.sample < 1.0:
        gaps.sampling.add((facts.header.sample, facts.header.sample_key))
    for frame in facts.outcomes:
        if (since_ns is None or frame.until_ns >= since_ns) and (until_ns is None or frame.since_ns < until_ns):
            for revision, counts in frame.counts.items():
                outcomes.setdefault(revision, OutcomeCounts()).add(counts)


def _cut(rows: Rows, since_ns: int | None, until_ns: int | None) -> Rows:
    """Return the rows of a merged block that lie in a window."""
    keep = np.ones(len(rows), dtype=np.bool_)
    if since_ns is not None:
        keep &= rows.time_ns >= since_ns
    if until_ns is not None:
        keep &= rows.time_ns < until_ns
    if keep.all():
        return rows
    return msgspec.structs.replace(
        rows,
        sequence=rows.sequence[keep],
        time_ns=rows.time_ns[keep],
        number=rows.number[keep],
        latency_us=rows.latency_us[keep],
        status=rows.status[keep],
        ids=None if rows.ids is None else rows.ids[keep],
        arrays={name: values[keep] for name, values in rows.arrays.items()},
        outputs=rows.outputs[keep],
        entity=None if rows.entity is None else rows.entity[keep],
    )


def _find_in(folder: Path, stem: str, prediction_id: str) -> Prediction | None:
    found = _content(folder, stem)
    if found is None:
        return None
    path, content = found
    sources: dict[int, Source] = {}
    prefix = int(_prefix_in(stem), 16)
    best: Prediction | None = None
    for kind, payload in _frames(path, content, Damage()):
        if kind == KIND_SOURCE:
            source = _decoded(payload, Source)
            sources[source.source] = source
        elif kind == KIND_BLOCK:
            meta, _ = decode_meta(payload)
            if meta.source in sources and _holds(meta, prediction_id, prefix):
                best = _pick(path, prediction_id, decode_block(payload, sources[meta.source], prefix), best)
        elif kind == KIND_COLUMNS:
            head, _ = decode_columns_meta(payload)
            if head.source in sources and may_hold(head, prediction_id, prefix):
                best = _pick(path, prediction_id, decode_columns(payload, sources[head.source], prefix), best)
    return best


def _holds(meta: BlockMeta, prediction_id: str, prefix: int) -> bool:
    """Return whether a raw block can hold an id, without unpacking it."""
    if meta.ids is not None:
        return True
    if not prediction_id.startswith(f"{prefix:0{PREFIX_DIGITS}x}"):
        return False
    try:
        offset = int(prediction_id[PREFIX_DIGITS:], 16) - meta.first
    except ValueError:
        return False
    return offset >= 0 if meta.picked else 0 <= offset < meta.n_rows


def _pick(path: Path, prediction_id: str, rows: Rows, best: Prediction | None) -> Prediction | None:
    """Return the earlier of `best` and the row of that id, if there is one."""
    try:
        row = rows.all_ids().index(prediction_id)
    except ValueError:
        return best
    if best is not None and best.time_ns <= int(rows.time_ns[row]):
        return best
    source = rows.source
    return Prediction(
        id=prediction_id,
        deployment=path.parent.name,
        time_ns=int(rows.time_ns[row]),
        source=source,
        status=int(rows.status[row]),
        latency_us=int(rows.latency_us[row]),
        entity=None if rows.entity is None else rows.entity[row],
        features={c.name: decode_value(rows.arrays[c.name][row], c.type) for c in source.columns},
        outputs=name_outputs(source, [float(v) for v in rows.outputs[row]]),
        segment=path.name,
    )
