"""Stage 1: what the source says now becomes an immutable dataset version."""

from mulle.core.errors import SpecError
from mulle.loop.paths import StatePaths
from mulle.loop.stage import StageContext, StageResult
from mulle.loop.stages.files import DATASET, write_json


def run(context: StageContext) -> StageResult:
    """Run the user's source and keep its table under the digest of its logical values.

    Raises:
        SpecError: the project has no source, or the table cannot be one.
        UserCodeError: the source raised.
    """
    from mulle.core.user_code import user_code
    from mulle.data.dataset import normalise, save_dataset
    from mulle.data.sources import project_folder, traced_reads

    project = context.load_project()
    function = project.source_function
    if function is None:
        raise SpecError(
            "project-no-source",
            "the project has no source",
            fix="write a function that returns a table, under @project.source",
            where=str(context.project_dir / "project.py"),
        )
    context.report(f"reading {function.__name__!r}")
    with (
        project_folder(context.project_dir),
        traced_reads() as reads,
        user_code(f"the source {function.__name__!r}", root=context.project_dir),
    ):
        table = function()
    for text in reads.notes:
        context.report(f"note: {text}")
    frame = normalise(table)
    context.report(f"{frame.height:,} rows, {frame.width} columns")
    paths = StatePaths(context.state_dir)
    version = save_dataset(frame, context.settings.dataset, paths.datasets, time_column=project.time)
    write_json(context.output / DATASET, version.to_dict())
    facts = {"dataset": version.digest, "rows": version.n_rows, "columns": len(version.schema), "time_range": version.time_range}
    return StageResult(outputs={"dataset": version.digest}, facts=facts, freshness=tuple(reads))
