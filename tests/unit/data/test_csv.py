"""CSV text to typed columns, and every way a CSV can be wrong."""

from datetime import datetime

import pytest

from mulle.core.errors import SpecError
from mulle.data.csv_text import CsvOptions, parse_csv


def parse(text, **options):
    """Return table and notes of a CSV."""
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    return parse_csv(data, CsvOptions(**options), where="x.csv")


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        pytest.param(["1", "", "3"], {}, [1, None, 3], id="an empty value is missing"),
        pytest.param(["1", " ", "3.5"], {}, [1.0, None, 3.5], id="a blank among numbers is missing"),
        pytest.param(["a", " ", "b"], {}, ["a", " ", "b"], id="a blank among texts is a text"),
        pytest.param(["007", "010"], {}, ["007", "010"], id="codes keep their zeros"),
        pytest.param(["007", "010"], {"types": {"x": "number"}}, [7, 10], id="unless they are said to be numbers"),
        pytest.param(["0.5", "-0.5", "0"], {}, [0.5, -0.5, 0.0], id="a zero before the point is no code"),
        pytest.param(["true", "", "False"], {}, [True, None, False], id="booleans in their usual spellings"),
        pytest.param(["2020-01-31", ""], {}, [datetime(2020, 1, 31), None], id="dates"),  # noqa: DTZ001 - naive is UTC in tables
        pytest.param(["2020-01-31T09:00:00+09:00", "2020-01-31T00:00:00Z"], {}, [datetime(2020, 1, 31)] * 2, id="zoned moments in UTC"),  # noqa: DTZ001
        pytest.param(["1", "n/a"], {"null_values": ("n/a",)}, [1, None], id="own spellings of missing"),
        pytest.param(["1", "2"], {"types": {"x": "text"}}, ["1", "2"], id="text because it is said so"),
        pytest.param(["123456789012345678901234"], {}, [123456789012345678901234], id="a long whole number stays exact"),
        pytest.param(["서울", "부산"], {}, ["서울", "부산"], id="Korean"),
        pytest.param(["A1", "12"], {}, ["A1", "12"], id="half of it codes: text"),
    ],
)
def test_a_column_gets_the_one_type_all_of_it_has(values, options, expected):
    """Types are decided on every row, not on the first hundred."""
    frame, _ = parse("id,x\n" + "".join(f"k,{value}\n" for value in values), **options)

    assert expected == frame["x"].to_list()


def test_a_type_is_decided_on_the_last_row_too():
    """Ten thousand whole numbers and one real number are real numbers."""
    frame, _ = parse("x\n" + "1\n" * 10_000 + "1.5\n")

    assert frame["x"][-1] == 1.5


def test_blanks_that_became_missing_are_told():
    """The Telco table has blanks for new customers in total_charges."""
    _, notes = parse("id,total_charges\na, \nb,1.5\n")

    assert len(notes) == 1
    assert "total_charges" in notes[0]
    assert "1 blank" in notes[0]


def test_a_decimal_comma_and_a_semicolon():
    """The spreadsheets of half of Europe."""
    frame, _ = parse('a;b\n"1,5";x\n2;y\n', separator=";", decimal_comma=True)

    assert frame["a"].to_list() == [1.5, 2.0]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("\ufeff이름,나이\n김,3\n".encode(), id="a byte order mark"),
        pytest.param("이름,나이\r\n김,3\r\n".encode(), id="carriage returns"),
        pytest.param("이름,나이\n\n김,3\n\n".encode(), id="blank lines"),
        pytest.param("이름,나이\n김,3".encode(), id="no last line break"),
    ],
)
def test_spellings_of_one_file(data):
    """They all give the same table."""
    frame, _ = parse(data)

    assert frame.rows() == [("김", 3)]


@pytest.mark.parametrize(
    ("data", "options", "code", "said"),
    [
        pytest.param(b"", {}, "source-empty", "without a single byte", id="empty"),
        pytest.param(b" \n\n", {}, "source-empty", "without a single byte", id="white space only"),
        pytest.param(b"<!DOCTYPE html><html>", {}, "source-html", "web page", id="a login page"),
        pytest.param("이름\n김\n".encode("cp949"), {}, "csv-encoding", "byte 0", id="Korean Windows encoding"),
        pytest.param(b"a,b\n1,2\n3,\xff\xfe\n", {}, "csv-encoding", "line 3", id="a bad byte on line 3"),
        pytest.param(b"a\n1\n", {"encoding": "klingon"}, "csv-option", "klingon", id="an encoding that does not exist"),
        pytest.param(b"a;b\n1;2\n", {}, "csv-separator", "semicolons", id="another separator"),
        pytest.param(b"a,a\n1,2\n", {}, "column-name", "twice", id="a column twice"),
        pytest.param(b"a,\n1,2\n", {}, "column-name", "column 2", id="a column without a name"),
        pytest.param(b"a,b\n1,2,3\n", {}, "csv-malformed", "rows and columns", id="a row too long"),
        pytest.param(b'a,b\n"1,2\n', {}, "csv-malformed", "rows and columns", id="a quote that never closes"),
        pytest.param(
            b"a\n" + b"1\n" * 50 + b"n/a\n", {}, "column-mixed-types", "50 values are numbers and 1 are not", id="one text among numbers"
        ),
        pytest.param(b"a\nx\n", {"types": {"a": "number"}}, "column-mixed-types", "1 are not", id="not the type it is said to be"),
        pytest.param(b"a\nx\n", {"types": {"b": "number"}}, "csv-option", "'b'", id="a type for a column that is not there"),
        pytest.param(b"a\nx\n", {"separator": "::"}, "csv-option", "'::'", id="a separator of two characters"),
    ],
)
def test_what_is_wrong_is_said(data, options, code, said):
    """Each bad file has an error of its own, with a fix."""
    with pytest.raises(SpecError) as caught:
        parse(data, **options)

    assert code == caught.value.code
    assert said in caught.value.what
    assert caught.value.fix


def test_the_encoding_that_would_work_is_proposed():
    """The fix can be typed as it stands."""
    with pytest.raises(SpecError) as caught:
        parse("이름,도시\n김,서울\n".encode("cp949"))

    assert 'encoding="cp949"' in caught.value.fix
    assert parse("이름,도시\n김,서울\n".encode("cp949"), encoding="cp949")[0].rows() == [("김", "서울")]
