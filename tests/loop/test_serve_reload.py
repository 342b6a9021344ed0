"""The server as it starts, takes over a new champion, and ends: nothing is lost on the way."""

import json
import threading
import time

import pytest

from mulle.core.errors import CheckError, SpecError
from mulle.formats.prediction_log import read_predictions
from mulle.formats.signing import sign
from mulle.serve.server import serve, server_in_thread
from support.bundles import GOLDEN_ROWS, answers, churn_graph, seal_churn, trusted_key, write_spec
from support.http_client import RawClient
from support.serving import config, running, wait_until

ROW = {"tenure": 1, "monthly": 70, "계약": "월별"}
HEAD = b"host: 127.0.0.1\r\ncontent-type: application/json\r\n"


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
