"""What happens around a server while it serves: disks that fill up, spoiled bundles and specs, killed helpers, clients that misbehave."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from mulle.formats.prediction_log import read_predictions
from mulle.serve.http.checks import Limits
from mulle.serve.reload import POLL_S
from support.bundles import seal_churn, write_spec
from support.http_client import RawClient
from support.live_server import ROW, live_server, loaded, predict_request
from support.serving import running, wait_until
from support.slow_models import seal_slow_churn

pytestmark = pytest.mark.chaos

DISK_MB = 128


@pytest.fixture
def small_disk(tmp_path):
    """Mount an empty file system of a few megabytes where the logs lie, or skip."""
    folder = tmp_path / "p" / ".mulle" / "logs"
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "mulle-test", str(folder)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Leave no room; return the file that takes it."""
    filler = folder / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    return filler


def settings(policy):
    """Return the [serving] of a policy for a full log."""
    return f'[serving.log]\non_full = "{policy}"\n'


@pytest.mark.parametrize("policy", ["block", "drop"])
def test_a_full_disk_under_load_is_counted_and_passes(tmp_path, small_disk, policy):
    """Block refuses what it cannot log, drop answers and counts it; with room again all is as before, and the log says what is missing."""
    project = tmp_path / "p"
    write_spec(project / ".mulle", [seal_churn(project / ".mulle" / "bundles")], generation=1)
    with live_server(project, settings=settings(policy)) as server:
        well = loaded(server, connections=8, duration_s=0.5)
        filler = fill(small_disk)
        full = loaded(server, connections=8, duration_s=1.0)
        filler.unlink()
        with server.client() as client:
            recovered = wait_until(lambda: client.request("POST", "/predict", [ROW]).status == 200, 10)
            after = [client.request("POST", "/predict", [ROW]) for _ in range(20)]
        dropped = server.metric("mulle_prediction_log_dropped_rows_total")
        failures = server.metric("mulle_prediction_log_failures_total")
        alive = server.process.poll() is None
    ids = set(read_predictions(project / ".mulle" / "logs", "churn").ids.tolist())
    gaps = read_predictions(project / ".mulle" / "logs", "churn").gaps

    assert ({}, {200}) == (well.errors, set(well.by_status))
    assert {} == full.errors
    assert recovered
    assert {200} == {reply.status for reply in after}
    assert alive
    assert all(set(reply.json["prediction_ids"]) <= ids for reply in after)
    if policy == "block":
        assert full.n_of(503, 503) > 0
        assert failures > 0
        assert gaps.complete
    else:
        assert {200} == set(full.by_status)
        assert dropped > 0
        assert not gaps.complete


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        pytest.param("graph", "bundle-tampered", id="a graph with one byte changed"),
        pytest.param("signature", "signature", id="a spec somebody else signed"),
        pytest.param("document", "", id="a spec cut in half"),
        pytest.param("gone", "", id="a bundle that is not there"),
    ],
)
def test_a_spoiled_successor_changes_nothing(tmp_path, spoil, code):
    """The old revision goes on answering under load, /health says why, and a good spec afterwards is served."""
    state = tmp_path / ".mulle"
    write_spec(state, [seal_churn(state / "bundles")], generation=1)
    following = seal_churn(state / "bundles", shift=0.5)
    with live_server(tmp_path) as server:
        box = []
        asking = threading.Thread(target=lambda: box.append(loaded(server, connections=8, duration_s=2.0, warmup_s=0.0)))
        asking.start()
        time.sleep(0.3)
        if spoil == "graph":
            path = following.path / "model.onnx"
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.chmod(0o644)
            path.write_bytes(bytes(data))
        if spoil == "gone":
            shutil.rmtree(following.path)
        write_spec(state, [following], generation=2, **({"key": os.urandom(32)} if spoil == "signature" else {}))
        if spoil == "document":
            spec = state / "serving" / "churn.json"
            spec.write_bytes(spec.read_bytes()[:100])
        degraded = wait_until(lambda: server.health()["status"] == "degraded", 10)
        health = server.health()
        asking.join()
        write_spec(state, [seal_churn(state / "bundles", shift=0.75)], generation=3)
        healed = wait_until(lambda: server.health()["status"] == "ok" and server.health()["generation"] == 3, 10)
        with server.client() as client:
            revision = client.request("POST", "/predict", [ROW]).headers["mulle-revision"]

    assert degraded
    assert 1 == health["generation"]
    assert health["reload_error"]["code"].startswith(code)
    assert ({}, {200}) == (box[0].errors, set(box[0].by_status))
    assert healed
    assert "3" == revision


