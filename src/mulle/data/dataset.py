# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Dataset versions: a table with Mulle's four types, a digest over its logical values, an immutable folder.

    <root>/<name>/<digest>/
      data.parquet     the table
      dataset.json     written into the same hidden folder first, then the whole folder is moved into place

The digest does not see how values are stored: chunks, Parquet encodings, compression, Int32 or Int64, a float column
that holds whole numbers, categories or plain strings. It does see the order of rows and of columns, names, types and
every value. In detail, per column, SHA-256 over a header and then

* number: little-endian float64, one quiet NaN for missing; -0.0 stays apart from 0.0, because 1/x tells them apart.
  Whole numbers that float64 cannot say exactly (beyond 2^53) are hashed as 16-byte little-endian integers instead;
* boolean: one byte, 0, 1 or 2 for missing;
* datetime: validity bytes, then int64 microseconds since 1970-01-01 UTC, 0 under a missing one;
* text: validity bytes, then int64 byte lengths, then the UTF-8 bytes one after another.
"""

import hashlib
import json
import math
import os
import secrets
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import polars as pl

from mulle.core.canonical import digest_file, digest_value, is_digest
from mulle.core.dataset import DatasetVersion
from mulle.core.errors import CheckError, SpecError
from mulle.core.names import require_name
from mulle.core.schema import MISSING_TEXT, Column, ColumnType, Schema
from mulle.formats.envelope import decode_document, read_limited

FORMAT = "mulle.dataset"
VERSION = 1
DATA_FILE = "data.parquet"
INFO_FILE = "dataset.json"
MAX_INFO_BYTES = 16 << 20
_DIGEST_VERSION = 1


class _Sink(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


class _Info(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: Literal["mulle.dataset"] = FORMAT
    version: Literal[1] = VERSION
    dataset: dict[str, Any]
    file_sha256: str
    file_size: int


def normalise(table: Any) -> pl.DataFrame:
    """Return the table as polars with Mulle's four types; values are kept, missing is null.

    Integers become Int64 (Int128 where that is too narrow), floats and decimals Float64 with NaN as null, dates and
    timestamps naive microseconds in UTC (a naive timestamp *is* UTC), categoricals and enums text. A column of no type at
    all (polars Null) becomes a number. Normalising twice changes nothing.

    Args:
        table: A polars DataFrame or LazyFrame, a pandas DataFrame, or an Arrow table or record batch.

    Raises:
        SpecError: something else; duplicate, empty or non-text column names; a type Mulle does not know; a text that
            holds U+FDD0, which stands for missing inside the served graph.
    """
    frame = _to_polars(table)
    for name in frame.columns:
        _require_column_name(name)
    return frame.with_columns(_normalise_column(frame[name]) for name in frame.columns)


def infer_schema(frame: pl.DataFrame) -> Schema:
    """Return the columns of a normalised frame; nullable is whether a value is missing in it."""
    return Schema(tuple(Column(s.name, column_type(s.dtype, s.name), s.null_count() > 0) for s in frame.iter_columns()))


def column_type(dtype: pl.DataType, name: str) -> ColumnType:
    """Return which of the four types a polars type is.

    Raises:
        SpecError: none of them; the column is named.
    """
    if dtype == pl.Boolean:
        return ColumnType.BOOLEAN
    if dtype.is_numeric() or dtype == pl.Null:
        return ColumnType.NUMBER
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return ColumnType.TEXT
    if isinstance(dtype, pl.Date | pl.Datetime):
        return ColumnType.DATETIME
    fixes = {
        "Duration": f'turn it into a number in the source: pl.col("{name}").dt.total_seconds()',
        "Time": "turn it into a number in the source, for example the hour",
        "Binary": f'decode it in the source, or drop it: frame.drop("{name}")',
    }
    fix = fixes.get(str(dtype.base_type()), f'take it apart into plain columns in the source, or drop it: frame.drop("{name}")')
    raise SpecError(
        "column-type",
        f"the column {name!r} has type {str(dtype)[:80]}, which is not a number, boolean, datetime or text",
        fix=fix,
        where=name,
    )


def logical_digest(frame: pl.DataFrame) -> str:
    """Return the digest of a normalised frame's logical values, 64 hexadecimal digits (see the module's text)."""
    columns: list[list[str]] = []
    for series in frame.iter_columns():
        kind = column_type(series.dtype, series.name)
        columns.append([series.name, kind.value, _digest_column(series.rechunk(), kind)])
    return digest_value({"format": "mulle.dataset-digest", "version": _DIGEST_VERSION, "n_rows": frame.height, "columns": columns})


def save_dataset(frame: pl.DataFrame, name: str, root: Path, *, time_column: str | None = None) -> DatasetVersion:
    """Return the dataset version of `frame`, kept under `root/<name>/<digest>/`; the same values give the same folder.

    Args:
        frame: Any table `normalise` accepts.
        name: The dataset's name.
        root: The folder of all datasets, `.mulle/datasets` in a project.
        time_column: The column whose first and last moment are recorded.

    Raises:
        SpecError: an unusable name, or a time column that is not there or not a datetime.
        UnavailableError: the folder cannot be written.
    """
    require_name(name, "a dataset")
    table = normalise(frame)
    schema = infer_schema(table)
    digest = logical_digest(table)
    version = DatasetVersion(name, digest, schema, table.height, _time_range(table, schema, time_column))
    target = root / name / digest
    if _is_whole(target, version):
        return version
    draft = root / name / f".draft-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        draft.mkdir(parents=True)
        table.write_parquet(draft / DATA_FILE, compression="zstd", statistics=True)
        _sync(draft / DATA_FILE)
        info = _Info(dataset=version.to_dict(), file_sha256=digest_file(draft / DATA_FILE), file_size=(draft / DATA_FILE).stat().st_size)
        text = json.dumps(msgspec.to_builtins(info), ensure_ascii=False, indent=1)
        (draft / INFO_FILE).write_text(text, encoding="utf-8")
        _sync(draft / INFO_FILE)
        _move_into_place(draft, target, version)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return version


def load_dataset(root: Path, name: str, digest: str) -> pl.DataFrame:
    """Return the table of a dataset version after its bytes and its values were found to be the ones recorded.

    Raises:
        SpecError: no such version.
        CheckError: the files were changed, truncated, or are of a newer format.
    """
    path = root / require_name(name, "a dataset") / digest / DATA_FILE
    version, info = _read_info(root, name, digest)
    if not path.is_file():
        raise CheckError(
            "dataset-changed", f"{DATA_FILE!r} is missing from dataset {name!r}", fix="run `mulle run --from snapshot`", where=str(path)
        )
    size = path.stat().st_size
    if size != info.file_size or digest_file(path) != info.file_sha256:
        raise CheckError(
            "dataset-changed",
            f"{DATA_FILE!r} of dataset {name!r} was changed after it was written: a flipped byte, or a truncated copy",
            fix="remove this folder and run `mulle run --from snapshot`, and find out who changed it",
            where=str(path),
            facts={"written": f"{info.file_size:,} bytes, sha256 {info.file_sha256}", "found": f"{size:,} bytes"},
        )
    frame = pl.read_parquet(path, glob=False)
    found = logical_digest(frame)
    if found != version.digest:
        raise CheckError(
            "dataset-changed",
            f"the values of dataset {name!r} are not the ones its digest names",
            fix="remove this folder and run `mulle run --from snapshot`, and find out who changed it",
            where=str(path),
            facts={"recorded": version.digest, "found": found},
        )
    return frame


def read_dataset_info(root: Path, name: str, digest: str) -> DatasetVersion:
    """Return what is recorded of a dataset version, without reading its table.

    Raises:
        SpecError: no such version.
        CheckError: not a description this version of Mulle reads.
    """
    return _read_info(root, name, digest)[0]


def _read_info(root: Path, name: str, digest: str) -> tuple[DatasetVersion, _Info]:
    require_name(name, "a dataset")
    if not is_digest(digest):
        raise SpecError("dataset-missing", f"{digest[:80]!r} is not a digest", fix="use the 64 digits that `mulle run` printed")
    path = root / name / digest / INFO_FILE
    if not path.is_file():
        raise SpecError(
            "dataset-missing",
            f"there is no dataset {name!r} with digest {digest[:12]}…",
            fix="run `mulle run --from snapshot`",
            where=str(path),
        )
    info = decode_document(read_limited(path, max_bytes=MAX_INFO_BYTES), _Info, name=FORMAT, version=VERSION, where=str(path))
    version = DatasetVersion.from_dict(info.dataset)
    if (version.name, version.digest) != (name, digest):
        raise CheckError(
            "dataset-changed",
            f"the folder of dataset {name!r} describes another version",
            fix="do not rename dataset folders; run `mulle run --from snapshot`",
            where=str(path),
            facts={"asked for": f"{name} {digest}", "found": f"{version.name} {version.digest}"},
        )
    return version, info


def _to_polars(table: Any) -> pl.DataFrame:
    if isinstance(table, pl.LazyFrame):
        return table.collect()
    if isinstance(table, pl.DataFrame):
        return table
    home = type(table).__module__.partition(".")[0]
    if home == "pandas" and type(table).__name__ == "DataFrame":
        return _from_pandas(table)
    if home == "pyarrow" and type(table).__name__ in ("Table", "RecordBatch"):
        _require_unique([str(name) for name in table.schema.names])
        converted = pl.from_arrow(table)
        if isinstance(converted, pl.DataFrame):
            return converted
    raise SpecError(
        "table-type",
        "a source returned None" if table is None else f"a source returned {_type_name(table)}, which is not a table",
        fix="return a polars, pandas or Arrow table, for example mulle.read_parquet(…)",
    )


def _type_name(value: object) -> str:
    kind = type(value)
    return repr(kind.__qualname__) if kind.__module__ == "builtins" else repr(f"{kind.__module__}.{kind.__qualname__}")


def _from_pandas(table: Any) -> pl.DataFrame:
    """Return a pandas table as polars; the index is dropped, as it is not a column."""
    names = list(table.columns)
    for name in names:
        if not isinstance(name, str):
            raise SpecError(
                "column-name", f"the column name {name!r} is not text", fix="rename it: frame.columns = [str(c) for c in frame.columns]"
            )
    _require_unique(names)
    columns: list[pl.Series] = []
    for name in names:
        try:
            columns.append(pl.from_pandas(table[name], nan_to_null=True).alias(name))
        except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
            kinds = sorted({type(value).__name__ for value in table[name].dropna()})
            raise SpecError(
                "column-mixed-types",
                f"the column {name!r} mixes values of types {', '.join(kinds[:5])}",
                fix=f'make it one type in the source: frame["{name}"] = frame["{name}"].astype("string")',
                where=name,
            ) from error
        except ImportError as error:
            raise SpecError("missing-extra", "reading a pandas table needs pyarrow", fix='pip install "mulle[data]"') from error
    return pl.DataFrame(columns)


def _require_unique(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SpecError(
                "column-name", f"the column {name[:80]!r} appears twice", fix="rename one of the two columns in the source", where=name
            )
        seen.add(name)


def _require_column_name(name: str) -> None:
    if not name.strip():
        raise SpecError("column-name", f"a column is called {name!r}", fix="give every column a name in the source")
    if "\x00" in name or MISSING_TEXT in name:
        raise SpecError("column-name", f"the column name {name[:80]!r} holds an unusable character", fix="rename it in the source")


def _normalise_column(series: pl.Series) -> pl.Series:
    kind = column_type(series.dtype, series.name)
    dtype = series.dtype
    if dtype == pl.Null:
        return series.cast(pl.Float64)
    if kind is ColumnType.NUMBER:
        if dtype.is_integer():
            return series.cast(_integer_width(series))
        # Polars reads a series name such as `^a$` as a pattern here: a plain name meanwhile.
        return series.cast(pl.Float64).alias("values").fill_nan(None).alias(series.name)
    if kind is ColumnType.DATETIME:
        if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
            series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return series.cast(pl.Datetime("us"))
    if kind is ColumnType.TEXT:
        series = series.cast(pl.String)
        held = series.str.contains(MISSING_TEXT, literal=True).fill_null(value=False)
        if held.any():
            row = int(held.arg_true()[0]) + 1
            raise SpecError(
                "text-reserved",
                f"row {row:,} of the column {series.name!r} holds U+FDD0, which stands for a missing text inside Mulle",
                fix=f'clean it in the source: pl.col("{series.name}").str.replace_all("\\ufdd0", "")',
                where=series.name,
            )
    return series


def _integer_width(series: pl.Series) -> type[pl.Int64 | pl.Int128]:
    low, high = series.min(), series.max()
    if not (isinstance(low, int) and isinstance(high, int)) or (low >= -(2**63) and high < 2**63):
        return pl.Int64
    if high >= 2**127:
        raise SpecError(
            "column-type",
            f"the column {series.name!r} holds whole numbers beyond 127 bits",
            fix=f'turn it into text in the source: pl.col("{series.name}").cast(pl.String)',
            where=series.name,
        )
    return pl.Int128


def _digest_column(series: pl.Series, kind: ColumnType) -> str:
    state = hashlib.sha256()
    if kind is ColumnType.NUMBER:
        _hash_number(state, series)
    elif kind is ColumnType.BOOLEAN:
        state.update(b"boolean\n")
        state.update(np.ascontiguousarray(series.cast(pl.UInt8).fill_null(2).to_numpy()).data)
    elif kind is ColumnType.DATETIME:
        state.update(b"datetime\n")
        micros = _normalise_column(series).cast(pl.Int64)
        state.update(_validity(series))
        state.update(np.ascontiguousarray(micros.fill_null(0).to_numpy(), dtype="<i8").data)
    else:
        _hash_text(state, series.cast(pl.String))
    return state.hexdigest()


def _hash_number(state: _Sink, series: pl.Series) -> None:
    as_float = series.cast(pl.Float64)
    if series.dtype.is_integer() and not _float_is_exact(series):
        state.update(b"integer\n")
        state.update(_validity(series))
        # two's complement in 16 bytes; the rare path, so that a Python loop is good enough
        state.update(b"".join((0 if value is None else value).to_bytes(16, "little", signed=True) for value in series))
        return
    state.update(b"number\n")
    values = np.array(as_float.fill_null(math.nan).to_numpy(), dtype="<f8")
    values[np.isnan(values)] = np.nan  # one bit pattern
    state.update(values.data)


def _float_is_exact(series: pl.Series) -> bool:
    """Return whether float64 says every whole number of the column exactly."""
    low, high = series.min(), series.max()
    if isinstance(low, int) and isinstance(high, int) and low >= -(2**53) and high <= 2**53:
        return True
    return all(value is None or int(float(value)) == value for value in series)


def _hash_text(state: _Sink, series: pl.Series) -> None:
    filled = series.fill_null("").rechunk()
    state.update(b"text\n")
    state.update(_validity(series))
    state.update(np.ascontiguousarray(filled.str.len_bytes().to_numpy(), dtype="<i8").data)
    array: Any = filled.to_arrow(compat_level=pl.CompatLevel.oldest())
    if len(array) == 0:
        return
    _, offsets_buffer, data = array.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    if data is not None:
        state.update(memoryview(data)[int(offsets[0]) : int(offsets[-1])])


def _validity(series: pl.Series) -> memoryview:
    return np.ascontiguousarray(series.is_not_null().cast(pl.UInt8).to_numpy()).data


def _time_range(frame: pl.DataFrame, schema: Schema, column: str | None) -> tuple[str, str] | None:
    if column is None:
        return None
    found = schema.get(column)
    if found is None or found.type is not ColumnType.DATETIME:
        problem = "is not in the table" if found is None else f"is a {found.type.value}, not a datetime"
        raise SpecError(
            "time-column", f"the time column {column!r} {problem}", fix="name a column of dates in mulle.Project(time=…)", where=column
        )
    low, high = frame[column].min(), frame[column].max()
    return (f"{low.isoformat()}Z", f"{high.isoformat()}Z") if isinstance(low, datetime) and isinstance(high, datetime) else None


def _is_whole(target: Path, version: DatasetVersion) -> bool:
    try:
        info = decode_document(
            read_limited(target / INFO_FILE, max_bytes=MAX_INFO_BYTES), _Info, name=FORMAT, version=VERSION, where=str(target)
        )
        path = target / DATA_FILE
        return (
            DatasetVersion.from_dict(info.dataset) == version
            and path.stat().st_size == info.file_size
            and digest_file(path) == info.file_sha256
        )
    except (CheckError, SpecError, OSError):
        return False


def _move_into_place(draft: Path, target: Path, version: DatasetVersion) -> None:
    """Move `draft` to `target`; a damaged folder that stands there is put aside first, a whole one is kept."""
    for _ in range(3):
        try:
            draft.rename(target)
        except OSError:
            if not target.exists():
                raise
            if _is_whole(target, version):
                return
            aside = target.with_name(f".draft-broken-{os.getpid()}-{secrets.token_hex(4)}")
            target.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            _sync(target.parent)
            return


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
