"""The quick way for the bodies nearly everybody sends: typed decoding in C, and answers from prepared texts.

It is an optimisation of `codec_json`, never a second opinion: whatever does not fit exactly (another type, an unknown key,
an entity, a date as text) gives None, and the careful way decides, or says what is wrong. A property test holds both equal.
"""

import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.bundle import ColumnInfo, Manifest
from mulle.serve.plane.jobs import Batch

FastRows: TypeAlias = Sequence[Sequence[Any]]
_MAX_COLUMNS = 500
_FEW = 8
_AS_FLOAT32 = struct.Struct("f")
_FEATURES = b'{"features"'
_ROWS = b'{"rows"'
_ODD_NAME = re.compile(r'["\\\x00-\x1f]')
"""Names msgspec does not take as keys."""
_TYPES: dict[ColumnType, Any] = {
    ColumnType.NUMBER: float,
    ColumnType.BOOLEAN: bool,
    ColumnType.DATETIME: float,
    ColumnType.TEXT: str,
}


class FastCodec:
    """Decodes and renders for one bundle.

    Args:
        manifest: Of the bundle.
    """

    def __init__(self, manifest: Manifest) -> None:
        columns = manifest.columns
        self._text_at = [i for i, column in enumerate(columns) if column.type is ColumnType.TEXT]
        self._list: Callable[[bytes], Any] | None = None
        if 0 < len(columns) <= _MAX_COLUMNS and not any(_ODD_NAME.search(column.name) for column in columns):
            row = _row_type(columns)
            kinds = tuple(_type_of(column) for column in columns)
            matrix = msgspec.defstruct("Features", [("features", list[tuple.__class_getitem__(kinds)])], forbid_unknown_fields=True)
            rows = msgspec.defstruct("Rows", [("rows", list[row])], forbid_unknown_fields=True)
            self._list = _decoder(list[row])
            self._one = _decoder(row)
            self._matrix = _decoder(matrix)
            self._rows = _decoder(rows)

    def decode(self, body: bytes) -> FastRows | None:
        """Return one tuple of plain values per row in the order of the columns, None where missing; None: take the careful way."""
        if self._list is None:
            return None
        rows: list[Any]
        try:
            if body.startswith(_FEATURES):
                rows = self._matrix(body).features
            elif body[:1] == b"[":
                rows = [msgspec.structs.astuple(row) for row in self._list(body)]
            elif body.startswith(_ROWS):
                rows = [msgspec.structs.astuple(row) for row in self._rows(body).rows]
            else:
                rows = [msgspec.structs.astuple(self._one(body))]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        for at in self._text_at:
            for row in rows:
                text = row[at]
                # What is not ASCII may hold half a character or the marker of a missing text: looked at with care.
                if text is not None and not text.isascii() and not _is_whole(text):
                    return None
        return rows


class Renderer:
    """Spells the answers of one revision.

    Args:
        manifest: Of its bundle.
        model: Name of its model.
        model_version: Number of its version.
        revision: Its number.
    """

    def __init__(self, manifest: Manifest, *, model: str, model_version: int, revision: int) -> None:
        classes = [_json(name) for name in manifest.classes]
        self._regression = not classes
        self._labels = [f'{{"label":{name},"probabilities":{{' for name in classes]
        slots = ",".join(f"{name.replace('%', '%%')}:%r" for name in classes)
        self._probabilities = f"{slots}}}}}"
        self.tail = f'"],"model":{_json(model)},"model_version":{model_version},"revision":{revision}}}'

    def rows(self, batch: Batch) -> list[str]:
        """Return the JSON object of every row of a batch; worked out once for all its jobs."""
        if batch.memo is None:
            scores = batch.scores
            few = scores.size <= _FEW
            raw: list[list[float]] = scores.tolist() if few else []
            values = few_short_floats(raw) if few else short_floats(scores).tolist()
            if self._regression:
                batch.memo = [f'{{"value":{row[0]!r}}}' for row in values]
            else:
                labels, spell = self._labels, self._probabilities
                indices = batch.served.few_labels(raw) if few else batch.served.label_indices(scores).tolist()
                batch.memo = [labels[label] + spell % tuple(row) for label, row in zip(indices, values, strict=True)]
        return batch.memo

    def body(self, rows: Sequence[str], ids: Sequence[str]) -> str:
        """Return the answer's body, ASCII only.

        Args:
            rows: From `rows`.
            ids: One id per row: hexadecimal, or a client's own, which are printable ASCII without quotes.
        """
        if len(rows) == 1:
            return f'{{"predictions":[{rows[0]}],"prediction_ids":["{ids[0]}{self.tail}'
        all_rows, all_ids = ",".join(rows), '","'.join(ids)
        return f'{{"predictions":[{all_rows}],"prediction_ids":["{all_ids}{self.tail}'


def short_floats(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return float32 scores as float64 that print short and read back as exactly the same float32.

    0.8, not 0.800000011920929: seven decimals where that is enough, nine, or else all digits.
    """
    whole = scores.astype(np.float64)
    short = whole.round(7)
    same = short.astype(np.float32) == scores
    if same.all():
        return short
    longer = whole.round(9)
    whole = np.where(longer.astype(np.float32) == scores, longer, whole)
    return np.where(same, short, whole)


def few_short_floats(rows: list[list[float]]) -> list[list[float]]:
    """Return what `short_floats` does, for so few numbers that arrays would cost more.

    Args:
        rows: float32 scores as Python floats, from `tolist`.
    """
    return [[_short(value) for value in row] for row in rows]


def _short(value: float) -> float:
    if not value:
        # A zero keeps its sign.
        return value
    # As numpy rounds, to the last bit: an answer must not read differently for having had company.
    short = float(round(value * 1e7)) / 1e7
    if _AS_FLOAT32.unpack(_AS_FLOAT32.pack(short))[0] == value:
        return short
    short = float(round(value * 1e9)) / 1e9
    return short if _AS_FLOAT32.unpack(_AS_FLOAT32.pack(short))[0] == value else value


def _row_type(columns: Sequence[ColumnInfo]) -> Any:
    fields: list[Any] = []
    for i, column in enumerate(columns):
        kind = _type_of(column)
        fields.append((f"c{i}", kind, None) if column.nullable else (f"c{i}", kind))
    names = {f"c{i}": column.name for i, column in enumerate(columns)}
    return msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False, kw_only=True)


def _type_of(column: ColumnInfo) -> Any:
    kind = _TYPES[column.type]
    return kind | None if column.nullable else kind


def _decoder(kind: Any) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(kind).decode


def _is_whole(text: str) -> bool:
    return text != MISSING_TEXT and not any("\ud800" <= c <= "\udfff" for c in text)


def _json(text: str) -> str:
    """Return a JSON string in ASCII, so that its length in characters is its length in bytes."""
    quoted = msgspec.json.encode(text).decode("utf-8")
    return "".join(c if c < "\x7f" else "".join(f"\\u{ord(u):04x}" for u in _units(c)) for c in quoted)


def _units(character: str) -> str:
    data = character.encode("utf-16-be", "surrogatepass")
    return "".join(chr(int.from_bytes(data[i : i + 2], "big")) for i in range(0, len(data), 2))
