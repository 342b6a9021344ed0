"""The protocol over HTTP as it is on the wire: paths, statuses, errors in its own shape, hostile bodies; and as `mulle serve` mounts it."""

import gzip
import http.client
import json

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from mulle.serve.protocols.oip_rest import deployment_of
from mulle.serve.server import server_in_thread
from support.bundles import seal_churn, write_spec
from support.oip import MAX_BODY_BYTES, oip_server
from support.serving import config

ROW = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [0, 0, 0]}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return a server of two models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MULLE_HOME", str(tmp_path_factory.mktemp("home")))
        with oip_server(tmp_path_factory.mktemp("server"), names=("points", "mixed")) as running:
            yield running


@pytest.fixture
def ask(server):
    """Return a function that sends one request and gives status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=30)

    def send(method, path, body=None, **headers):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()

    yield send
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "fragment"),
    [
        pytest.param("GET", "/v2", 200, '"mulle"', id="the server"),
        pytest.param("GET", "/v2/", 200, '"mulle"', id="the server, with a slash"),
        pytest.param("HEAD", "/v2", 200, "", id="the head of the server"),
        pytest.param("GET", "/v2/health/live", 200, "true", id="live"),
        pytest.param("GET", "/v2/health/ready", 200, "true", id="ready"),
        pytest.param("GET", "/v2/models/points", 200, "probabilities", id="a model"),
        pytest.param("GET", "/v2/models/%70oints", 200, "probabilities", id="a model, percent-encoded"),
        pytest.param("GET", "/v2/models/%2570oints", 404, "deployment-unknown", id="decoded once and not twice"),
        pytest.param("GET", "/v2/models/points/versions/3", 200, '"3"', id="a revision"),
        pytest.param("GET", "/v2/models/points/versions/4", 404, "revision-unknown", id="a revision that is not there"),
        pytest.param("GET", "/v2/models/points/versions/x", 400, "header-invalid", id="a version that is no number"),
        pytest.param("GET", "/v2/models/points/ready", 200, "true", id="a model's readiness"),
        pytest.param("GET", "/v2/models/nobody/ready", 404, "deployment-unknown", id="the readiness of nobody"),
        pytest.param("GET", "/v2/models/", 404, "route-unknown", id="no name"),
        pytest.param("GET", "/v2/models//infer", 404, "route-unknown", id="an empty name"),
        pytest.param("GET", "/v2/models/../../etc/passwd", 404, "", id="a path that climbs"),
        pytest.param("GET", "/v2/models/..%2f..%2fetc%2fpasswd", 404, "deployment-unknown", id="a name that climbs"),
        pytest.param("GET", "/v2/models/%ff", 404, "route-unknown", id="a name that is not UTF-8"),
        pytest.param("GET", "/v2/models/points/infer", 405, "method-not-allowed", id="inference by GET"),
        pytest.param("POST", "/v2/models/points", 405, "method-not-allowed", id="metadata by POST"),
        pytest.param("POST", "/v2/repository/index", 404, "route-unknown", id="an extension that is not spoken"),
        pytest.param("GET", "/v2x", 404, "", id="a path that only begins alike"),
    ],
)
def test_paths_answer_with_the_status_they_deserve(ask, method, path, status, fragment):
    """Names are looked up among what is served, decoded once, and reach no file."""
    found, _, body = ask(method, path)

    assert status == found
    assert fragment in body.decode()


def test_an_error_has_the_protocols_shape_and_ours_beside_it(ask):
    """`error` is a sentence, which is what its clients read; code, what, fix and where stand beside it."""
    status, _, body = ask("POST", "/v2/models/points/infer", {"inputs": []})
    found = json.loads(body)

    assert (400, "oip-input-missing") == (status, found["code"])
    assert f"[{found['code']}] {found['what']}; {found['fix']}" == found["error"]
    assert {"error", "code", "what", "fix", "where"} == set(found)


def test_headers_say_what_answered(ask):
    """Revision and prediction id; the client may pin the one and choose the other."""
    _, headers, body = ask("POST", "/v2/models/points/infer", ROW, mulle_prediction_id="my-id", mulle_revision="3")
    other, _, _ = ask("POST", "/v2/models/points/infer", ROW, mulle_revision="4")
    late, _, text = ask("POST", "/v2/models/points/infer", ROW, mulle_timeout_ms="none")

    assert ("3", "my-id") == (headers["mulle-revision"], headers["mulle-prediction-id"])
    assert ["my-id"] == next(o["data"] for o in json.loads(body)["outputs"] if o["name"] == "prediction_id")
    assert (404, 400) == (other, late)
    assert "mulle-timeout-ms" in text.decode()


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        pytest.param(b"", {}, 400, "oip-malformed", id="no body"),
        pytest.param(b"{}" * 1_000, {}, 400, "oip-malformed", id="more than one object"),
        pytest.param(b"[" * 500_000, {}, 400, "oip-malformed", id="half a million brackets"),
        pytest.param(b'{"inputs": [], "parameters": {"a":' + b'{"a":' * 100_000, {}, 400, "body-too-deep", id="objects without a bottom"),
        pytest.param(b"{}", {"inference_header_content_length": "99999999999999999999"}, 400, "header-invalid", id="a length beyond all"),
        pytest.param(b"{}", {"content_encoding": "br"}, 415, "oip-encoding", id="an encoding that is not spoken"),
        pytest.param(b"{}", {"content_encoding": "gzip, gzip"}, 415, "oip-encoding", id="twice compressed"),
        pytest.param(b"{}", {"content_encoding": "gzip"}, 415, "oip-encoding", id="not compressed at all"),
        pytest.param(gzip.compress(b" " * (4 * MAX_BODY_BYTES)), {"content_encoding": "gzip"}, 413, "body-too-large", id="a bomb"),
        pytest.param(b"{}", {"mulle_unit": "u" * 300}, 400, "oip-malformed", id="an endless unit on a broken body"),
    ],
)
def test_hostile_requests_are_4xx_and_the_next_one_is_answered(ask, body, headers, status, code):
    """Nothing a caller sends is the server's fault."""
    found, _, text = ask("POST", "/v2/models/points/infer", body, **headers)
    again, _, _ = ask("POST", "/v2/models/points/infer", ROW)

    assert (status, code) == (found, json.loads(text)["code"])
    assert 200 == again


