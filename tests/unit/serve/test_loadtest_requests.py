"""Requests of a load test: from golden rows, files, the log; whole, in their protocol, and nothing smuggled."""

import numpy as np
import pytest

from mulle.core.errors import CheckError, MulleError, SpecError, UnavailableError
from mulle.core.schema import ColumnType
from mulle.formats.golden_tensors import read_golden_tensors
from mulle.formats.prediction_log import LoggedColumn, LogWriter, PredictionBatch, Source
from mulle.formats.prediction_policy import LogPolicy
from mulle.serve.loadtest.requests import (
    Body,
    example_rows,
    file_rows,
    golden_bodies,
    golden_rows,
    key_headers,
    logged_rows,
    parse_header,
    render_request,
    row_bodies,
)
from mulle.serve.protocols.codec_json import parse_predict
from mulle.serve.protocols.oip_json import BodyDecoder
from support.bundles import GOLDEN_ROWS, seal_churn
from support.tensors import seal_image, seal_tensors

COLUMNS = (LoggedColumn("tenure", ColumnType.NUMBER), LoggedColumn("계약", ColumnType.TEXT), LoggedColumn("new", ColumnType.BOOLEAN))
ROWS = [
    {"tenure": 1.0, "계약": "월별", "new": True},
    {"tenure": 2.0, "계약": "1년", "new": False},
    {"tenure": None, "계약": "2년", "new": True},
]


def test_a_request_is_whole():
    """Method, path, host, type, headers and the exact length of the body."""
    found = render_request("/predict?a=1", Body(b"[1]"), headers=[("X-Unit", "7")], host="h:1")
    head, _, body = found.partition(b"\r\n\r\n")

    assert b"[1]" == body
    assert b"POST /predict?a=1 HTTP/1.1\r\nhost: h:1\r\ncontent-type: application/json\r\nx-unit: 7\r\ncontent-length: 3" == head


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        pytest.param("predict", [], id="a path without its slash"),
        pytest.param("/a b", [], id="a blank in the path"),
        pytest.param("/a\r\nx: y", [], id="a line break in the path"),
        pytest.param("/a", [("x", "1\r\ny: 2")], id="a line break in a value"),
        pytest.param("/a", [("x y", "1")], id="a blank in a name"),
        pytest.param("/a", [("Content-Length", "5")], id="a length of one's own"),
        pytest.param("/a", [("transfer-encoding", "chunked")], id="another way to end the body"),
        pytest.param("/a", [("x", "월별")], id="no Latin-1"),
    ],
)
def test_nothing_breaks_out_of_its_line(path, headers):
    """What would change the shape of the request is refused."""
    with pytest.raises(SpecError) as caught:
        render_request(path, Body(b"", "a/b"), headers=headers, host="h")

    assert caught.value.code in {"loadtest-path", "loadtest-header"}


@pytest.mark.parametrize("protocol", ["predict", "features"])
@pytest.mark.parametrize(("n_rows", "n_requests"), [(1, 3), (2, 2), (7, 1)])
def test_bodies_hold_every_row(protocol, n_rows, n_requests):
    """Rows are dealt out in order and repeated where they do not come out even; our own reader takes the bodies."""
    bodies = [parse_predict(one.data, max_rows=100) for one in row_bodies(ROWS, COLUMNS, n_rows=n_rows, protocol=protocol)]
    first = [body.rows[0] if body.rows else dict(zip(body.names, body.matrix[0], strict=True)) for body in bodies]

    assert n_requests == len(bodies)
    assert [n_rows] * n_requests == [len(body) for body in bodies]
    assert [ROWS[i * n_rows % 3] for i in range(n_requests)] == first


@pytest.mark.parametrize("columns", [pytest.param(COLUMNS, id="types known"), pytest.param((), id="types from the values")])
def test_oip_bodies_are_read_by_our_own_server(columns):
    """One tensor per column, of its type, a row each."""
    (one,) = row_bodies(ROWS[:2], columns, n_rows=2, protocol="oip")
    request = BodyDecoder()(one.data, None, model="churn", version="")

    assert [("tenure", (2, 1)), ("계약", (2, 1)), ("new", (2, 1))] == [(tensor.name, tuple(tensor.shape)) for tensor in request.inputs]
    assert ["FP64", "BYTES", "BOOL"] == [tensor.spec.datatype for tensor in request.inputs]
    assert [1.0, 2.0] == request.inputs[0].values().ravel().tolist()


def test_golden_rows_come_from_the_bundle(tmp_path):
    """The rows sealed into the bundle, with their columns' types."""
    rows, columns = golden_rows(seal_churn(tmp_path).path)

    assert [dict(row) for row in GOLDEN_ROWS] == [dict(row) for row in rows]
    assert ["tenure", "monthly", "계약"] == [column.name for column in columns]


def test_golden_tensors_are_sent_as_they_lie_in_memory(tmp_path):
    """Our own server's reader finds the sealed tensors again."""
    bundle = seal_tensors(tmp_path).path
    (one,) = golden_bodies(bundle)
    (case,) = read_golden_tensors(bundle / "golden.bin").cases
    request = BodyDecoder()(one.data, dict(one.headers)["inference-header-content-length"], model="m", version="")

    assert set(case.inputs) == {tensor.name for tensor in request.inputs}
    assert all(np.array_equal(case.inputs[tensor.name].to_array(), tensor.values()) for tensor in request.inputs)


