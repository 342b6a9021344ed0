"""Tables to the arrays that enter the graph."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT, Column, ColumnType, Schema
from mulle.data.arrays import from_arrays, to_arrays

SCHEMA = Schema(
    (
        Column("수", ColumnType.NUMBER),
        Column("예", ColumnType.BOOLEAN),
        Column("때", ColumnType.DATETIME),
        Column("글", ColumnType.TEXT),
    )
)
FRAME = pl.DataFrame(
    {"글": ["가", None], "때": [datetime(2020, 1, 1, 0, 0, 0, 500_000), None], "예": [True, None], "수": [1, None], "더": [1, 2]}  # noqa: DTZ001
)


def test_each_type_has_its_array_and_its_missing():
    """Seconds for moments, 0 and 1 for booleans, the noncharacter for missing text; other columns are left out."""
    arrays = to_arrays(FRAME, SCHEMA)

    assert list(arrays) == ["수", "예", "때", "글"]
    assert arrays["글"].tolist() == ["가", MISSING_TEXT]
    assert {arrays[name].dtype for name in ("수", "예", "때")} == {np.dtype(np.float64)}
    assert [arrays[name][0] for name in ("수", "예", "때")] == [1.0, 1.0, 1577836800.5]
    assert all(np.isnan(arrays[name][1]) for name in ("수", "예", "때"))


def test_arrays_become_the_table_again():
    """Missing is null again."""
    back = from_arrays(to_arrays(FRAME, SCHEMA), SCHEMA)

    assert back.equals(FRAME.select("수", "예", "때", "글").cast({"수": pl.Float64}))


def test_an_empty_column_fits_every_type():
    """A file in which a column is missing throughout can still be scored."""
    frame = pl.DataFrame({name: [None, None] for name in SCHEMA.names})
    arrays = to_arrays(frame, SCHEMA)

    assert arrays["글"].tolist() == [MISSING_TEXT] * 2
    assert all(np.isnan(arrays[name]).all() for name in ("수", "예", "때"))


def test_arrays_can_be_written_to():
    """Callers change them (permutation importance), and the table must not change with them."""
    frame = pl.DataFrame({"수": [1.0, 2.0]})
    arrays = to_arrays(frame, SCHEMA.select(["수"]))
    arrays["수"][0] = 9.0

    assert frame["수"].to_list() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("frame", "code", "said"),
    [
        pytest.param(FRAME.rename({"수": "수2"}), "column-missing", "'수'", id="another name"),
        pytest.param(FRAME.with_columns(수=pl.Series(["1", "x"])), "column-type", "is a text, expected a number", id="text for a number"),
        pytest.param(FRAME.with_columns(글=pl.Series([1, 2])), "column-type", "is a number, expected a text", id="a number for text"),
        pytest.param(FRAME.with_columns(예=pl.Series([1, 2])), "column-type", "expected a boolean", id="a two for a boolean"),
    ],
)
def test_what_does_not_fit_is_named(frame, code, said):
    """The column, what it is and what it should be."""
    with pytest.raises(SpecError) as caught:
        to_arrays(frame, SCHEMA)

    assert code == caught.value.code
    assert said in caught.value.what


def test_zero_and_one_are_booleans():
    """And booleans are numbers, where the schema says so."""
    frame = FRAME.with_columns(예=pl.Series([1, 0]), 수=pl.Series([True, False]))
    arrays = to_arrays(frame, SCHEMA)

    assert arrays["예"].tolist() == arrays["수"].tolist() == [1.0, 0.0]
