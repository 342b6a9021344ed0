"""`mulle init`: a new project from a template."""

from pathlib import Path

import typer

from mulle.apps.cli.output import print_json, say

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mulle init churn my-project && cd my-project && mulle run")
def init(
    template: str = typer.Argument(
        ..., metavar="TEMPLATE", help="churn: 7,043 real customers. blank: a commented skeleton with a tiny sample."
    ),
    directory: Path = typer.Argument(..., metavar="DIR", help="The new project's folder: missing or empty."),
    name: str | None = typer.Option(None, "--name", metavar="NAME", help="The project's name; by default the folder's."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Write a new project: an ordinary folder that works with git. Nothing is left behind when it fails."""
    from mulle.loop.templates import write_template

    project_name = name if name is not None else directory.absolute().name
    written = write_template(template, directory, project_name=project_name)
    size = sum(path.stat().st_size for path in written)
    if as_json:
        print_json(
            {
                "project": project_name,
                "template": template,
                "folder": str(directory),
                "files": [str(path) for path in written],
                "bytes": size,
            }
        )
        return
    say(f"project {project_name!r} from the template {template!r}: {len(written)} files, {size / 1e6:.1f} MB")
    for path in written:
        say(f"  {path}")
    say()
    say("next:")
    if directory.absolute() != Path.cwd():
        say(f"  cd {_quote(str(directory))}")
    say("  mulle run")


def _quote(text: str) -> str:
    from shlex import quote

    return quote(text)
