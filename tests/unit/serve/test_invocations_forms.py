"""Bodies of /invocations into arrays: the four forms and CSV, and what none of them may be."""

import json

import numpy as np
import pytest

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput, Manifest
from mulle.serve.protocols.invocations import parse_invocations, render_invocations

COLUMNS = (
    ColumnInfo("tenure", ColumnType.NUMBER),
    ColumnInfo("monthly", ColumnType.NUMBER, nullable=False),
    ColumnInfo("active", ColumnType.BOOLEAN),
    ColumnInfo("since", ColumnType.DATETIME),
    ColumnInfo("계약", ColumnType.TEXT),
)
ROW = {"tenure": 1, "monthly": 2.5, "active": True, "since": "1970-01-02", "계약": "월별"}
NAMES = list(ROW)
VALUES = list(ROW.values())
ONE = (ColumnInfo("x", ColumnType.NUMBER),)


def manifest(columns=COLUMNS, **changes):
    fields = {
        "model": "m",
        "task": "binary",
        "graph": Graph(inputs=(GraphInput("x", "double", ("x",)),), output="p"),
        "columns": columns,
        "files": {},
        "classes": ("No", "Yes"),
        "positive": "Yes",
        "entity": "고객",
    }
    return Manifest(**(fields | changes))


def parse(body, content_type="application/json", columns=COLUMNS, **options):
    data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).encode()
    return parse_invocations(data, content_type, manifest(columns), **({"max_rows": 5} | options))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"dataframe_split": {"columns": NAMES, "data": [VALUES]}}, id="split"),
        pytest.param({"dataframe_split": {"columns": NAMES[::-1], "data": [VALUES[::-1]], "index": [7]}}, id="split in another order"),
        pytest.param({"dataframe_split": {"data": [VALUES]}}, id="split in the model's own order"),
        pytest.param({"dataframe_split": {"columns": [*NAMES, "x", "x"], "data": [[*VALUES, 1, 2]]}}, id="split with strangers"),
        pytest.param({"dataframe_records": [ROW]}, id="records"),
        pytest.param({"dataframe_records": [ROW | {"stranger": "x"}]}, id="records with a stranger"),
        pytest.param({"instances": [ROW]}, id="instances by name"),
        pytest.param({"instances": [VALUES]}, id="instances by position"),
        pytest.param({"inputs": {name: [value] for name, value in ROW.items()}}, id="inputs by column"),
        pytest.param({"inputs": {name: [[value]] for name, value in ROW.items()}}, id="inputs as tensors (n, 1)"),
        pytest.param({"inputs": ROW}, id="inputs of one row"),
        pytest.param({"inputs": [ROW]}, id="inputs as rows"),
        pytest.param({"inputs": [VALUES]}, id="inputs as a matrix"),
        pytest.param({"dataframe_records": [ROW], "params": {"k": 1}, "inference_id": "z"}, id="params and other keys are ignored"),
    ],
)
def test_every_form_says_the_same(body):
    """One row, fourteen spellings."""
    found = parse(body)

    assert (None, None) == (found.ids, found.entity)
    assert {"tenure": [1.0], "monthly": [2.5], "active": [1.0], "since": [86400.0], "계약": ["월별"]} == {
        name: array.tolist() for name, array in found.arrays.items()
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("monthly,tenure\n1,2\n3,4\n", [[1.0, 3.0], [2.0, 4.0]], id="a header and two lines"),
        pytest.param("monthly,tenure\r\n1,\r\n\r\n3,NaN", [[1.0, 3.0], [None, None]], id="nothing and NaN are missing"),
        pytest.param("\ufeffmonthly,x\n 1e3 ,junk\n", [[1000.0], [None]], id="a byte order mark, a space, a stranger"),
        pytest.param('"monthly"\n"-.5"\n', [[-0.5], [None]], id="everything in quotes"),
    ],
)
def test_csv_is_read(text, expected):
    """What spreadsheets and pandas write."""
    arrays = parse(text, "text/csv; charset=UTF-8").arrays
    found = [[None if np.isnan(v) else v for v in arrays[name].tolist()] for name in ("monthly", "tenure")]

    assert expected == found


