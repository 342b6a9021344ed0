"""CSV bytes to a typed table: every value is read as text first, then each column gets the one type all of it has.

Guessing from the first rows is how a column turns into text because of row 90,001. Here a column is a number only if
every value is one; blanks are missing; a column that is a number almost everywhere is refused, with the lines that are not.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from mulle.core.errors import SpecError

_MOSTLY = 0.9
_SHOWN = 3
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_GUESSES = ("cp949", "utf-16", "cp1252")
ColumnKind = Literal["number", "boolean", "datetime", "text"]


@dataclass(frozen=True, slots=True)
class CsvOptions:
    """How to read a CSV; see `data/sources.py: read_csv`."""

    separator: str = ","
    encoding: str = "utf-8"
    null_values: tuple[str, ...] = ()
    types: Mapping[str, ColumnKind] | None = None
    decimal_comma: bool = False


def parse_csv(data: bytes, options: CsvOptions, *, where: str) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Return the table in `data`, and sentences about what was taken for missing.

    Args:
        data: The whole file.
        options: Separator, encoding, spellings of missing, types by column.
        where: The file or URL, for errors.

    Raises:
        SpecError: empty, HTML, another encoding (line and byte named), ragged or unclosed rows, unusable header, mixed types.
    """
    require_table_bytes(data, "a CSV", where=where)
    text = _decode(data, options.encoding, where)
    header = _read_header(text, options.separator, where)
    for name in options.types or {}:
        if name not in header:
            raise SpecError(
                "csv-option",
                f"`types` names the column {name!r}, which the file does not have",
                fix=f"use one of {header!r}"[:300],
                where=where,
            )
    try:
        raw = pl.read_csv(
            text.encode("utf-8"), separator=options.separator, infer_schema=False, empty_string_is_null=True, raise_if_empty=False
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise SpecError(
            "csv-malformed",
            f"the CSV cannot be split into rows and columns: {' '.join(str(error).split())[:200]}",
            fix="look for an unclosed quote or a row with more values than the header, or write the file again",
            where=where,
        ) from error
    notes: list[str] = []
    if raw.width > 1:
        kept = raw.filter(~pl.all_horizontal(pl.all().is_null()))
        if dropped := raw.height - kept.height:
            notes.append(f"{where}: {dropped:,} blank lines were left out")
        raw = kept
    columns = [_type_column(raw[name].alias(name), options, notes, where) for name in raw.columns]
    return pl.DataFrame(columns), tuple(notes)


def require_table_bytes(data: bytes, what: str, *, where: str) -> None:
    """Return if `data` may be a table at all.

    Raises:
        SpecError: nothing in it, or a web page.
    """
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise SpecError(
            "source-empty", f"{what} without a single byte of data", fix="export the data again, or point at another file", where=where
        )
    if head.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise SpecError(
            "source-html",
            f"expected {what}, found a web page: usually a login or an error page saved by a download",
            fix="open the file in a browser to see what it says, then download the data again",
            where=where,
        )


def _decode(data: bytes, encoding: str, where: str) -> str:
    name = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        return data.decode(name)
    except LookupError as error:
        raise SpecError("csv-option", f"there is no encoding {encoding!r}", fix='use for example encoding="cp949"', where=where) from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        guess = next((g for g in _GUESSES if _decodes(data, g) and g != encoding), "cp1252")
        raise SpecError(
            "csv-encoding",
            f"byte {error.start:,} (0x{data[error.start]:02x}, line {line:,}) is not {encoding}",
            fix=f'read_csv(…, encoding="{guess}") reads it without an error: check that the text looks right',
            where=f"{where}:{line}",
        ) from error


def _decodes(data: bytes, encoding: str) -> bool:
    if encoding == "utf-16" and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return False
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _read_header(text: str, separator: str, where: str) -> list[str]:
    if len(separator) != 1 or not separator.isascii():
        raise SpecError(
            "csv-option", f"the separator {separator!r} is not one ASCII character", fix='use for example separator=";"', where=where
        )
    try:
        header = next(csv.reader(io.StringIO(text[: 4 << 20]), delimiter=separator), list[str]())
    except csv.Error as error:
        raise SpecError("csv-malformed", f"the header cannot be read: {error}", fix="write the file again", where=f"{where}:1") from error
    seen: set[str] = set()
    for position, name in enumerate(header, start=1):
        if not name.strip():
            raise SpecError(
                "column-name", f"column {position} has no name in the header", fix="name it in the file's first line", where=f"{where}:1"
            )
        if name in seen:
            raise SpecError(
                "column-name",
                f"the column {name[:80]!r} appears twice",
                fix="rename one of the two in the file's first line",
                where=f"{where}:1",
            )
        seen.add(name)
    if len(header) == 1:
        for other, plural in _SEPARATORS.items():
            if other != separator and other in header[0]:
                raise SpecError(
                    "csv-separator",
                    f"the header is one column: {header[0][:80]!r}; its names seem to be separated by {plural}",
                    fix=f"read_csv(…, separator={other!r})",
                    where=f"{where}:1",
                )
    return header


def _type_column(series: pl.Series, options: CsvOptions, notes: list[str], where: str) -> pl.Series:
    name = series.name
    wanted = (options.types or {}).get(name)
    if options.null_values:
        series = _null_out(series, series.is_in(list(options.null_values)))
    if wanted == "text":
        return series
    stripped = series.str.strip_chars()
    blank = (stripped == "").fill_null(value=False)
    values = _null_out(stripped, blank)
    if values.null_count() == len(values):
        return _all_missing(values, wanted)
    typed = _cast(values, wanted, decimal_comma=options.decimal_comma)
    if typed is None:
        _refuse_mixed(series, values, wanted, options, where)
        return series
    if n_blank := int(blank.sum()):
        notes.append(f"{where}: {n_blank:,} blank values of the column {name!r} are missing: all others are {_kind_of(typed)}")
    return typed


def _all_missing(values: pl.Series, wanted: ColumnKind | None) -> pl.Series:
    if wanted == "number":
        return values.cast(pl.Float64)
    if wanted == "boolean":
        return pl.Series(values.name, [None] * len(values), dtype=pl.Boolean)
    return values.cast(pl.Datetime("us"), strict=False) if wanted == "datetime" else values


def _kind_of(series: pl.Series) -> str:
    if series.dtype == pl.Boolean:
        return "booleans"
    return "numbers" if series.dtype.is_numeric() else "dates"


def _cast(values: pl.Series, wanted: ColumnKind | None, *, decimal_comma: bool) -> pl.Series | None:
    """Return the column as the one type all of it has, or None when there is none but text."""
    if wanted in (None, "number"):
        numbers = values.str.replace(",", ".", literal=True) if decimal_comma else values
        # A code such as 00123 is not a number: its zeros would be lost.
        if wanted == "number" or not numbers.str.contains(r"^[+-]?0[0-9]").any():
            whole = bool(numbers.str.contains(r"^[+-]?[0-9]+$").fill_null(value=True).all())
            for dtype in (pl.Int64, pl.Int128) if whole else (pl.Float64,):
                typed = numbers.cast(dtype, strict=False)
                if typed.null_count() == values.null_count():
                    return typed
    if wanted in (None, "boolean") and values.is_in([*_TRUE, *_FALSE]).fill_null(value=True).all():
        return (
            values.is_in(list(_TRUE))
            if values.null_count() == 0
            else values.str.to_lowercase().replace_strict({"true": True, "false": False}, return_dtype=pl.Boolean)
        )
    if wanted in (None, "datetime"):
        return _cast_datetime(values)
    return None


def _cast_datetime(values: pl.Series) -> pl.Series | None:
    if not values.str.contains(r"^\d{4}-\d{2}-\d{2}").fill_null(value=True).all():
        return None
    bare = values.str.replace(r"[zZ]$", "+00:00")
    zoned = bare.str.contains(r"\d[+-]\d{2}:?\d{2}$").fill_null(value=True).all()
    formats = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M")
    candidates = (*(f"{f}%z" for f in formats),) if zoned and bare.str.len_chars().max() != len("2026-01-01") else formats
    dates = values.str.to_date("%Y-%m-%d", strict=False)
    if dates.null_count() == values.null_count():
        return dates.cast(pl.Datetime("us"))
    for pattern in candidates:
        typed = bare.str.to_datetime(pattern, strict=False, time_unit="us", time_zone="UTC" if pattern.endswith("%z") else None)
        if typed.null_count() == values.null_count():
            return typed.dt.replace_time_zone(None)
    return None


def _refuse_mixed(series: pl.Series, values: pl.Series, wanted: ColumnKind | None, options: CsvOptions, where: str) -> None:
    """Raise when the column should have been, or almost is, something else than text."""
    if wanted == "datetime":
        bad = values.str.to_datetime(strict=False, time_unit="us").is_null() & values.is_not_null()
    elif wanted == "boolean":
        bad = ~values.is_in([*_TRUE, *_FALSE]) & values.is_not_null()
    else:
        numbers = values.str.replace(",", ".", literal=True) if options.decimal_comma else values
        bad = numbers.cast(pl.Float64, strict=False).is_null() & values.is_not_null()
    n, n_bad = len(values) - values.null_count(), int(bad.sum())
    codes = wanted is None and bool(values.str.contains(r"^[+-]?0[0-9]").any())
    if codes or n_bad == 0 or (wanted is None and n_bad > (1 - _MOSTLY) * n):
        return
    rows = bad.arg_true()[:_SHOWN].to_list()
    examples = ", ".join(f"{series[row]!r:.60} (row {row + 1:,})" for row in rows)
    spellings = ", ".join(f'"{series[row]}"'[:40] for row in rows[:1])
    raise SpecError(
        "column-mixed-types",
        f"the column {series.name!r} mixes types: {n - n_bad:,} values are {_PLURAL[wanted]} and {n_bad:,} are not",
        fix=f'if they stand for missing: read_csv(…, null_values=[{spellings}]); if it is text: types={{"{series.name}": "text"}}',
        where=where,
        facts={"not one": examples},
    )


_PLURAL = {None: "numbers", "number": "numbers", "boolean": "booleans", "datetime": "dates", "text": "texts"}


def _null_out(series: pl.Series, mask: pl.Series) -> pl.Series:
    return series.to_frame().select(pl.when(~mask.fill_null(value=False)).then(pl.first()).alias(series.name)).to_series()


def as_options(
    *,
    separator: str,
    encoding: str,
    null_values: Sequence[str] | str,
    types: Mapping[str, ColumnKind] | None,
    decimal_comma: bool,
    where: str,
) -> CsvOptions:
    """Return checked options.

    Raises:
        SpecError: an unknown column type.
    """
    for name, kind in (types or {}).items():
        if kind not in ("number", "boolean", "datetime", "text"):
            raise SpecError(
                "csv-option", f"{kind!r} is not a column type (for {name!r})", fix="use number, boolean, datetime or text", where=where
            )
    spellings = (null_values,) if isinstance(null_values, str) else tuple(null_values)
    return CsvOptions(separator, encoding, spellings, types, decimal_comma)
