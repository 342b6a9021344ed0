"""Stage 7: may this candidate be registered? A pure decision over the evaluation, and the report a person reads."""

from typing import TYPE_CHECKING, Any

from mulle.core.canonical import digest_value
from mulle.core.errors import CheckError
from mulle.loop.paths import StatePaths, write_atomic
from mulle.loop.stage import StageContext, StageResult
from mulle.loop.stages.evaluate import EVALUATION
from mulle.loop.stages.files import read_json, read_version, write_json
from mulle.loop.stages.train import RECORD

if TYPE_CHECKING:
    from mulle.release.gate_types import Verdict

VERDICT, REPORT = "verdict.json", "report.html"
OVERRIDE = "override"


def run(context: StageContext) -> StageResult:
    """Decide the gates and render the report; a verdict that is not `pass` stops the run unless somebody overrides it.

    Raises:
        CheckError: a gate failed or could not tell; every one is named with the numbers compared.
    """
    from mulle.evaluate.report import render_report
    from mulle.evaluate.result import evaluation_from_bytes
    from mulle.release.gate import decide_gates
    from mulle.release.gate_settings import parse_gates

    path = context.inputs["evaluate"] / EVALUATION
    evaluation = evaluation_from_bytes(path.read_bytes(), where=str(path))
    table = context.settings.gates
    gates = parse_gates(table.model_dump(exclude_none=True, exclude={"on_inconclusive"}), task=evaluation.task)
    champion = "" if evaluation.comparison is None else evaluation.comparison.champion
    verdict = decide_gates(gates, evaluation.measured(), evaluation.differences(), champion=champion, on_inconclusive=table.on_inconclusive)
    record = read_json(context.inputs["train"] / RECORD)
    lineage = {
        "run": context.run_id,
        "data version": read_version(context.inputs["snapshot"]).digest,
        "model": f"{record['model']} ({record['estimator']})",
        "tracked as": record["mlflow_run_id"],
    }
    page = render_report(evaluation, title=f"{context.settings.project.name}: evaluation", lineage=lineage, verdict=verdict)
    override = context.options.get(OVERRIDE)
    document = {**verdict.to_dict(), "overridden": override or None}
    (context.output / REPORT).write_text(page, encoding="utf-8")
    write_json(context.output / VERDICT, document)
    reports = StatePaths(context.state_dir).reports / "evaluation"
    reports.mkdir(parents=True, exist_ok=True)
    report = reports / f"{context.run_id}.html"
    write_atomic(report, page.encode("utf-8"))
    context.report(verdict.summary)
    if verdict.outcome != "pass" and not override:
        raise _refusal(verdict, str(report))
    return StageResult(
        outputs={"verdict": digest_value(document)}, facts={"verdict": verdict.outcome, "summary": verdict.summary, "report": str(report)}
    )


def _refusal(verdict: "Verdict", report: str) -> CheckError:
    facts: dict[str, str] = {r.name: f"{r.outcome}: {r.reason}" for r in verdict.results if r.outcome != "pass"}
    return CheckError(
        "gate-refused",
        f"the candidate is not registered; {verdict.summary}",
        fix="improve the model, change the gate in mulle.toml, or take the responsibility: mulle run --register-anyway --reason TEXT",
        where="mulle.toml [gates]",
        facts={**facts, "report": report},
    )


def verdict_of(folder: Any) -> dict[str, Any]:
    """Return the verdict document a gate stage left."""
    return read_json(folder / VERDICT)
