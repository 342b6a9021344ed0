"""`mulle doctor`: check the machine, the installed versions and the project."""

from pathlib import Path

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mulle doctor --project my-project")
def doctor(
    project: Path = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder."),
    environment: str = typer.Option("local", "--env", metavar="NAME", help="One of the environments in mulle.toml."),
    json_wanted: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> int:
    """Look for what will get in the way, and say what to do. Exit code 1 when something will."""
    from mulle.apps.cli.output import print_json, say
    from mulle.loop.doctor import check_machine

    findings = check_machine(project, environment)
    n_failed = sum(finding.status == "fail" for finding in findings)
    n_warned = sum(finding.status == "warn" for finding in findings)
    if json_wanted:
        print_json(
            {"ok": not n_failed, "n_failed": n_failed, "n_warned": n_warned, "findings": [finding.to_dict() for finding in findings]}
        )
        return int(n_failed > 0)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        say(f"{finding.status:<4}  {finding.name:<{width}}  {finding.text}")
        if finding.fix:
            say(f"{'':<4}  {'':<{width}}  fix: {finding.fix}")
    say(f"{len(findings) - n_failed - n_warned} ok, {n_warned} warnings, {n_failed} failed")
    return int(n_failed > 0)
