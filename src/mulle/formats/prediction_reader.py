"""Reading the prediction log back: a window as arrays, or one prediction by its id."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import CheckError
from mulle.core.names import require_name
from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.prediction_block import Block, Source, decode_block, decode_meta, format_id
from mulle.formats.prediction_writer import (
    FORMAT,
    KIND_BLOCK,
    KIND_HEADER,
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
from mulle.formats.rows import decode_value
from mulle.formats.segment import Damage, read_frames


@dataclass(slots=True)
class Gaps:
    """What a window does not know.

    Attributes:
        damage: Torn tails and changed frames in the files that were read.
        missing_frames: Frames the writers numbered and the files do not hold.
        unlogged: Requests refused because the log could not be written; they were not answered.
    """

    damage: Damage = field(default_factory=Damage)
    missing_frames: int = 0
    unlogged: int = 0

    @property
    def complete(self) -> bool:
        """Whether every answered prediction of the window is in it. A torn tail was never acknowledged, unless the host crashed."""
        return self.missing_frames == 0 and self.damage.corrupt_frames == 0 and self.damage.torn_tails == 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "complete": self.complete,
            "missing_frames": self.missing_frames,
            "torn_tails": self.damage.torn_tails,
            "corrupt_frames": self.damage.corrupt_frames,
            "lost_bytes": self.damage.lost_bytes,
            "unlogged": self.unlogged,
            "files": list(self.damage.files),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionTable:
    """A window of logged predictions, oldest first; every array has one element per row.

    Attributes:
        ids: str objects.
        time_ns: int64, nanoseconds since 1970-01-01 UTC.
        source_index: int64, which of `sources` answered.
        revision: int64.
        model_version: int64.
        status: int64, HTTP.
        latency_us: int64, of the whole request the row came in.
        entity: str objects or None.
        columns: Raw column name to float64 or str objects, with NaN or `MISSING_TEXT` for missing; a column only some
            sources have is missing elsewhere.
        outputs: float32, shape (n, k); NaN beyond a source's own k.
        sources: What answered, in the order met.
        gaps: What the window does not know.
        outcomes: By revision; revision 0 for requests that reached none. Counted in stretches of about a second, so the
            edges of a window are that sharp.
    """

    ids: NDArray[Any]
    time_ns: NDArray[np.int64]
    source_index: NDArray[np.int64]
    revision: NDArray[np.int64]
    model_version: NDArray[np.int64]
    status: NDArray[np.int64]
    latency_us: NDArray[np.int64]
    entity: NDArray[Any]
    columns: dict[str, NDArray[Any]]
    outputs: NDArray[np.float32]
    sources: tuple[Source, ...]
    gaps: Gaps
    outcomes: dict[int, OutcomeCounts]

    def __len__(self) -> int:
        return int(self.time_ns.shape[0])

    def take(self, rows: NDArray[Any]) -> "PredictionTable":
        """Return the rows an index or mask array selects; gaps and outcomes stay those of the whole window."""
        return replace(
            self,
            ids=self.ids[rows],
            time_ns=self.time_ns[rows],
            source_index=self.source_index[rows],
            revision=self.revision[rows],
            model_version=self.model_version[rows],
            status=self.status[rows],
            latency_us=self.latency_us[rows],
            entity=self.entity[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
            outputs=self.outputs[rows],
        )

    def of_source(self, index: int) -> "PredictionTable":
        """Return the rows of one source, with its own columns and its own number of outputs."""
        source = self.sources[index]
        rows = self.take(self.source_index == index)
        width = max(1, len(source.classes))
        return replace(rows, columns={c.name: rows.columns[c.name] for c in source.columns}, outputs=rows.outputs[:, :width])


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One logged prediction.

    Attributes:
        features: Raw column to JSON value; None where missing.
        outputs: Class name to probability, or `{"value": x}`.
        segment: The file that holds it.
    """

    id: str
    deployment: str
    time_ns: int
    source: Source
    status: int
    latency_us: int
    entity: str | None
    features: dict[str, str | float | bool | None]
    outputs: dict[str, float]
    segment: str