def keeper_of(server):
    """Return the process of a server's keeper."""
    found = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="ascii").split()
    return next((int(pid) for pid in found if b"keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()), 0)


def test_a_killed_keeper_costs_no_answer(tmp_path):
    """Killed with -9 under load: nothing fails and nothing is dropped."""
    with live_server(tmp_path / "p", bundle=seal_churn(tmp_path / "b").path) as server:
        assert wait_until(lambda: keeper_of(server) > 0)
        box = []
        asking = threading.Thread(target=lambda: box.append(loaded(server, connections=8, duration_s=1.5, warmup_s=0.0)))
        asking.start()
        time.sleep(0.5)
        os.kill(keeper_of(server), signal.SIGKILL)
        asking.join()
        dropped = server.metric("mulle_prediction_log_dropped_rows_total") + server.metric("mulle_prediction_log_failures_total")

    assert ({}, {200}) == (box[0].errors, set(box[0].by_status))
    assert 0 == dropped


def test_the_control_plane_may_vanish(tmp_path):
    """With the state database, the tracking store and the spec itself gone the server goes on answering what it served."""
    state = tmp_path / ".mulle"
    write_spec(state, [seal_churn(state / "bundles")], generation=1)
    (state / "state.db").write_bytes(b"not even a database")
    (state / "mlflow").mkdir()
    with live_server(tmp_path) as server:
        (state / "state.db").unlink()
        shutil.rmtree(state / "mlflow")
        (state / "serving" / "churn.json").unlink()
        shutil.rmtree(state / "bundles")
        time.sleep(3 * POLL_S)
        result = loaded(server, connections=8, duration_s=0.5)
        status = server.health()["status"]

    assert ({}, {200}) == (result.errors, set(result.by_status))
    assert status in {"ok", "degraded"}


def test_sigterm_answers_pipelines_that_wait_for_a_slow_model(tmp_path):
    """SIGTERM with requests in the pool, in its queue and pipelined behind each other: all answered, in order, then the end."""
    bundle = seal_slow_churn(tmp_path / "b", 20.0)
    with live_server(tmp_path / "p", bundle=bundle.path) as server:
        clients = [server.client(30.0) for _ in range(4)]
        for client in clients:
            client.send(predict_request(server) * 5)
        time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        replies = [[client.reply() for _ in range(5)] for client in clients]
        ended = [client.closed() for client in clients]
        code = server.process.wait(20)
        for client in clients:
            client.socket.close()
    ids = set(read_predictions(server.state / "logs", "churn").ids.tolist())

    assert [[200] * 5] * 4 == [[reply.status for reply in answered] for answered in replies]
    assert all(set(reply.json["prediction_ids"]) <= ids for answered in replies for reply in answered)
    assert [True] * 4 == ended
    assert 0 == code


@pytest.mark.parametrize("path", ["/predict", "/health"])
def test_who_does_not_read_is_cut_off(tmp_path, path):
    """A client that asks and never reads loses its connection after the write time-out; memory does not grow, others are answered."""
    with running(tmp_path, limits=Limits(write_timeout_s=0.5)) as (started, _):
        lazy = socket.create_connection((started.host, started.port), timeout=1)
        body = b'[{"tenure": 1, "monthly": 70}]' if path == "/predict" else b""
        verb = "POST" if body else "GET"
        head = f"{verb} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        request = (head.encode() + body) * 50
        n_sent = 0
        cut = False
        end = time.monotonic() + 12
        while time.monotonic() < end and not cut:
            try:
                n_sent += lazy.send(request)
            except TimeoutError:
                continue
            except ConnectionError:
                cut = True
        lazy.close()
        with RawClient(started.host, started.port) as other:
            assert 200 == other.request("POST", "/predict", [ROW]).status
            assert wait_until(lambda: b"mulle_requests_in_flight 1" in other.request("GET", "/metrics").body)

    assert cut
    # What fits into the buffers of both sides, not more: the server stopped reading.
    assert n_sent < 64 << 20


def test_leaving_in_the_middle_of_a_batch_hurts_nobody(tmp_path):
    """With a slow model in the pool half of the clients reset their connections; the others get every answer, and nothing is left over."""
    with live_server(tmp_path / "p", bundle=seal_slow_churn(tmp_path / "b", 10.0).path) as server:
        clients = [server.client(30.0) for _ in range(40)]
        for client in clients:
            client.send(predict_request(server))
        time.sleep(0.05)
        for client in clients[::2]:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            client.socket.close()
        replies = [client.reply() for client in clients[1::2]]
        for client in clients[1::2]:
            client.socket.close()
        calm = wait_until(lambda: server.metric("mulle_requests_in_flight") == 1)
        ids = [reply.json["prediction_ids"][0] for reply in replies]

    assert [200] * 20 == [reply.status for reply in replies]
    assert 20 == len(set(ids))
    assert calm


def test_a_deadline_that_passes_in_the_queue_is_504_and_alone(tmp_path):
    """Behind a slow model: who allows 1 ms hears 504, who allows a minute is answered, on the same connections."""
    with live_server(tmp_path / "p", bundle=seal_slow_churn(tmp_path / "b", 20.0).path) as server:
        with server.client(30.0) as client:
            patient, hasty = predict_request(server, mulle_timeout_ms="60000"), predict_request(server, mulle_timeout_ms="1")
            client.send(b"".join([patient] * 6 + [hasty, patient] * 6))
            replies = [client.reply() for _ in range(18)]
        expired = server.metric("mulle_requests_expired_total")
    statuses = [reply.status for reply in replies]
    late = [reply for reply in replies if reply.status == 504]

    assert [200] * 6 == statuses[:6]
    assert [504, 200] * 6 == statuses[6:]
    assert {"deadline-expired"} == {reply.code for reply in late}
    assert 6 == expired


def test_sync_keeps_every_acknowledged_id_over_a_kill(tmp_path):
    """Durability = sync, killed with -9 under load: whatever was answered is in the log, once."""
    acknowledged: list[str] = []

    def ask(server, stop):
        try:
            with server.client() as client:
                while not stop.is_set():
                    reply = client.request("POST", "/predict", [ROW, ROW])
                    assert 200 == reply.status
                    acknowledged.extend(reply.json["prediction_ids"])
        except (ConnectionError, OSError):
            return

    with live_server(tmp_path / "p", "--durability", "sync", bundle=seal_churn(tmp_path / "b").path) as server:
        stop = threading.Event()
        threads = [threading.Thread(target=ask, args=(server, stop)) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        server.process.kill()
        server.process.wait()
        stop.set()
        for thread in threads:
            thread.join()
    ids = read_predictions(server.state / "logs", "churn").ids.tolist()

    assert len(acknowledged) > 10
    assert set(acknowledged) <= set(ids)
    assert len(ids) == len(set(ids))
    assert not re.search("Traceback", server.log())
