"""JSON bodies to arrays and scores to JSON."""

import numpy as np
import pytest

from mulle.core.errors import SpecError
from mulle.core.schema import ColumnType
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput, Manifest
from mulle.serve.protocols.codec_json import encode_body, parse_feedback, parse_predict, render_predictions

COLUMNS = (ColumnInfo("tenure", ColumnType.NUMBER), ColumnInfo("계약", ColumnType.TEXT))


def manifest(**changes):
    fields = {
        "model": "m",
        "task": "binary",
        "graph": Graph(inputs=(GraphInput("tenure", "double", ("tenure",)),), output="p"),
        "columns": COLUMNS,
        "files": {},
        "classes": ("No", "Yes"),
        "positive": "Yes",
        "entity": "고객",
    }
    return Manifest(**(fields | changes))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param('[{"tenure": 1}, {"tenure": 2}]', [1.0, 2.0], id="a list of objects"),
        pytest.param('{"rows": [{"tenure": 1}]}', [1.0], id="rows in an envelope"),
        pytest.param('{"tenure": 1}', [1.0], id="a single object"),
        pytest.param('{"features": [[1, "월별"], [2, null]]}', [1.0, 2.0], id="a matrix in the model's order"),
        pytest.param('{"columns": ["계약", "tenure"], "features": [["월별", 4]]}', [4.0], id="a matrix in its own order"),
        pytest.param(' \n[{"tenure": 1e2}]\n', [100.0], id="white space around"),
    ],
)
def test_every_spelling_of_a_body_is_understood(body, expected):
    """One model, five ways to ask it."""
    encoded = encode_body(parse_predict(body.encode(), max_rows=10), manifest())

    assert expected == encoded.arrays["tenure"].tolist()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(b"", "body-invalid", id="nothing"),
        pytest.param(b"{", "body-invalid", id="cut off"),
        pytest.param(b'[{"tenure": NaN}]', "body-invalid", id="NaN is not JSON"),
        pytest.param(b'[{"tenure": 1e999}]', "body-invalid", id="beyond a float"),
        pytest.param(b'[{"tenure": 1' + b"0" * 5000 + b"}]", "body-invalid", id="an integer of 5,000 digits"),
        pytest.param(b'[{"\xff": 1}]', "body-invalid", id="not UTF-8"),
        pytest.param(b'[{"tenure": "\\ud800"}]', "body-invalid", id="half a surrogate pair, escaped"),
        pytest.param(b"\xef\xbb\xbf[]", "body-invalid", id="a byte order mark"),
        pytest.param(b"[" * 100_000, "body-too-deep", id="nested 100,000 deep"),
        pytest.param(b"[[[[1]]]]", "body-shape", id="lists in lists"),
        pytest.param(b'"text"', "body-shape", id="text"),
        pytest.param(b"null", "body-shape", id="null"),
        pytest.param(b'[{"tenure": {"a": 1}}]', "body-shape", id="an object for a value"),
        pytest.param(b"[]", "rows-empty", id="no rows"),
        pytest.param(b'{"features": []}', "rows-empty", id="an empty matrix"),
        pytest.param(b'{"features": [1, 2]}', "body-shape", id="a flat matrix"),
        pytest.param(b'{"features": [[1]], "columns": "tenure"}', "body-shape", id="columns are not a list"),
        pytest.param(b'{"rows": [{}], "features": [[1]]}', "body-unknown-key", id="rows and a matrix"),
        pytest.param(b'{"rows": [{}], "id": 3}', "body-unknown-key", id="a stranger in the envelope"),
        pytest.param(b"[{},{},{},{}]", "rows-too-many", id="more rows than allowed"),
    ],
)
def test_a_body_that_cannot_be_understood_is_refused(body, code):
    """Every malformed body is the caller's error, with a code."""
    with pytest.raises(SpecError) as caught:
        parse_predict(body, max_rows=3)

    assert code == caught.value.code


def test_ids_and_the_entity_stand_beside_the_columns():
    """A row may bring its own id and say whom it is about."""
    body = parse_predict('[{"tenure": 1, "prediction_id": "a", "고객": 17}, {"prediction_id": "b"}]'.encode(), max_rows=9)
    encoded = encode_body(body, manifest())

    assert (["a", "b"], ["17", None]) == (encoded.ids, encoded.entity)