def mixed(words):
    """Return a JSON request for the tensor model with these words."""
    inputs = [
        ("x", "FP32", [1, 3], [1, None, 3]),
        ("k", "INT64", [1], [1]),
        ("flag", "BOOL", [1, 1], [True]),
        ("words", "BYTES", [1, 2], words),
    ]
    return {
        "inputs": [dict(zip(("name", "datatype", "shape", "data"), entry, strict=True)) for entry in inputs],
        "outputs": [{"name": "said"}, {"name": "y"}],
    }


def test_texts_and_missing_numbers_of_a_tensor_pass_through_json(ask):
    """Zeros inside a text, empty ones, Korean: what went in comes out; null is NaN going in and null coming out."""
    _, _, body = ask("POST", "/v2/models/mixed/infer", mixed(["a\x00b", ""]))
    said, y = (output["data"] for output in json.loads(body)["outputs"])

    assert (["a\x00b", ""], [2.0, None, 4.0]) == (said, y)


def test_a_missing_text_is_refused_where_the_graph_has_none(ask):
    """Null must not become the word None; half a character is no text."""
    found = [ask("POST", "/v2/models/mixed/infer", mixed(words)) for words in ([None, "x"], ["\ud800", "x"])]

    assert [(400, "oip-data"), (400, "oip-malformed")] == [(status, json.loads(body)["code"]) for status, _, body in found]


def test_a_server_that_drains_says_so(ask, server):
    """Readiness of server and models becomes 503."""
    server.state.ready = False
    try:
        found = [ask("GET", path)[0] for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/points/ready")]
    finally:
        server.state.ready = True

    assert [200, 503, 503] == found


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/models/points/infer", "points"),
        ("/v2/models/%ED%95%9C%EA%B8%80", "한글"),
        ("/v2/models/", ""),
        ("/v2", None),
        ("/v2/health/live", None),
        ("/predict", None),
    ],
)
def test_the_deployment_of_a_path_is_known_before_its_handler(path, expected):
    """What keys and rates are checked against."""
    assert expected == deployment_of(path)


def test_mulle_serve_speaks_both_transports(tmp_path):
    """The public clients against the whole server, as the command starts it."""
    state = tmp_path / ".mulle"
    write_spec(state, [seal_churn(state / "bundles")], generation=1)
    found = []
    with server_in_thread(config(state, grpc_port=0)) as started:
        for library, port in ((tritonclient.http, started.port), (tritonclient.grpc, started.grpc_port)):
            tensor = library.InferInput("monthly", [1], "FP64")
            tensor.set_data_from_numpy(np.array([70.0]))
            with library.InferenceServerClient(f"127.0.0.1:{port}") as client:
                found.append(client.infer("churn", [tensor]).as_numpy("probabilities").tolist())
                with pytest.raises(InferenceServerException) as caught:
                    client.infer("nobody", [tensor])

            assert "[deployment-unknown]" in str(caught.value)

    assert found[0] == found[1]
