"""A deployment is watched from its own log: given rows that were served, when a window is checked, then the verdict is right."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mulle.apps.cli.main import main
from mulle.bundle.seal import BundleContent, seal_bundle
from mulle.core.errors import CheckError, SpecError
from mulle.core.schema import Column, ColumnType, Schema
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput
from mulle.formats.deployment import DeploymentSpec, Revision, SignedSpec, Traffic, encode_signed_spec
from mulle.formats.feedback_log import FeedbackItem, FeedbackWriter
from mulle.formats.golden import Golden
from mulle.formats.prediction_log import LoggedColumn, LogWriter, PredictionBatch, Source
from mulle.formats.signing import key_path, load_or_create_key, sign
from mulle.loop.record import RunDocument
from mulle.loop.release import register_version
from mulle.loop.trace import trace_prediction
from mulle.loop.watch import check_deployment, parse_time
from mulle.loop.wiring import open_project, open_state
from mulle.monitor.baseline import build_baseline
from mulle.registry.decide import Target, Who
from mulle.registry.versions import VersionRecord

NOW_NS = 1_795_000_000 * 10**9
MINUTE_NS = 60 * 10**9
COLUMNS = (ColumnInfo("요금", ColumnType.NUMBER), ColumnInfo("contract", ColumnType.TEXT))
SCHEMA = Schema(tuple(Column(c.name, c.type) for c in COLUMNS))
CLASSES = ("No", "Yes")


def rows(n: int, seed: int) -> dict[str, np.ndarray]:
    """Return n healthy rows."""
    rng = np.random.default_rng(seed)
    return {"요금": rng.normal(70, 10, n), "contract": rng.choice(np.array(["월", "년"], dtype=object), n, p=[0.6, 0.4])}


def scores(n: int, seed: int) -> np.ndarray:
    """Return n healthy probabilities."""
    p = np.random.default_rng(seed).beta(2, 4, n)
    return np.stack([1 - p, p], axis=1).astype(np.float32)


class Given:
    """A project with one sealed bundle and a prediction log, written by the real writers."""

    def __init__(self, folder: Path) -> None:
        (folder / "mulle.toml").write_text('[project]\nname = "churn"\n', encoding="utf-8")
        self.folder = folder
        self.settings, self.paths = open_project(folder)
        self.paths.ensure()
        self.digest = self.seal(0)
        self.writer = LogWriter(self.paths.logs, "churn", prefix=7)

    def seal(self, seed: int) -> str:
        """Seal a bundle whose baseline is of `seed`, and return its digest."""
        content = BundleContent(
            model_name="churn",
            task="binary",
            graph=b"a graph nobody runs here",
            graph_info=Graph((GraphInput("요금", "double", ("요금",)), GraphInput("contract", "string", ("contract",))), "probabilities"),
            columns=COLUMNS,
            baseline=build_baseline(rows(3000, seed), SCHEMA, scores(800, seed), classes=CLASSES).to_bytes(),
            golden=Golden(rows=(), outputs=()).to_bytes(),
            classes=CLASSES,
            positive="Yes",
        )
        return seal_bundle(self.paths.bundles, content, attestations={}, private_key=load_or_create_key(key_path())).digest

    def serve(self, n: int, *, ago_ns: int = MINUTE_NS, rise: float = 1.0, revision: int = 1, digest: str = "") -> list[str]:
        """Log n answered rows and return their ids."""
        source = Source(
            source=0,
            revision=revision,
            model="churn",
            model_version=revision,
            bundle_digest=digest or self.digest,
            run_id="run-1",
            task="binary",
            classes=CLASSES,
            positive="Yes",
            columns=tuple(LoggedColumn(c.name, c.type) for c in COLUMNS),
        )
        first = self.writer.reserve(n)
        window = rows(n, first + 1)
        window["요금"] = window["요금"] * rise
        batch = PredictionBatch(
            source=source, time_ns=NOW_NS - ago_ns, latency_us=900, arrays=window, outputs=scores(n, first + 1), first=first
        )
        self.writer.append(batch)
        return [self.writer.id_of(first + i) for i in range(n)]

    def check(self, **how):
        """Check a window."""
        return check_deployment(self.settings, self.paths, now_ns=NOW_NS, **how)


@pytest.fixture
def given(tmp_path):
    """Return an empty project."""
    return Given(tmp_path)


def test_healthy_then_a_price_rise(given):
    """The same deployment is ok before the rise and drifts after it, with the column named; both reports are kept."""
    given.serve(600, ago_ns=30 * MINUTE_NS)
    before = given.check()
    given.serve(600, rise=1.15)
    after = given.check(last=600)

    assert (before.verdict, after.verdict) == ("ok", "drift")
    assert after.drifted[0].name == "요금"
    assert after.window.since == after.window.until
    for report in (before, after):
        assert [(given.paths.root / name).is_file() for name in report.files] == [True, True]
    written = json.loads((given.paths.root / after.files[0]).read_text(encoding="utf-8"))
    assert (written["verdict"], written["window"]["model_version"]) == ("drift", 1)


def test_the_default_window_is_the_setting(given):
    """Rows older than [monitor] window are not looked at unless asked for."""
    given.serve(300, ago_ns=90 * MINUTE_NS)
    given.serve(250)

    assert (given.check().n_rows, given.check(since="2h").n_rows, given.check(last=400).n_rows) == (250, 550, 400)
    assert given.check(since="2h", until="1h").n_rows == 300


def test_rows_of_another_revision_are_left_out_and_said(given):
    """Without a spec the bundle that answered last is the reference; the other's rows are counted."""
    given.serve(300, rise=2.0)
    given.serve(400, revision=2, digest=given.seal(1), ago_ns=0)
    report = given.check(until=NOW_NS + 1)

    assert (report.verdict, report.n_rows, report.window.n_other_revisions) == ("ok", 400, 300)
    assert "300 rows of the window were answered by other revisions" in report.window.notes[0]


