"""Normalising tables, and keeping them as dataset versions."""

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from mulle.core.dataset import DatasetVersion
from mulle.core.errors import CheckError, SpecError
from mulle.core.schema import Column, ColumnType, Schema
from mulle.data.dataset import DATA_FILE, INFO_FILE, infer_schema, load_dataset, logical_digest, normalise, read_dataset_info, save_dataset

SEOUL = timezone(timedelta(hours=9))


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        pytest.param(pl.Series([1, None], dtype=pl.Int8), pl.Series([1, None], dtype=pl.Int64), id="narrow integers widen"),
        pytest.param(pl.Series([2**64 - 1], dtype=pl.UInt64), pl.Series([2**64 - 1], dtype=pl.Int128), id="wide ones stay exact"),
        pytest.param(pl.Series([1.5, float("nan")], dtype=pl.Float32), pl.Series([1.5, None]), id="NaN is missing"),
        pytest.param(pl.Series([Decimal("1.25")]), pl.Series([1.25]), id="decimals are numbers"),
        pytest.param(pl.Series(["a", None], dtype=pl.Categorical), pl.Series(["a", None]), id="categories are text"),
        pytest.param(pl.Series(["가"], dtype=pl.Enum(["가"])), pl.Series(["가"]), id="enums are text"),
        pytest.param(pl.Series([None, None]), pl.Series([None, None], dtype=pl.Float64), id="no type at all is a number"),
        pytest.param(pl.Series([date(2020, 1, 2)]), pl.Series([datetime(2020, 1, 2)]), id="a date is its midnight"),  # noqa: DTZ001
        pytest.param(
            pl.Series([datetime(2020, 1, 2, 9, tzinfo=SEOUL)], dtype=pl.Datetime("ns", "Asia/Seoul")),
            pl.Series([datetime(2020, 1, 2)]),  # noqa: DTZ001 - naive is UTC in tables
            id="zoned timestamps become UTC",
        ),
    ],
)
def test_normalise_maps_types_and_keeps_values(series, expected):
    """Four types come out, whatever went in; twice changes nothing."""
    once = normalise(series.alias("x").to_frame())

    assert expected.alias("x").to_frame().equals(once)
    assert expected.dtype == once["x"].dtype
    assert normalise(once).equals(once)


@pytest.mark.parametrize(
    ("table", "code", "named"),
    [
        pytest.param(pl.DataFrame({"목록": [[1]]}), "column-type", "목록", id="a list"),
        pytest.param(pl.DataFrame({"s": [{"a": 1}]}), "column-type", "'s'", id="a struct"),
        pytest.param(pl.DataFrame({"b": [b"x"]}), "column-type", "'b'", id="bytes"),
        pytest.param(pl.DataFrame({"t": [timedelta(1)]}), "column-type", "'t'", id="a duration"),
        pytest.param(pl.DataFrame({"o": [object()]}), "column-type", "'o'", id="Python objects"),
        pytest.param(pl.DataFrame({"": [1]}), "column-name", "''", id="a column without a name"),
        pytest.param(pl.DataFrame({"x": ["a", "b\ufdd0"]}), "text-reserved", "row 2", id="the character that stands for missing"),
        pytest.param(pd.DataFrame({"m": [1, "a"]}), "column-mixed-types", "int, str", id="a pandas column of mixed types"),
        pytest.param(pd.DataFrame({0: [1]}), "column-name", "0", id="a pandas column without a text name"),
        pytest.param(pd.DataFrame([[1, 2]], columns=["a", "a"]), "column-name", "twice", id="a pandas column twice"),
        pytest.param(pa.table([[1], [2]], names=["a", "a"]), "column-name", "twice", id="an Arrow column twice"),
        pytest.param({"a": [1]}, "table-type", "dict", id="not a table"),
        pytest.param(None, "table-type", "a source returned None", id="a source that forgot to return"),
    ],
)
def test_normalise_refuses_by_name(table, code, named):
    """What cannot be a column is refused, and the error names it."""
    with pytest.raises(SpecError) as caught:
        normalise(table)

    assert code == caught.value.code
    assert named in caught.value.what


def test_every_kind_of_table_gives_one_digest():
    """polars, lazy, pandas and Arrow tables of the same values are the same dataset."""
    frame = pl.DataFrame(
        {"나이": [1, None, 3], "이름": ["가", None, "나"], "ok": [True, None, False], "t": [datetime(2020, 1, 1, tzinfo=UTC)] * 3}
    )
    tables = [frame, frame.lazy(), frame.to_pandas(), frame.to_arrow(), frame.to_arrow().to_batches()[0]]

    assert {logical_digest(normalise(table)) for table in tables} == {logical_digest(normalise(frame))}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(pl.DataFrame({"a": [1, 2], "b": ["x", ""]}), id="empty text is not missing text"),
        pytest.param(pl.DataFrame({"a": [2, 1], "b": [None, "x"]}), id="the order of rows"),
        pytest.param(pl.DataFrame({"b": ["x", None], "a": [1, 2]}), id="the order of columns"),
        pytest.param(pl.DataFrame({"a": [1, 2], "c": ["x", None]}), id="a name"),
        pytest.param(pl.DataFrame({"a": ["1", "2"], "b": ["x", None]}), id="a type"),
        pytest.param(pl.DataFrame({"a": [1.0, 2.0000000000000004], "b": ["x", None]}), id="the last bit of a number"),
    ],
)
def test_the_digest_sees_every_logical_difference(other):
    """Two tables that differ in anything but storage have different digests."""
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})

    assert logical_digest(normalise(frame)) != logical_digest(normalise(other))


