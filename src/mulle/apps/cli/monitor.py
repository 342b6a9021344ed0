"""`mulle monitor`: compare what was served with what was learnt."""

from pathlib import Path
from typing import Any

import typer

from mulle.apps.cli.output import note, print_json, print_table, say

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Compare what was served with what was learnt.")

PROJECT = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder.")
ENVIRONMENT = typer.Option("local", "--env", metavar="NAME", help="The environment.")
DEPLOYMENT = typer.Option(None, "--deployment", metavar="NAME", help="Which deployment; the project's own by default.")
AS_JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command(epilog="Example: mulle monitor check --last 2000   (exit code 0: ok or undecided, 1: drift, 2: usage)")
def check(
    last: int | None = typer.Option(None, "--last", metavar="N", help="Only the newest N rows."),
    since: str | None = typer.Option(None, "--since", metavar="TIME", help="From here on: 2026-11-20T06:00 (UTC), or a time ago: 2h."),
    until: str | None = typer.Option(None, "--until", metavar="TIME", help="Up to here, exclusive."),
    deployment: str | None = DEPLOYMENT,
    strict: bool = typer.Option(False, "--strict", help="Exit 1 also when the window is too small or its log incomplete."),
    project: Path = PROJECT,
    environment: str = ENVIRONMENT,
    as_json: bool = AS_JSON,
) -> None:
    """Judge a window of served rows against the baseline of the model that served them.

    Without --last and --since the window is [monitor] window in mulle.toml, up to now. The error rate is that of one check.
    """
    from mulle.loop.watch import check_deployment
    from mulle.loop.wiring import SystemClock, open_project

    settings, paths = open_project(project, environment)
    report = check_deployment(settings, paths, now_ns=SystemClock().now_ns(), last=last, since=since, until=until, deployment=deployment)
    if as_json:
        print_json(report.to_dict())
    else:
        say(report.render_text())
        note(f"report: {paths.root / report.files[-1]}")
    if report.verdict == "drift" or (strict and report.verdict != "ok"):
        raise typer.Exit(1)


@app.command(epilog="Example: mulle monitor report --open")
def report(
    deployment: str | None = DEPLOYMENT,
    browse: bool = typer.Option(False, "--open", help="Open the page in a browser."),
    project: Path = PROJECT,
    environment: str = ENVIRONMENT,
    as_json: bool = AS_JSON,
) -> None:
    """Show the last report and where its page lies."""
    from mulle.loop.watch import latest_report, load_report
    from mulle.loop.wiring import open_project

    _, paths = open_project(project, environment)
    path = latest_report(paths, deployment)
    document = load_report(path)
    if as_json:
        print_json(document)
        return
    say(f"{document.get('verdict')}: {document.get('summary')}")
    columns = [column for column in document.get("columns", []) if column.get("drifted") or column.get("anomalies")]
    if columns:
        rows = [("drift" if column["drifted"] else "odd", column["name"], _told(column)) for column in columns]
        print_table(("", "column", "what"), rows)
    page = path.with_suffix(".html")
    say(str(page))
    if browse:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def _told(column: dict[str, Any]) -> str:
    return str(column["sentence"]) if column["drifted"] else "; ".join(column["anomalies"])