def test_a_damaged_log_decides_nothing(given):
    """A flipped byte in a frame makes the window incomplete, however large the drift in the rest of it."""
    given.serve(300, rise=2.0)
    given.serve(300, rise=2.0)
    segment = next((given.paths.logs / "churn").glob("*.mseg"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 3] ^= 0xFF
    segment.write_bytes(bytes(data))
    report = given.check()

    assert report.verdict == "incomplete"
    assert report.window.gaps
    assert not report.drifted


def test_labels_that_arrived_are_judged(given):
    """Accuracy and ROC-AUC on the labelled rows stand in the report, and why there is nothing to compare them with."""
    ids = given.serve(400)
    labels = ["Yes" if p > 0.5 else "No" for p in scores(400, 1)[:, 1]]
    feedback = FeedbackWriter(given.paths.logs, "churn")
    feedback.append([FeedbackItem(i, "label", label, NOW_NS) for i, label in zip(ids[:100], labels, strict=False)])
    feedback.close()
    found = given.check().performance

    assert (found.n_labelled, found.n_rows, found.metrics) == (100, 400, {"accuracy": 1.0, "roc_auc": 1.0})
    assert "the evaluation is not known" in found.note


@pytest.mark.parametrize(
    ("how", "code"),
    [
        pytest.param({"last": 0}, "monitor-last", id="a window of no rows"),
        pytest.param({"since": "gestern"}, "monitor-time", id="no time"),
        pytest.param({"since": "1h", "until": "2h"}, "monitor-window", id="ends before it starts"),
        pytest.param({"deployment": "other"}, "monitor-nothing-served", id="an unknown deployment"),
        pytest.param({"deployment": "../x"}, "name-invalid", id="a hostile name"),
    ],
)
def test_what_cannot_be_checked_is_an_error(given, how, code):
    """Each mistake has its own code and a fix."""
    given.serve(10)
    with pytest.raises(SpecError) as caught:
        given.check(**how)

    assert caught.value.code == code
    assert caught.value.fix


def test_a_bundle_that_is_not_here_is_named(given):
    """Without the serving bundle there is no baseline: that is said, nothing is compared with another one."""
    given.serve(10, digest="0" * 64)
    with pytest.raises(SpecError) as caught:
        given.check()
    assert caught.value.code == "monitor-no-bundle"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", NOW_NS - 7200 * 10**9),
        ("2026-11-20T06:00", 1795154400 * 10**9),
        ("2026-11-20T06:00:00.5+09:00", (1795154400 - 9 * 3600) * 10**9 + 5 * 10**8),
        (12, 12),
        (None, None),
    ],
)
def test_times_are_read_in_every_spelling(text, expected):
    """Durations count back from now; ISO times are UTC unless they say otherwise."""
    assert parse_time(text, NOW_NS) == expected


