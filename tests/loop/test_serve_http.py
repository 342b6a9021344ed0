"""The server over real sockets: answers, limits, traps of HTTP, hot reload, drain."""

import json
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from mulle.core.errors import CheckError, SpecError
from mulle.formats.feedback_log import join_feedback, read_feedback
from mulle.formats.prediction_log import find_prediction, read_predictions
from mulle.formats.signing import sign
from mulle.serve.http_checks import Limits
from mulle.serve.server import ServeConfig, serve, server_in_thread
from support.bundles import GOLDEN_ROWS, answers, churn_graph, seal_churn, trusted_key, write_spec
from support.http_client import RawClient

ROW = {"tenure": 1, "monthly": 70, "계약": "월별"}
HEAD = b"host: 127.0.0.1\r\ncontent-type: application/json\r\n"


def config(state_dir, **changes):
    return ServeConfig(**({"state_dir": state_dir, "deployment": "churn", "trusted": [trusted_key()], "port": 0} | changes))


@contextmanager
def running(tmp_path, *, bundle=None, **changes):
    """Serve one churn bundle at generation 1 and give a server and its state folder."""
    state = tmp_path / ".mulle"
    write_spec(state, [bundle or seal_churn(state / "bundles")], generation=1)
    with server_in_thread(config(state, **changes)) as started:
        yield started, state


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


def wait_until(condition, seconds=5.0):
    """Return whether `condition` came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


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


# ---- starting


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"host": "0.0.0.0"}, "serve-remote", id="a remote address without consent"),  # noqa: S104 - it is refused
        pytest.param({"deployment": "nothing"}, "file-missing", id="no spec"),
        pytest.param({"trusted": ["00" * 32]}, "signature-untrusted", id="a spec nobody trusts"),
        pytest.param({"host": "no.such.host.invalid"}, "serve-remote", id="a host that is not this one"),
    ],
)
def test_a_start_that_must_not_be_fails_with_its_reason(tmp_path, change, code):
    """Nothing listens, and the error says what to do."""
    write_spec(tmp_path, [seal_churn(tmp_path / "bundles")], generation=1)
    with pytest.raises((SpecError, CheckError)) as caught:
        serve(config(tmp_path, **change))

    assert code == caught.value.code


def test_a_folder_is_served_without_a_registry(tmp_path):
    """`--bundle` serves a sealed folder as revision 1; its example row works."""
    bundle = seal_churn(tmp_path / "bundles", regression=True)
    with server_in_thread(config(tmp_path / ".mulle", bundle=bundle.path)) as started, RawClient(started.host, started.port) as client:
        reply = client.request("POST", "/predict", dict(started.example))

    assert (200, 1, ["value"]) == (reply.status, reply.json["revision"], list(reply.json["predictions"][0]))


def test_the_last_good_spec_serves_when_the_new_one_is_broken(tmp_path):
    """Static stability: a restart with a corrupt spec serves the data plane's own copy, and says so."""
    with running(tmp_path) as (_, state):
        pass
    (state / "serving" / "churn.json").write_bytes(b"{broken")
    with server_in_thread(config(state)) as started, RawClient(started.host, started.port) as client:
        health = client.request("GET", "/health").json

    assert ("degraded", 1, "format-unreadable") == (health["status"], health["generation"], health["reload_error"]["code"])


def test_a_restored_backup_does_not_move_traffic_back(tmp_path):
    """At a restart an older generation than the one last served is refused."""
    state = tmp_path / ".mulle"
    write_spec(state, [seal_churn(state / "bundles", shift=1.0)], generation=5)
    with server_in_thread(config(state)):
        pass
    write_spec(state, [seal_churn(state / "bundles")], generation=4)
    with server_in_thread(config(state)) as started:
        assert (5, "spec-stale") == (started.serving.generation, started.reload_error.code)


# ---- hot reload


def generation(started):
    with RawClient(started.host, started.port) as client:
        return client.request("GET", "/health").json


