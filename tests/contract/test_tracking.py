"""Every tracker keeps the same promises: the fake in memory and MLflow on SQLite."""

import math
import os
import subprocess
import sys

import pytest

from mulle.core.errors import SpecError
from mulle.train.tracking import MAX_PARAM_CHARS, MemoryTracker, MlflowTracker, param_text


@pytest.fixture(scope="module")
def mlflow_tracker(tmp_path_factory):
    """Return one MLflow store for the whole file: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("추적")
    return MlflowTracker(f"sqlite:///{folder}/mlflow.db", folder / "artifacts")


@pytest.fixture(params=["memory", "mlflow"])
def tracker(request, mlflow_tracker):
    """Return each tracker in turn."""
    return MemoryTracker() if request.param == "memory" else mlflow_tracker


@pytest.fixture
def experiment(request):
    """Return a name nobody else uses."""
    return f"이탈 {request.node.name}"[:200]


def _only(tracker, experiment):
    (run,) = tracker.search_runs(experiment)
    return run


def test_a_run_is_found_with_what_was_logged(tracker, experiment):
    """Parameters, metrics and tags come back, Korean names included."""
    run_id = tracker.start_run(experiment, name="첫 시도", tags={"commit": "abc"})
    tracker.log_params(run_id, {"학습률": 0.1, "depth": 3, "name": "hgb"})
    tracker.log_metrics(run_id, {"정확도": 0.8, "roc_auc": 0.9})
    tracker.set_tags(run_id, {"verdict": "pass"})
    tracker.finish(run_id)
    run = _only(tracker, experiment)

    assert (run.run_id, run.name, run.status) == (run_id, "첫 시도", "FINISHED")
    assert run.params == {"학습률": "0.1", "depth": "3", "name": "hgb"}
    assert run.metrics == {"정확도": 0.8, "roc_auc": 0.9}
    assert {"commit": "abc", "verdict": "pass"}.items() <= run.tags.items()


def test_curves_of_thousands_of_points_keep_their_last_value(tracker, experiment):
    """2,500 points go in three batches; the last one is the metric."""
    run_id = tracker.start_run(experiment)
    tracker.log_curves(run_id, {"loss": [1 / (i + 1) for i in range(2500)], "한 점": [7.0]})

    assert _only(tracker, experiment).metrics == {"loss": 1 / 2500, "한 점": 7.0}


def test_values_that_are_not_finite_are_left_out(tracker, experiment):
    """A NaN metric would break charts and comparisons: it is not kept."""
    run_id = tracker.start_run(experiment)
    tracker.log_metrics(run_id, {"a": math.nan, "b": math.inf, "c": 1.0})

    assert _only(tracker, experiment).metrics == {"c": 1.0}


def test_the_same_parameter_twice_is_fine_and_another_value_is_not(tracker, experiment):
    """Parameters do not change within a run."""
    run_id = tracker.start_run(experiment)
    tracker.log_params(run_id, {"a": 1})
    tracker.log_params(run_id, {"a": 1})
    with pytest.raises(SpecError) as caught:
        tracker.log_params(run_id, {"a": 2})

    assert caught.value.code == "tracking-param-changed"


def test_a_long_value_is_cut_and_says_so(tracker, experiment):
    """The store takes 6,000 characters; the end tells how many there were."""
    run_id = tracker.start_run(experiment)
    tracker.log_params(run_id, {"sql": "가" * 9000})
    text = _only(tracker, experiment).params["sql"]

    assert (len(text), text.endswith("… (cut: 9,000 characters)")) == (MAX_PARAM_CHARS, True)


def test_strange_names_are_made_keys(tracker, experiment):
    """Characters no store takes become underscores."""
    run_id = tracker.start_run(experiment)
    tracker.log_metrics(run_id, {"auc(계약='1년')": 0.5, "../x": 1.0})

    assert set(_only(tracker, experiment).metrics) == {"auc_계약__1년__", "_/x"}


def test_more_than_a_hundred_parameters_and_tags(tracker, experiment):
    """Batches are the tracker's business."""
    run_id = tracker.start_run(experiment)
    tracker.log_params(run_id, {f"p{i}": i for i in range(230)})
    tracker.set_tags(run_id, {f"t{i}": "x" for i in range(230)})

    assert len(_only(tracker, experiment).params) == 230


