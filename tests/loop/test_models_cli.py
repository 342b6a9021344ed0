"""`mulle models` and `mulle events` as they are typed: what they print, what they change, how they refuse."""

import json
import re

import pytest

from mulle.apps.cli.main import main
from mulle.bundle.seal import BundleContent, seal_bundle
from mulle.core.schema import ColumnType
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput
from mulle.formats.golden import Golden
from mulle.formats.signing import key_path, load_or_create_key
from mulle.loop.paths import state_paths
from mulle.loop.release import register_version
from mulle.registry.decide import Target, Who
from mulle.registry.state_sqlite import SqliteStateStore
from mulle.registry.versions import VersionRecord

# The commands tell MLflow what happened, and MLflow's dependencies warn about themselves on import.
pytestmark = pytest.mark.filterwarnings("ignore")

VERDICT = {"outcome": "pass", "results": [{"name": "roc_auc.min", "outcome": "pass", "reason": "roc_auc 0.8412 is at least 0.80"}]}


@pytest.fixture
def project(tmp_path):
    """Return a project folder with two registered versions, the second of them challenger; nothing is projected yet."""
    (tmp_path / "mulle.toml").write_text('[project]\nname = "이탈"\ncode = "project:project"\n', encoding="utf-8")
    paths = state_paths(tmp_path).ensure()
    store = SqliteStateStore(paths.state_db)
    for number, auc in ((1, 0.80), (2, 0.84)):
        content = BundleContent(
            model_name="이탈",
            task="binary",
            graph=f"graph {number}".encode(),
            graph_info=Graph(inputs=(GraphInput("나이", "double", ("나이",)),), output="probabilities"),
            columns=[ColumnInfo("나이", ColumnType.NUMBER)],
            baseline=b"{}",
            golden=Golden(rows=({"나이": 3.0},), outputs=((0.25, 0.75),)).to_bytes(),
            classes=["No", "Yes"],
        )
        sealed = seal_bundle(paths.bundles, content, attestations={}, private_key=load_or_create_key(key_path()))
        record = VersionRecord(
            model="이탈",
            number=0,
            bundle_digest=sealed.digest,
            bundle_path=f"bundles/{sealed.digest}",
            run_id=f"run-{number}",
            dataset="고객",
            dataset_digest="d" * 64,
            git_commit="c" * 40 + "-dirty",
            verdict=VERDICT,
            metrics={"roc_auc": auc},
            parameters={"learning_rate": 0.05},
        )
        register_version(store, record, Target("이탈", "local", "이탈"), Who("민지", 1_700_000_000_000_000_000))
    store.close()
    return tmp_path


def mulle(capsys, project, *words: str) -> tuple[int, str, str]:
    code = main([*words, "--project", str(project)])
    out, err = capsys.readouterr()
    return code, out, err


def test_list_shows_versions_and_where_they_answer(capsys, project):
    """The newest first, champion and challenger named, the leading metric beside them."""
    code, out, _ = mulle(capsys, project, "models", "list")
    document = json.loads(mulle(capsys, project, "models", "list", "--json")[1])

    assert 0 == code
    assert re.search(r"2 +challenger +pass +0\.8400", out)
    assert re.search(r"1 +champion +pass +0\.8000", out)
    assert [["champion"], ["challenger"]] == [version["roles"] for version in document["versions"]]


def test_show_tells_lineage_gates_and_metrics(capsys, project):
    """Everything that leads back from a version, with the gate's own sentence."""
    code, out, _ = mulle(capsys, project, "models", "show", "2")
    document = json.loads(mulle(capsys, project, "models", "show", "1", "--json")[1])

    assert 0 == code
    for text in (
        "run-2",
        "고객",
        "d" * 64,
        "c" * 40 + "-dirty",
        "roc_auc 0.8412 is at least 0.80",
        "learning_rate=0.05",
        "2023-11-14 22:13:20",
    ):
        assert text in out
    assert ["first"] == [change["how"] for change in document["history"]]


def test_compare_puts_two_side_by_side(capsys, project):
    """The difference of a metric says which way is better."""
    code, out, _ = mulle(capsys, project, "models", "compare", "1", "2")

    assert 0 == code
    assert re.search(r"roc_auc +0\.8000 +0\.8400 +\+0\.04 \(better\)", out)


