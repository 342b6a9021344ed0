"""The server over real sockets: answers, limits, traps of HTTP."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from mulle.formats.feedback_log import join_feedback, read_feedback
from mulle.formats.prediction_log import find_prediction, read_predictions
from mulle.serve.http.checks import Limits
from support.bundles import GOLDEN_ROWS, answers, churn_graph
from support.http_client import RawClient
from support.serving import running, wait_until

ROW = {"tenure": 1, "monthly": 70, "계약": "월별"}
HEAD = b"host: 127.0.0.1\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for all tests that only ask; its limits are small, so that they can be met."""
    import os

    old = os.environ.get("MULLE_HOME")
    os.environ["MULLE_HOME"] = str(tmp_path_factory.mktemp("key"))
    limits = Limits(body_bytes=20_000, head_bytes=4_096, head_timeout_s=0.5, body_timeout_s=0.5, idle_timeout_s=5, connections=40)
    try:
        with running(tmp_path_factory.mktemp("project"), limits=limits, max_rows=100) as both:
            yield both
    finally:
        if old is None:
            del os.environ["MULLE_HOME"]
        else:
            os.environ["MULLE_HOME"] = old


@pytest.fixture
def client(shared):
    with RawClient(shared[0].host, shared[0].port) as connection:
        yield connection


# ---- answers


def test_golden_rows_get_the_graphs_own_answers(client):
    """What leaves the server is what plain ONNX Runtime computes, row by row."""
    rows = [dict(row) for row in GOLDEN_ROWS]
    reply = client.request("POST", "/predict", rows)
    expected = answers(churn_graph(), GOLDEN_ROWS)
    found = [[p["probabilities"]["No"], p["probabilities"]["Yes"]] for p in reply.json["predictions"]]

    assert 200 == reply.status
    assert np.abs(expected - np.array(found)).max() < 1e-7
    assert ("churn", 1, 1) == tuple(reply.json[key] for key in ("model", "model_version", "revision"))
    assert reply.json["prediction_ids"][0] == reply.headers["mulle-prediction-id"]
    assert "1" == reply.headers["mulle-revision"]


def test_a_prediction_can_be_found_and_told_the_truth(client, shared):
    """Predict with an entity, find it in the log, send its label, join it."""
    reply = client.request("POST", "/predict", [ROW | {"customer_id": "고객-1"}])
    (prediction_id,) = reply.json["prediction_ids"]
    feedback = client.request("POST", "/feedback", {"prediction_id": prediction_id, "label": "Yes"})
    again = client.request(
        "POST", "/feedback", [{"prediction_id": prediction_id, "label": "No"}, {"prediction_id": "stranger", "label": "No"}]
    )
    found = find_prediction(shared[1] / "logs", prediction_id)
    joined = join_feedback(read_predictions(shared[1] / "logs", "churn"), read_feedback(shared[1] / "logs", "churn"))

    assert ({"accepted": 1, "unknown": 0}, {"accepted": 2, "unknown": 1}) == (feedback.json, again.json)
    assert found is not None
    assert ("고객-1", {"tenure": 1.0, "monthly": 70.0, "계약": "월별"}, "run-1") == (found.entity, found.features, found.source.run_id)
    assert "No" == joined.values.tolist()[-1]


def test_the_clients_own_id_is_kept(client, shared):
    """An id sent in the header comes back, and is found in the log."""
    reply = client.request("POST", "/predict", ROW, {"mulle-prediction-id": "order-17"})

    assert "order-17" == reply.headers["mulle-prediction-id"]
    assert find_prediction(shared[1] / "logs", "order-17") is not None
    assert 0 == client.request("POST", "/feedback", {"prediction_id": "order-17", "label": "No"}).json["unknown"]


