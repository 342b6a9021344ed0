"""JSON rows into arrays into tensors: the only way raw values reach a served graph.

Rows by name (`encode_rows`) and matrices by position (`encode_matrix`) become one array per column; `feeds` stacks the
arrays into the graph's own tensors. Every value that does not fit is refused with its row and column; nothing is guessed.

| column     | a JSON value may be                                                          |
|------------|------------------------------------------------------------------------------|
| `number`   | a finite number                                                              |
| `boolean`  | true, false, 0 or 1                                                          |
| `datetime` | ISO 8601 text (UTC where no offset is given), or seconds since 1970-01-01    |
| `text`     | text of whole Unicode characters                                             |

null, and in Python NaN, is *missing*; a missing value is refused where the column is not nullable.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput

Arrays: TypeAlias = "dict[str, NDArray[Any]]"
"""Column name to shape (n,): float64 with NaN for missing, or str objects with `MISSING_TEXT` for missing."""

_ABSENT = object()
_INT64_LIMIT = float(2**63)


def shown(value: object, limit: int = 60) -> str:
    """Return `repr(value)`, cut at `limit` characters: for error messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None when none is like it."""
    found = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def encode_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[ColumnInfo], *, ignore: Collection[str] = (), absent_is_missing: bool = False
) -> Arrays:
    """Return one array of shape (len(rows),) per column, in the order of `columns`.

    Args:
        rows: One mapping per row: column name to JSON value. An absent nullable column is missing.
        columns: The raw columns of the bundle.
        ignore: Keys that may stand in a row without being a column (`prediction_id`, the entity).
        absent_is_missing: Take absent and null as missing even where the column is not nullable (golden requests).

    Raises:
        SpecError: `rows-unknown-column`, `rows-missing-column`, `rows-wrong-type`, `rows-not-finite`, `rows-bad-datetime`, `rows-bad-text`.
    """
    known = {column.name for column in columns} | set(ignore)
    for i, row in enumerate(rows):
        if not row.keys() <= known:
            _refuse_unknown(next(name for name in row if name not in known), [c.name for c in columns], f"row {i}")
    return {
        column.name: _encode_column(
            [row.get(column.name, _ABSENT) for row in rows], column, required=not (column.nullable or absent_is_missing)
        )
        for column in columns
    }


def encode_matrix(matrix: Sequence[Sequence[Any]], columns: Sequence[ColumnInfo], names: Sequence[str] | None = None) -> Arrays:
    """Return one array of shape (len(matrix),) per column, in the order of `columns`.

    Args:
        matrix: One list per row.
        columns: The raw columns of the bundle.
        names: The columns of the matrix in its own order; by default the bundle's own order.

    Raises:
        SpecError: rows of another length (`rows-wrong-length`), a name twice (`rows-duplicate-column`), and as `encode_rows`.
    """
    own = [column.name for column in columns]
    order = own if names is None else list(names)
    for name in order:
        if name not in own:
            _refuse_unknown(name, own, "columns")
    if len(set(order)) != len(order):
        twice = next(name for name in order if order.count(name) > 1)
        raise SpecError("rows-duplicate-column", f"'columns' names {shown(twice)} twice", fix="name each column once", where="columns")
    for i, row in enumerate(matrix):
        if len(row) != len(order):
            raise SpecError(
                "rows-wrong-length",
                f"row {i} has {len(row):,} values for {len(order):,} columns",
                fix=f"send the values in this order: {', '.join(order)[:300]}",
                where=f"row {i}",
            )
    place = {name: j for j, name in enumerate(order)}
    return {
        column.name: _encode_column(
            [row[place[column.name]] for row in matrix] if column.name in place else [_ABSENT] * len(matrix),
            column,
            required=not column.nullable,
        )
        for column in columns
    }


def feeds(arrays: Mapping[str, NDArray[Any]], graph: Graph) -> dict[str, NDArray[Any]]:
    """Return the graph's input tensors, each of shape (n, number of its columns).

    Raises:
        SpecError: a column is not there; a value is missing or not whole where the tensor holds integers or booleans, or
            is too large for the tensor's float32.
    """
    return {tensor.name: _tensor(arrays, tensor) for tensor in graph.inputs}


def decode_value(value: Any, kind: ColumnType) -> str | float | bool | None:
    """Return the JSON value an array element stands for: None where missing, a boolean where the column is one."""
    if kind is ColumnType.TEXT:
        return None if value == MISSING_TEXT else str(value)
    number = float(value)
    if math.isnan(number):
        return None
    return bool(number) if kind is ColumnType.BOOLEAN else number


def _refuse_unknown(name: object, known: Sequence[str], where: str) -> None:
    like = nearest(str(name), known)
    raise SpecError(
        "rows-unknown-column",
        f"there is no column {shown(name)}",
        fix=f"did you mean {like!r}?" if like else f"use the model's columns: {', '.join(known)[:300]}",
        where=where,
    )


def _encode_column(values: list[Any], column: ColumnInfo, *, required: bool) -> NDArray[Any]:
    if column.type is ColumnType.TEXT:
        return _text(values, column, required=required)
    if column.type is ColumnType.NUMBER and set(map(type, values)) <= {float, int}:
        # The common case in one pass of C; an integer beyond float64 raises and is named below.
        try:
            array = np.array(values, dtype=np.float64)
        except OverflowError:
            array = None
        if array is not None and bool(np.isfinite(array).all()):
            return array
    out = np.empty(len(values), dtype=np.float64)
    for i, value in enumerate(values):
        out[i] = _number(value, column, i, required=required)
    return out


def _number(value: Any, column: ColumnInfo, row: int, *, required: bool) -> float:
    if isinstance(value, np.generic):
        value = cast("Any", value.item())
    if value is _ABSENT or value is None or (isinstance(value, float) and math.isnan(value)):
        return _missing(column, row, math.nan, required=required, absent=value is _ABSENT)
    if column.type is ColumnType.BOOLEAN:
        if isinstance(value, bool | int | float) and value in {0, 1}:
            return float(value)
        raise _wrong_type(value, column, row, "true or false")
    if column.type is ColumnType.DATETIME and isinstance(value, str):
        return _seconds(value, column, row)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(value, column, row, "a number" if column.type is ColumnType.NUMBER else "ISO 8601 text or seconds since 1970")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise SpecError(
            "rows-not-finite",
            f"column {column.name!r}: {shown(value)} is outside the range of a float",
            fix="send a finite number, or null where it is missing",
            where=_at(row, column),
        )
    return number


def _seconds(text: str, column: ColumnInfo, row: int) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()
    except (ValueError, OverflowError) as error:
        raise SpecError(
            "rows-bad-datetime",
            f"column {column.name!r}: {shown(text)} is not a date or time",
            fix="send ISO 8601, as 2026-11-20 or 2026-11-20T08:30:00+09:00",
            where=_at(row, column),
        ) from error


def _text(values: list[Any], column: ColumnInfo, *, required: bool) -> NDArray[Any]:
    out = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        if isinstance(value, str):
            # A lone surrogate cannot be encoded for the graph; the marker of a missing text must not come from outside.
            if not value.isascii() and (value == MISSING_TEXT or any("\ud800" <= c <= "\udfff" for c in value)):
                raise SpecError(
                    "rows-bad-text",
                    f"column {column.name!r}: {shown(value)} holds half a character or a reserved one",
                    fix="send text that is whole Unicode",
                    where=_at(i, column),
                )
            out[i] = value
        elif value is _ABSENT or value is None or (isinstance(value, float) and math.isnan(value)):
            out[i] = _missing(column, i, MISSING_TEXT, required=required, absent=value is _ABSENT)
        else:
            raise _wrong_type(value, column, i, 'text (in quotes: "…")')
    return out


def _missing(column: ColumnInfo, row: int, marker: Any, *, required: bool, absent: bool) -> Any:
    if required:
        raise SpecError(
            "rows-missing-column",
            f"column {column.name!r} is {'absent' if absent else 'null'}, and the model cannot do without it",
            fix=f"send a value for {column.name!r}",
            where=_at(row, column),
        )
    return marker


def _wrong_type(value: object, column: ColumnInfo, row: int, wanted: str) -> SpecError:
    return SpecError(
        "rows-wrong-type",
        f"column {column.name!r} takes {wanted}, not {shown(value)}",
        fix=f"send {wanted}" + (", or null where it is missing" if column.nullable else ""),
        where=_at(row, column),
    )


def _at(row: int, column: ColumnInfo) -> str:
    return f"row {row}, column {column.name!r}"


def _tensor(arrays: Mapping[str, NDArray[Any]], tensor: GraphInput) -> NDArray[Any]:
    parts: list[NDArray[Any]] = []
    for name in tensor.columns:
        if name not in arrays:
            _refuse_unknown(name, list(arrays), "arrays")
        parts.append(arrays[name])
    block = parts[0][:, None] if len(parts) == 1 else np.column_stack(parts)
    if tensor.dtype == "string":
        return block.astype(object)
    if tensor.dtype == "double":
        return np.ascontiguousarray(block, dtype=np.float64)
    if tensor.dtype == "float":
        with np.errstate(over="ignore"):
            narrow = np.ascontiguousarray(block, dtype=np.float32)
        bad = np.isinf(narrow)
        reason = "is outside the range of float32"
    else:
        bad = ~np.isfinite(block) | (block != np.floor(block)) | (np.abs(block) >= (_INT64_LIMIT if tensor.dtype == "int64" else 2))
        bad |= False if tensor.dtype == "int64" else block < 0
        narrow = np.where(bad, 0, block).astype(np.int64 if tensor.dtype == "int64" else np.bool_)
        reason = "must be a whole number, not missing" if tensor.dtype == "int64" else "must be true or false, not missing"
    if bool(bad.any()):
        row, j = (int(v) for v in np.argwhere(bad)[0])
        raise SpecError(
            "rows-out-of-range",
            f"column {tensor.columns[j]!r}: {shown(float(block[row, j]))} {reason}",
            fix="send a value the model's input can hold",
            where=f"row {row}, column {tensor.columns[j]!r}",
        )
    return narrow