def test_whole_numbers_beyond_float_precision_are_told_apart():
    """2^53 and 2^53 + 1 are one float64, and two values."""
    low, high = (pl.DataFrame({"id": [2**53 + step]}) for step in (0, 1))

    assert logical_digest(normalise(low)) != logical_digest(normalise(high))


def test_zero_and_minus_zero_are_told_apart():
    """Features can divide by them."""
    assert logical_digest(pl.DataFrame({"x": [0.0]})) != logical_digest(pl.DataFrame({"x": [-0.0]}))


def test_the_digest_is_pinned():
    """A change of the digest would rename every dataset ever cut: it needs a new digest version, not an accident."""
    frame = pl.DataFrame(
        {"수": [1.0, None, -2.5], "글": ["가", None, ""], "예": [True, None, False], "때": [date(2020, 1, 1), None, date(1960, 1, 1)]}
    )

    assert logical_digest(normalise(frame)) == "87d1a4160dd4828280fa1c8197741ae32385d801ba7580a8938aacf6c43377ea"


def test_saving_twice_gives_the_same_folder(tmp_path):
    """Identical data is the identical version: nothing is written again."""
    frame = pl.DataFrame({"이름": ["가", None], "때": [date(2020, 1, 1), date(2021, 5, 1)]})
    first = save_dataset(frame, "고객", tmp_path, time_column="때")
    stamp = (tmp_path / "고객" / first.digest / DATA_FILE).stat().st_mtime_ns
    second = save_dataset(frame.lazy().collect(), "고객", tmp_path, time_column="때")

    assert first == second
    assert (tmp_path / "고객" / first.digest / DATA_FILE).stat().st_mtime_ns == stamp
    assert [entry.name for entry in (tmp_path / "고객").iterdir()] == [first.digest]
    assert first.time_range == ("2020-01-01T00:00:00Z", "2021-05-01T00:00:00Z")
    assert read_dataset_info(tmp_path, "고객", first.digest) == first
    assert load_dataset(tmp_path, "고객", first.digest).equals(normalise(frame))


def test_a_flipped_byte_is_named(tmp_path):
    """A damaged table is refused before anything reads it, and saving again repairs it."""
    frame = pl.DataFrame({"x": [1.0, 2.0]})
    version = save_dataset(frame, "d", tmp_path)
    path = tmp_path / "d" / version.digest / DATA_FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))

    with pytest.raises(CheckError, match="flipped byte"):
        load_dataset(tmp_path, "d", version.digest)

    assert save_dataset(frame, "d", tmp_path) == version
    assert load_dataset(tmp_path, "d", version.digest).equals(frame)


def test_a_table_swapped_with_its_description_is_found_out(tmp_path):
    """Recomputing the file's hash in dataset.json does not help: the digest is over the values."""
    from mulle.core.canonical import digest_file

    version = save_dataset(pl.DataFrame({"x": [1.0]}), "d", tmp_path)
    folder = tmp_path / "d" / version.digest
    pl.DataFrame({"x": [9.0]}).write_parquet(folder / DATA_FILE)
    info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    info |= {"file_sha256": digest_file(folder / DATA_FILE), "file_size": (folder / DATA_FILE).stat().st_size}
    (folder / INFO_FILE).write_text(json.dumps(info), encoding="utf-8")

    with pytest.raises(CheckError) as caught:
        load_dataset(tmp_path, "d", version.digest)

    assert caught.value.code == "dataset-changed"


def test_a_newer_format_is_refused(tmp_path):
    """A reader of version 1 says what it found."""
    version = save_dataset(pl.DataFrame({"x": [1.0]}), "d", tmp_path)
    path = tmp_path / "d" / version.digest / INFO_FILE
    path.write_text(path.read_text(encoding="utf-8").replace('"version": 1', '"version": 2', 1), encoding="utf-8")

    with pytest.raises(CheckError) as caught:
        load_dataset(tmp_path, "d", version.digest)

    assert caught.value.code == "format-unknown"


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        pytest.param("d", "0" * 64, id="no such digest"),
        pytest.param("d", "../" * 20, id="a path in place of a digest"),
        pytest.param("../d", "0" * 64, id="a path in place of a name"),
    ],
)
def test_what_is_not_there_is_a_spec_error(tmp_path, name, digest):
    """Names and digests never become paths elsewhere."""
    with pytest.raises(SpecError):
        load_dataset(tmp_path, name, digest)


def test_a_time_column_must_be_a_datetime(tmp_path):
    """Nothing is written when the time column is of another type."""
    with pytest.raises(SpecError) as caught:
        save_dataset(pl.DataFrame({"t": ["2020"]}), "d", tmp_path, time_column="t")

    assert caught.value.code == "time-column"
    assert list(tmp_path.iterdir()) == []


def test_a_version_survives_json():
    """What `to_dict` writes, `from_dict` reads."""
    version = DatasetVersion(
        "고객", "a" * 64, Schema((Column("나이", ColumnType.NUMBER),)), 3, ("2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z")
    )

    assert DatasetVersion.from_dict(json.loads(json.dumps(version.to_dict()))) == version


def test_the_schema_says_where_values_are_missing():
    """Nullable is what the data shows."""
    frame = normalise(pl.DataFrame({"a": [1, None], "b": [True, False], "c": ["x", "y"], "d": [date(2020, 1, 1), None]}))
    expected = Schema(
        (
            Column("a", ColumnType.NUMBER, nullable=True),
            Column("b", ColumnType.BOOLEAN, nullable=False),
            Column("c", ColumnType.TEXT, nullable=False),
            Column("d", ColumnType.DATETIME, nullable=True),
        )
    )

    assert expected == infer_schema(frame)