@pytest.mark.parametrize(
    ("path", "fragment"),
    [
        pytest.param("/health", b'"status":"ok"', id="health"),
        pytest.param("/v2/health/live", b"true", id="live"),
        pytest.param("/v2/health/ready", b"true", id="ready"),
        pytest.param("/metrics", b"mulle_deployment_generation", id="metrics"),
        pytest.param("/openapi.json", '"계약"'.encode(), id="OpenAPI"),
        pytest.param("/docs", "월별".encode(), id="documentation with a row that works"),
    ],
)
def test_every_page_answers(client, path, fragment):
    """GET and HEAD; the body names what is being served."""
    reply = client.request("GET", path)

    assert 200 == reply.status
    assert fragment in reply.body
    assert (200, b"") == ((head := client.request("HEAD", path)).status, head.body)


def test_the_documentation_needs_nobody_else(client):
    """No script, style or picture comes from another place, and the policy forbids it."""
    reply = client.request("GET", "/docs")

    assert b"http://" not in reply.body
    assert b"https://" not in reply.body
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_the_openapi_document_is_valid(client):
    """The document follows OpenAPI's own schema."""
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(client.request("GET", "/openapi.json").json)


def test_metrics_are_prometheus_text(client, require_service):
    """Promtool accepts every line."""
    client.request("POST", "/predict", ROW)
    text = client.request("GET", "/metrics").body
    require_service(shutil.which("promtool") is not None, "promtool", "apt-get install prometheus")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)

    assert (0, b"") == (done.returncode, done.stderr)


# ---- bad input


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b"{", 400, "body-invalid", id="cut off"),
        pytest.param(b"\xff\xfe", 400, "body-invalid", id="not UTF-8"),
        pytest.param(b"[" * 19_000, 400, "body-too-deep", id="nested 19,000 deep"),
        pytest.param([], 422, "rows-empty", id="no rows"),
        pytest.param([{"tenur": 1, "monthly": 1}], 422, "rows-unknown-column", id="a misspelt column"),
        pytest.param([{"tenure": 1}], 422, "rows-missing-column", id="a required column is absent"),
        pytest.param([{"monthly": "x"}], 422, "rows-wrong-type", id="a wrong type"),
        pytest.param([{"monthly": 1}] * 101, 413, "rows-too-many", id="too many rows"),
        pytest.param(b"x" * 20_001, 413, "body-too-large", id="too large"),
    ],
)
def test_bad_bodies_are_the_callers_error(shared, body, status, code):
    """Each has its status, its code, a fix; none is a 500; the connection or the next one goes on."""
    with RawClient(shared[0].host, shared[0].port) as client:
        reply = client.request("POST", "/predict", body)

        assert (status, code) == (reply.status, reply.code)
        assert reply.json["error"]["fix"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        pytest.param("GET", "/nothing", {}, 404, "route-unknown", id="no such page"),
        pytest.param("GET", "/predict", {}, 405, "method-not-allowed", id="GET to predict"),
        pytest.param("POST", "/metrics", {}, 405, "method-not-allowed", id="POST to metrics"),
        pytest.param("POST", "/predict", {"content-type": "text/plain"}, 415, "body-media-type", id="plain text"),
        pytest.param("POST", "/predict", {"content-encoding": "gzip"}, 415, "body-media-type", id="compressed"),
        pytest.param("POST", "/predict", {"mulle-revision": "9"}, 404, "revision-unknown", id="no such revision"),
        pytest.param("POST", "/predict", {"mulle-revision": "x"}, 400, "header-invalid", id="a revision that is no number"),
        pytest.param("POST", "/predict", {"mulle-prediction-id": "a b"}, 422, "prediction-id-invalid", id="an id with a space"),
        pytest.param("POST", "/predict", {"host": "evil.example"}, 403, "http-host-refused", id="DNS rebinding"),
        pytest.param("POST", "/predict", {"origin": "https://evil.example"}, 403, "http-origin-refused", id="a foreign page"),
        pytest.param("POST", "/predict", {"origin": "null"}, 403, "http-origin-refused", id="a sandboxed page"),
        pytest.param("POST", "/predict", {"expect": "magic"}, 417, "http-expectation", id="an unknown expectation"),
        pytest.param("POST", "/../predict", {}, 404, "route-unknown", id="dots in the path"),
    ],
)
def test_bad_requests_are_the_callers_error(client, method, path, headers, status, code):
    """Methods, paths and headers are checked like bodies."""
    reply = client.request(method, path, [ROW] if method == "POST" else None, headers)

    assert (status, code) == (reply.status, reply.code)


