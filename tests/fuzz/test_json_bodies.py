"""JSON of every kind as a body: refused with a reason or answered, never an error of the server, and nothing grows."""

import json
import math
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mulle.serve.http.checks import Limits
from support.http_client import RawClient
from support.serving import running

PATHS = ("/predict", "/feedback", "/invocations", "/v2/models/churn/infer")
REFUSALS = {400, 413, 415, 422}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GROWTH_BYTES = 64 << 20
GOOD = {
    "/predict": [{"tenure": 1, "monthly": 70, "계약": "월별"}],
    "/feedback": {"prediction_id": "a", "label": "Yes"},
    "/invocations": {"dataframe_records": [{"tenure": 1, "monthly": 70}]},
    "/v2/models/churn/infer": {"inputs": [{"name": "monthly", "shape": [1], "datatype": "FP64", "data": [70]}]},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One real server that takes large bodies."""
    old = os.environ.get("MULLE_HOME")
    os.environ["MULLE_HOME"] = str(tmp_path_factory.mktemp("key"))
    try:
        limits = Limits(body_bytes=12 << 20)
        with running(tmp_path_factory.mktemp("project"), limits=limits, max_rows=100) as (started, _):
            yield started
    finally:
        if old is None:
            del os.environ["MULLE_HOME"]
        else:
            os.environ["MULLE_HOME"] = old


def post(server, path, body):
    with RawClient(server.host, server.port, timeout_s=30) as client:
        return client.request("POST", path, body)


def require_reasonable(path, reply):
    """Fail unless an answer is a success, or a refusal in our one shape that tells nothing of the inside."""
    text = reply.body.decode()

    assert reply.status == 200 or reply.status in REFUSALS, (path, reply.status, text[:300])
    if reply.status != 200:
        error = reply.json.get("error")
        assert isinstance(error, str) if path.startswith("/v2") else {"code", "what", "fix", "where"} == set(error)
        assert len(text) < 4_000
    assert "Traceback" not in text
    assert ".py" not in text


TEXTS = st.text(max_size=12) | st.sampled_from(
    ["NaN", "\ufdd0", "\u0000", "월별", "\u202e", "__class__", "../x", "${jndi:x}", "' OR 1=1 --"]
)
NUMBERS = (
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0, -0.0, 2**63, 2**64, 10**400, 1e308, 5e-324])
)
OF_ROWS = [
    "tenure",
    "monthly",
    "계약",
    "customer_id",
    "prediction_id",
    "rows",
    "features",
    "columns",
    "label",
    "value",
    "reward",
    "feedback",
]
OF_FORMS = ["dataframe_split", "dataframe_records", "instances", "inputs", "data", "index", "params"]
OF_TENSORS = ["name", "shape", "datatype", "outputs", "id", "parameters", "binary_data_size"]
NAMES = st.sampled_from([*OF_ROWS, *OF_FORMS, *OF_TENSORS, "__proto__", "$ref"])
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["tenure", "monthly", "계약", "features", "x", ""]) | TEXTS,
        "shape": st.lists(st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**62, 2**63, 1.5, None]), max_size=4),
        "datatype": st.sampled_from(["FP64", "FP32", "BYTES", "BOOL", "INT64", "BF16", "x"]) | TEXTS,
        "data": st.lists(NUMBERS | TEXTS | st.none() | st.booleans(), max_size=6),
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "classification", "timeout"]), NUMBERS | TEXTS, max_size=2),
    },
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | TEXTS, inner, max_size=5),
    max_leaves=20,
)
BODIES = (
    VALUES
    | st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=4)
    | st.fixed_dictionaries({"inputs": st.lists(SHAPED, max_size=3)}, optional={"outputs": VALUES, "id": VALUES, "parameters": VALUES})
)


@given(st.sampled_from(PATHS), BODIES)
@settings(max_examples=600)
def test_any_json_is_answered_or_refused(server, path, body):
    """Values of every type in every place, under every name the protocols know."""
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")

    require_reasonable(path, post(server, path, data))


@given(st.sampled_from(PATHS), st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=4), st.integers(0, 3)), min_size=1, max_size=4))
@settings(max_examples=400)
def test_damaged_bodies_are_refused_or_mean_something_else(server, path, damage):
    """Bytes put in, left out and replaced anywhere in a good body."""
    data = json.dumps(GOOD[path], ensure_ascii=False).encode()
    for place, piece, n_lost in damage:
        at = place % len(data) if data else 0
        data = data[:at] + piece + data[at + n_lost :]

    require_reasonable(path, post(server, path, data))


HOSTILE = [
    pytest.param(b"[" * 2_000_000, id="two million brackets"),
    pytest.param(b'{"a":' * 1_000_000, id="a million objects deep"),
    pytest.param(b'{"inputs":' + b"[" * 500 + b"]" * 500 + b"}", id="five hundred deep, closed"),
    pytest.param(b'[{"monthly": 1' + b"0" * 3_000_000 + b"}]", id="a number of three million digits"),
    pytest.param(b'[{"monthly": 1e999999999999}]', id="an exponent beyond everything"),
    pytest.param(b'[{"monthly": -0.' + b"0" * 1_000_000 + b"1}]", id="a million zeros behind the point"),
    pytest.param(b'[{"monthly": 1, "\xea\xb3\x84\xec\x95\xbd": "' + b"x" * 10_000_000 + b'"}]', id="a text of ten megabytes"),
    pytest.param(b'[{"' + b"k" * 10_000_000 + b'": 1}]', id="a key of ten megabytes"),
    pytest.param(b"[" + b",".join(b'{"monthly":1}' for _ in range(700_000)) + b"]", id="seven hundred thousand rows"),
    pytest.param(b"{" + b",".join(b'"k%d":1' % i for i in range(600_000)) + b"}", id="six hundred thousand keys"),
    pytest.param(b'{"monthly": 1,' * 1 + b",".join([b'"tenure": 1'] * 500_000) + b"}", id="one key half a million times"),
    pytest.param(b'{"features": [[' + b"1," * 3_000_000 + b"1]]}", id="a row of three million values"),
    pytest.param(b'{"features": [' + b"[]," * 3_000_000 + b"[]]}", id="three million empty rows"),
    pytest.param(b'{"dataframe_split": {"columns": [' + b'"monthly",' * 900_000 + b'"x"], "data": []}}', id="a million names"),
    pytest.param(b'{"inputs": {"monthly": [' + b"[1]," * 2_000_000 + b"[1]]}}", id="two million values in a column"),
    pytest.param(b'{"inputs": [' + b'{"name":"monthly","shape":[1],"datatype":"FP64","data":[1]},' * 100_000 + b"1]}", id="many tensors"),
    pytest.param(b'{"inputs": [{"name":"monthly","shape":[4611686018427387904],"datatype":"FP64","data":[1]}]}', id="a tensor of 2**62"),
    pytest.param(b"\xff" * 5_000_000, id="bytes that are no text"),
    pytest.param(b'"' + b"\\ud800" * 1_000_000 + b'"', id="half characters"),
    pytest.param(b'"' + b"\\" * 5_000_001, id="backslashes"),
    pytest.param(b"NaN," * 2_000_000, id="NaN without end"),
    pytest.param(b'{"instances": [NaN' + b",NaN" * 2_000_000 + b"]}", id="two million times NaN"),
    pytest.param(b" " * 11_000_000 + b"[]", id="white space"),
    pytest.param(b"\x00" * 1_000_000, id="zeros"),
    pytest.param(b"[1,2" * 500_000, id="lists that never end"),
    pytest.param(json.dumps([{"monthly": 1, "prediction_id": f"p{i % 99}"} for i in range(100)]).encode(), id="an id twice"),
]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", HOSTILE)
def test_hostile_bodies_are_settled_in_time(server, path, body):
    """Megabytes of what could overwhelm a parser: refused, or (a text of ten megabytes is a text) answered, and the next one too."""
    started = time.monotonic()
    reply = post(server, path, body)
    seconds = time.monotonic() - started

    require_reasonable(path, reply)
    assert 200 == post(server, "/predict", GOOD["/predict"]).status
    assert seconds < 10


def resident_bytes():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES


@pytest.mark.slow
def test_memory_stays_flat_under_hostile_bodies(server):
    """Three hundred megabytes of refused bodies leave nothing behind."""
    bodies = [param.values[0][:3_000_000] for param in HOSTILE]

    def round_of_them():
        for body in bodies:
            for path in PATHS[:3]:
                post(server, path, body)

    round_of_them()
    before = resident_bytes()
    for _ in range(3):
        round_of_them()

    assert resident_bytes() - before < GROWTH_BYTES


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        pytest.param('[{"monthly": 1, "monthly": 2}]', 200, None, id="a key twice: the last one counts, as everywhere"),
        pytest.param('[{"monthly": 70, "계약": "\\ud800"}]', 400, "body-invalid", id="half a character"),
        pytest.param('[{"monthly": 70, "계약": "\\ud83d\\ude00"}]', 200, None, id="a whole one in two halves"),
        pytest.param('[{"monthly": 70, "계약": "\\ufdd0"}]', 422, "rows-bad-text", id="the marker of a missing text"),
        pytest.param('[{"monthly": 70, "계약": "\\u0000"}]', 200, None, id="NUL in a text"),
        pytest.param('[{"monthly": Infinity}]', 400, "body-invalid", id="Infinity"),
        pytest.param('[{"monthly": 1e400}]', 400, "body-invalid", id="beyond a float"),
        pytest.param('[{"monthly": 18446744073709551616}]', 200, None, id="2**64 is a number"),
        pytest.param('[{"monthly": -0.0}]', 200, None, id="minus zero"),
        pytest.param('[{"monthly": 5e-324}]', 200, None, id="the smallest"),
        pytest.param('[{"monthly": 1}] x', 400, "body-invalid", id="something behind it"),
        pytest.param('[{"monthly": 1,}]', 400, "body-invalid", id="a comma too much"),
        pytest.param("[{'monthly': 1}]", 400, "body-invalid", id="the wrong quotes"),
        pytest.param('[{"monthly": 01}]', 400, "body-invalid", id="a leading zero"),
        pytest.param('[{"monthly": true}]', 422, "rows-wrong-type", id="a boolean for a number"),
        pytest.param('// x\n[{"monthly": 1}]', 400, "body-invalid", id="a comment"),
    ],
)
def test_the_corners_of_json_have_their_answers(server, text, status, code):
    """Written down, so that no change of parser moves them unseen."""
    reply = post(server, "/predict", text.encode())

    assert (status, code) == (reply.status, reply.code if reply.status != 200 else None)


@given(st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e6, 1e6)), min_size=1, max_size=8))
@settings(max_examples=150)
def test_numbers_arrive_exactly(server, pairs):
    """Quick way and careful way, by name and by position: the same answers to the last digit."""
    rows = [{"tenure": tenure, "monthly": monthly} for tenure, monthly in pairs]
    spellings = [
        rows,
        {"rows": rows},
        {"features": [[*pair, None] for pair in pairs]},
        {"columns": ["monthly", "tenure"], "features": [[monthly, tenure] for tenure, monthly in pairs]},
    ]
    found = [post(server, "/predict", body).json for body in spellings]
    shown = [one.get("predictions", one) for one in found]

    assert [shown[0]] * 4 == shown
    assert all(not isinstance(one, list) or all(math.isfinite(p["probabilities"]["Yes"]) for p in one) for one in shown)
