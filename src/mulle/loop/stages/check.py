"""Stage 2: the user's expectations, and the ones nobody should have to write."""

from mulle.loop.paths import StatePaths
from mulle.loop.stage import StageContext, StageResult
from mulle.loop.stages.files import load_rows, write_json

REPORT = "checks.json"


def run(context: StageContext) -> StageResult:
    """Check the dataset version.

    Raises:
        CheckError: an expectation does not hold; bounded counts and examples are shown.
    """
    from mulle.core.expect import Expect
    from mulle.core.user_code import user_code
    from mulle.data.expectations import check_expectations, require_sound

    project = context.load_project()
    expect = Expect()
    function = project.expectations_function
    if function is not None:
        with user_code(f"the expectations {function.__name__!r}", root=context.project_dir):
            function(expect)
    rows = load_rows(context.inputs["snapshot"], StatePaths(context.state_dir).datasets)
    context.report(f"{len(expect.rules)} expectations over {rows.height:,} rows")
    report = check_expectations(
        rows, expect.rules, target=project.target, task=project.task, entity=project.entity, time=project.time, positive=project.positive
    )
    require_sound(report)
    digest = write_json(context.output / REPORT, report.to_dict())
    for warning in report.warnings:
        context.report(f"warning: {warning.message}")
    return StageResult(outputs={"checks": digest}, facts={"rules": len(expect.rules), "warnings": len(report.warnings)})