def test_our_own_origin_is_welcome(client, shared):
    """The form in /docs may use the server it came from."""
    origin = f"http://127.0.0.1:{shared[0].port}"

    assert 200 == client.request("POST", "/predict", ROW, {"origin": origin}).status


# ---- traps of HTTP


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        pytest.param(b"GET /health HTTP/1.1\r\n\r\n", 400, "http-host-missing", id="no Host"),
        pytest.param(b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "http-host-missing", id="two Hosts"),
        pytest.param(b"nonsense\r\n\r\n", 400, "http-malformed", id="not HTTP"),
        pytest.param(
            b"POST /predict HTTP/1.1\r\n" + HEAD + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            400,
            "http-malformed",
            id="both framings",
        ),
        pytest.param(b"POST /predict HTTP/1.1\r\n" + HEAD + b"content-length: -1\r\n\r\n", 400, "http-malformed", id="a negative length"),
        pytest.param(
            b"POST /predict HTTP/1.1\r\n" + HEAD + b"content-length: 99999999999\r\n\r\n",
            413,
            "body-too-large",
            id="refused before the body",
        ),
        pytest.param(
            b"POST /predict HTTP/1.1\r\n" + HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n",
            400,
            "http-malformed",
            id="a coding we do not undo",
        ),
        pytest.param(b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", 405, "method-not-allowed", id="a proxy's method"),
        pytest.param(
            b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * 200_000, 431, "http-head-too-large", id="one endless header"
        ),
        pytest.param(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"a: b\r\n" * 150, 431, "http-head-too-large", id="many headers"),
        pytest.param(b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n", 431, "http-head-too-large", id="a long path"),
    ],
)
def test_malformed_requests_get_one_answer_and_the_end(client, raw, status, code):
    """The refusal arrives, then the connection closes."""
    client.send(raw)
    reply = client.reply()

    assert (status, code, "close") == (reply.status, reply.code, reply.headers["connection"])
    assert client.closed()


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(b"1000\r\n" + b"x" * 4096 + b"\r\n", id="more body than allowed"),
        pytest.param(b"1;" + b"e" * 4000 + b"\r\nx\r\n", id="mostly chunk extensions"),
    ],
)
def test_a_chunked_flood_is_cut_off(client, chunk):
    """Without a content-length the limits hold too."""
    client.send(b"POST /predict HTTP/1.1\r\n" + HEAD + b"transfer-encoding: chunked\r\n\r\n")
    try:
        for _ in range(100):
            client.send(chunk)
    except (BrokenPipeError, ConnectionResetError):
        pass
    reply = client.reply()

    assert (413, "body-too-large") == (reply.status, reply.code)


def test_a_trailer_is_not_a_header(client):
    """A header behind the body changes nothing about a request already checked."""
    body = json.dumps([ROW]).encode()
    client.send(b"POST /predict HTTP/1.1\r\n" + HEAD + b"transfer-encoding: chunked\r\n\r\n")
    client.send(b"%x\r\n%b\r\n0\r\nmulle-revision: 9\r\ncontent-type: text/plain\r\n\r\n" % (len(body), body))

    assert 200 == client.reply().status


@pytest.mark.parametrize("size", [1, 7, 50])
def test_a_request_in_pieces_is_one_request(client, size):
    """Target, headers and body may be cut anywhere."""
    body = json.dumps([ROW], ensure_ascii=False).encode()
    raw = b"POST /predict?%s HTTP/1.1\r\n" % (b"q" * 30) + HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    for at in range(0, len(raw), size):
        client.send(raw[at : at + size])

    assert 200 == client.reply().status


