"""`mulle run`: data to registered model, running only what has changed."""

from pathlib import Path

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    epilog="Example: mulle run --dry-run  (what would run, and why)",
)
def run(
    *,
    project: Path = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder."),
    environment: str = typer.Option("local", "--env", metavar="NAME", help="One of the environments in mulle.toml."),
    force: bool = typer.Option(False, "--force", help="Run every stage, whatever is cached."),
    from_stage: str | None = typer.Option(None, "--from", metavar="STAGE", help="Run this stage and those after it."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would run and why; change nothing."),
    wait: bool = typer.Option(False, "--wait", help="Wait for another run of this project to end."),
    register_anyway: bool = typer.Option(False, "--register-anyway", help="Register in spite of a failed gate; needs --reason."),
    reason: str | None = typer.Option(None, "--reason", help="Why; kept in the audit log beside your name."),
    json_wanted: bool = typer.Option(False, "--json", help="Print one JSON document at the end."),
) -> None:
    """Turn the wheel: snapshot, check, split, train, export, evaluate, gate, seal, register.

    Only what has changed is run. A run that was killed continues where it stopped.
    """
    from mulle.apps.cli.output import print_json, print_table, say
    from mulle.loop.plan import RunOptions
    from mulle.loop.progress import choose_progress
    from mulle.loop.run import Runner, render_summary
    from mulle.loop.stages import STAGES
    from mulle.loop.wiring import SystemClock, open_project

    override = _override(register_anyway=register_anyway, reason=reason)
    settings, paths = open_project(project, environment)
    options = RunOptions(force=force, from_stage=from_stage, override=override)
    if dry_run:
        plan = Runner(settings, STAGES, SystemClock()).plan(options)
        if json_wanted:
            print_json(plan.to_dict())
        else:
            print_table(("stage", "would", "why"), [(step.stage.name, step.status, step.why) for step in plan.steps])
        return
    _end_on_sigterm()
    runner = Runner(settings, STAGES, SystemClock(), progress=choose_progress(json_wanted=json_wanted))
    report = runner.run(options, wait=wait)
    if json_wanted:
        print_json(report.to_dict())
        return
    if any(entry.status != "cached" for entry in report.document.stages):
        print_table(("stage", "status", "time", "memory", "result"), render_summary(report))
        say(f"run {report.run_id} took {report.document.seconds:.1f} s; its record: {paths.run_document(report.run_id)}")
    else:
        say(f"nothing changed: all {len(report.document.stages)} stages are as they were ({report.document.seconds:.2f} s)")


def _override(*, register_anyway: bool, reason: str | None) -> dict[str, str] | None:
    from mulle.core.errors import SpecError

    if not register_anyway:
        if reason is not None:
            raise SpecError(
                "run-reason", "--reason without --register-anyway has no effect", fix="add --register-anyway, or leave --reason out"
            )
        return None
    if not (reason or "").strip():
        raise SpecError("run-reason", "--register-anyway needs a reason", fix='add --reason "why this is right"')
    import getpass

    try:
        actor = getpass.getuser()
    except (KeyError, OSError):
        actor = "unknown"
    return {"actor": actor, "reason": (reason or "").strip()[:1000]}


def _end_on_sigterm() -> None:
    """End a terminated run like an interrupted one: the stage is killed, the document says so."""
    import signal
    from types import FrameType

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
