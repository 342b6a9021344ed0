"""Stage 9: the bundle becomes a model version: an event in the log, and everything projected from it."""

from pathlib import Path
from typing import Any

from mulle.loop.stage import StageContext, StageResult
from mulle.loop.stages.evaluate import EVALUATION
from mulle.loop.stages.files import read_json, read_version
from mulle.loop.stages.gate import OVERRIDE, VERDICT
from mulle.loop.stages.seal import BUNDLE
from mulle.loop.stages.train import RECORD


def run(context: StageContext) -> StageResult:
    """Register the bundle, make it champion or challenger, and carry out what follows from it."""
    from mulle.evaluate.result import evaluation_from_bytes
    from mulle.loop.release import register_version
    from mulle.loop.wiring import SystemClock, open_outbox, open_state
    from mulle.registry.decide import Target, Who
    from mulle.registry.versions import VersionRecord
    from mulle.train.environment import read_commit

    settings = context.settings
    bundle = read_json(context.inputs["seal"] / BUNDLE)
    record = read_json(context.inputs["train"] / RECORD)
    verdict = read_json(context.inputs["gate"] / VERDICT)
    dataset = read_version(context.inputs["snapshot"])
    path = context.inputs["evaluate"] / EVALUATION
    evaluation = evaluation_from_bytes(path.read_bytes(), where=str(path))
    commit = read_commit(context.project_dir)
    override = context.options.get(OVERRIDE)
    candidate = VersionRecord(
        model=settings.project.name,
        number=0,
        bundle_digest=bundle["digest"],
        bundle_path=bundle["path"],
        run_id=context.run_id,
        mlflow_run_id=record["mlflow_run_id"],
        dataset=dataset.name,
        dataset_digest=dataset.digest,
        git_commit="" if commit is None else commit.digest + ("-dirty" if commit.dirty else ""),
        outcome=verdict["outcome"],
        verdict={key: value for key, value in verdict.items() if key != "overridden"},
        metrics={name: estimate.value for name, estimate in evaluation.metrics.items()},
        parameters={**record["params"], "seed": record["seed"], "model": record["model"]},
    )
    target = Target(settings.deployment, settings.environment, settings.project.name)
    who = Who(_actor(override), SystemClock().now_ns(), reason="" if override is None else str(override["reason"]))
    store = open_state(settings)
    registered = register_version(store, candidate, target, who, override=override is not None)
    drained = open_outbox(settings, store).drain()
    for warning in drained.warnings:
        context.report(f"warning: {warning}")
    number = registered.version.number
    context.report(f"version {number} is {registered.alias or 'registered'}" + ("" if registered.created else " (it was already)"))
    facts: dict[str, Any] = {"version": number, "alias": registered.alias, "created": registered.created}
    return StageResult(outputs={"version": str(number)}, facts=facts)


def _actor(override: Any) -> str:
    import getpass

    if override is not None and override.get("actor"):
        return str(override["actor"])
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def version_of(folder: Path) -> int:
    """Return the number a register stage gave out."""
    return int(read_json(folder / "record.json")["outputs"]["version"])
