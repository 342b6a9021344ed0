"""A real project's server under bad requests: each is refused with its reason, counted, and the next good one is answered.

Framing, limits and headers are in `loop/test_serve_http.py`; here is the deployment of a project, its log and its monitor.
"""

import json

import pytest

from support.http_client import RawClient
from support.projects import finished, serving

pytestmark = pytest.mark.slow

GOOD = {"minutes": 1, "spend": 2, "channel": "mail", "member": True}

BODIES = [
    pytest.param(b"", 400, "body-invalid", id="nothing"),
    pytest.param(b"{", 400, "body-invalid", id="half an object"),
    pytest.param(b'[{"minutes": NaN}]', 400, "body-invalid", id="NaN is no JSON"),
    pytest.param('{"minutes": "\udcff"}'.encode("utf-8", "surrogateescape"), 400, "body-invalid", id="not UTF-8"),
    pytest.param({**GOOD, "minuts": 1}, 422, "rows-unknown-column", id="a misspelt column"),
    pytest.param({"minutes": 1, "spend": 2}, 422, "rows-missing-column", id="columns left out"),
    pytest.param({**GOOD, "minutes": "1"}, 422, "rows-wrong-type", id="a number in quotes"),
    pytest.param({**GOOD, "member": "yes"}, 422, "rows-wrong-type", id="a word for a boolean"),
    pytest.param({**GOOD, "channel": {"$ne": 1}}, 422, "body-shape", id="an object for a text"),
    pytest.param({"features": [[1, 2]]}, 422, "rows-wrong-length", id="a row too short"),
    pytest.param({**GOOD, "bought": "yes"}, 422, "rows-unknown-column", id="the label sent along"),
    pytest.param([], 422, "rows-empty", id="no rows"),
]


def test_whatever_is_sent_the_next_good_request_is_answered(tmp_path, own_key_folder, monkeypatch, capsys):
    """Twelve bad bodies, one of 100 MB, and unseen values; then the log and the monitor tell what was odd."""
    project = finished(tmp_path / "tiny", monkeypatch)
    found = []
    with serving(project) as client:
        host, port = client.socket.getpeername()
        for param in BODIES:
            with RawClient(host, port) as one:
                reply = one.request("POST", "/predict", param.values[0])
            found.append((reply.status, reply.code, bool(reply.json["error"]["fix"])))
        with RawClient(host, port) as one:
            one.send(
                f"POST /predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: 104857600\r\n\r\n".encode()
            )
            large = one.reply()
        unseen = client.request("POST", "/predict", [{**GOOD, "channel": f"billboard {i % 3}", "minutes": 1e9} for i in range(60)])
        good = client.request("POST", "/predict", [GOOD] * 200)
        metrics = client.request("GET", "/metrics").body.decode()
    checked = project.call(capsys, "monitor", "check", "--last", "260", "--json").json
    odd = {column["name"]: " ".join(column["anomalies"]) for column in checked["columns"] if column["anomalies"]}

    assert [(*param.values[1:], True) for param in BODIES] == found
    assert (413, "body-too-large") == (large.status, large.code)
    assert (200, 200) == (unseen.status, good.status)
    assert 60 == len(unseen.json["predictions"])
    assert "billboard 0" in odd["channel"]
    assert "60" in odd["minutes"] + odd["channel"]
    assert "mulle_" in metrics
    assert json.dumps(checked)
    assert 260 == checked["n_rows"]