def test_golden_pictures_are_sent_as_they_were_encoded(tmp_path):
    """Each picture is a body of its own type; a bundle of pictures has no rows."""
    bundle = seal_image(tmp_path).path
    bodies = golden_bodies(bundle)
    with pytest.raises(SpecError) as caught:
        golden_rows(bundle)

    assert [case.image for case in read_golden_tensors(bundle / "golden.bin").cases] == [one.data for one in bodies]
    assert all(one.content_type in {"image/jpeg", "image/png"} for one in bodies)
    assert "loadtest-no-rows" == caught.value.code


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"a": 1}\n\n{"a": 2}\n', id="JSON lines"),
        pytest.param('[{"a": 1}, {"a": 2}]', id="an array"),
        pytest.param('{"rows": [{"a": 1}, {"a": 2}]}', id="a body of /predict"),
    ],
)
def test_rows_are_read_from_files(text, tmp_path):
    """Whatever people have as JSON."""
    path = tmp_path / "rows"
    path.write_text(text, encoding="utf-8")

    assert [{"a": 1}, {"a": 2}] == file_rows(path)


def test_one_object_is_one_row(tmp_path):
    """A file with a single object is a single row."""
    path = tmp_path / "row.json"
    path.write_text('{"a": 1}', encoding="utf-8")

    assert [{"a": 1}] == file_rows(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param('{"a": 1}\n{"a": \n', "line 2", id="a line that is not JSON"),
        pytest.param('{"a": 1}\n7\n', "line 2", id="a line that is no object"),
        pytest.param("[1]", "element 0", id="an array of numbers"),
        pytest.param("", "no rows", id="an empty file"),
    ],
)
def test_what_is_no_row_is_named(text, said, tmp_path):
    """The error names the line or the element."""
    path = tmp_path / "rows"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        row_bodies(file_rows(path), (), n_rows=1, protocol="predict")

    assert "loadtest-rows" == caught.value.code
    assert said in caught.value.what


def source(**changes):
    """Return what a log says of the revision that answered."""
    facts = {
        "source": 0,
        "revision": 1,
        "model": "churn",
        "model_version": 1,
        "bundle_digest": "0" * 64,
        "task": "binary",
        "classes": ("No", "Yes"),
        "columns": COLUMNS,
    }
    return Source(**(facts | changes))


def log(root, *, columns=COLUMNS, redact=frozenset()):
    """Write the three rows into the log of churn."""
    writer = LogWriter(root, "churn", prefix=1, policy=LogPolicy(redact=redact))
    text = np.array(["월별", "1년", "2년"], dtype=object)
    arrays = {"tenure": np.array([1.0, 2.0, np.nan]), "계약": text, "new": np.array([1.0, 0.0, 1.0])}
    batch = PredictionBatch(
        source=source(columns=columns),
        time_ns=1_700_000_000_000_000_000,
        latency_us=5,
        outputs=np.zeros((3, 2), dtype=np.float32),
        first=0,
        arrays={column.name: arrays[column.name] for column in columns},
    )
    writer.append(batch)
    writer.close(1_700_000_000_000_000_001)


def test_logged_rows_are_what_was_asked(tmp_path):
    """Numbers, texts, booleans and what was missing come back as JSON values."""
    log(tmp_path)
    rows, columns = logged_rows(tmp_path, "churn", last=2)

    assert ROWS[1:] == rows
    assert COLUMNS == columns


@pytest.mark.parametrize(
    ("made", "code"),
    [
        pytest.param({"redact": frozenset({"계약"})}, "loadtest-redacted", id="a column is kept out of the log"),
        pytest.param({"columns": ()}, "loadtest-no-rows", id="pictures or tensors were answered"),
        pytest.param(None, "loadtest-log-empty", id="nothing was logged"),
    ],
)
def test_a_log_that_cannot_be_replayed_says_so(made, code, tmp_path):
    """A replay of anything but what was asked is refused."""
    if made is not None:
        log(tmp_path, **made)
    with pytest.raises(SpecError) as caught:
        logged_rows(tmp_path, "churn", last=10)

    assert code == caught.value.code


def test_the_servers_example_is_a_row():
    """Rows come from the OpenAPI document; without an example the error says what to give."""
    content = b'{"content": {"application/json": {"example": [{"a": 1}]}}}'
    document = b'{"paths": {"/predict": {"post": {"requestBody": ' + content + b"}}}}"
    with pytest.raises(SpecError) as caught:
        example_rows(b'{"paths": {}}')

    assert [{"a": 1}] == example_rows(document)
    assert "loadtest-no-example" == caught.value.code


def test_a_key_is_never_repeated():
    """The key goes into a header; a bad one is refused without being shown."""
    with pytest.raises(MulleError) as unset:
        key_headers(None, "MY_KEY")
    with pytest.raises(MulleError) as bad:
        key_headers("se cret\n", "MY_KEY")

    assert [("authorization", "Bearer mk_abc")] == key_headers("mk_abc\n", "MY_KEY")
    assert (UnavailableError, SpecError) == (type(unset.value), type(bad.value))
    assert "cret" not in str(bad.value)


def test_headers_are_written_as_they_are_sent():
    """Name, colon, value; anything else is refused."""
    with pytest.raises(SpecError):
        parse_header("no colon")

    assert ("mulle-revision", "3") == parse_header("mulle-revision: 3")


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    """The reader's own error names what is missing."""
    with pytest.raises((SpecError, CheckError)):
        golden_rows(tmp_path)
