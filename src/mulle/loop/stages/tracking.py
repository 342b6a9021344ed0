"""What stages tell the tracking store: one run per training, batched, and finished whatever comes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mulle.loop.stage import StageContext
from mulle.loop.stages.files import read_version
from mulle.loop.wiring import open_tracker

if TYPE_CHECKING:
    from mulle.evaluate.result import Evaluation


def track_training(context: StageContext, params: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Return the identity of the tracked run: parameters, curves, lineage, environment, and the description of the model."""
    from mulle.train.environment import describe_environment

    tracker = open_tracker(context.settings)
    version = read_version(context.inputs["snapshot"])
    environment = describe_environment(context.project_dir)
    commit = environment.commit
    run_id = tracker.start_run(
        context.settings.project.name,
        name=context.run_id,
        tags={
            "mulle.run_id": context.run_id,
            "mulle.dataset": version.name,
            "mulle.dataset_digest": version.digest,
            "mulle.git_commit": "" if commit is None else commit.digest,
            "mulle.git_dirty": "" if commit is None else str(commit.dirty).lower(),
            "mulle.python": environment.python,
        },
    )
    tracker.log_params(run_id, {"model": record["model"], "seed": record["seed"], **params})
    tracker.log_curves(run_id, record["curves"])
    for i, fold in enumerate(record["folds"]):
        tracker.log_metrics(run_id, {f"fold {name}": value for name, value in fold.items()}, step=i)
    import json

    tracker.log_artifacts(
        run_id,
        {
            "mulle/features.json": json.dumps(record["features"], ensure_ascii=False, indent=1).encode("utf-8"),
            "mulle/preprocess.json": json.dumps(record["preprocess"], ensure_ascii=False, indent=1).encode("utf-8"),
            "mulle/environment.json": json.dumps(environment.to_dict(), ensure_ascii=False, indent=1).encode("utf-8"),
            "mulle/dataset.json": json.dumps(version.to_dict(), ensure_ascii=False, indent=1).encode("utf-8"),
        },
    )
    tracker.finish(run_id)
    return run_id


def track_evaluation(context: StageContext, mlflow_run_id: str, evaluation: "Evaluation") -> None:
    """Add the holdout's metrics, of the served graph, to the run of its training."""
    tracker = open_tracker(context.settings)
    tracker.log_metrics(mlflow_run_id, {name: estimate.value for name, estimate in evaluation.metrics.items()})
    tracker.log_artifact(mlflow_run_id, "mulle/evaluation.json", evaluation.to_bytes())
