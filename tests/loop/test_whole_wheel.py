"""Whole tiny projects through the real commands: every task, gates that say no, champions that change, projections lost."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import polars as pl
import pytest

from support.projects import ENGLISH, TinyProject, finished, json_rows, serving

pytestmark = pytest.mark.slow

RAW = [ENGLISH.number, ENGLISH.gappy, ENGLISH.category, ENGLISH.flag]


@pytest.fixture
def tiny(tmp_path, own_key_folder, monkeypatch):
    """Return a binary project whose wheel has turned once."""
    return finished(tmp_path / "tiny", monkeypatch)


def predicted(project, capsys, *arguments):
    """Return the table `mulle predict` makes of the project's own rows."""
    target = project.folder / "scores.parquet"
    answer = project.call(capsys, "predict", "-i", str(project.folder / "data/rows.parquet"), "-o", str(target), *arguments)
    assert answer.code == 0, answer.err
    return pl.read_parquet(target)


@pytest.mark.parametrize(
    ("task", "estimator", "metric", "answers"),
    [
        pytest.param("regression", "ridge", "r2", ["prediction"], id="regression, values missing are imputed"),
        pytest.param(
            "multiclass",
            "logistic",
            "accuracy",
            ["prediction", "probability_later", "probability_no", "probability_yes"],
            id="multiclass, values missing are imputed",
        ),
        pytest.param(
            "binary", "pipeline", "roc_auc", ["prediction", "probability_no", "probability_yes"], id="a Pipeline with a StandardScaler"
        ),
        pytest.param("binary", "tree", "roc_auc", ["prediction", "probability_no", "probability_yes"], id="trees that take NaN as it is"),
    ],
)
def test_every_task_goes_all_the_way(tmp_path, monkeypatch, capsys, task, estimator, metric, answers):
    """Learnt, evaluated, registered, scored as a file and over HTTP with the same answers, monitored, traced."""
    project = finished(tmp_path / "p", monkeypatch, task=task, estimator=estimator)
    scores = predicted(project, capsys)
    shown = project.call(capsys, "models", "show", "1", "--json").json
    rows = json_rows(project.table(), RAW)
    with serving(project) as client:
        reply = client.request("POST", "/predict", {"rows": rows})
        first = reply.json["prediction_ids"][0]
    checked = project.call(capsys, "monitor", "check", "--last", "300", "--json")
    traced = project.call(capsys, "trace", first, "--json")

    assert [(1, ("champion",))] == project.versions(capsys)
    assert (ENGLISH.entity, *answers) == tuple(scores.columns)
    assert 200 == reply.status, reply.body
    served = [one.get("value", one.get("label")) for one in reply.json["predictions"]]
    assert (
        pytest.approx(scores["prediction"].to_list(), rel=1e-5) == served
        if task == "regression"
        else scores["prediction"].to_list() == served
    )
    # The signal is there to be found: a constant answer has an R² of 0, an area of 0.5, and an accuracy below 0.5 of three classes.
    assert shown["metrics"][metric] > 0.6
    assert (0, "ok") == (checked.code, checked.json["verdict"]), checked.out
    links = {link["name"]: link["status"] for link in traced.json["links"]}
    assert {
        "prediction": "found",
        "revision": "found",
        "bundle": "found",
        "model version": "found",
        "run": "found",
    }.items() <= links.items()
    assert rows[0][ENGLISH.number] == traced.json["features"][ENGLISH.number]


def test_the_same_recipe_in_another_folder_is_the_same_bundle(tmp_path, monkeypatch, capsys):
    """Nothing of the place, the time or the process is in what is sealed."""
    first = finished(tmp_path / "first", monkeypatch, task="regression", estimator="ridge")
    second = first.copy(tmp_path / "somewhere else" / "두 번째")
    shutil.rmtree(second.folder / ".mulle")
    second.stages(capsys)
    digests = [project.call(capsys, "models", "show", "1", "--json").json["bundle_digest"] for project in (first, second)]

    assert digests[0] == digests[1]


