"""What broke other servers, tried on this one: paths, hosts, floods, doors left open, errors that tell too much."""

import json
import os
import re
import socket
import threading
import time

import pytest

from mulle.core.errors import SpecError
from mulle.formats.api_keys import KeySource, add_key, make_key
from mulle.serve.http.checks import Limits
from mulle.serve.http.cors import cors_policy
from mulle.serve.server import ServeConfig, serve
from support.bundles import trusted_key
from support.http_client import RawClient
from support.serving import running

LIMITS = Limits(body_bytes=2 << 20, head_timeout_s=3, body_timeout_s=3)
ROW = [{"tenure": 1, "monthly": 70}]
PAGE = "https://shop.example.com"
ROUTES = (
    ("POST", "/predict"),
    ("POST", "/invocations"),
    ("POST", "/feedback"),
    ("POST", "/deployments/churn/predict"),
    ("POST", "/deployments/churn/invocations"),
    ("POST", "/deployments/churn/feedback"),
    ("POST", "/v2/models/churn/infer"),
    ("POST", "/v2/models/churn/versions/1/infer"),
    ("GET", "/v2/models/churn"),
    ("GET", "/v2/models/churn/ready"),
    ("GET", "/v2"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One real server and its state folder."""
    old = os.environ.get("MULLE_HOME")
    os.environ["MULLE_HOME"] = str(tmp_path_factory.mktemp("key"))
    try:
        with running(tmp_path_factory.mktemp("project"), limits=LIMITS, max_rows=50, cors=cors_policy([PAGE])) as both:
            yield both
    finally:
        if old is None:
            del os.environ["MULLE_HOME"]
        else:
            os.environ["MULLE_HOME"] = old


@pytest.fixture
def key_source(tmp_path):
    """One key for everything, kept where a server finds it, and the key itself."""
    kept, key = make_key("tester", now_ns=time.time_ns(), metrics=True)
    add_key(tmp_path / "keys.json", kept)
    return KeySource(path=str(tmp_path / "keys.json")), key


@pytest.fixture
def client(served):
    with RawClient(served[0].host, served[0].port) as connection:
        yield connection


def raw(served, head, body=b""):
    """Return what the server says to a head as it is written."""
    with RawClient(served[0].host, served[0].port) as connection:
        connection.send(head + body)
        return connection.reply()


# ---- paths

SECRET = "serving/churn.json"
PATHS = [
    "/../{}",
    "/../../../../../../../../etc/passwd",
    "/..%2f..%2f{}",
    "/%2e%2e/%2e%2e/{}",
    "/%252e%252e/%252e%252e/{}",
    "/..%255c..%255c{}",
    "/..\\..\\{}",
    "/docs/../../{}",
    "/docs/..;/..;/{}",
    "/docs%2f..%2f{}",
    "/docs#/../../{}",
    "/docs?/../../{}",
    "/docs%23/../../{}",
    "/docs%00/../../{}",
    "/.mulle/{}",
    "/{}",
    "//{}",
    "/file:///etc/passwd",
    "/%c0%ae%c0%ae/{}",
    "/deployments/..%2f..%2f{}/predict",
    "/deployments/../{}",
    "/v2/models/../../{}",
    "/v2/models/..%2f..%2fserving%2fchurn.json",
    "/v2/models/churn/versions/..%2f..%2f1/infer",
    "/v2/models/%2e%2e/ready",
    "/v2/models/churn%00/ready",
    "/v2/health/../models/churn",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_path_reaches_a_file(served, method, path):
    """However it is written, nothing of the state folder comes back, and nothing is found that is not a route."""
    target = path.format(SECRET).encode("latin-1")
    reply = raw(served, method.encode() + b" " + target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n")
    text = reply.body.decode()

    assert reply.status in {400, 404, 405, 415, 422} or (reply.status == 200 and path.startswith(("/docs#", "/docs?")))
    assert "root:" not in text
    assert "signature" not in text
    assert "bundle_digest" not in text
    assert str(served[1]) not in text


def test_a_path_is_not_decoded_into_a_route(served):
    """What is encoded is another path: a proxy that decodes and one that does not must not disagree about what was asked."""
    paths = ("/%64ocs", "/docs/", "//docs", "/./docs", "/DOCS", "/docs%20")
    found = {path: raw(served, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()).status for path in paths}

    assert dict.fromkeys(found, 404) == found


# ---- hosts and origins


@pytest.mark.parametrize(
    "host",
    [
        "evil.net",
        "127.0.0.1.evil.net",
        "localhost.evil.net",
        "evil.net:80",
        "169.254.169.254",
        "1.1.1.1",
        "[::ffff:7f00:1]",
        "2130706433",
        "localhost@evil.net",
        "a",
        " ",
    ],
)
def test_a_rebound_name_is_refused(served, host):
    """A page whose name was pointed at this machine reaches nothing, whatever it asks."""
    found = {
        method: raw(served, f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode()).status
        for method, path in ROUTES[::5]
    }

    assert set(found.values()) <= {400, 403}


@pytest.mark.parametrize(
    "origin", ["https://evil.net", "null", "http://127.0.0.1.evil.net", f"{PAGE}.evil.net", "http://shop.example.com", "file://", ""]
)
def test_a_page_of_another_origin_is_refused(served, origin):
    """Before its body is looked at, and without a header that would let it read why."""
    body = json.dumps(ROW).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: {origin}\r\nContent-Length: {len(body)}\r\n\r\n"
    reply = raw(served, head.encode(), body)

    assert 403 == reply.status
    assert not {name for name in reply.headers if name.startswith("access-control")}


def test_a_page_that_is_named_may_ask_and_read(client):
    """Preflight, answer and refusal all allow exactly this origin."""
    asked = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    before = client.request("OPTIONS", "/predict", headers=asked)
    answer = client.request("POST", "/predict", ROW, {"origin": PAGE})
    refused = client.request("POST", "/predict", [], {"origin": PAGE})
    plain = client.request("POST", "/predict", ROW)

    assert [200, 200, 422, 200] == [reply.status for reply in (before, answer, refused, plain)]
    assert [PAGE] * 3 == [reply.headers.get("access-control-allow-origin") for reply in (before, answer, refused)]
    assert "access-control-allow-origin" not in plain.headers
    assert "POST" in before.headers["access-control-allow-methods"]
    assert "origin" in answer.headers["vary"].lower()


def test_two_origins_in_turn_each_get_their_own(client):
    """A head that was met before is remembered with its own origin."""
    found = [
        client.request("POST", "/predict", ROW, headers).headers.get("access-control-allow-origin")
        for headers in ({"origin": PAGE}, {}) * 5
    ]

    assert [PAGE, None] * 5 == found


# ---- floods


def test_a_flood_of_tiny_chunks_is_ended(served):
    """A million chunks of one byte cost a server that kept each of them its stack; here they are counted."""
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with RawClient(served[0].host, served[0].port) as connection:
        try:
            connection.send(head + b"1\r\nx\r\n" * 1_000_000 + b"0\r\n\r\n")
        except OSError:
            reply = None
        else:
            reply = connection.reply()

    assert reply is None or reply.status in {400, 413}
    assert 200 == raw(served, b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").status


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"--x\r\n" * 300_000, id="parts without heads"),
        pytest.param(b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 30_000 + b"--x--", id="thirty thousand parts"),
        pytest.param(b"--x\r\n" + b"A: b\r\n" * 250_000, id="a part of heads only"),
        pytest.param(
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="../../x"\r\n\r\n' + b"\r\n--" * 400_000, id="almost boundaries"
        ),
        pytest.param(b"\r\n" * 900_000, id="line ends"),
        pytest.param(b"-" * 1_900_000, id="dashes"),
    ],
)
def test_a_flood_of_form_parts_is_refused_in_time(served, body):
    """Parts, heads and dashes without end: linear time, a refusal, no file."""
    started = time.monotonic()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reply = raw(served, head.encode(), body)

    assert reply.status in {400, 413, 415, 422}
    assert time.monotonic() - started < 5


def test_a_flood_of_different_heads_is_not_kept(served):
    """Twenty thousand heads that never repeat leave a bounded memory of heads behind, and the server as fast as before."""
    with RawClient(served[0].host, served[0].port) as connection:
        for i in range(200):
            batch = b"".join(
                b"GET /v2/health/live?%d HTTP/1.1\r\nHost: 127.0.0.1\r\nX-%d: %d\r\n\r\n" % (i * 50 + j, j, i) for j in range(50)
            )
            connection.send(batch)
            assert [200] * 50 == [connection.reply().status for _ in range(50)]


def test_a_flood_of_unknown_paths_is_not_kept(served):
    """Unknown deployments and paths, thousands of them: 404 each, and the known ones are still found."""
    with RawClient(served[0].host, served[0].port) as connection:
        for i in range(3_000):
            path = f"/deployments/x{i}/predict" if i % 2 else f"/nowhere/{i}"
            assert 404 == connection.request("POST", path, ROW).status
        assert 200 == connection.request("POST", "/deployments/churn/predict", ROW).status


# ---- doors


def test_every_route_wants_the_key(tmp_path, key_source):
    """None is forgotten: without a key, with a wrong one and with the key in another place each says 401."""
    config, key = key_source
    with running(tmp_path, keys=config, limits=LIMITS) as (started, _), RawClient(started.host, started.port) as connection:
        good = {"authorization": f"Bearer {key}"}
        body = {"dataframe_records": ROW}
        missing = {(method, path): connection.request(method, path, body if method == "POST" else None).status for method, path in ROUTES}
        wrong = {
            (method, path): connection.request(
                method, path, body if method == "POST" else None, {"authorization": f"Bearer {key[:-1]}~"}
            ).status
            for method, path in ROUTES
        }
        query = {(method, path): connection.request(method, f"{path}?api_key={key}&x-api-key={key}").status for method, path in ROUTES}
        right = {
            (method, path): connection.request(method, path, body if method == "POST" else None, good).status for method, path in ROUTES
        }
        open_ = {path: connection.request("GET", path).status for path in ("/v2/health/live", "/v2/health/ready")}
        told = connection.request("GET", "/health").body.decode()

    assert dict.fromkeys(ROUTES, 401) == missing
    assert dict.fromkeys(ROUTES, 401) == wrong
    assert dict.fromkeys(ROUTES, 401) == query
    assert 401 not in right.values()
    assert {"/v2/health/live": 200, "/v2/health/ready": 200} == open_
    assert "bundle" not in told


def test_a_key_behind_the_body_is_no_key(tmp_path, key_source):
    """Trailers arrive after everything was checked, and count for nothing."""
    config, key = key_source
    body = json.dumps(ROW).encode()
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = head + b"%x\r\n" % len(body) + body + b"\r\n0\r\nAuthorization: Bearer " + key.encode() + b"\r\n\r\n"
    with running(tmp_path, keys=config, limits=LIMITS) as (started, _), RawClient(started.host, started.port) as connection:
        connection.send(data)
        reply = connection.reply()

    assert reply.status in {400, 401}


def test_a_key_of_one_connection_is_not_the_next_ones(tmp_path, key_source):
    """Heads that differ only in the key are two callers, on one connection and on two."""
    config, key = key_source
    good = {"authorization": f"Bearer {key}"}
    found = []
    with (
        running(tmp_path, keys=config, limits=LIMITS) as (started, _),
        RawClient(started.host, started.port) as one,
        RawClient(started.host, started.port) as other,
    ):
        for _ in range(5):
            replies = (
                one.request("POST", "/predict", ROW, good),
                one.request("POST", "/predict", ROW),
                other.request("POST", "/predict", ROW),
            )
            found.append(tuple(reply.status for reply in replies))

    assert [(200, 401, 401)] * 5 == found


def test_listening_elsewhere_is_asked_for(tmp_path):
    """No server is open to the network because somebody typed an address."""
    with pytest.raises(SpecError):
        serve(ServeConfig(state_dir=tmp_path, deployment="churn", trusted=[trusted_key()], host="0.0.0.0", port=0))  # noqa: S104 - the refused one


# ---- errors that tell too much

INSIDE = re.compile(
    r"/(?:home|root|tmp|usr|var|work|etc)/|\.py\b|Traceback|site-packages|onnxruntime|0x[0-9a-f]{6,}|object at|KeyError|msgspec"
)


def test_errors_tell_nothing_of_the_inside(served):
    """Paths, modules, addresses in memory, library names: none of them is in a refusal, whoever words it."""
    bodies = [
        b"{",
        b"\xff",
        b"[[[",
        b'[{"x": 1}]',
        b'[{"monthly": "a"}]',
        b'{"instances": 3}',
        b'{"inputs": [{}]}',
        b'{"prediction_id": 3}',
        b"null",
        b"3",
    ]
    found = []
    with RawClient(served[0].host, served[0].port) as connection:
        for method, path in ROUTES:
            for body in bodies if method == "POST" else [b""]:
                reply = connection.request(method, path, body)
                if reply.status >= 400 and (told := INSIDE.search(reply.body.decode())):
                    found.append((method, path, body, told[0]))

    assert [] == found


def test_a_refusal_repeats_little_of_what_was_sent(served):
    """A megabyte that is wrong is not sent back, in the body or in a header."""
    long = "x" * 1_000_000
    bodies = [
        [{long: 1}],
        [{"monthly": long}],
        {"features": [[long]]},
        {"instances": long},
        {"columns": [long], "features": [[1]]},
        {"prediction_id": long, "label": "Yes"},
    ]
    sizes = []
    with RawClient(served[0].host, served[0].port) as connection:
        for path in ("/predict", "/invocations", "/feedback", "/v2/models/churn/infer"):
            sizes += [len(connection.request("POST", path, body).body) for body in bodies]

    assert max(sizes) < 2_000


def test_clients_that_leave_leave_nothing(served):
    """Five hundred clients that go away in the middle of head, body or answer; afterwards no connection of theirs is open."""
    body = json.dumps(ROW * 20).encode()
    whole = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    def leave(n):
        for i in range(n):
            with socket.create_connection((served[0].host, served[0].port)) as connection:
                connection.sendall(whole[: (i * 37) % (len(whole) + 1)])

    threads = [threading.Thread(target=leave, args=(100,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.5)
    text = raw(served, b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").body.decode()
    n_open = float(re.search(r"^mulle_connections (\d+)", text, re.MULTILINE)[1])

    assert n_open < 10
