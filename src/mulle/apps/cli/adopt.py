"""`mulle adopt`: seal an existing model file into a bundle, without a rewrite."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mulle.apps.cli.output import note, print_json, say

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_EXAMPLE = "Example: mulle adopt model.onnx --sample customers.csv --target churn --name churn"


@app.command(help="Seal an existing ONNX file or MLflow model into a bundle, with schema, baseline and golden requests.", epilog=_EXAMPLE)
def adopt(  # noqa: PLR0917  (typer takes them by name)
    model: Annotated[str, typer.Argument(help="An ONNX file, an MLflow folder, models:/NAME/VERSION or runs:/ID/PATH.")],
    sample: Annotated[Path, typer.Option("--sample", "-s", help="Rows as requests will carry them: .csv, .tsv or .parquet.")],
    target: Annotated[str | None, typer.Option("--target", help="The sample's column with the truth; it is no input.")] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="The model's name; by default the file's.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="binary, multiclass or regression; by default read off the graph.")] = None,
    columns: Annotated[str | None, typer.Option("--columns", help="The columns of a matrix input in order: a,b,c.")] = None,
    classes: Annotated[str | None, typer.Option("--classes", help="The labels in the order of the probabilities: No,Yes.")] = None,
    positive: Annotated[str | None, typer.Option("--positive", help="The label that counts as 1 (binary).")] = None,
    logits: Annotated[bool, typer.Option("--logits", help="The graph answers before softmax or sigmoid: add it.")] = False,
    entity: Annotated[str | None, typer.Option("--entity", help="The column that names who a row is about.")] = None,
    tracking: Annotated[str | None, typer.Option("--tracking", help="MLflow's address, for models:/ and runs:/.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of bundles; by default .mulle/bundles of the project.")
    ] = None,
    project: Annotated[Path, typer.Option("--project", "-p", metavar="DIR", help="The project's folder.")] = Path(),
    env: Annotated[str, typer.Option("--env", metavar="NAME", help="The environment.")] = "local",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Seal an existing ONNX file or MLflow model into a bundle."""
    from mulle.core.project import Task
    from mulle.loop.adopt import DEFAULT_OUTPUT, adopt_model, seal_adopted

    del env
    adopted = adopt_model(
        model,
        sample,
        target=target,
        task=cast("Task | None", task),
        columns=_split(columns),
        classes=_split(classes),
        positive=positive,
        logits=logits,
        tracking_uri=tracking,
    )
    sealed = seal_adopted(adopted, name=name or _name_of(model), output=output or project / DEFAULT_OUTPUT, entity=entity)
    serve = f"mulle serve --bundle {sealed.path}"
    result: dict[str, Any] = {
        "digest": sealed.digest,
        "path": str(sealed.path),
        "model": sealed.manifest.model,
        "task": adopted.task,
        "classes": list(adopted.classes),
        "columns": list(adopted.schema.names),
        "sample_rows": adopted.rows.height,
        "notes": list(adopted.notes),
        "serve": serve,
    }
    if json:
        print_json(result)
        return
    for text in adopted.notes:
        note(f"note: {text}")
    what = adopted.task if not adopted.classes else f"{adopted.task}: {', '.join(adopted.classes)}"
    say(f"adopted {sealed.manifest.model!r} ({what}), {len(adopted.schema)} columns, checked on {adopted.rows.height:,} rows")
    say(f"  bundle  {sealed.digest}")
    say(f"  folder  {sealed.path}")
    say(f"  next    {serve}")


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _name_of(model: str) -> str:
    """Return a name for the model from where it lies: the file's stem, or the middle of `models:/NAME/VERSION`."""
    scheme, _, rest = model.partition(":/")
    if scheme in {"models", "runs"} and rest:
        return rest.strip("/").split("/", maxsplit=1)[0].partition("@")[0]
    path = Path(model)
    return path.stem if path.suffix == ".onnx" else path.name or "model"
