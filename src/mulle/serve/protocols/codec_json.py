"""JSON bodies into arrays, and scores into JSON: the only place that knows how a request is spelt.

A body of `/predict` is one of

    [{"tenure": 1, …}, …]                                 rows by name
    {"rows": [{…}, …]}                                    the same, in an envelope
    {"tenure": 1, …}                                      one row
    {"features": [[1, …], …], "columns": ["tenure", …]}   a matrix; without `columns` in the model's own order

A row may also carry `prediction_id` (the client's own) and the model's entity column; they are logged, not scored,
unless the model has columns of these names.
"""

import gc
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.formats.bundle import Manifest
from mulle.formats.feedback_log import MAX_LABEL_CHARACTERS, FeedbackItem, FeedbackKind, canonical_label, require_prediction_id
from mulle.formats.rows import Arrays, encode_matrix, encode_rows, nearest, shown

ID_KEY = "prediction_id"
MAX_ENTITY_CHARACTERS = 512
_LARGE_BYTES = 64 << 10
_ENVELOPE = ("rows", "features", "columns")
_SCALARS = (str, int, float, bool, type(None))
_FEEDBACK_KINDS: tuple[FeedbackKind, ...] = ("label", "value", "reward")


@dataclass(frozen=True, slots=True)
class Body:
    """A parsed body: rows by name, or a matrix; not yet compared with any model."""

    rows: list[dict[str, Any]] | None
    matrix: list[list[Any]] | None
    names: list[str] | None

    def __len__(self) -> int:
        return len(self.rows if self.rows is not None else self.matrix or [])


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a revision is asked: arrays, and what stood beside them."""

    arrays: Arrays
    ids: list[str] | None
    entity: list[str | None] | None


def parse_json(data: bytes) -> Any:
    """Return the JSON value in `data`.

    Raises:
        SpecError: `body-invalid` (not JSON, not UTF-8, a number outside the range of a float), `body-too-deep`.
    """
    # Millions of small lists make the collector look at all of them again and again: 0.6 s of work becomes 4.
    paused = len(data) > _LARGE_BYTES and gc.isenabled()
    if paused:
        gc.disable()
    try:
        return msgspec.json.decode(data)
    except UnicodeDecodeError as error:
        raise _invalid(f"the body is not UTF-8 at byte {error.start}", "send the JSON in UTF-8") from error
    except RecursionError as error:
        raise SpecError("body-too-deep", "the body is nested too deeply", fix="send a list of flat objects", where="body") from error
    except msgspec.DecodeError as error:
        empty = not data.strip()
        raise _invalid(
            "the body is empty" if empty else f"the body is not valid JSON: {error}",
            'send a list of objects, as [{"column": 1}]' if empty else "send JSON; NaN and Infinity are not JSON: use null for missing",
        ) from error
    finally:
        if paused:
            gc.enable()


def parse_predict(data: bytes, *, max_rows: int) -> Body:
    """Return the rows of a body of `/predict`.

    Raises:
        SpecError: `body-invalid`, `body-too-deep`, `body-shape`, `body-unknown-key`, `rows-empty`, `rows-too-many`.
    """
    value = parse_json(data)
    rows: Any = None
    matrix: Any = None
    names: Any = None
    if isinstance(value, dict):
        mapping = cast("dict[str, Any]", value)
        if any(isinstance(mapping.get(key), list) for key in ("rows", "features")):
            extra = next((key for key in mapping if key not in _ENVELOPE), None)
            if extra is not None or ("rows" in mapping and "features" in mapping):
                raise SpecError(
                    "body-unknown-key",
                    f"{shown(extra)} cannot stand beside the rows" if extra is not None else "'rows' and 'features' cannot stand together",
                    fix='send {"rows": [{…}]} or {"columns": […], "features": [[…]]}',
                    where="body",
                )
            rows, matrix, names = mapping.get("rows"), mapping.get("features"), mapping.get("columns")
        else:
            rows = [mapping]
    else:
        rows = value
    found: Any = matrix if rows is None else rows
    n_rows = len(cast("list[Any]", found)) if isinstance(found, list) else 1
    # Before any of them is looked at: looking at three million rows takes seconds.
    if n_rows > max_rows:
        raise SpecError(
            "rows-too-many",
            f"{n_rows:,} rows; the limit is {max_rows:,}",
            fix="send fewer at a time, or score a table with `mulle predict`",
            where="body",
        )
    body = Body(_rows(rows) if rows is not None else None, _matrix(matrix) if rows is None else None, _names(names))
    if not len(body):
        raise SpecError("rows-empty", "the request holds no rows", fix="send at least one row", where="body")
    return body


def encode_body(body: Body, manifest: Manifest, *, header_id: str | None = None) -> Encoded:
    """Return the arrays a revision is asked for, with the client's ids and the entity where it sent them.

    Args:
        body: From `parse_predict`.
        manifest: Of the revision that answers.
        header_id: The `mulle-prediction-id` header; for a single row it is the row's id, for more a stem to which `-0`, `-1` … are added.

    Raises:
        SpecError: a value does not fit (see `formats/rows.py`), or an id is unusable (`prediction-id-invalid`, `prediction-id-twice`).
    """
    columns = manifest.columns
    own = {column.name for column in columns}
    ids: list[str] | None = None
    entity: list[str | None] | None = None
    if body.rows is not None:
        beside = {ID_KEY, manifest.entity} if manifest.entity else {ID_KEY}
        arrays = encode_rows(body.rows, columns, ignore=beside)
        if ID_KEY not in own and any(ID_KEY in row for row in body.rows):
            ids = [require_prediction_id(row.get(ID_KEY), where=f"row {i}, {ID_KEY!r}") for i, row in enumerate(body.rows)]
        if manifest.entity and any(manifest.entity in row for row in body.rows):
            entity = [_entity(row.get(manifest.entity), i, manifest.entity) for i, row in enumerate(body.rows)]
    else:
        arrays = encode_matrix(body.matrix or [], columns, body.names)
    if ids is None and header_id is not None:
        stem = require_prediction_id(header_id, where="mulle-prediction-id")
        ids = [stem] if len(body) == 1 else [require_prediction_id(f"{stem}-{i}", where="mulle-prediction-id") for i in range(len(body))]
    if ids is not None and len(set(ids)) != len(ids):
        twice = next(name for name, n in Counter(ids).items() if n > 1)
        raise SpecError("prediction-id-twice", f"two rows have the id {twice!r}", fix="give every row its own id, or none", where=ID_KEY)
    return Encoded(arrays, ids, entity)


def render_predictions(manifest: Manifest, scores: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Return one object per row: `label` and `probabilities`, or for regression `value`."""
    if not manifest.classes:
        return [{"value": value} for value in scores[:, 0].astype(np.float64).tolist()]
    labels = choose_labels(manifest, scores)
    # float32 printed shortest: 0.8, not 0.800000011920929.
    rows = [[float(str(v)) for v in row] for row in scores]
    return [
        {"label": label, "probabilities": dict(zip(manifest.classes, row, strict=True))} for label, row in zip(labels, rows, strict=True)
    ]