def test_csv_cells_become_what_their_column_holds():
    """Words for booleans, ISO for dates, quotes within text; in text only nothing is missing."""
    text = 'monthly,active,since,계약\n1,True,1970-01-02,"월별, ""새"""\n1,0,,NA\n1,,1970-01-01T00:00:01Z,\n'
    arrays = parse(text, "text/csv").arrays

    assert ['월별, "새"', "NA", MISSING_TEXT] == arrays["계약"].tolist()
    assert [1.0, 0.0, "nan"] == [str(v) if np.isnan(v) else v for v in arrays["active"].tolist()]
    assert [86400.0, "nan", 1.0] == [str(v) if np.isnan(v) else v for v in arrays["since"].tolist()]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"dataframe_split": {"columns": ["monthly", "tenure"], "data": [[1, NaN]]}}', id="NaN, as Python writes it"),
        pytest.param('{"dataframe_records": [{"monthly": 1}]}', id="absent"),
        pytest.param('{"inputs": {"monthly": [1], "tenure": [null]}}', id="null"),
    ],
)
def test_missing_is_missing_however_it_is_written(body):
    """MLflow's own client writes NaN."""
    assert np.isnan(parse(body).arrays["tenure"]).tolist() == [True]


def test_nan_in_a_text_is_text():
    """Only a bare NaN is a missing number; one in quotes, escaped quotes around, stays."""
    found = parse('{"dataframe_records": [{"monthly": 1, "tenure": NaN, "계약": "a\\"NaN\\\\"}]}')

    assert ['a"NaN\\'] == found.arrays["계약"].tolist()


