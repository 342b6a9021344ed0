"""What reading the prediction log gives: a window as arrays with what it does not know, or one prediction."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.prediction_block import Rows, Source
from mulle.formats.prediction_frames import OutcomeCounts
from mulle.formats.prediction_policy import is_sampled
from mulle.formats.segment import Damage


@dataclass(slots=True)
class Gaps:
    """What a window does not know.

    Attributes:
        damage: Torn tails and changed frames in the files that were read, before they were encoded or after.
        missing_frames: Frames the writers numbered and the files do not hold.
        unlogged: Requests refused because the log could not be written; they were not answered.
        dropped: Requests answered although the log could not be written: their rows are lost.
        sampled_out: Rows answered and left out on purpose.
        sampling: Every (share, key) the rows were chosen with; empty where all rows were kept.
    """

    damage: Damage = field(default_factory=Damage)
    missing_frames: int = 0
    unlogged: int = 0
    dropped: int = 0
    sampled_out: int = 0
    sampling: set[tuple[float, int]] = field(default_factory=set[tuple[float, int]])

    @property
    def sampled(self) -> bool:
        """Whether rows were left out of the log on purpose."""
        return bool(self.sampling)

    @property
    def complete(self) -> bool:
        """Whether every answered prediction of the window is in it. A torn tail was never acknowledged, unless the host crashed."""
        whole = self.missing_frames == 0 and self.damage.corrupt_frames == 0 and self.damage.torn_tails == 0
        return whole and self.dropped == 0 and not self.sampled

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "complete": self.complete,
            "missing_frames": self.missing_frames,
            "torn_tails": self.damage.torn_tails,
            "corrupt_frames": self.damage.corrupt_frames,
            "lost_bytes": self.damage.lost_bytes,
            "unlogged": self.unlogged,
            "dropped": self.dropped,
            "sampled": self.sampled,
            "sampled_out": self.sampled_out,
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
        latency_us: int64, of the request the row came in.
        entity: str objects or None.
        columns: Raw column name to float64 or str objects, with NaN or `MISSING_TEXT` for missing; a column only some
            sources have is missing elsewhere, and a redacted one (`Source.redacted`) everywhere.
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

    @property
    def sampled(self) -> bool:
        """Whether the rows are a sample: what is rare may be missing from them."""
        return self.gaps.sampled

    def left_out(self, prediction_id: str) -> bool:
        """Return whether sampling would have kept the row of a prediction id out of this window."""
        return any(not is_sampled(prediction_id, sample=share, key=key) for share, key in self.gaps.sampling)

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
        width = rows.outputs.shape[1] if source.task == "tensor" else max(1, len(source.classes))
        return replace(rows, columns={c.name: rows.columns[c.name] for c in source.columns}, outputs=rows.outputs[:, :width])


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One logged prediction.

    Attributes:
        features: Raw column to JSON value; None where missing or redacted.
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

    @property
    def redacted(self) -> tuple[str, ...]:
        """Columns, and the entity's, whose values were kept out of the log: it cannot say what they were."""
        return self.source.redacted


def name_outputs(source: Source, values: Sequence[float]) -> dict[str, float]:
    """Return the outputs of a row by name: classes, `value`, or for a tensor graph `output 0` and so on."""
    if source.classes:
        return dict(zip(source.classes, values, strict=True))
    return {"value": values[0]} if source.task == "regression" else {f"output {j}": value for j, value in enumerate(values)}


def assemble(parts: Sequence[tuple[int, Rows]], gaps: Gaps, outcomes: dict[int, OutcomeCounts]) -> PredictionTable:
    """Return the table of rows read from several files.

    Args:
        parts: For each part the number of its file in the order of names, and its rows.
        gaps: What the files lack.
        outcomes: What the files counted.
    """
    plain = [msgspec.structs.replace(rows.source, source=0) for _, rows in parts]
    sizes = [len(rows) for _, rows in parts]
    n = sum(sizes)
    width = max((rows.outputs.shape[1] for _, rows in parts), default=1)
    outputs = np.full((n, width), np.nan, dtype=np.float32)
    ids = np.empty(n, dtype=object)
    entity = np.full(n, None, dtype=object)
    columns: dict[str, NDArray[Any]] = {}
    at = 0
    for (_, part), size in zip(parts, sizes, strict=True):
        rows = slice(at, at + size)
        ids[rows] = part.all_ids()
        outputs[rows, : part.outputs.shape[1]] = part.outputs
        if part.entity is not None:
            entity[rows] = part.entity
        for column in part.source.columns:
            if column.name not in columns:
                text = column.type is ColumnType.TEXT
                columns[column.name] = np.full(n, MISSING_TEXT, dtype=object) if text else np.full(n, np.nan)
            target, values = columns[column.name], part.arrays[column.name]
            if target.dtype != object and values.dtype == object:
                # The column became text between two versions: as objects both can stand in it.
                columns[column.name] = target = target.astype(object)
            target[rows] = values
        at += size

    def joined(values: list[NDArray[Any]]) -> NDArray[np.int64]:
        return np.concatenate(values).astype(np.int64, copy=False) if values else np.empty(0, dtype=np.int64)

    time_ns = joined([rows.time_ns for _, rows in parts])
    file = np.repeat(np.array([number for number, _ in parts], dtype=np.int64), sizes)
    # Rows of one moment stand as they were written, whether their file was encoded since or not.
    order = np.lexsort((joined([rows.sequence for _, rows in parts]), file, time_ns))
    plain_at = np.repeat(np.arange(len(parts)), sizes)[order]
    sources: dict[Source, int] = {}
    changes: list[int] = plain_at[np.r_[True, np.diff(plain_at) != 0]].tolist() if n else []
    for index in changes:
        sources.setdefault(plain[index], len(sources))
    index_of = np.array([sources.get(source, -1) for source in plain], dtype=np.int64)
    table = PredictionTable(
        ids=ids,
        time_ns=time_ns,
        source_index=np.repeat(index_of, sizes),
        revision=np.repeat(np.array([source.revision for source in plain], dtype=np.int64), sizes),
        model_version=np.repeat(np.array([source.model_version for source in plain], dtype=np.int64), sizes),
        status=joined([rows.status for _, rows in parts]),
        latency_us=joined([rows.latency_us for _, rows in parts]),
        entity=entity,
        columns=columns,
        outputs=outputs,
        sources=tuple(sources),
        gaps=gaps,
        outcomes=outcomes,
    )
    return table if bool(np.all(order[1:] > order[:-1])) else table.take(order)
