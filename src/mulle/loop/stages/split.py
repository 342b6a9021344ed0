"""Stage 3: which rows teach and which rows judge, and a look for leaks between them."""

from mulle.loop.paths import StatePaths
from mulle.loop.stage import StageContext, StageResult
from mulle.loop.stages.files import HOLDOUT_SIDE, SIDES, TRAIN_SIDE, load_rows, write_json

REPORT = "leaks.json"


def run(context: StageContext) -> StageResult:
    """Assign every row to a side.

    Raises:
        CheckError: an entity on both sides, or rows of the future in training.
    """
    import polars as pl

    from mulle.core.canonical import digest_value
    from mulle.data.leaks import check_leaks, require_no_leaks
    from mulle.data.split import assign_split

    project, settings = context.load_project(), context.settings.split
    rows = load_rows(context.inputs["snapshot"], StatePaths(context.state_dir).datasets)
    sides = assign_split(
        rows,
        by=settings.by,
        entity=project.entity,
        time=project.time,
        holdout_share=settings.holdout_share,
        salt=settings.salt,
        target=project.target,
    )
    report = check_leaks(rows, sides, by=settings.by, entity=project.entity, time=project.time, target=project.target, task=project.task)
    require_no_leaks(report)
    for warning in report.warnings:
        context.report(f"warning: {warning}")
    pl.DataFrame({"side": sides}).write_parquet(context.output / SIDES)
    write_json(context.output / REPORT, report.to_dict())
    n_train, n_holdout = int((sides == TRAIN_SIDE).sum()), int((sides == HOLDOUT_SIDE).sum())
    outputs = {"sides": digest_value(sides.to_list())}
    return StageResult(outputs=outputs, facts={"train": n_train, "holdout": n_holdout, "by": settings.by})
