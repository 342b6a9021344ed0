"""JSON rows into arrays into tensors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput
from mulle.formats.rows import decode_value, encode_matrix, encode_rows, feeds

NUMBER = ColumnInfo("요금", ColumnType.NUMBER)
REQUIRED = ColumnInfo("tenure", ColumnType.NUMBER, nullable=False)
FLAG = ColumnInfo("flag", ColumnType.BOOLEAN)
WHEN = ColumnInfo("when", ColumnType.DATETIME)
TEXT = ColumnInfo("계약", ColumnType.TEXT)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        pytest.param(NUMBER, 3, 3.0, id="an integer is a number"),
        pytest.param(NUMBER, -0.5, -0.5, id="a float is a number"),
        pytest.param(NUMBER, None, math.nan, id="null is missing"),
        pytest.param(NUMBER, math.nan, math.nan, id="NaN is missing, as in a table"),
        pytest.param(NUMBER, 2**70, float(2**70), id="a large integer that a float can say"),
        pytest.param(FLAG, True, 1.0, id="true is one"),
        pytest.param(FLAG, 0, 0.0, id="0 is false"),
        pytest.param(WHEN, "1970-01-02", 86400.0, id="a date is midnight UTC"),
        pytest.param(WHEN, "1970-01-01T09:00:00+09:00", 0.0, id="an offset is honoured"),
        pytest.param(WHEN, 12.5, 12.5, id="seconds since 1970"),
        pytest.param(TEXT, "월별", "월별", id="Korean text"),
        pytest.param(TEXT, "", "", id="empty text is text"),
        pytest.param(TEXT, None, MISSING_TEXT, id="null text is the marker"),
        pytest.param(TEXT, "a\x00b", "a\x00b", id="NUL is a character"),
    ],
)
def test_a_value_becomes_one_array_element(column, value, expected):
    """Each JSON value that fits its column becomes the element the graph is given."""
    (found,) = encode_rows([{column.name: value}], [column])[column.name].tolist()

    assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.parametrize(
    ("column", "row", "code", "fragment"),
    [
        pytest.param(NUMBER, {"요금": "3"}, "rows-wrong-type", "'요금'", id="text for a number"),
        pytest.param(NUMBER, {"요금": True}, "rows-wrong-type", "True", id="a boolean is not a number"),
        pytest.param(NUMBER, {"요금": math.inf}, "rows-not-finite", "inf", id="infinity"),
        pytest.param(NUMBER, {"요금": 10**400}, "rows-not-finite", "1000", id="an integer beyond float64"),
        pytest.param(FLAG, {"flag": 2}, "rows-wrong-type", "true or false", id="2 is neither true nor false"),
        pytest.param(WHEN, {"when": "어제"}, "rows-bad-datetime", "'어제'", id="not a date"),
        pytest.param(WHEN, {"when": True}, "rows-wrong-type", "ISO 8601", id="a boolean is not a date"),
        pytest.param(TEXT, {"계약": 1}, "rows-wrong-type", "text", id="a number for text"),
        pytest.param(TEXT, {"계약": MISSING_TEXT}, "rows-bad-text", "reserved", id="the marker of missing cannot be sent"),
        pytest.param(TEXT, {"계약": "\ud800"}, "rows-bad-text", "half a character", id="half a surrogate pair"),
        pytest.param(REQUIRED, {}, "rows-missing-column", "absent", id="a required column is absent"),
        pytest.param(REQUIRED, {"tenure": None}, "rows-missing-column", "null", id="a required column is null"),
        pytest.param(REQUIRED, {"tenur": 1}, "rows-unknown-column", "'tenur'", id="a misspelt column"),
    ],
)
def test_a_value_that_does_not_fit_is_named(column, row, code, fragment):
    """The error says which column, and shows the value."""
    with pytest.raises(SpecError) as caught:
        encode_rows([row], [column])

    assert code == caught.value.code
    assert fragment in caught.value.what


def test_the_nearest_column_is_offered():
    """A misspelt name is answered with the right one, and its row."""
    with pytest.raises(SpecError) as caught:
        encode_rows([{"tenure": 1}, {"tenur": 1}], [REQUIRED])

    assert ("did you mean 'tenure'?", "row 1") == (caught.value.fix, caught.value.where)


def test_keys_beside_the_columns_are_left_alone():
    """The entity and the client's id stand in a row without being columns."""
    arrays = encode_rows([{"tenure": 1, "customer_id": "가", "prediction_id": "x"}], [REQUIRED], ignore={"customer_id", "prediction_id"})

    assert ["tenure"] == list(arrays)


