"""Writing the prediction log: one append-only file per process and hour, one kernel write per flush.

    <root>/<deployment>/predictions-<UTC hour>-<writer's prefix>-<number>.mseg

Each writer process has its own random prefix and its own files: nothing is shared. Batches are handed to the kernel *before*
they are answered, so a process killed with -9 loses nothing it has acknowledged; `sync` says how far the disk has got.
Outcomes that left no rows (refused, failed, dropped) are counted per revision beside the rows, and each block carries the
writer's running number: a window that misses some says so.
"""

import contextlib
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from mulle.core.errors import UnavailableError
from mulle.core.names import require_name
from mulle.core.schema import ColumnType
from mulle.formats.prediction_block import PredictionBatch, Source, encode_block, format_id
from mulle.formats.prediction_frames import (
    FORMAT,
    KIND_BLOCK,
    KIND_HEADER,
    KIND_OUTCOMES,
    KIND_SOURCE,
    NS_PER_HOUR,
    STEM,
    SUFFIX,
    VERSION,
    Outcome,
    OutcomeCounts,
    OutcomesFrame,
    SegmentHeader,
    hour_of,
)
from mulle.formats.prediction_policy import LogPolicy, is_sampled, kept_rows, redacted_batch, redacted_source
from mulle.formats.segment import SegmentFile, frame

MAX_SEGMENT_BYTES = 64 << 20
_MAX_KNOWN_SOURCES = 1_000
_MAX_RETIRED = 8


class _Known(NamedTuple):
    """A source of the open segment, and what every batch of it needs."""

    given: Source
    written: Source
    number: int
    n_numbers: int
    texts: tuple[str, ...]