@pytest.mark.parametrize(
    ("n_rows", "header", "expected"),
    [
        pytest.param(1, "order-1", ["order-1"], id="one row takes the header as its id"),
        pytest.param(2, "order-1", ["order-1-0", "order-1-1"], id="more rows count from it"),
        pytest.param(1, None, None, id="without it the server numbers"),
    ],
)
def test_the_id_header_names_rows(n_rows, header, expected):
    """The client's header becomes one id per row."""
    body = parse_predict(b"[" + b",".join([b"{}"] * n_rows) + b"]", max_rows=9)

    assert expected == encode_body(body, manifest(), header_id=header).ids


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param('[{"prediction_id": "a"}, {}]', "prediction-id-invalid", id="one row without an id"),
        pytest.param('[{"prediction_id": "a"}, {"prediction_id": "a"}]', "prediction-id-twice", id="the same id twice"),
        pytest.param('[{"prediction_id": "a b"}]', "prediction-id-invalid", id="a space in it"),
    ],
)
def test_unusable_ids_are_refused(body, code):
    """An id that cannot be found again is worse than none."""
    with pytest.raises(SpecError) as caught:
        encode_body(parse_predict(body.encode(), max_rows=9), manifest())

    assert code == caught.value.code


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        pytest.param(0.5, ["No", "Yes"], id="half"),
        pytest.param(0.2, ["Yes", "Yes"], id="lower"),
        pytest.param(0.9, ["No", "No"], id="higher"),
    ],
)
def test_the_threshold_decides_the_label(threshold, expected):
    """Binary labels follow the sealed threshold, not 0.5."""
    answers = render_predictions(manifest(threshold=threshold), np.array([[0.75, 0.25], [0.2, 0.8]], np.float32))

    assert expected == [answer["label"] for answer in answers]
    assert {"No": 0.2, "Yes": 0.8} == answers[1]["probabilities"]


def test_other_tasks_answer_in_their_own_words():
    """Regression answers a value, many classes the most probable."""
    one = render_predictions(manifest(task="regression", classes=(), positive=None), np.array([[2.5]], np.float32))
    many = render_predictions(manifest(task="multiclass", classes=("a", "b", "c"), positive=None), np.array([[0.1, 0.2, 0.7]], np.float32))

    assert ([{"value": 2.5}], "c") == (one, many[0]["label"])


@pytest.mark.parametrize(
    ("body", "classes", "expected"),
    [
        pytest.param('{"prediction_id": "a", "label": "Yes"}', ("No", "Yes"), [("a", "label", "Yes")], id="one label"),
        pytest.param(
            '[{"prediction_id": "a", "label": "No", "reward": 2}]',
            ("No", "Yes"),
            [("a", "label", "No"), ("a", "reward", 2.0)],
            id="label and reward",
        ),
        pytest.param('{"feedback": [{"prediction_id": "a", "value": 3}]}', (), [("a", "value", 3.0)], id="in an envelope"),
        pytest.param('{"prediction_id": "a", "label": 3}', (), [("a", "value", 3.0)], id="a regression's label is its value"),
    ],
)
def test_feedback_is_understood(body, classes, expected):
    """One or many, label, value or reward."""
    items = parse_feedback(body.encode(), classes=classes, max_items=5)

    assert expected == [(item.prediction_id, item.kind, item.value) for item in items]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param("[]", "rows-empty", id="none"),
        pytest.param("3", "body-shape", id="a number"),
        pytest.param("[3]", "body-shape", id="a list of numbers"),
        pytest.param('{"prediction_id": "a"}', "feedback-kind", id="nothing to say"),
        pytest.param('{"prediction_id": "a", "labell": "Yes"}', "feedback-kind", id="a misspelt kind"),
        pytest.param('{"label": "Yes"}', "prediction-id-invalid", id="about nothing"),
        pytest.param('{"prediction_id": "a", "label": "Maybe"}', "feedback-bad-label", id="no such class"),
        pytest.param('{"prediction_id": "a", "reward": "1"}', "feedback-bad-number", id="a reward in text"),
        pytest.param('{"prediction_id": "a", "reward": true}', "feedback-bad-number", id="a reward that is a boolean"),
        pytest.param("[" + ",".join(['{"prediction_id": "a", "reward": 1}'] * 6) + "]", "rows-too-many", id="too many"),
    ],
)
def test_feedback_that_cannot_be_kept_is_refused(body, code):
    """Bad feedback is refused whole: nothing of it is kept."""
    with pytest.raises(SpecError) as caught:
        parse_feedback(body.encode(), classes=("No", "Yes"), max_items=5)

    assert code == caught.value.code
