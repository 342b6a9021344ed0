"""The prediction log: what was answered, to whom, from which values; append-only, columnar, readable by itself.

    <root>/<deployment>/predictions-<UTC hour>-<writer's prefix>-<number>.mseg

Each writing process has its own random prefix and its own files: nothing is ever locked or shared. A batch is handed
to the kernel *before* it is answered, so a process killed with -9 loses nothing it has acknowledged. Outcomes that left
no rows (refused, failed) are counted per revision beside the rows, and each block carries the writer's running number:
a window that misses some says so.
"""

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from mulle.core.errors import UnavailableError
from mulle.core.names import require_name
from mulle.formats.prediction_block import PredictionBatch, Source, encode_block, format_id
from mulle.formats.segment import SegmentFile, frame

SUFFIX = ".mseg"
STEM = "predictions"
FORMAT = "mulle.predictions"
VERSION = 1
KIND_HEADER, KIND_SOURCE, KIND_BLOCK, KIND_OUTCOMES = 1, 2, 3, 4
MAX_SEGMENT_BYTES = 256 << 20
NS_PER_HOUR = 3_600_000_000_000

Outcome = Literal["answered", "refused", "failed", "unlogged"]


class SegmentHeader(msgspec.Struct, frozen=True):
    """The first frame of a segment."""

    format: str
    version: int
    deployment: str
    prefix: str
    hour: str
    number: int
    first_sequence: int


class OutcomeCounts(msgspec.Struct):
    """How requests ended.

    Attributes:
        answered: Requests whose rows are in the log.
        refused: Requests answered 4xx.
        failed: Requests answered 5xx.
        unlogged: Requests refused because the log could not be written.
    """

    answered: int = 0
    refused: int = 0
    failed: int = 0
    unlogged: int = 0

    def add(self, other: "OutcomeCounts") -> None:
        """Add the counts of `other`."""
        self.answered += other.answered
        self.refused += other.refused
        self.failed += other.failed
        self.unlogged += other.unlogged


class OutcomesFrame(msgspec.Struct, frozen=True):
    """Outcomes of a stretch of time, by revision; revision 0 stands for requests that reached none."""

    sequence: int
    since_ns: int
    until_ns: int
    counts: dict[int, OutcomeCounts]


