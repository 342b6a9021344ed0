"""Tables to arrays and back: the form in which rows enter the served graph.

Each column becomes shape (n,): number, boolean (0.0, 1.0) and datetime (seconds since 1970-01-01 UTC) float64 with NaN for
missing, text an object array of `str` with `MISSING_TEXT` for missing.
"""

import difflib
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT, Column, ColumnType, Schema
from mulle.data.dataset import column_type, normalise

Arrays = dict[str, npt.NDArray[Any]]
_MICROS = 1_000_000


def to_arrays(frame: pl.DataFrame, schema: Schema) -> Arrays:
    """Return column name to array, for the columns of `schema` in its order; other columns are left out.

    Raises:
        SpecError: a column is missing (the nearest name is told), or has another type.
    """
    present = [name for name in schema.names if name in frame.columns]
    table = normalise(frame.select([frame[name] for name in present]))
    return {column.name: _to_array(_require_series(table, column, frame.columns), column) for column in schema}


def from_arrays(arrays: Arrays, schema: Schema) -> pl.DataFrame:
    """Return the table that `to_arrays` came from: missing is null again, datetimes are naive UTC microseconds.

    Raises:
        SpecError: a column of `schema` is not among the arrays.
    """
    columns: list[pl.Series] = []
    for column in schema:
        values = arrays.get(column.name)
        if values is None:
            raise SpecError("column-missing", f"there is no array for the column {column.name!r}", fix="give every column of the schema")
        columns.append(_to_series(values.reshape(-1), column))
    return pl.DataFrame(columns)


def _require_series(frame: pl.DataFrame, column: Column, names: list[str]) -> pl.Series:
    if column.name not in frame.columns:
        nearest = difflib.get_close_matches(column.name, names, n=1, cutoff=0.5)
        fix = f"rename {nearest[0]!r} to {column.name!r}" if nearest else f"the table has {', '.join(names[:8])}"
        raise SpecError("column-missing", f"the table has no column {column.name!r}", fix=fix[:200], where=column.name)
    series = frame[column.name]
    found = column_type(series.dtype, column.name)
    if series.null_count() == len(series) or found is column.type:
        return series
    if {found, column.type} == {ColumnType.NUMBER, ColumnType.BOOLEAN} and _is_zero_one(series):
        return series
    fixes = {
        ColumnType.NUMBER: f'convert it: pl.col("{column.name}").cast(pl.Float64)',
        ColumnType.TEXT: f'convert it: pl.col("{column.name}").cast(pl.String)',
        ColumnType.BOOLEAN: f'convert it: pl.col("{column.name}") == "Yes"',
        ColumnType.DATETIME: f'convert it: pl.col("{column.name}").str.to_datetime()',
    }
    raise SpecError(
        "column-type",
        f"the column {column.name!r} is a {found.value}, expected a {column.type.value}",
        fix=fixes[column.type],
        where=column.name,
    )


def _is_zero_one(series: pl.Series) -> bool:
    return series.dtype == pl.Boolean or bool(((series == 0) | (series == 1)).all())


def _to_array(series: pl.Series, column: Column) -> npt.NDArray[Any]:
    if column.type is ColumnType.TEXT:
        values = np.empty(len(series), dtype=object)
        values[:] = series.cast(pl.String).fill_null(MISSING_TEXT).to_list()
        return values
    if series.dtype == pl.Datetime:
        return _floats(series.cast(pl.Int64)) / _MICROS
    return _floats(series) if series.dtype.is_numeric() or series.dtype == pl.Boolean else np.full(len(series), np.nan)


def _floats(series: pl.Series) -> npt.NDArray[np.float64]:
    return np.array(series.cast(pl.Float64).fill_null(float("nan")).to_numpy(), dtype=np.float64)


def _to_series(values: npt.NDArray[Any], column: Column) -> pl.Series:
    if column.type is ColumnType.TEXT:
        return pl.Series(column.name, [None if value == MISSING_TEXT else str(value) for value in values.tolist()], dtype=pl.String)
    numbers = pl.Series("values", np.asarray(values, dtype=np.float64)).fill_nan(None).alias(column.name)
    if column.type is ColumnType.BOOLEAN:
        return numbers.cast(pl.Boolean)
    if column.type is ColumnType.DATETIME:
        return (numbers * _MICROS).round(0).cast(pl.Int64).cast(pl.Datetime("us"))
    return numbers