def test_runs_are_found_by_tag_the_newest_first(tracker, experiment):
    """Quotes in a value are a value."""
    ids = [tracker.start_run(experiment, tags={"kind": kind}) for kind in ("o'a", "b", "o'a")]
    found = {run.run_id for run in tracker.search_runs(experiment, tags={"kind": "o'a"})}

    assert (found, len(tracker.search_runs(experiment, limit=2))) == ({ids[0], ids[2]}, 2)


def test_an_unknown_experiment_has_no_runs(tracker):
    """Nobody made it: an empty list."""
    assert tracker.search_runs("nobody made this") == []


def test_an_unknown_run_is_refused(tracker):
    """Logging to a run nobody started is the caller's mistake."""
    with pytest.raises(SpecError) as caught:
        tracker.log_params("f" * 32, {"a": 1})

    assert caught.value.code == "tracking-unknown-run"


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "a\\b"])
def test_artefact_names_stay_inside(tracker, experiment, name):
    """A path that leaves the run's folder is refused."""
    run_id = tracker.start_run(experiment)
    with pytest.raises(SpecError) as caught:
        tracker.log_artifact(run_id, name, b"x")

    assert caught.value.code == "tracking-artifact-name"


def test_artefacts_are_files_in_their_folders(mlflow_tracker, tmp_path):
    """Bytes and files arrive under their names."""
    source = tmp_path / "source.txt"
    source.write_text("둘", encoding="utf-8")
    run_id = mlflow_tracker.start_run("artefacts")
    mlflow_tracker.log_artifacts(run_id, {"reports/보고서.html": "하나".encode(), "b.txt": source})
    root = next(path for path in (tmp_path.parent).rglob(run_id) if path.is_dir()) / "artifacts"

    assert [(root / name).read_text(encoding="utf-8") for name in ("reports/보고서.html", "b.txt")] == ["하나", "둘"]


def test_a_thousand_points_are_quick(mlflow_tracker):
    """One batch of 1,000 metric points; the promise is 0.3 s, the limit here leaves room for a busy machine."""
    import time

    run_id = mlflow_tracker.start_run("speed")
    start = time.perf_counter()
    mlflow_tracker.log_curves(run_id, {f"c{i}": [float(j) for j in range(250)] for i in range(4)})

    assert time.perf_counter() - start < 3.0


def test_no_global_run_is_touched(mlflow_tracker):
    """The fluent API's active run belongs to the user."""
    import mlflow

    mlflow_tracker.start_run("no global state")

    assert mlflow.active_run() is None


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    """No traceback of a SQL library, and no address in the error."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    from mulle.core.errors import UnavailableError

    with pytest.raises(UnavailableError) as caught:
        MlflowTracker(f"sqlite:///{tmp_path}/file/mlflow.db").start_run("x")

    assert caught.value.code == "tracking-unavailable"


_RACE = """
import sys
from mulle.train.tracking import MlflowTracker
print(MlflowTracker(sys.argv[1], sys.argv[2]).start_run("race"))
"""


@pytest.mark.slow
def test_two_processes_may_make_the_database_at_once(tmp_path):
    """Both find none, one makes it, both get a run in the same experiment."""
    command = [sys.executable, "-c", _RACE, f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=200) for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len(MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db").search_runs("race")) == 2


def test_parameters_are_written_as_text():
    """Texts as they are, everything else as Python writes it."""
    assert [param_text(v) for v in ("a", 1, 0.1, None, [1])] == ["a", "1", "0.1", "None", "[1]"]
