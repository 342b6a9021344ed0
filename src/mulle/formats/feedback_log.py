"""The feedback log: labels, values and rewards that arrive after their prediction; synced before they are acknowledged.

    <root>/<deployment>/feedback-<UTC day>-<writer's prefix>-<number>.mseg

The rule of joining, which makes sending twice harmless:

- one prediction id and one kind (`label`, `value`, `reward`) have **one** answer: the one received last wins;
- a prediction id that was logged twice (a client's own ids) counts once: the row answered first;
- feedback for an id nobody logged is kept, counted and joined when the prediction turns up.
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import CheckError, SpecError
from mulle.core.names import require_name
from mulle.formats.prediction_reader import PredictionTable
from mulle.formats.segment import Damage, SegmentFile, frame, read_frames

STEM = "feedback"
SUFFIX = ".mseg"
FORMAT = "mulle.feedback"
VERSION = 1
KIND_HEADER, KIND_ITEMS = 1, 5
MAX_SEGMENT_BYTES = 64 << 20
MAX_ID_CHARACTERS = 128
MAX_LABEL_CHARACTERS = 1_000

FeedbackKind = Literal["label", "value", "reward"]


class FeedbackItem(msgspec.Struct, frozen=True):
    """One label, value or reward.

    Attributes:
        prediction_id: What it is about.
        kind: `label` (a class, as text), `value` (the true number of a regression) or `reward` (a number, for bandits).
        value: Text for a label, a finite number otherwise.
        time_ns: When it was received, nanoseconds since 1970-01-01 UTC.
        known: Whether the receiving server could place the id at that moment.
    """

    prediction_id: str
    kind: FeedbackKind
    value: str | float
    time_ns: int
    known: bool = True


class _Header(msgspec.Struct, frozen=True):
    format: str
    version: int
    deployment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackTable:
    """Feedback in the order it was received.

    Attributes:
        items: As logged, repetitions included.
        damage: What of the files could not be read.
    """

    items: tuple[FeedbackItem, ...]
    damage: Damage

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedFeedback:
    """Predictions that have feedback, each once.

    Attributes:
        rows: int64: rows of the prediction table, rising.
        values: One per row: str objects for labels, float64 otherwise.
        n_unmatched: Feedback for ids the table does not hold.
        n_sampled_out: Of those, how many sampling kept out of the log.
        n_superseded: Feedback that a later one of the same id replaced.
        n_duplicate_predictions: Rows left out because an earlier row has their id.
    """

    rows: NDArray[np.int64]
    values: NDArray[Any]
    n_unmatched: int
    n_superseded: int
    n_duplicate_predictions: int
    n_sampled_out: int = 0


def require_prediction_id(text: object, *, where: str = "") -> str:
    """Return `text` if it can be a prediction id: 1 to 128 visible ASCII characters without quotes, commas and backslashes.

    Raises:
        SpecError: `prediction-id-invalid`.
    """
    if (
        not isinstance(text, str)
        or not 1 <= len(text) <= MAX_ID_CHARACTERS
        or not all("!" <= c <= "~" and c not in "\"',\\<>" for c in text)
    ):
        raise SpecError(
            "prediction-id-invalid",
            f"{repr(text)[:80]} cannot be a prediction id",
            fix=f"use 1 to {MAX_ID_CHARACTERS} visible ASCII characters without quotes, commas, backslashes and angle brackets",
            where=where,
        )
    return text


class FeedbackWriter:
    """The one writer of feedback of a process for one deployment. Not safe for two threads."""

    def __init__(self, root: Path, deployment: str, *, prefix: int | None = None, max_segment_bytes: int = MAX_SEGMENT_BYTES) -> None:
        self.deployment = require_name(deployment, "a deployment")
        self.folder = root / deployment
        self._prefix = secrets.randbits(64) if prefix is None else prefix
        self._max_segment_bytes = max_segment_bytes
        self._segment: SegmentFile | None = None
        self._day = ""
        self._n_segments = 0

    def append(self, items: Sequence[FeedbackItem]) -> None:
        """Return when `items` are on the disk, all of them.

        Raises:
            UnavailableError: `log-unavailable`: do not acknowledge them; sending them again is harmless.
        """
        if not items:
            return
        segment = self._open_segment(items[0].time_ns)
        segment.append([frame(KIND_ITEMS, msgspec.msgpack.encode(list(items)))])
        segment.sync()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _open_segment(self, time_ns: int) -> SegmentFile:
        day = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y%m%d")
        segment = self._segment
        if segment is not None and not segment.broken and day <= self._day and segment.n_bytes < self._max_segment_bytes:
            return segment
        self.close()
        day = max(day, self._day)
        fresh = SegmentFile(self.folder / f"{STEM}-{day}-{self._prefix:016x}-{self._n_segments:05d}{SUFFIX}")
        fresh.append([frame(KIND_HEADER, msgspec.msgpack.encode(_Header(FORMAT, VERSION, self.deployment)))])
        self._segment, self._day = fresh, day
        self._n_segments += 1
        return fresh


def read_feedback(root: Path, deployment: str, *, since_ns: int | None = None, until_ns: int | None = None) -> FeedbackTable:
    """Return the feedback received in a window, in the order of its arrival.

    Args:
        root: The folder of logs, `.mulle/logs`.
        deployment: Whose feedback.
        since_ns: Only what was received at or after this moment. Labels come late: leave it open on joining.
        until_ns: Only what was received before this moment.

    Raises:
        CheckError: a file was written by a newer version.
    """
    damage = Damage()
    items: list[FeedbackItem] = []
    for path in sorted((root / require_name(deployment, "a deployment")).glob(f"{STEM}-*-*-*{SUFFIX}")):
        for kind, payload in read_frames(path, damage):
            if kind == KIND_HEADER:
                header = msgspec.msgpack.decode(payload, type=_Header)
                if header.format != FORMAT or header.version != VERSION:
                    raise CheckError(
                        "format-unknown",
                        f"expected {FORMAT} version {VERSION}, found {header.format!r} version {header.version}",
                        fix="upgrade Mulle: the log was written by a newer one",
                        where=str(path),
                    )
            elif kind == KIND_ITEMS:
                items += [
                    item
                    for item in msgspec.msgpack.decode(payload, type=list[FeedbackItem])
                    if (since_ns is None or item.time_ns >= since_ns) and (until_ns is None or item.time_ns < until_ns)
                ]
    items.sort(key=lambda item: item.time_ns)
    return FeedbackTable(items=tuple(items), damage=damage)


def join_feedback(predictions: PredictionTable, feedback: FeedbackTable, *, kind: FeedbackKind = "label") -> JoinedFeedback:
    """Return each prediction that has feedback of `kind`, exactly once, with the feedback received last.

    Args:
        predictions: A window of the prediction log.
        feedback: Received at any time; see the rule at the top of this module.
        kind: Which feedback.
    """
    latest: dict[str, str | float] = {}
    n_items = 0
    for item in feedback.items:
        if item.kind == kind:
            latest[item.prediction_id] = item.value
            n_items += 1
    rows: list[int] = []
    values: list[str | float] = []
    seen: set[str] = set()
    for row, prediction_id in enumerate(predictions.ids.tolist()):
        if prediction_id in seen:
            continue
        seen.add(prediction_id)
        if prediction_id in latest:
            rows.append(row)
            values.append(latest[prediction_id])
    return JoinedFeedback(
        rows=np.array(rows, dtype=np.int64),
        values=np.array(values, dtype=object if kind == "label" else np.float64),
        n_unmatched=len(latest) - len(rows),
        n_superseded=n_items - len(latest),
        n_duplicate_predictions=len(predictions) - len(seen),
        n_sampled_out=sum(predictions.left_out(one) for one in latest if one not in seen) if predictions.sampled else 0,
    )


def canonical_label(value: object, classes: Sequence[str]) -> str:
    """Return the class a JSON label names: text as it is, true and 1 also as a class spelt `True`, `true`, `1` or `1.0`.

    Args:
        value: Text, a boolean or a finite number.
        classes: The classes known; empty accepts any text.

    Raises:
        SpecError: `feedback-bad-label`: another type, too long, or none of the classes.
    """
    if isinstance(value, str):
        spellings = [value]
    elif isinstance(value, bool):
        spellings = [str(value), str(value).lower(), str(int(value))]
    elif isinstance(value, int):
        spellings = [str(value), f"{value}.0"] if abs(value) < 1 << 62 else []
    elif isinstance(value, float) and math.isfinite(value):
        spellings = [str(int(value)) if value.is_integer() else str(value), str(value)]
    else:
        spellings = []
    for spelling in spellings:
        if spelling in classes or (not classes and len(spelling) <= MAX_LABEL_CHARACTERS):
            return spelling
    raise SpecError(
        "feedback-bad-label",
        f"{repr(value)[:80]} is not a class of this model",
        fix=f"send one of {', '.join(repr(c) for c in list(classes)[:20])}" if classes else "send a class as text",
        where="label",
    )