def test_promote_and_rollback_move_the_champion_and_say_so(capsys, project):
    """Two moves, a third that changes nothing, and the log with names and reasons."""
    first = mulle(capsys, project, "models", "promote", "2", "--reason", "더 좋다", "--actor", "영희")
    same = mulle(capsys, project, "models", "promote", "2")
    spec = json.loads((project / ".mulle" / "serving" / "이탈.json").read_text(encoding="utf-8"))["spec"]
    back = json.loads(mulle(capsys, project, "models", "rollback", "--json")[1])
    log = mulle(capsys, project, "events", "show")[1]

    assert (0, 0) == (first[0], same[0])
    assert "champion was version 1, is version 2 (generation 2)" in first[1]
    assert "already" in same[1]
    assert (2, 2) == (spec["generation"], spec["revisions"][0]["model_version"])
    assert (2, 1, 3, []) == (back["champion_before"], back["champion"], back["generation"], back["warnings"])
    assert re.search(r"영희 +champion-set +deployment/이탈@local +champion 1 → 2, generation 2: 더 좋다", log)
    assert "rolled-back" in log


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        pytest.param(["models", "show", "7"], "version-unknown", "1, 2", id="a version that is not there lists those that are"),
        pytest.param(["models", "compare", "1", "9"], "version-unknown", "1, 2", id="comparing with nothing"),
        pytest.param(["models", "promote", "9"], "version-unknown", "1, 2", id="promoting nothing"),
        pytest.param(["models", "rollback"], "rollback-none", "version 1", id="nothing to go back to"),
        pytest.param(
            ["models", "rollback", "--deployment", "서울"], "deployment-unknown", "이탈 (local)", id="a deployment that is not there"
        ),
        pytest.param(["models", "promote", "2", "--deployment", "../x"], "name-invalid", "../x", id="a hostile deployment name"),
        pytest.param(["models", "reproduce", "9"], "version-unknown", "1, 2", id="making nothing again"),
        pytest.param(["events", "show", "--kind", "champion"], "event-kind", "champion-set", id="a kind that is not there"),
    ],
)
def test_a_wrong_word_is_an_error_with_a_fix(capsys, project, words, code, shown):
    """Exit code 2, the code, what there is instead; nothing is recorded, no traceback."""
    exit_code, out, err = mulle(capsys, project, *words)
    as_json = json.loads(mulle(capsys, project, *words, "--json")[1])

    assert (2, "") == (exit_code, out)
    assert f"error[{code}]" in err
    assert shown in err
    assert code == as_json["error"]["code"]
    assert "Traceback" not in err


def test_verify_names_the_tampered_file_and_exits_1(capsys, project):
    """All versions are checked; the changed one is named with its file, the other is whole."""
    good = mulle(capsys, project, "models", "verify")
    digest = json.loads(mulle(capsys, project, "models", "show", "2", "--json")[1])["bundle_digest"]
    (project / ".mulle" / "bundles" / digest / "model.onnx").write_bytes(b"other!!")
    bad = mulle(capsys, project, "models", "verify")
    document = json.loads(mulle(capsys, project, "models", "verify", "2", "--json")[1])
    promoted = mulle(capsys, project, "models", "promote", "2")

    assert 0 == good[0]
    assert 1 == bad[0]
    assert "version 1: whole" in bad[1]
    assert "'model.onnx' was changed after it was sealed" in bad[1]
    assert "bundle-tampered" == document["versions"][0]["problem"]["code"]
    assert (1, "") == promoted[:2]


def test_events_verify_finds_a_changed_log(capsys, project):
    """Exit code 0 and the last hash while it is whole, 1 and the line when it is not."""
    import sqlite3

    good = json.loads(mulle(capsys, project, "events", "verify", "--json")[1])
    with sqlite3.connect(project / ".mulle" / "state.db") as connection:
        connection.execute("DROP TRIGGER mulle_events_no_UPDATE")
        connection.execute("UPDATE mulle_events SET line = replace(CAST(line AS TEXT), '민지', '영희') WHERE seq = 2")
    connection.close()
    bad = mulle(capsys, project, "events", "verify")

    assert (True, 4) == (good["ok"], good["events"])
    assert 1 == bad[0]
    assert "event 2 was changed after it was written" in bad[2]


def test_events_rebuild_writes_the_spec_again(capsys, project):
    """What is derived comes back from the log."""
    mulle(capsys, project, "models", "promote", "2")
    spec = project / ".mulle" / "serving" / "이탈.json"
    before = json.loads(spec.read_text(encoding="utf-8"))
    spec.unlink()
    code, out, err = mulle(capsys, project, "events", "rebuild")

    assert (0, "") == (code, err)
    assert "specs written: 이탈" in out
    assert before["spec"] == json.loads(spec.read_text(encoding="utf-8"))["spec"]


def test_a_project_without_versions_says_what_to_type(capsys, tmp_path):
    """Empty is not an error."""
    (tmp_path / "mulle.toml").write_text('[project]\nname = "빈"\ncode = "project:project"\n', encoding="utf-8")

    code, out, _ = mulle(capsys, tmp_path, "models", "list")

    assert 0 == code
    assert "mulle run" in out
    assert "the event log is empty" in mulle(capsys, tmp_path, "events", "show")[1]
