"""The server killed, stopped, starved of disk: what was answered is in the log."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mulle.formats.feedback_log import read_feedback
from mulle.formats.prediction_log import find_prediction, known_prefixes, read_predictions
from support.bundles import seal_churn, write_spec
from support.http_client import RawClient

pytestmark = pytest.mark.chaos

ROW = {"tenure": 1, "monthly": 70, "계약": "월별"}
MULLE = [sys.executable, "-c", "import sys; from mulle.apps.cli.main import main; sys.exit(main())"]


@contextmanager
def server(project, *arguments, max_file_bytes=None):
    """Start `mulle serve` on a sealed folder in a process of its own and give it with its address."""
    bundle = seal_churn(project / ".mulle" / "bundles").path

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))

    command = [*MULLE, "serve", "--bundle", str(bundle), "--deployment", "churn", "--port", "0", "--json", "-p", str(project), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit if max_file_bytes else None)  # noqa: PLW1509 - the test starts no threads before
    try:
        text = b""
        while not text.endswith(b"}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read().decode()
            text += line
        yield process, json.loads(text)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def load(address, stop, acknowledged, failed):
    """Ask until stopped or cut off; remember every id that was answered, and every answer that was no 200."""
    try:
        with RawClient(address["host"], address["port"]) as client:
            while not stop.is_set():
                reply = client.request("POST", "/predict", [ROW, ROW])
                if reply.status == 200:
                    acknowledged += reply.json["prediction_ids"]
                else:
                    failed.append(reply)
                if reply.headers.get("connection") == "close":
                    return
    except (ConnectionError, OSError):
        return


def test_a_killed_server_loses_nothing_it_acknowledged(tmp_path):
    """Killed with -9 in the middle of load: every prediction id that was answered is in the log, once."""
    logs = tmp_path / ".mulle" / "logs"
    for round_number in range(3):
        acknowledged: list[list[str]] = [[] for _ in range(3)]
        failed: list[object] = []
        stop = threading.Event()
        with server(tmp_path) as (process, address):
            threads = [threading.Thread(target=load, args=(address, stop, ids, failed)) for ids in acknowledged]
            for thread in threads:
                thread.start()
            time.sleep(0.3 + 0.1 * round_number)
            process.kill()
            for thread in threads:
                thread.join()
        table = read_predictions(logs, "churn")
        ids = table.ids.tolist()
        answered = [i for part in acknowledged for i in part]

        assert answered
        assert not failed
        assert set(answered) <= set(ids)
        assert len(set(ids)) == len(ids)
        assert table.gaps.complete
        assert find_prediction(logs, answered[0]) is not None
    assert 3 == len(known_prefixes(logs, "churn"))


def test_a_stopped_server_answers_what_it_accepted(tmp_path):
    """SIGTERM under load: no answer but 200, everything logged, outcomes written, exit code 0."""
    acknowledged: list[list[str]] = [[] for _ in range(3)]
    failed: list[object] = []
    stop = threading.Event()
    with server(tmp_path) as (process, address):
        with RawClient(address["host"], address["port"]) as client:
            client.request("POST", "/predict", [{"nothing": 1}])
        threads = [threading.Thread(target=load, args=(address, stop, ids, failed)) for ids in acknowledged]
        for thread in threads:
            thread.start()
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        code = process.wait(15)
        for thread in threads:
            thread.join()
    table = read_predictions(tmp_path / ".mulle" / "logs", "churn")
    n_answered = sum(len(ids) for ids in acknowledged)

    assert (0, []) == (code, failed)
    assert sum(len(ids) for ids in acknowledged) == len(table)
    assert (n_answered // 2, 1) == (table.outcomes[1].answered, table.outcomes[1].refused)
    assert table.gaps.complete


def test_acknowledged_feedback_survives_a_kill(tmp_path):
    """Feedback is on the disk before its 200."""
    sent = []
    with server(tmp_path) as (process, address), RawClient(address["host"], address["port"]) as client:
        for i in range(20):
            assert 200 == client.request("POST", "/feedback", {"prediction_id": f"p{i}", "label": "No"}).status
            sent.append(f"p{i}")
        process.kill()
        process.wait()

    assert sent == [item.prediction_id for item in read_feedback(tmp_path / ".mulle" / "logs", "churn").items]


def test_feedback_is_recognised_after_a_restart(tmp_path):
    """A label that comes after the server was restarted still finds its prediction known."""
    with server(tmp_path) as (_, address), RawClient(address["host"], address["port"]) as client:
        (prediction_id,) = client.request("POST", "/predict", ROW).json["prediction_ids"]
    with server(tmp_path) as (_, address), RawClient(address["host"], address["port"]) as client:
        reply = client.request("POST", "/feedback", {"prediction_id": prediction_id, "label": "No"})

    assert {"accepted": 1, "unknown": 0} == reply.json


def test_a_full_disk_refuses_instead_of_forgetting(tmp_path):
    """A prediction that cannot be logged is answered 503, is counted, and the log stays readable."""
    with server(tmp_path, max_file_bytes=2_000) as (_, address), RawClient(address["host"], address["port"]) as client:
        replies = [client.request("POST", "/predict", ROW) for _ in range(60)]
        refused = [reply for reply in replies if reply.status != 200]
        health = client.request("GET", "/v2/health/live")
        metrics = client.request("GET", "/metrics").body.decode()
    table = read_predictions(tmp_path / ".mulle" / "logs", "churn")

    assert {(503, "log-unavailable")} == {(reply.status, reply.code) for reply in refused}
    assert 60 - len(refused) == len(table) > 0
    assert table.gaps.complete
    assert 200 == health.status
    assert 'mulle_prediction_log_failures_total{deployment="churn"}' in metrics


def test_a_read_only_log_folder_is_said(tmp_path):
    """Where nothing can be logged nothing is answered, and the reason is in the answer."""
    with server(tmp_path) as (_, address), RawClient(address["host"], address["port"]) as client:
        (tmp_path / ".mulle" / "logs").mkdir(exist_ok=True)
        (tmp_path / ".mulle" / "logs" / "churn").write_text("in the way", encoding="utf-8")
        reply = client.request("POST", "/predict", ROW)

    assert (503, "log-unavailable") == (reply.status, reply.code)
    assert "traceback" not in reply.body.decode().lower()


def test_a_taken_port_is_said(tmp_path):
    """A second server on the same port fails with the port and what to do."""
    with server(tmp_path) as (_, address):
        bundle = next((tmp_path / ".mulle" / "bundles").iterdir())
        command = [*MULLE, "serve", "--bundle", str(bundle), "--port", str(address["port"]), "-p", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    assert 2 == done.returncode
    assert "error[serve-port]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_server_starts_within_a_second_of_cpu_and_stays_thin(tmp_path):
    """Cold start to the first answer, and none of the heavy libraries in the process."""
    with server(tmp_path) as (process, address):
        with RawClient(address["host"], address["port"]) as client:
            assert 200 == client.request("POST", "/predict", ROW).status
        stat = Path(f"/proc/{process.pid}/stat")
        if stat.exists():
            fields = stat.read_text(encoding="ascii").rpartition(")")[2].split()
            seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")

            assert seconds < 1.0
            assert not [name for name in ("polars", "pandas", "pyarrow", "sklearn", "sqlalchemy", "/scipy/", "/onnx/") if name in maps]


def test_a_project_is_served_by_its_spec(tmp_path):
    """`mulle serve` without --bundle reads the project's settings and its signed spec."""
    (tmp_path / "mulle.toml").write_text('[project]\nname = "churn"\ncode = "project:project"\n', encoding="utf-8")
    (tmp_path / "project.py").write_text("", encoding="utf-8")
    write_spec(tmp_path / ".mulle", [seal_churn(tmp_path / ".mulle" / "bundles")], generation=4)
    command = [*MULLE, "serve", "--port", "0", "-p", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        while not lines or not lines[-1].startswith("Ctrl-C"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            lines.append(line)
        process.send_signal(signal.SIGINT)
        code = process.wait(15)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()

    assert 0 == code
    assert any("curl -s http://127.0.0.1:" in line and "월별" in line for line in lines)