@dataclass(slots=True)
class _Part:
    prefix: int
    block: Block
    source: Source


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
        CheckError: a file in the folder was written by a newer version.
    """
    gaps = Gaps()
    outcomes: dict[int, OutcomeCounts] = {}
    parts: list[_Part] = []
    n_rows = 0
    by_hour: dict[str, list[Path]] = {}
    for path in _segments(root / require_name(deployment, "a deployment")):
        by_hour.setdefault(_hour_in(path), []).append(path)
    for hour in sorted(by_hour, reverse=True):
        # A segment holds its own hour, and later moments only after the clock was set back.
        if until_ns is not None and hour > hour_of(until_ns):
            continue
        if since_ns is not None and hour < hour_of(since_ns):
            break
        found = [part for path in sorted(by_hour[hour]) for part in _read_segment(path, gaps, outcomes, since_ns, until_ns)]
        parts += found
        n_rows += sum(part.block.meta.n_rows for part in found)
        if last is not None and n_rows >= last:
            break
    parts.sort(key=lambda part: part.block.meta.time_ns)
    gaps.unlogged = sum(counts.unlogged for counts in outcomes.values())
    table = _assemble(parts, gaps, outcomes)
    return table.take(np.arange(len(table))[-last:] if last else np.arange(0)) if last is not None else table


def find_prediction(root: Path, prediction_id: str, *, deployment: str | None = None) -> Prediction | None:
    """Return the prediction called `prediction_id`, or None. Where a client used an id twice: the first.

    Args:
        root: The folder of logs.
        prediction_id: As it was answered.
        deployment: Where to look; by default everywhere.
    """
    folders = [root / deployment] if deployment else sorted(path for path in root.glob("*") if path.is_dir())
    segments = [path for folder in folders for path in _segments(folder)]
    own = [path for path in segments if _prefix_in(path) == prediction_id[:16]]
    # An id of ours says which files can hold it; a client's own id can be anywhere.
    others = [path for path in segments if path not in own]
    best: Prediction | None = None
    for group in (own, others):
        for path in group:
            found = _find_in(path, prediction_id)
            if found is not None and (best is None or found.time_ns < best.time_ns):
                best = found
        if best is not None:
            return best
    return None


def known_prefixes(root: Path, deployment: str) -> set[str]:
    """Return the prefixes of the writers that have logged for `deployment`."""
    return {_prefix_in(path) for path in _segments(root / deployment)}


def _segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{STEM}-*-*-*{SUFFIX}") if path.is_file())


def _hour_in(path: Path) -> str:
    return path.name.split("-")[1]


def _prefix_in(path: Path) -> str:
    return path.name.split("-")[2]


def _require_known(header: SegmentHeader, path: Path) -> None:
    if header.format != FORMAT or header.version != VERSION:
        raise CheckError(
            "format-unknown",
            f"expected {FORMAT} version {VERSION}, found {header.format!r} version {header.version}",
            fix="upgrade Mulle: the log was written by a newer one",
            where=str(path),
        )


def _frames(path: Path, damage: Damage) -> Iterator[tuple[int, memoryview]]:
    """Yield the frames after the header was found to be one this version knows."""
    for kind, payload in read_frames(path, damage):
        if kind == KIND_HEADER:
            _require_known(msgspec.msgpack.decode(payload, type=SegmentHeader), path)
        yield kind, payload


def _read_segment(
    path: Path, gaps: Gaps, outcomes: dict[int, OutcomeCounts], since_ns: int | None, until_ns: int | None
) -> Iterator[_Part]:
    sources: dict[int, Source] = {}
    prefix = int(_prefix_in(path), 16)
    expected = None
    for kind, payload in _frames(path, gaps.damage):
        if kind == KIND_HEADER:
            expected = msgspec.msgpack.decode(payload, type=SegmentHeader).first_sequence
        elif kind == KIND_SOURCE:
            source = msgspec.msgpack.decode(payload, type=Source)
            sources[source.source] = source
        elif kind == KIND_OUTCOMES:
            frame = msgspec.msgpack.decode(payload, type=OutcomesFrame)
            gaps.missing_frames += frame.sequence - (frame.sequence if expected is None else expected)
            expected = frame.sequence + 1
            if (since_ns is None or frame.until_ns >= since_ns) and (until_ns is None or frame.since_ns < until_ns):
                for revision, counts in frame.counts.items():
                    outcomes.setdefault(revision, OutcomeCounts()).add(counts)
        elif kind == KIND_BLOCK:
            meta, _ = decode_meta(payload)
            gaps.missing_frames += meta.sequence - (meta.sequence if expected is None else expected)
            expected = meta.sequence + 1
            if meta.source not in sources:
                # Its description was in a damaged frame: the rows cannot be read.
                gaps.missing_frames += 1
                continue
            if (since_ns is None or meta.time_ns >= since_ns) and (until_ns is None or meta.time_ns < until_ns):
                yield _Part(prefix, decode_block(payload, sources), sources[meta.source])


def _find_in(path: Path, prediction_id: str) -> Prediction | None:
    sources: dict[int, Source] = {}
    prefix = int(_prefix_in(path), 16)
    for kind, payload in _frames(path, Damage()):
        if kind == KIND_SOURCE:
            source = msgspec.msgpack.decode(payload, type=Source)
            sources[source.source] = source
        if kind != KIND_BLOCK:
            continue
        meta, _ = decode_meta(payload)
        if meta.source not in sources:
            continue
        if meta.ids is not None:
            row = meta.ids.index(prediction_id) if prediction_id in meta.ids else -1
        else:
            row = (
                next((i for i in range(meta.n_rows) if format_id(prefix, meta.first + i) == prediction_id), -1)
                if _ours(prediction_id, prefix)
                else -1
            )
        if row >= 0:
            return _one(path, prediction_id, decode_block(payload, sources), sources[meta.source], row)
    return None


def _ours(prediction_id: str, prefix: int) -> bool:
    return prediction_id.startswith(f"{prefix:016x}")


def _one(path: Path, prediction_id: str, block: Block, source: Source, row: int) -> Prediction:
    values = [float(v) for v in block.outputs[row]]
    return Prediction(
        id=prediction_id,
        deployment=path.parent.name,
        time_ns=block.meta.time_ns,
        source=source,
        status=block.meta.status,
        latency_us=block.meta.latency_us,
        entity=None if block.entity is None else block.entity[row],
        features={c.name: decode_value(block.arrays[c.name][row], c.type) for c in source.columns},
        outputs=dict(zip(source.classes, values, strict=True)) if source.classes else {"value": values[0]},
        segment=path.name,
    )


def _assemble(parts: list[_Part], gaps: Gaps, outcomes: dict[int, OutcomeCounts]) -> PredictionTable:
    sources: dict[Source, int] = {}
    for part in parts:
        sources.setdefault(msgspec.structs.replace(part.source, source=0), len(sources))
    index = [sources[msgspec.structs.replace(part.source, source=0)] for part in parts]
    sizes = [part.block.meta.n_rows for part in parts]
    n = sum(sizes)
    width = max((part.block.meta.n_outputs for part in parts), default=1)
    outputs = np.full((n, width), np.nan, dtype=np.float32)
    ids = np.empty(n, dtype=object)
    entity = np.full(n, None, dtype=object)
    columns: dict[str, NDArray[Any]] = {}
    at = 0
    for part, size in zip(parts, sizes, strict=True):
        block = part.block
        rows = slice(at, at + size)
        ids[rows] = block.meta.ids if block.meta.ids is not None else [format_id(part.prefix, block.meta.first + i) for i in range(size)]
        outputs[rows, : block.meta.n_outputs] = block.outputs
        if block.entity is not None:
            entity[rows] = block.entity
        for column in part.source.columns:
            if column.name not in columns:
                text = column.type is ColumnType.TEXT
                columns[column.name] = np.full(n, MISSING_TEXT, dtype=object) if text else np.full(n, np.nan)
            target, values = columns[column.name], block.arrays[column.name]
            if target.dtype != object and values.dtype == object:
                # The column became text between two versions: as objects both can stand in it.
                columns[column.name] = target = target.astype(object)
            target[rows] = values
        at += size
    return PredictionTable(
        ids=ids,
        time_ns=np.repeat(np.array([p.block.meta.time_ns for p in parts], dtype=np.int64), sizes),
        source_index=np.repeat(np.array(index, dtype=np.int64), sizes),
        revision=np.repeat(np.array([p.source.revision for p in parts], dtype=np.int64), sizes),
        model_version=np.repeat(np.array([p.source.model_version for p in parts], dtype=np.int64), sizes),
        status=np.repeat(np.array([p.block.meta.status for p in parts], dtype=np.int64), sizes),
        latency_us=np.repeat(np.array([p.block.meta.latency_us for p in parts], dtype=np.int64), sizes),
        entity=entity,
        columns=columns,
        outputs=outputs,
        sources=tuple(sources),
        gaps=gaps,
        outcomes=outcomes,
    )
