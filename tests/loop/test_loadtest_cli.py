"""`mulle loadtest` as it is typed, against the real server: what it prints, what it writes, when it says no."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mulle.apps.cli.main import main
from mulle.formats.prediction_log import read_predictions
from support.bundles import GOLDEN_ROWS
from support.serving import running, wait_until
from support.tensors import seal_image, seal_tensors

QUICK = ["--duration", "0.5", "--warmup", "0.1", "--connections", "2"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server inside a project folder, for all tests that only load it."""
    old = os.environ.get("MULLE_HOME")
    os.environ["MULLE_HOME"] = str(tmp_path_factory.mktemp("key"))
    project = tmp_path_factory.mktemp("project")
    try:
        with running(project) as (started, state):
            (project / "mulle.toml").write_text(f'[project]\nname = "churn"\n[serving]\nport = {started.port}\n', encoding="utf-8")
            yield started, project, state
    finally:
        if old is None:
            del os.environ["MULLE_HOME"]
        else:
            os.environ["MULLE_HOME"] = old


def typed(capsys, *arguments):
    """Return exit code and JSON of a load test."""
    code = main(["loadtest", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_project_needs_no_options(server, capsys):
    """Address and requests come from the project: the golden rows of what it serves, and the server's CPU is read beside."""
    _, project, _ = server
    code, found = typed(capsys, "--project", project, *QUICK)
    (one,) = found["measurements"]

    assert 0 == code
    assert (len(GOLDEN_ROWS), 1) == (found["requests"]["different"], found["requests"]["rows_each"])
    assert (0, "closed", 2) == (one["error_share"], one["loop"], one["connections"])
    assert one["ok"] == one["latency_ms"]["n"] > 20
    assert "p99.9" in one["latency_ms"]["rough"]
    assert one["server"]["cpu_us_per_request"] > 0


def test_an_address_is_enough(server, capsys, tmp_path, monkeypatch):
    """Without a project the server's own example is sent; rates are offered as asked, by two processes."""
    started, _, _ = server
    monkeypatch.chdir(tmp_path)
    code, found = typed(capsys, started.url, "--rate", "100,200", "--processes", 2, *QUICK)

    assert 0 == code
    assert [(100.0, 50), (200.0, 100)] == [(one["asked_rate"], one["ok"]) for one in found["measurements"]]
    assert [2, 2] == [one["generator"]["processes"] for one in found["measurements"]]
    assert "the example row the server shows" == found["requests"]["source"]


@pytest.mark.parametrize("protocol", ["predict", "features"])
def test_rows_of_a_file_are_sent(protocol, server, capsys, tmp_path):
    """Rows from a file, several in a request; the log of the server holds them."""
    _, project, state = server
    rows = [{"tenure": 3.0 + i, "monthly": 70.0, "계약": f"{protocol}-{i}"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    code, found = typed(
        capsys,
        "-p",
        project,
        "-i",
        tmp_path / "rows.jsonl",
        "--rows",
        2,
        "--protocol",
        protocol,
        "--rate",
        20,
        "--duration",
        0.5,
        "--warmup",
        0,
    )

    def logged():
        table = read_predictions(state / "logs", "churn")
        return [text for text in table.columns["계약"].tolist() if text.startswith(protocol)]

    assert (0, 10) == (code, found["measurements"][0]["ok"])
    assert wait_until(lambda: len(logged()) == 20)
    assert {row["계약"] for row in rows} == set(logged())


def test_the_log_is_replayed(server, capsys):
    """What was asked before is asked again."""
    _, project, _ = server
    typed(capsys, "-p", project, *QUICK)
    code, found = typed(capsys, "-p", project, "--replay", "--last", 7, *QUICK)

    assert (0, 7) == (code, found["requests"]["different"])
    assert 0 == found["measurements"][0]["error_share"]


def test_bodies_are_sent_as_they_are(server, capsys, tmp_path):
    """A body nobody wants is answered 4xx: counted by status, apart from good answers."""
    _, project, _ = server
    (tmp_path / "bad.json").write_bytes(b"{}x")
    code, found = typed(capsys, "-p", project, "--body", tmp_path / "bad.json", *QUICK)
    (one,) = found["measurements"]

    assert (0, 0, 1.0) == (code, one["ok"], one["error_share"])
    assert {"400"} == set(one["latency_ms_by_status"])


@pytest.mark.parametrize(
    ("seal", "path", "told"),
    [
        pytest.param(seal_image, "/predict", "golden pictures of the bundle (2)", id="pictures"),
        pytest.param(seal_tensors, "/v2/models/churn/infer", "golden tensors of the bundle (1)", id="tensors"),
    ],
)
def test_pictures_and_tensors_are_sent_from_their_bundles(seal, path, told, tmp_path, capsys):
    """The golden requests of such a bundle are what the server takes: every answer is good."""
    sealed = seal(tmp_path / "sealed")
    with running(tmp_path, bundle=sealed) as (started, _):
        code, found = typed(capsys, started.url, "--bundle", sealed.path, "--deployment", "churn", *QUICK)

    assert (0, told) == (code, found["requests"]["source"])
    assert found["url"].endswith(path)
    assert 0 == found["measurements"][0]["error_share"]
    assert found["measurements"][0]["ok"] > 5


def test_a_missed_objective_is_exit_code_one(server, capsys, tmp_path):
    """With --slo-ms the test is a gate; the page says what was missed."""
    _, project, _ = server
    page = tmp_path / "load.html"
    kept, _ = typed(capsys, "-p", project, "--slo-ms", 5000, *QUICK)
    code, found = typed(capsys, "-p", project, "--slo-ms", 0.001, "--html", page, *QUICK)

    assert (0, 1) == (kept, code)
    assert (False, 1) == (found["kept"], len(found["misses"]))
    assert "objective missed" in page.read_text(encoding="utf-8")
    assert [] == re.findall(r"<script|src=|@import|href=.http", page.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_knee_is_found(server, capsys, tmp_path):
    """A search on the real server ends, names its steps, and writes a page."""
    _, project, _ = server
    page = tmp_path / "knee.html"
    code = main(
        [
            "loadtest",
            "-p",
            str(project),
            "--find-knee",
            "--slo-ms",
            "100",
            "-d",
            "0.3",
            "--warmup",
            "0.1",
            "--timeout",
            "1",
            "--html",
            str(page),
        ]
    )
    out = capsys.readouterr()

    assert code in {0, 1}
    assert "requests/s" in out.out or "no rate" in out.out
    assert "How much it carries" in page.read_text(encoding="utf-8")
    assert "/s " in out.err


def test_a_table_is_printed_for_people(server, capsys):
    """One line per measurement, samples beside percentiles, and what is rough is said."""
    _, project, _ = server
    code = main(["loadtest", "-p", str(project), "-c", "1,3", "-d", "0.3", "--warmup", "0"])
    out = capsys.readouterr().out

    assert 0 == code
    assert "1 connection " in out
    assert "3 connections" in out
    assert "samples" in out
    assert "~ rests on fewer than 100 samples" in out


def test_the_key_is_neither_in_the_arguments_nor_in_the_output(server, capsys, tmp_path, monkeypatch):
    """The key is read from the environment, sent, and shown nowhere; only the header's name is."""
    _, project, _ = server
    secret = "mk_" + "s3cr3t" * 4
    monkeypatch.setenv("CHECKOUT_KEY", secret)
    page = tmp_path / "page.html"
    code = main(["loadtest", "-p", str(project), "--api-key-env", "CHECKOUT_KEY", "--html", str(page), "--json", *QUICK])
    out = capsys.readouterr()

    assert 0 == code
    assert ["authorization"] == json.loads(out.out)["requests"]["headers"]
    assert secret not in out.out + out.err + page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["http://192.0.2.7:80"], "loadtest-remote", id="another machine"),
        pytest.param(["https://127.0.0.1"], "loadtest-url", id="TLS"),
        pytest.param(["http://user:x@127.0.0.1"], "loadtest-url", id="credentials in the address"),
        pytest.param(["127.0.0.1:1", "--input", "rows.jsonl"], "loadtest-unreachable", id="nobody there"),
        pytest.param(["127.0.0.1:1"], "loadtest-unreachable", id="nobody there to show an example"),
        pytest.param(["--connections", "many"], "loadtest-usage", id="no numbers"),
        pytest.param(["--rate", "5", "--find-knee"], "loadtest-usage", id="two kinds of test"),
        pytest.param(["--pipeline", "5"], "loadtest-usage", id="pipelining in a closed loop"),
        pytest.param(["--input", "rows.jsonl", "--replay"], "loadtest-usage", id="two sources"),
        pytest.param(["--replay"], "loadtest-usage", id="a log without a project"),
        pytest.param(["--protocol", "soap", "--input", "rows.jsonl"], "loadtest-usage", id="an unknown protocol"),
        pytest.param(["--protocol", "oip", "--input", "rows.jsonl"], "loadtest-usage", id="a protocol that needs a name"),
        pytest.param(["--header", "nonsense", "--input", "rows.jsonl"], "loadtest-header", id="no header"),
        pytest.param(["--api-key-env", "NOT_SET_ANYWHERE"], "loadtest-key", id="a key that is not there"),
        pytest.param(["--html", "missing/page.html"], "loadtest-usage", id="no folder for the page"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, code, capsys, tmp_path, monkeypatch):
    """Exit code 2 and one error that says what to type, before anything is loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"a": 1}', encoding="utf-8")
    found = main(["loadtest", *arguments, "--json"])

    assert 2 == found
    assert code == json.loads(capsys.readouterr().out)["error"]["code"]


def test_ctrl_c_reports_what_was_measured(server, tmp_path):
    """The first Ctrl-C ends the generators; the figures so far are printed, and no process is left."""
    _, project, _ = server
    command = [
        sys.executable,
        "-m",
        "mulle.apps.cli.main",
        "loadtest",
        "-p",
        str(project),
        "-c",
        "2",
        "-d",
        "60",
        "--warmup",
        "0.1",
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    killer = threading.Timer(60, process.kill)
    killer.start()
    # On a busy machine the generators take their time to start; an interrupt before that has nothing to report.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    assert wait_until(lambda: bool(children.read_text(encoding="ascii").strip()), 30)
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    killer.cancel()
    found = json.loads(out)

    assert 130 == process.returncode, err
    assert found["interrupted"]
    assert found["measurements"][0]["ok"] > 20
    assert 0.2 < found["measurements"][0]["measured_s"] < 30