@pytest.mark.parametrize("fill", [pytest.param('\\"', id="escaped quotes"), pytest.param('"', id="quotes"), pytest.param("NaN", id="NaN")])
def test_looking_for_nan_takes_linear_time(fill):
    """Two megabytes of what a pattern could stumble over are refused at once."""
    import time

    body = ('{"dataframe_records": NaN "' + fill * (2_000_000 // len(fill))).encode()
    started = time.monotonic()
    with pytest.raises(SpecError):
        parse(body)

    assert time.monotonic() - started < 5


def test_a_model_of_one_column_takes_a_list_of_values():
    """TensorFlow Serving's clients send scalars."""
    found = [parse({form: [1, None, 3]}, columns=ONE).arrays["x"].tolist() for form in ("instances", "inputs")]

    assert ["[1.0, nan, 3.0]"] * 2 == [str(values) for values in found]


def test_who_a_row_is_about_travels_beside():
    """The entity and the client's own ids are logged, not scored, in every form; the header is an id too."""
    beside = {"고객": 17, "prediction_id": "a"}
    bodies = [
        {"dataframe_records": [ROW | beside]},
        {"dataframe_split": {"columns": [*NAMES, *beside], "data": [[*VALUES, *beside.values()]]}},
        {"inputs": {name: [value] for name, value in (ROW | beside).items()}},
    ]
    found = [parse(body) for body in bodies]

    assert [(["17"], ["a"])] * 3 == [(one.entity, one.ids) for one in found]
    assert ["order-1"] == parse({"instances": [VALUES]}, header_id="order-1").ids


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(b"", "body-invalid", id="nothing"),
        pytest.param(b"{", "body-invalid", id="cut off"),
        pytest.param(b'{"instances": [[NaN}', "body-invalid", id="cut off with NaN"),
        pytest.param(b'{"instances": [[Infinity]]}', "body-invalid", id="Infinity"),
        pytest.param(b'{"instances": [[1NaN]]}', "body-invalid", id="NaN behind a digit"),
        pytest.param(b"[" * 100_000, "body-too-deep", id="deep"),
        pytest.param([[1]], "invocations-form", id="a list, as MLflow 1 took"),
        pytest.param({}, "invocations-form", id="an empty object"),
        pytest.param({"columns": ["monthly"], "data": [[1]]}, "invocations-form", id="split without its key, as MLflow 1 took"),
        pytest.param({"instances": [[1]], "inputs": [[1]]}, "invocations-form", id="two forms"),
        pytest.param({"dataframe_split": [[1]]}, "body-shape", id="split is a list"),
        pytest.param({"dataframe_split": {"columns": ["monthly"]}}, "body-shape", id="split without data"),
        pytest.param({"dataframe_split": {"data": [[1]], "colums": []}}, "body-shape", id="split with a misspelt key"),
        pytest.param({"dataframe_split": {"columns": "monthly", "data": [[1]]}}, "body-shape", id="columns are text"),
        pytest.param({"dataframe_split": {"columns": ["monthly"], "data": [1]}}, "body-shape", id="a flat matrix"),
        pytest.param({"dataframe_split": {"columns": ["monthly"], "data": [[1]], "index": []}}, "body-shape", id="an index too short"),
        pytest.param(
            {"dataframe_split": {"columns": ["monthly", "monthly"], "data": [[1, 2]]}}, "rows-duplicate-column", id="a column twice"
        ),
        pytest.param({"dataframe_split": {"columns": ["monthly"], "data": [[1], [1, 2]]}}, "rows-wrong-length", id="a row too long"),
        pytest.param({"dataframe_split": {"data": [[1, 2]]}}, "rows-wrong-length", id="by position, too short"),
        pytest.param({"dataframe_split": {"columns": ["tenure"], "data": [[1]]}}, "rows-missing-column", id="a column that must be there"),
        pytest.param({"dataframe_records": {"monthly": 1}}, "body-shape", id="records are an object"),
        pytest.param({"dataframe_records": [ROW, 3]}, "body-shape", id="a record is a number"),
        pytest.param({"dataframe_records": [{"monthly": [1]}]}, "body-shape", id="a list for a value"),
        pytest.param({"dataframe_records": [{"monthly": "1"}]}, "rows-wrong-type", id="a number in quotes"),
        pytest.param({"dataframe_records": [ROW | {"active": 2}]}, "rows-wrong-type", id="two for a boolean"),
        pytest.param({"dataframe_records": [ROW | {"since": 1700000000}]}, "rows-bad-datetime", id="a number for a date"),
        pytest.param({"instances": [[1, 2.5, True, 5, "x"]]}, "rows-bad-datetime", id="a number for a date, by position"),
        pytest.param({"dataframe_records": [ROW | {"since": "soon"}]}, "rows-bad-datetime", id="a word for a date"),
        pytest.param({"dataframe_records": [ROW | {"계약": 3}]}, "rows-wrong-type", id="a number for a text"),
        pytest.param({"instances": {"monthly": [1]}}, "body-shape", id="instances are columns"),
        pytest.param({"instances": [1, 2]}, "body-shape", id="scalars for five columns"),
        pytest.param({"instances": [{"monthly": {"b64": "eA=="}}]}, "body-shape", id="TensorFlow's binary"),
        pytest.param({"inputs": 3}, "body-shape", id="inputs are a number"),
        pytest.param({"inputs": {"monthly": [1, 2], "tenure": [1]}}, "body-shape", id="columns of two lengths"),
        pytest.param({"inputs": {"monthly": [[1, 2]]}}, "body-shape", id="a matrix in a column"),
        pytest.param({"inputs": {}}, "rows-empty", id="no columns"),
        pytest.param({"inputs": {"monthly": []}}, "rows-empty", id="no values"),
        pytest.param({"dataframe_records": []}, "rows-empty", id="no records"),
        pytest.param({"dataframe_split": {"columns": NAMES, "data": []}}, "rows-empty", id="no data"),
        pytest.param({"dataframe_records": [ROW] * 6}, "rows-too-many", id="more than the limit"),
        pytest.param({"inputs": {"monthly": [1] * 6}}, "rows-too-many", id="more than the limit, by column"),
    ],
)
def test_what_is_none_of_the_forms_is_refused(body, code):
    """Every one with its reason."""
    with pytest.raises(SpecError) as caught:
        parse(body)

    assert code == caught.value.code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(b"\xff", "body-invalid", id="not UTF-8"),
        pytest.param("", "rows-empty", id="nothing"),
        pytest.param("monthly\n", "rows-empty", id="a header alone"),
        pytest.param("monthly,tenure\n1\n", "rows-wrong-length", id="a line too short"),
        pytest.param("monthly,계약\n1,a,b\n", "rows-wrong-length", id="a comma without quotes"),
        pytest.param('monthly\n"1\n', "body-invalid", id="a quote that never ends"),
        pytest.param('monthly\n"1"x\n', "body-invalid", id="text behind a quote"),
        pytest.param("monthly\n" + "1" * 200_000, "body-invalid", id="an endless value"),
        pytest.param("monthly\n1\n1\n1\n1\n1\n1\n", "rows-too-many", id="more lines than the limit"),
        pytest.param("monthly\n12 months\n", "rows-wrong-type", id="a word among numbers"),
        pytest.param("monthly\ninf\n", "rows-wrong-type", id="infinity"),
        pytest.param("monthly\n1e999\n", "rows-not-finite", id="beyond a float"),
        pytest.param("monthly\n1_000\n", "rows-wrong-type", id="Python's own digits"),
        pytest.param("monthly,active\n1,yes\n", "rows-wrong-type", id="another word for true"),
        pytest.param("monthly,since\n1,1700000000000\n", "rows-bad-datetime", id="a number for a date"),
        pytest.param("tenure\n1\n", "rows-missing-column", id="a column that must be there"),
        pytest.param("monthly,monthly\n1,2\n", "rows-duplicate-column", id="a column twice"),
    ],
)
def test_csv_that_cannot_be_read_is_refused(body, code):
    """With the line where there is one."""
    with pytest.raises(SpecError) as caught:
        parse(body, "text/csv")

    assert code == caught.value.code


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        pytest.param("", None, id="none is JSON"),
        pytest.param("application/json", None, id="JSON"),
        pytest.param("Application/JSON; charset=UTF-8", None, id="upper case"),
        pytest.param('application/json;charset="utf-8"', None, id="a charset in quotes"),
        pytest.param("application/json; charset=latin-1", "body-media-type", id="another charset"),
        pytest.param("application/json; format=pandas-split", "body-media-type", id="the parameter of MLflow 1"),
        pytest.param("application/vnd.apache.parquet", "body-media-type", id="Parquet"),
        pytest.param("text/plain", "body-media-type", id="text, which a page may send without asking"),
        pytest.param("multipart/form-data; boundary=x", "body-media-type", id="a form"),
    ],
)
def test_content_types_are_those_of_mlflow(content_type, expected):
    """Without Parquet, which would need a table engine in the server."""
    try:
        parse({"instances": [VALUES]}, content_type)
        found = None
    except SpecError as error:
        found = error.code

    assert expected == found


def test_answers_are_rows_by_class():
    """A regression answers the column `prediction`; the numbers are the float32 as a double."""
    scores = np.array([[0.2, 0.8], [1, 0]], np.float32)
    one = manifest(task="regression", classes=(), positive=None)

    assert {"predictions": [{"No": float(np.float32(0.2)), "Yes": float(np.float32(0.8))}, {"No": 1.0, "Yes": 0.0}]} == json.loads(
        render_invocations(manifest(), scores)
    )
    assert b'{"predictions":[{"prediction":2.5}]}' == render_invocations(one, np.array([[2.5]], np.float32))


def test_pictures_and_tensors_have_other_doors():
    """And the refusal names them."""
    tensors = manifest(columns=(), task="tensor", classes=(), positive=None)
    with pytest.raises(SpecError, match="tensors") as caught:
        parse_invocations(b"{}", "", tensors, max_rows=1)

    assert ("invocations-kind", True) == (caught.value.code, "/v2/models" in caught.value.fix)