def hour_of(time_ns: int) -> str:
    """Return the UTC hour a moment belongs to, as `20261120T05`."""
    return datetime.fromtimestamp(time_ns // NS_PER_HOUR * 3600, UTC).strftime("%Y%m%dT%H")


class LogWriter:
    """The one writer of a process for one deployment.

    Not safe for two threads; `sync` alone may run beside `append`.

    Args:
        root: The folder of logs, `.mulle/logs`.
        deployment: Whose predictions.
        prefix: 64 bits that name this process; random unless given.
        max_segment_bytes: A segment is closed when it is larger.
    """

    def __init__(self, root: Path, deployment: str, *, prefix: int | None = None, max_segment_bytes: int = MAX_SEGMENT_BYTES) -> None:
        self.deployment = require_name(deployment, "a deployment")
        self.folder = root / deployment
        self.prefix = secrets.randbits(64) if prefix is None else prefix
        self.n_bytes = 0
        self._max_segment_bytes = max_segment_bytes
        self._next_row = 0
        self._sequence = 0
        self._segment: SegmentFile | None = None
        self._segment_hour = ""
        self._n_segments = 0
        self._sources: dict[Source, int] = {}
        self._dirty = False
        self._counts: dict[int, OutcomeCounts] = {}
        self._counts_since_ns = 0

    def reserve(self, n_rows: int) -> int:
        """Return the number of the first of `n_rows` new rows; each number is given out once."""
        first = self._next_row
        self._next_row += n_rows
        return first

    def id_of(self, number: int) -> str:
        """Return the prediction id of a row number."""
        return format_id(self.prefix, number)

    def issued(self, prediction_id: str) -> bool:
        """Return whether this process gave out `prediction_id`."""
        if len(prediction_id) != len(self.id_of(0)) or not prediction_id.startswith(f"{self.prefix:016x}"):
            return False
        try:
            return int(prediction_id[16:], 16) < self._next_row
        except ValueError:
            return False

    def append(self, batch: PredictionBatch) -> int:
        """Hand the rows to the kernel in one write and return the bytes written.

        Raises:
            UnavailableError: `log-unavailable`: nothing was logged, so the rows must not be answered.
        """
        segment = self._open_segment(batch.time_ns)
        frames: list[bytes] = []
        source = self._sources.get(batch.source)
        new = source is None
        if source is None:
            source = len(self._sources)
            frames.append(frame(KIND_SOURCE, msgspec.msgpack.encode(msgspec.structs.replace(batch.source, source=source))))
        frames.append(frame(KIND_BLOCK, encode_block(batch, sequence=self._sequence, source=source)))
        n_bytes = self._write(segment, frames)
        if new:
            self._sources[batch.source] = source
        self.count(batch.source.revision, "answered", batch.time_ns)
        return n_bytes

    def count(self, revision: int, outcome: Outcome, time_ns: int) -> None:
        """Count how one request ended; written with the next `flush_outcomes`."""
        if not self._counts:
            self._counts_since_ns = time_ns
        counts = self._counts.setdefault(revision, OutcomeCounts())
        setattr(counts, outcome, getattr(counts, outcome) + 1)

    def flush_outcomes(self, now_ns: int) -> None:
        """Write the outcomes counted since the last flush, if there are any.

        Raises:
            UnavailableError: `log-unavailable`; the counts are kept for the next try.
        """
        if not self._counts:
            return
        payload = OutcomesFrame(self._sequence, self._counts_since_ns, now_ns, self._counts)
        self._write(self._open_segment(now_ns), [frame(KIND_OUTCOMES, msgspec.msgpack.encode(payload))])
        self._counts = {}

    def sync(self) -> None:
        """Return when everything appended is on the disk.

        Raises:
            UnavailableError: `log-unavailable`.
        """
        segment, self._dirty, dirty = self._segment, False, self._dirty
        if dirty and segment is not None:
            try:
                segment.sync()
            except UnavailableError:
                self._dirty = True
                raise

    def close(self, now_ns: int) -> None:
        """Write what was counted, sync and close. A disk that is full at this moment loses the last counts, no rows."""
        try:
            self.flush_outcomes(now_ns)
            self.sync()
        except UnavailableError:
            self._counts = {}
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _write(self, segment: SegmentFile, frames: list[bytes]) -> int:
        try:
            n_bytes = segment.append(frames)
        except UnavailableError:
            if segment.broken:
                segment.close()
                self._segment = None
            raise
        self._sequence += 1
        self._dirty = True
        self.n_bytes += n_bytes
        return n_bytes

    def _open_segment(self, time_ns: int) -> SegmentFile:
        hour = hour_of(time_ns)
        segment = self._segment
        # A clock set back does not reopen an hour: names only rise within a writer.
        if segment is not None and hour <= self._segment_hour and segment.n_bytes < self._max_segment_bytes:
            return segment
        hour = max(hour, self._segment_hour)
        name = f"{STEM}-{hour}-{self.prefix:016x}-{self._n_segments:05d}{SUFFIX}"
        fresh = SegmentFile(self.folder / name)
        header = SegmentHeader(FORMAT, VERSION, self.deployment, f"{self.prefix:016x}", hour, self._n_segments, self._sequence)
        try:
            self.n_bytes += fresh.append([frame(KIND_HEADER, msgspec.msgpack.encode(header))])
        except UnavailableError:
            fresh.close()
            fresh.path.unlink(missing_ok=True)
            raise
        if segment is not None:
            if self._dirty:
                segment.sync()
            segment.close()
        self._segment, self._segment_hour, self._sources = fresh, hour, {}
        self._n_segments += 1
        return fresh