class LogWriter:
    """The one writer of a process for one deployment.

    Not safe for two threads; `sync` and `measure_backlog` alone may run beside the rest, in a thread of their own.

    Args:
        root: The folder of logs, `.mulle/logs`.
        deployment: Whose predictions.
        prefix: 64 bits that name this process; random unless given.
        policy: What is kept; everything unless given.
        max_segment_bytes: A segment is closed when it is larger.
    """

    def __init__(
        self,
        root: Path,
        deployment: str,
        *,
        prefix: int | None = None,
        policy: LogPolicy | None = None,
        max_segment_bytes: int = MAX_SEGMENT_BYTES,
    ) -> None:
        self.deployment = require_name(deployment, "a deployment")
        self.folder = root / deployment
        self.prefix = secrets.randbits(64) if prefix is None else prefix
        self.policy = policy or LogPolicy()
        self.n_bytes = 0
        self.n_dropped = 0
        """Rows answered and not logged since the start; only with `on_full = "drop"`."""
        self.backlog_bytes = 0
        """As `measure_backlog` found it last."""
        self._sample_key = self.policy.key_for(self.deployment)
        self._max_segment_bytes = max_segment_bytes
        self._next_row = 0
        self._sequence = 0
        self._durable = 0
        self._segment: SegmentFile | None = None
        self._segment_hour = ""
        self._segment_ends_ns = 0
        self._n_segments = 0
        self._retired: list[SegmentFile] = []
        self._sync_lock = threading.Lock()
        self._lost_in_sync = 0
        self._lost_in_file = 0
        self._told = 0
        self._known: dict[int, _Known] = {}
        self._numbers: dict[Source, int] = {}
        self._counts: dict[int, OutcomeCounts] = {}
        self._counts_since_ns = 0
        self._lost = False

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

    def keeps(self, prediction_id: str) -> bool:
        """Return whether sampling keeps the row of `prediction_id`: without sampling, always."""
        return is_sampled(prediction_id, sample=self.policy.sample, key=self._sample_key)

    def append(self, batch: PredictionBatch) -> int:
        """Hand the rows to the kernel in one write and return the bytes written; as `append_all`."""
        return self.append_all((batch,))

    def append_all(self, batches: Sequence[PredictionBatch]) -> int:
        """Hand the rows of a whole flush to the kernel in one write and return the bytes written.

        Returns 0 where nothing could be written and the policy is to go on: the requests are counted as dropped.

        Raises:
            UnavailableError: `log-unavailable`, with `on_full = "block"`: nothing was logged, so no row may be answered.
        """
        try:
            return self._append_all(batches)
        except UnavailableError:
            if self.policy.on_full != "drop":
                raise
        for batch in batches:
            self.n_dropped += int(batch.outputs.shape[0])
            self.count(batch.source.revision, "dropped", batch.time_ns, batch.n_requests)
        self._lost = True
        return 0

    def count(self, revision: int, outcome: Outcome, time_ns: int, n: int = 1) -> None:
        """Count how `n` requests ended; written with the next `flush_outcomes`."""
        counts = self._counts_of(revision, time_ns)
        setattr(counts, outcome, getattr(counts, outcome) + n)

    def flush_outcomes(self, now_ns: int) -> None:
        """Write the outcomes counted since the last flush, if there are any.

        Raises:
            UnavailableError: `log-unavailable`; the counts are kept for the next try.
        """
        if self._counts:
            segment = self._open_segment(now_ns)
            self._write(segment, [self._outcomes(now_ns)], 1)
            self._counts = {}
            self._lost = False

    def written_through(self) -> int:
        """Return a mark: everything appended so far is durable once `sync` has returned this or more."""
        return self._sequence

    @property
    def lost_through(self) -> int:
        """The mark up to which rows may be lost though a later sync passed: an answer that still waits for one must be refused."""
        return max(self._lost_in_sync, self._lost_in_file)

    def sync(self) -> int:
        """Return the mark up to which everything is on the disk, but for what `lost_through` says.

        Blocking: call it from a thread, beside `append_all`. What was appended before the call is covered.

        Raises:
            UnavailableError: `log-unavailable`: rows up to `lost_through` that no call covered before may be lost with the host;
                answers that wait for them must be refused. The log goes on in another file.
        """
        with self._sync_lock:
            # In this order: a rotation between two of these lines retires the segment before it opens another.
            through = self._sequence
            segment = self._segment
            retired = tuple(self._retired)
            if through == self._durable and not retired:
                return through
            try:
                for one in (*retired, *([] if segment is None or segment in retired else [segment])):
                    if not one.lost:
                        one.sync()
            except UnavailableError:
                # The kernel tells of a loss once; what went into that file while its sync failed is not safe either.
                self._lost_in_sync = self._told = self._sequence
                raise
            finally:
                for one in retired:
                    self._retired.remove(one)
                    one.close()
            if segment is not None and segment.lost:
                self._lost_in_sync = self._sequence
            if self.lost_through > self._told:
                self._told = self.lost_through
                raise UnavailableError(
                    "log-unavailable",
                    "rows went into a file of the log whose sync failed",
                    fix="check the disk; the log goes on in another file",
                    where=self.deployment,
                )
            self._durable = through
            return through

    def measure_backlog(self) -> int:
        """Return the bytes of this deployment's segments that nobody has encoded yet; blocking, for a thread."""
        total = 0
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"{STEM}-*{SUFFIX}"):
                with contextlib.suppress(OSError):
                    total += path.stat().st_size
        self.backlog_bytes = total
        return total

    def close(self, now_ns: int) -> None:
        """Write what was counted, sync and close. A disk that is full at this moment loses the last counts, no rows."""
        with contextlib.suppress(UnavailableError):
            self.flush_outcomes(now_ns)
        with contextlib.suppress(UnavailableError):
            self.sync()
        self._counts = {}
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _append_all(self, batches: Sequence[PredictionBatch]) -> int:
        self._require_room()
        segment = self._open_segment(batches[0].time_ns)
        sequence = self._sequence
        frames: list[bytes] = []
        fresh: list[_Known] = []
        left_out: list[int] = []
        if self._lost:
            # Losses are told with the first rows that can be written again: a kill in between must not hide them.
            frames.append(self._outcomes(batches[0].time_ns))
            sequence += 1
        for batch in batches:
            known = self._known.get(id(batch.source)) or self._learn(batch.source, frames, fresh)
            payload = self._encode(batch, known, sequence, left_out)
            if payload is not None:
                frames.append(frame(KIND_BLOCK, payload))
                sequence += 1
        n_bytes = self._write(segment, frames, sequence - self._sequence) if frames else 0
        if self._lost:
            self._counts, self._lost = {}, False
        for known in fresh:
            self._numbers[known.written] = known.number
            self._known[id(known.given)] = known
        for batch in batches:
            self._counts_of(batch.source.revision, batch.time_ns).answered += batch.n_requests
        for batch, n in zip(batches, left_out, strict=False):
            self._counts_of(batch.source.revision, batch.time_ns).sampled_out += n
        return n_bytes

    def _require_room(self) -> None:
        limit = self.policy.max_backlog_bytes
        if limit and self.backlog_bytes > limit:
            raise UnavailableError(
                "log-unavailable",
                f"{self.backlog_bytes:,} bytes of the prediction log wait to be encoded, {limit:,} are allowed",
                fix="see why the log's keeper is behind (keeper.json in the log's folder), or allow a larger backlog",
                where=self.deployment,
            )

    def _encode(self, batch: PredictionBatch, known: _Known, sequence: int, left_out: list[int]) -> bytes | None:
        """Return the block of what the policy keeps of a batch; None where sampling keeps none of it."""
        if known.written.redacted:
            batch = redacted_batch(batch, known.written)
        kept = None
        if self.policy.sample < 1.0:
            kept = kept_rows(batch, prefix=self.prefix, sample=self.policy.sample, key=self._sample_key)
            left_out.append(int(kept.size - kept.sum()))
            if not kept.any():
                return None
        return encode_block(batch, sequence=sequence, source=known.number, n_numbers=known.n_numbers, texts=known.texts, kept=kept)

    def _learn(self, source: Source, frames: list[bytes], fresh: list[_Known]) -> _Known:
        """Return what the open segment knows of a source; describe it there if it is new."""
        written = redacted_source(source, self.policy.redact)
        pending = {known.written: known.number for known in fresh}
        number = self._numbers.get(written, pending.get(written))
        if number is None:
            number = len(self._numbers.keys() | pending.keys())
            frames.append(frame(KIND_SOURCE, msgspec.msgpack.encode(msgspec.structs.replace(written, source=number))))
        texts = tuple(column.name for column in written.columns if column.type is ColumnType.TEXT)
        known = _Known(source, written, number, written.n_numbers, texts)
        fresh.append(known)
        if len(self._known) > _MAX_KNOWN_SOURCES:
            # Looked up by identity, so that no batch pays for comparing thirty columns; callers who make a source per batch do.
            self._known.clear()
        return known

    def _counts_of(self, revision: int, time_ns: int) -> OutcomeCounts:
        if not self._counts:
            self._counts_since_ns = time_ns
        counts = self._counts.get(revision)
        if counts is None:
            counts = self._counts[revision] = OutcomeCounts()
        return counts

    def _outcomes(self, now_ns: int) -> bytes:
        payload = OutcomesFrame(self._sequence, self._counts_since_ns, max(now_ns, self._counts_since_ns), self._counts)
        return frame(KIND_OUTCOMES, msgspec.msgpack.encode(payload))

    def _write(self, segment: SegmentFile, frames: list[bytes], n_numbered: int) -> int:
        n_bytes = segment.append(frames)
        self._sequence += n_numbered
        self.n_bytes += n_bytes
        return n_bytes

    def _open_segment(self, time_ns: int) -> SegmentFile:
        segment = self._segment
        # A clock set back does not reopen an hour: names only rise within a writer.
        if segment is not None and time_ns < self._segment_ends_ns and segment.n_bytes < self._max_segment_bytes and not segment.broken:
            return segment
        hour = max(hour_of(time_ns), self._segment_hour)
        name = f"{STEM}-{hour}-{self.prefix:016x}-{self._n_segments:05d}{SUFFIX}"
        fresh = SegmentFile(self.folder / name)
        header = SegmentHeader(
            FORMAT,
            VERSION,
            self.deployment,
            f"{self.prefix:016x}",
            hour,
            self._n_segments,
            self._sequence,
            self.policy.sample,
            self._sample_key if self.policy.sample < 1.0 else 0,
            tuple(sorted(self.policy.redact)),
        )
        try:
            self.n_bytes += fresh.append([frame(KIND_HEADER, msgspec.msgpack.encode(header))])
        except UnavailableError:
            fresh.close()
            fresh.path.unlink(missing_ok=True)
            raise
        if segment is not None:
            # Closed by the next sync, in its thread: a loop that answers must not wait for the disk once an hour.
            self._retired.append(segment)
            if segment.lost:
                self._lost_in_file = self._sequence
        self._segment, self._segment_hour = fresh, hour
        self._segment_ends_ns = max(self._segment_ends_ns, (time_ns // NS_PER_HOUR + 1) * NS_PER_HOUR)
        self._known, self._numbers = {}, {}
        self._n_segments += 1
        if len(self._retired) > _MAX_RETIRED:
            # Nobody syncs: descriptors must not run out.
            self.sync()
        return fresh