def test_a_new_champion_takes_over_without_a_failed_request(tmp_path):
    """Under load from four connections, two reloads: every answer is 200 and is exactly its revision's own answer."""
    with running(tmp_path) as (started, state):
        bundles = {
            1: seal_churn(state / "bundles"),
            2: seal_churn(state / "bundles", shift=1.0),
            3: seal_churn(state / "bundles", shift=-1.0),
        }
        expected = {n: answers(churn_graph(shift=s), [GOLDEN_ROWS[0]])[0, 1] for n, s in ((1, 0.0), (2, 1.0), (3, -1.0))}
        stop = threading.Event()
        wrong: list[object] = []
        seen: set[int] = set()
        n_answers = [0] * 4

        def load(which):
            with RawClient(started.host, started.port) as client:
                while not stop.is_set():
                    reply = client.request("POST", "/predict", dict(GOLDEN_ROWS[0]))
                    n_answers[which] += 1
                    revision = int(reply.headers.get("mulle-revision", 0))
                    seen.add(revision)
                    if reply.status != 200 or abs(reply.json["predictions"][0]["probabilities"]["Yes"] - expected[revision]) > 1e-6:
                        wrong.append(reply)

        threads = [threading.Thread(target=load, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for number in (2, 3):
            began = time.monotonic()
            write_spec(state, [bundles[number]], generation=number)
            assert wait_until(lambda n=number: generation(started)["generation"] == n)
            assert time.monotonic() - began < 2.0
        time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join()

        assert [] == wrong
        assert {1, 2, 3} == seen
    logged = read_predictions(state / "logs", "churn")

    assert (sum(n_answers), True) == (len(logged), logged.gaps.complete)


@pytest.mark.parametrize(
    ("breakage", "code"),
    [
        pytest.param("corrupt", "format-unreadable", id="not a spec"),
        pytest.param("unsigned", "signature-untrusted", id="signed by a stranger"),
        pytest.param("older", "spec-stale", id="an older generation"),
        pytest.param("golden", "golden-differs", id="golden requests do not reproduce"),
        pytest.param("tampered", "bundle-tampered", id="a graph with a flipped byte"),
        pytest.param("gone", "file-missing", id="the spec vanished"),
    ],
)
def test_a_spec_that_must_not_serve_leaves_the_old_one(tmp_path, breakage, code):
    """The old revision goes on answering; /health and the metrics say why; a good spec heals it."""
    state = tmp_path / ".mulle"
    first = seal_churn(state / "bundles")
    path = write_spec(state, [first], generation=3)
    with server_in_thread(config(state)) as started, RawClient(started.host, started.port) as client:
        other = seal_churn(state / "bundles", shift=0.5)
        if breakage == "corrupt":
            path.write_bytes(b"{")
        elif breakage == "unsigned":
            write_spec(state, [other], generation=4, key=b"k" * 32)
        elif breakage == "older":
            write_spec(state, [other], generation=2)
        elif breakage == "golden":
            write_spec(state, [seal_churn(state / "bundles", shift=0.7, golden_outputs=[[0.5, 0.5]] * 3)], generation=4)
        elif breakage == "tampered":
            graph = other.path / "model.onnx"
            data = bytearray(graph.read_bytes())
            data[-30] ^= 1
            graph.write_bytes(bytes(data))
            write_spec(state, [other], generation=4)
        else:
            path.unlink()
        assert wait_until(lambda: generation(started)["reload_error"] is not None)
        health = client.request("GET", "/health").json
        metrics = client.request("GET", "/metrics").body.decode()

        assert ("degraded", 3, code) == (health["status"], health["generation"], health["reload_error"]["code"])
        assert 'mulle_deployment_last_reload_ok{deployment="churn"} 0' in metrics
        assert 200 == client.request("POST", "/predict", ROW).status
        write_spec(state, [seal_churn(state / "bundles", shift=0.9)], generation=9)
        assert wait_until(lambda: generation(started)["generation"] == 9)
        assert "ok" == client.request("GET", "/health").json["status"]


def test_two_revisions_share_the_traffic_by_unit(tmp_path):
    """Weights split the units, a unit keeps its revision, and a header pins one."""
    state = tmp_path / ".mulle"
    bundles = [seal_churn(state / "bundles"), seal_churn(state / "bundles", shift=1.0)]
    write_spec(state, bundles, generation=1, weights={1: 75, 2: 25})
    with server_in_thread(config(state)) as started, RawClient(started.host, started.port) as client:
        chosen = [client.request("POST", "/predict", ROW, {"mulle-unit": f"u{i}"}).json["revision"] for i in range(400)]
        again = [client.request("POST", "/predict", ROW, {"mulle-unit": f"u{i}"}).json["revision"] for i in range(50)]
        pinned = client.request("POST", "/predict", ROW, {"mulle-revision": "2"}).json["revision"]
        unnamed = [client.request("POST", "/predict", ROW).json["revision"] for _ in range(200)]

    assert chosen[:50] == again
    assert 2 == pinned
    assert 60 < chosen.count(2) < 140
    assert 20 < unnamed.count(2) < 80


def test_requests_on_their_way_are_answered_before_the_end(tmp_path):
    """Stopping waits for a body that is still arriving, answers it, and says goodbye."""
    stop = threading.Event()
    box = []
    ready = threading.Event()
    state = tmp_path / ".mulle"
    write_spec(state, [seal_churn(state / "bundles")], generation=1)
    thread = threading.Thread(target=lambda: serve(config(state), on_ready=lambda s: (box.append(s), ready.set()), stop=stop))
    thread.start()
    ready.wait(10)
    body = json.dumps([ROW]).encode()
    with RawClient(box[0].host, box[0].port) as idle, RawClient(box[0].host, box[0].port) as client:
        client.send(b"POST /predict HTTP/1.1\r\n" + HEAD + b"content-length: %d\r\n\r\n" % len(body) + body[:5])
        time.sleep(0.1)
        stop.set()
        assert idle.closed()
        with pytest.raises(ConnectionRefusedError):
            RawClient(box[0].host, box[0].port)
        client.send(body[5:])
        reply = client.reply()
    thread.join(10)

    assert (200, "close") == (reply.status, reply.headers["connection"])
    assert 1 == len(read_predictions(state / "logs", "churn"))


def test_a_stranger_cannot_sign(tmp_path):
    """The helper that signs with another key really makes another signature."""
    assert sign(b"x", b"k" * 32).key != trusted_key()