def test_the_command_line(given, capsys):
    """Exit code 1 on drift with the sentence on standard output; the report command finds the page again."""
    given.serve(600, rise=1.2)
    at = ["--project", str(given.folder)]

    assert main(["monitor", "check", "--last", "600", *at]) == 1
    assert "drift    요금: median 69.4 → 84, KS 0.49" in capsys.readouterr().out
    assert main(["monitor", "check", "--last", "50", *at]) == 0
    assert "too few rows: 50 rows in the window, 200 are needed" in capsys.readouterr().out
    assert main(["monitor", "check", "--last", "50", "--strict", *at]) == 1
    capsys.readouterr()
    assert main(["monitor", "check", "--last", "600", "--json", *at]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "drift"
    assert main(["monitor", "report", *at]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("-churn.html")
    assert main(["monitor", "check", "--since", "never", *at]) == 2
    assert "error[monitor-time]" in capsys.readouterr().err


def test_a_trace_says_what_is_missing(given):
    """With a log and a bundle only: those links are found, the others are missing and say why; nothing is guessed."""
    prediction_id = given.serve(5)[3]
    trace = trace_prediction(given.settings, given.paths, prediction_id)
    status = {link.name: link.status for link in trace.links}

    assert status == {
        "prediction": "found",
        "revision": "missing",
        "bundle": "found",
        "model version": "missing",
        "run": "missing",
        "commit": "missing",
        "data version": "missing",
        "feedback": "none",
    }
    assert not trace.complete
    assert trace.features["요금"] == pytest.approx(rows(5, 1)["요금"][3])
    assert "MISSING: there is no event log in this project" in trace.render_text()
    assert not given.paths.state_db.exists()


def release(given, digest: str, version: int) -> None:
    """Write the signed spec that gives all traffic to a version."""
    revision = Revision(version, "churn", version, digest, f"bundles/{digest}", "run-1")
    spec = DeploymentSpec(
        deployment="churn", environment="local", generation=version, revisions=(revision,), traffic=Traffic({version: 100})
    )
    given.paths.serving.mkdir(exist_ok=True)
    signed = SignedSpec(spec, sign(spec.to_bytes(), load_or_create_key(key_path())))
    given.paths.spec("churn").write_bytes(encode_signed_spec(signed))


def test_the_spec_says_which_bundle_is_the_reference(given):
    """After a release the old revision's rows are not judged by the new baseline, whoever answered last."""
    other = given.seal(1)
    given.serve(300, revision=2, digest=other)
    given.serve(300, rise=2.0)
    release(given, other, 2)
    report = given.check()

    assert (report.verdict, report.n_rows, report.window.model_version, report.window.bundle_digest) == ("ok", 300, 2, other)


def test_a_spec_signed_by_a_stranger_is_not_believed(given):
    """Who can write the spec's file cannot choose the reference."""
    given.serve(300)
    release(given, given.digest, 1)
    path = given.paths.spec("churn")
    path.write_bytes(path.read_bytes().replace(b'"generation":1', b'"generation":9'))
    with pytest.raises(CheckError) as caught:
        given.check()
    assert caught.value.code == "signature-invalid"


def test_a_trace_goes_all_the_way_back(given, capsys):
    """With everything in place every link is found, from the label that arrived to the rows the model learnt from."""
    import polars as pl

    from mulle.data.dataset import save_dataset

    git = ["git", "-C", str(given.folder), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (["init", "-q"], ["add", "mulle.toml"], ["commit", "-q", "-m", "첫 판"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True).stdout.decode().strip()
    data = save_dataset(pl.DataFrame({"요금": [1.0, 2.0]}), "churn", given.paths.datasets)
    given.paths.runs.mkdir()
    document = RunDocument(run_id="run-1", project="churn", environment="local", status="done", started="2026-11-20T05:00:00Z")
    given.paths.run_document("run-1").write_bytes(document.to_bytes())
    record = VersionRecord(
        model="churn",
        number=0,
        bundle_digest=given.digest,
        bundle_path=f"bundles/{given.digest}",
        run_id="run-1",
        dataset="churn",
        dataset_digest=data.digest,
        git_commit=commit,
        metrics={"accuracy": 0.75, "roc_auc": 0.8},
        parameters={"seed": 3},
    )
    store = open_state(given.settings)
    register_version(store, record, Target("churn", "local", "churn"), Who("kim", NOW_NS))
    store.close()
    ids = given.serve(300)
    feedback = FeedbackWriter(given.paths.logs, "churn")
    feedback.append([FeedbackItem(ids[2], "label", label, NOW_NS + at) for at, label in enumerate(["No", "Yes"])])
    feedback.close()
    trace = trace_prediction(given.settings, given.paths, ids[2])

    assert [(link.name, link.status) for link in trace.links if link.status != "found"] == []
    assert trace.complete
    assert trace.link("commit").facts == {"commit": commit, "dirty": False, "subject": "첫 판"}
    assert trace.link("model version").facts["aliases_now"] == ["champion"]
    assert trace.link("run").facts["parameters"] == {"seed": 3}
    assert trace.link("data version").facts["rows"] == 2
    assert trace.link("feedback").facts["label"] == "Yes"
    assert main(["trace", ids[2], "--json", "--project", str(given.folder)]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True
    assert given.check().performance.evaluation == {"accuracy": 0.75, "roc_auc": 0.8}


def test_a_trace_of_an_unknown_id_is_an_error(given, capsys):
    """An id nobody logged exits 2 with a fix; a hostile one is refused before any file is looked for."""
    given.serve(5)
    at = ["--project", str(given.folder)]

    assert main(["trace", "0" * 24, *at]) == 2
    assert "error[prediction-unknown]" in capsys.readouterr().err
    assert main(["trace", "한글", *at]) == 2
    assert "error[prediction-id-invalid]" in capsys.readouterr().err


def test_a_bundle_put_under_another_name_is_a_contradiction(given):
    """A folder that holds another bundle than its name says is not taken for it."""
    prediction_id = given.serve(5)[0]
    other = given.seal(1)
    (given.paths.bundles / given.digest).rename(given.paths.bundles / "away")
    (given.paths.bundles / other).rename(given.paths.bundles / given.digest)
    link = trace_prediction(given.settings, given.paths, prediction_id).link("bundle")

    assert (link.status, link.note) == ("contradicts", f"the folder of that name holds bundle {other[:12]}")
    assert replace(link, note="").facts["digest"] == given.digest