def test_a_gate_that_says_no_registers_nothing(tiny, capsys):
    """Exit 1 with the numbers compared; the champion stays; whoever insists is recorded with their reason."""
    tiny.change("mulle.toml", "[gates]", "[gates.roc_auc]\nmin = 0.999")
    tiny.change("project.py", "strength=1.0", "strength=0.01")
    refused = tiny.call(capsys, "run", "--json")
    after_refusal = tiny.versions(capsys)
    no_reason = tiny.call(capsys, "run", "--register-anyway", "--json")
    insisted = tiny.call(capsys, "run", "--register-anyway", "--reason", "임원 지시", "--json")
    events = tiny.call(capsys, "events", "show", "--kind", "gate-overridden", "--json").json["events"]

    assert (1, "gate-refused") == (refused.code, refused.error["code"]), refused.out
    assert "0.999" in str(refused.error["facts"]) + refused.error["what"]
    assert [(1, ("champion",))] == after_refusal
    assert (2, "run-reason") == (no_reason.code, no_reason.error["code"])
    assert 0 == insisted.code, insisted.out
    assert [(1, ("champion",)), (2, ("challenger",))] == tiny.versions(capsys)
    assert ["임원 지시"] == [event["after"]["reason"] for event in events]
    assert events[0]["actor"]
    assert tiny.call(capsys, "models", "show", "2", "--json").json["overridden_by"] == events[0]["actor"]
    # The same command without the override must not slip through on what the override left behind.
    assert 1 == tiny.call(capsys, "run").code


def test_champions_change_and_everything_derived_can_be_lost(tiny, capsys):
    """A second version is the challenger; promoted, rolled back; specs and tables deleted come back from the log."""
    tiny.change("project.py", "strength=1.0", "strength=0.05")
    tiny.stages(capsys)
    roles = [tiny.versions(capsys)]
    for command in (["promote", "2"], ["rollback"]):
        assert 0 == tiny.call(capsys, "models", *command).code
        roles.append(tiny.versions(capsys))
    spec, database = tiny.folder / ".mulle/serving/tiny.json", tiny.folder / ".mulle/state.db"
    before = spec.read_bytes()
    shutil.rmtree(spec.parent)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DROP TABLE mulle_versions")
        connection.execute("DROP TABLE mulle_deployments")
    rebuilt = tiny.call(capsys, "events", "rebuild", "--json")
    with closing(sqlite3.connect(database)) as connection:
        tables = (
            connection.execute("SELECT number FROM mulle_versions").fetchall(),
            connection.execute("SELECT champion, generation FROM mulle_deployments").fetchall(),
        )

    assert [
        [(1, ("champion",)), (2, ("challenger",))],
        [(1, ()), (2, ("champion",))],
        [(1, ("champion",)), (2, ())],
    ] == roles
    assert 0 == rebuilt.code, rebuilt.out
    assert before == spec.read_bytes()
    assert ([(1,), (2,)], [(1, 3)]) == tables
    assert roles[-1] == tiny.versions(capsys)
    assert 0 == tiny.call(capsys, "events", "verify").code
    compared = tiny.call(capsys, "models", "compare", "1", "2", "--json").json["rows"]
    assert {"strength"} <= {row["name"] for row in compared if not row["same"]}


MLFLOW = """
import json, sys, warnings
warnings.simplefilter("ignore")
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_registry_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny@champion")
table = pandas.read_parquet(sys.argv[2])
print(json.dumps(model.predict(table[json.loads(sys.argv[3])])["yes"].tolist()))
"""


def test_plain_mlflow_loads_the_champion_of_a_project_that_was_moved(tiny, capsys):
    """Without Mulle in the script: the same probabilities as `mulle predict`; the copy is its own, the original untouched."""
    before = tiny.folder.rename(tiny.folder.with_name("before"))
    original = TinyProject(before, tiny.sample)
    moved = original.copy(tiny.folder.with_name("옮긴 곳"))
    shutil.rmtree(before)
    assert "evaluate" in moved.ran(capsys, "--from", "evaluate")
    scores = predicted(moved, capsys)["probability_yes"].to_list()
    place = f"sqlite:///{moved.folder}/.mulle/mlflow/mlflow.db"
    columns = f'["{ENGLISH.number}", "{ENGLISH.gappy}", "{ENGLISH.category}", "{ENGLISH.flag}"]'
    command = [sys.executable, "-c", MLFLOW, place, str(moved.folder / "data/rows.parquet"), columns]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    import json

    assert pytest.approx(scores, abs=1e-6) == json.loads(done.stdout)
    assert not before.exists()