def test_pipelined_answers_come_in_order(client):
    """A slow request (feedback is synced to disk) is not overtaken by the quick and the refused behind it."""
    requests = []
    for i in range(30):
        body = json.dumps(
            {"prediction_id": f"p{i}", "label": "No"} if i % 3 == 0 else [{"monthly": i}] if i % 3 == 1 else [{"no": 1}]
        ).encode()
        path = b"/feedback" if i % 3 == 0 else b"/predict"
        requests.append(
            b"POST %b HTTP/1.1\r\n" % path + HEAD + b"mulle-prediction-id: r%d\r\ncontent-length: %d\r\n\r\n" % (i, len(body)) + body
        )
    client.send(b"".join(requests))
    replies = [client.reply() for _ in range(30)]

    assert [200, 200, 422] * 10 == [reply.status for reply in replies]
    assert [f"r{i}" for i in range(1, 30, 3)] == [reply.headers["mulle-prediction-id"] for reply in replies[1::3]]


def test_what_follows_a_closing_request_is_ignored(client):
    """`Connection: close` with more bytes behind it is still one valid request."""
    client.send(b"GET /v2/health/live HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\nGET /health HTTP/1.1\r\n\r\n")

    assert 200 == client.reply().status
    assert client.closed()


def test_an_upgrade_that_is_not_wanted_costs_nothing(client):
    """A client that offers h2c gets its answer in HTTP/1.1, body and all, also pipelined and twice."""
    body = json.dumps([ROW]).encode()
    upgrade = b"upgrade: h2c\r\nconnection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    raw = b"POST /predict HTTP/1.1\r\n" + HEAD + upgrade + b"content-length: %d\r\n\r\n" % len(body) + body
    client.send(raw + b"GET /v2/health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" + raw)

    assert [200, 200, 200] == [client.reply().status for _ in range(3)]
    assert 200 == client.request("GET", "/health").status


def test_a_client_that_waits_for_continue_is_told(client):
    """`Expect: 100-continue` gets its interim answer before the body."""
    body = json.dumps([ROW]).encode()
    client.send(b"POST /predict HTTP/1.1\r\n" + HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body))
    interim = client.reply()
    client.send(body)

    assert (100, 200) == (interim.status, client.reply().status)


def test_http_1_0_closes_unless_asked(client):
    """An old client without keep-alive gets its answer and the end."""
    client.send(b"GET /v2/health/live HTTP/1.0\r\n\r\n")

    assert 200 == client.reply().status
    assert client.closed()


def test_a_half_closed_client_still_gets_its_answer(client):
    """`nc` sends, shuts its side, and waits."""
    import socket

    client.send(b"GET /v2/health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
    client.socket.shutdown(socket.SHUT_WR)

    assert 200 == client.reply().status


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"GET /health HTTP/1.1\r\nhost: 127", id="a head that never ends"),
        pytest.param(b"POST /predict HTTP/1.1\r\n" + HEAD + b"content-length: 10\r\n\r\n[", id="a body that never ends"),
    ],
)
def test_slow_clients_are_ended(client, start):
    """A request that does not arrive in time is answered 408 and closed."""
    client.send(start)
    reply = client.reply()

    assert (408, "http-timeout") == (reply.status, reply.code)
    assert client.closed()


def test_connections_are_limited(shared):
    """Beyond the limit a connection is told so, and when others leave there is room again."""
    held = [RawClient(shared[0].host, shared[0].port) for _ in range(45)]
    try:
        late = held[-1].reply()

        assert (503, "http-too-many-connections", "1") == (late.status, late.code, late.headers["retry-after"])
    finally:
        for connection in held:
            connection.socket.close()

    def works():
        with RawClient(shared[0].host, shared[0].port) as again:
            return again.request("GET", "/health").status == 200

    assert wait_until(works)
