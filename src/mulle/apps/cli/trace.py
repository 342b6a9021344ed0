"""`mulle trace`: follow a prediction back to its data."""

from pathlib import Path

import typer

from mulle.apps.cli.output import print_json, say

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mulle trace 3f2c9a…   (the id stands in the answer and in its header mulle-prediction-id)")
def trace(
    prediction_id: str = typer.Argument(..., metavar="ID", help="The prediction's id."),
    deployment: str | None = typer.Option(None, "--deployment", metavar="NAME", help="Look in this deployment's log only."),
    project: Path = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder."),
    environment: str = typer.Option("local", "--env", metavar="NAME", help="The environment whose event log is read."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Print the chain prediction, revision, model version, run, commit, data version, with the feature values.

    A link that cannot be found is said to be missing; nothing is guessed.
    """
    from mulle.loop.trace import trace_prediction
    from mulle.loop.wiring import open_project

    settings, paths = open_project(project, environment)
    found = trace_prediction(settings, paths, prediction_id, deployment=deployment)
    if as_json:
        print_json(found.to_dict())
    else:
        say(found.render_text())