def choose_labels(manifest: Manifest, scores: NDArray[np.float32]) -> list[str]:
    """Return the class each row is given: by the threshold where there is a positive class of two, else the most probable."""
    classes = manifest.classes
    if len(classes) == 2 and manifest.positive in classes:  # noqa: PLR2004 - a binary model
        positive = classes.index(manifest.positive)
        return [
            classes[positive] if p >= manifest.threshold else classes[1 - positive] for p in scores[:, positive].astype(np.float64).tolist()
        ]
    return [classes[i] for i in scores.argmax(axis=1).tolist()]


def parse_feedback(data: bytes, *, classes: Sequence[str], max_items: int) -> list[FeedbackItem]:
    """Return the items of a body of `/feedback`: one object, a list, or `{"feedback": [...]}`; times are 0, ids unplaced.

    Raises:
        SpecError: `body-invalid`, `body-shape`, `rows-empty`, `rows-too-many`, `feedback-kind`, `feedback-bad-label`,
            `feedback-bad-number`, `prediction-id-invalid`.
    """
    value = parse_json(data)
    if isinstance(value, dict):
        mapping = cast("dict[str, Any]", value)
        value = mapping["feedback"] if set(mapping) == {"feedback"} else [mapping]
    if not isinstance(value, list):
        raise _shape("a body of /feedback is an object or a list of objects")
    entries = cast("list[Any]", value)
    if not entries:
        raise SpecError("rows-empty", "the request holds no feedback", fix="send at least one object", where="body")
    if len(entries) > max_items:
        raise SpecError("rows-too-many", f"{len(entries):,} items; the limit is {max_items:,}", fix="send fewer at a time", where="body")
    return [item for i, entry in enumerate(entries) for item in _feedback_items(entry, i, classes)]