def test_golden_rows_may_lack_required_columns():
    """In golden requests an absent column is missing, whatever the schema says."""
    arrays = encode_rows([{}], [REQUIRED], absent_is_missing=True)

    assert math.isnan(arrays["tenure"][0])


def test_a_matrix_follows_its_own_column_names():
    """Columns may come in another order; what is left out is missing."""
    arrays = encode_matrix([["월별", 5], ["1년", 6]], [REQUIRED, NUMBER, TEXT], ["계약", "tenure"])

    assert [5.0, 6.0] == arrays["tenure"].tolist()
    assert ["월별", "1년"] == arrays["계약"].tolist()
    assert all(math.isnan(v) for v in arrays["요금"])


@pytest.mark.parametrize(
    ("matrix", "names", "code"),
    [
        pytest.param([[1]], None, "rows-wrong-length", id="too few values"),
        pytest.param([[1, 2]], ["tenure", "tenure"], "rows-duplicate-column", id="a column twice"),
        pytest.param([[1]], ["nothing"], "rows-unknown-column", id="no such column"),
        pytest.param([[1.0]], ["요금"], "rows-missing-column", id="a required column left out"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(matrix, names, code):
    """Lengths and names are compared before any value is used."""
    with pytest.raises(SpecError) as caught:
        encode_matrix(matrix, [REQUIRED, NUMBER], names)

    assert code == caught.value.code


def test_columns_are_stacked_into_one_tensor():
    """An adopted graph takes several columns side by side, in its own type."""
    graph = Graph(inputs=(GraphInput("x", "float", ("b", "a")),), output="y")
    tensors = feeds({"a": np.array([1.0, 2.0]), "b": np.array([3.0, math.nan])}, graph)

    assert ((2, 2), np.float32) == (tensors["x"].shape, tensors["x"].dtype)
    assert [3.0, 1.0] == tensors["x"][0].tolist()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        pytest.param("float", 1e300, id="beyond float32"),
        pytest.param("int64", 1.5, id="not whole"),
        pytest.param("int64", math.nan, id="an integer cannot be missing"),
        pytest.param("int64", 2.0**63, id="beyond int64"),
        pytest.param("bool", 2.0, id="neither true nor false"),
        pytest.param("bool", math.nan, id="a boolean cannot be missing"),
        pytest.param("bool", -1.0, id="a negative boolean"),
    ],
)
def test_a_value_the_tensor_cannot_hold_is_refused(dtype, value):
    """Nothing is rounded, wrapped or made infinite on the way into a tensor."""
    graph = Graph(inputs=(GraphInput("x", dtype, ("a",)),), output="y")
    with pytest.raises(SpecError) as caught:
        feeds({"a": np.array([0.0, value])}, graph)

    assert ("rows-out-of-range", "row 1, column 'a'") == (caught.value.code, caught.value.where)


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**53), 2**53)), max_size=30))
def test_numbers_survive_the_way_there_and_back(values):
    """Encoding and decoding a number column gives the same values, whichever path the encoder takes."""
    array = encode_rows([{"요금": value} for value in values], [NUMBER])["요금"]

    assert [None if v is None else float(v) for v in values] == [decode_value(v, ColumnType.NUMBER) for v in array]


@given(st.lists(st.one_of(st.none(), st.text().filter(lambda t: t != MISSING_TEXT)), max_size=30))
def test_texts_survive_the_way_there_and_back(values):
    """Encoding and decoding a text column gives the same values."""
    array = encode_rows([{"계약": value} for value in values], [TEXT])["계약"]

    assert values == [decode_value(v, ColumnType.TEXT) for v in array]