def _feedback_items(entry: Any, i: int, classes: Sequence[str]) -> list[FeedbackItem]:
    if not isinstance(entry, dict):
        raise _shape(f"item {i} is {shown(entry)}, not an object")
    mapping = cast("dict[str, Any]", entry)
    unknown = next((key for key in mapping if key != ID_KEY and key not in _FEEDBACK_KINDS), None)
    kinds = [kind for kind in _FEEDBACK_KINDS if kind in mapping]
    if unknown is not None or not kinds:
        like = None if unknown is None else nearest(unknown, (ID_KEY, *_FEEDBACK_KINDS))
        raise SpecError(
            "feedback-kind",
            f"item {i} holds {shown(unknown)}" if unknown is not None else f"item {i} holds no label, value or reward",
            fix=f"did you mean {like!r}?" if like else 'send {"prediction_id": "…", "label": …}, or "value", or "reward"',
            where=f"item {i}",
        )
    prediction_id = require_prediction_id(mapping.get(ID_KEY), where=f"item {i}, {ID_KEY!r}")
    items: list[FeedbackItem] = []
    for kind in kinds:
        raw = mapping[kind]
        if kind == "label" and classes:
            items.append(FeedbackItem(prediction_id, kind, canonical_label(raw, classes), 0))
            continue
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not _finite(raw):
            raise SpecError(
                "feedback-bad-number", f"item {i}: {kind} is {shown(raw)}", fix="send a finite number", where=f"item {i}, {kind!r}"
            )
        # A regression's label is its value, whichever word the client used.
        number: FeedbackKind = "reward" if kind == "reward" else "value"
        items.append(FeedbackItem(prediction_id, number, float(raw), 0))
    return items


def _finite(number: float) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False


def _rows(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise _shape(f"the body is {shown(value)}")
    entries = cast("list[Any]", value)
    for i, row in enumerate(entries):
        if not isinstance(row, dict):
            raise _shape(f"row {i} is {shown(row)}, not an object")
        _require_flat(cast("dict[str, Any]", row), i)
    return cast("list[dict[str, Any]]", entries)


def _require_flat(row: Mapping[str, Any], i: int) -> None:
    for name, value in row.items():
        if not isinstance(value, _SCALARS):
            raise SpecError(
                "body-shape",
                f"row {i}: {shown(name)} holds {shown(value)}",
                fix="send one number, text, true, false or null per column",
                where=f"row {i}, column {shown(name)}",
            )


def _matrix(value: Any) -> list[list[Any]]:
    if not isinstance(value, list):
        raise _shape(f"'features' is {shown(cast('object', value))}")
    entries = cast("list[Any]", value)
    for i, row in enumerate(entries):
        if not isinstance(row, list) or not all(isinstance(v, _SCALARS) for v in cast("list[Any]", row)):
            raise _shape(f"'features' row {i} is {shown(cast('object', row))}, not a list of values")
    return cast("list[list[Any]]", entries)


def _names(value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in cast("list[Any]", value)):
        raise _shape(f"'columns' is {shown(cast('object', value))}")
    return cast("list[str]", value)


def _entity(value: Any, i: int, name: str) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)
    if len(text) > min(MAX_ENTITY_CHARACTERS, MAX_LABEL_CHARACTERS):
        raise SpecError(
            "body-shape", f"row {i}: {name!r} has {len(text):,} characters", fix=f"send at most {MAX_ENTITY_CHARACTERS}", where=f"row {i}"
        )
    return text


def _invalid(what: str, fix: str) -> SpecError:
    return SpecError("body-invalid", what, fix=fix, where="body")


def _shape(what: str) -> SpecError:
    return SpecError("body-shape", what, fix='send [{"column": value, …}, …], or {"columns": […], "features": [[…], …]}', where="body")
