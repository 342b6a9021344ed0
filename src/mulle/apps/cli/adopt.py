"""`mulle adopt`: seal an existing model file into a bundle, without a rewrite."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mulle.apps.cli.output import note, print_json, say
from mulle.core.errors import SpecError

if TYPE_CHECKING:
    from mulle.bundle.adopt_tensors import AdoptedTensors
    from mulle.bundle.seal import SealedBundle

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_EXAMPLE = "Example: mulle adopt model.onnx --sample customers.csv --target churn --name churn"


@app.command(help="Seal an existing ONNX file or MLflow model into a bundle, with schema, baseline and golden requests.", epilog=_EXAMPLE)
def adopt(  # noqa: PLR0917  (typer takes them by name)
    model: Annotated[str, typer.Argument(help="An ONNX file, an MLflow folder, models:/NAME/VERSION or runs:/ID/PATH.")],
    sample: Annotated[
        Path | None,
        typer.Option("--sample", "-s", help="Rows as requests carry them (.csv, .tsv, .parquet); pictures; or tensors (.npz)."),
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="The sample's column with the truth; it is no input.")] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="The model's name; by default the file's.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="binary, multiclass or regression; by default read off the graph.")] = None,
    columns: Annotated[str | None, typer.Option("--columns", help="The columns of a matrix input in order: a,b,c.")] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="The labels in the order of the probabilities: No,Yes, or a file.")
    ] = None,
    positive: Annotated[str | None, typer.Option("--positive", help="The label that counts as 1 (binary).")] = None,
    logits: Annotated[bool, typer.Option("--logits", "--softmax", help="The graph answers before softmax or sigmoid: add it.")] = False,
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="SPEC", help="It takes pictures: auto, imagenet, or size=224x224,mean=0.485:0.456:0.406,…"),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="It takes and answers tensors: every input and output as it is.")] = False,
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
    from mulle.loop.adopt_tensors import read_classes

    del env
    called, folder = name or _name_of(model), output or project / DEFAULT_OUTPUT
    if image is not None or tensors:
        # What only tables have would be ignored in silence.
        given = {"--target": target, "--task": task, "--columns": columns, "--entity": entity, "--tracking": tracking}
        of_pictures = {"--classes": classes, "--positive": positive, "--logits": logits or None}
        _require_fitting(image, tensors=tensors, given={**given, **(of_pictures if tensors else {})})
        taken = _take_in(model, sample, image, classes, positive, logits=logits)
        _tell_tensors(taken, _seal(taken, called, folder), json=json)
        return
    if sample is None:
        raise SpecError(
            "adopt-sample-needed",
            "a model of tables is adopted with some rows",
            fix="give rows as requests will carry them: --sample customers.csv; for pictures say --image auto, for tensors --tensors",
        )
    adopted = adopt_model(
        model,
        sample,
        target=target,
        task=cast("Task | None", task),
        columns=_split(columns),
        classes=None if classes is None else read_classes(classes),
        positive=positive,
        logits=logits,
        tracking_uri=tracking,
    )
    sealed = seal_adopted(adopted, name=called, output=folder, entity=entity)
    result: dict[str, Any] = {
        "digest": sealed.digest,
        "path": str(sealed.path),
        "model": sealed.manifest.model,
        "task": adopted.task,
        "classes": list(adopted.classes),
        "columns": list(adopted.schema.names),
        "sample_rows": adopted.rows.height,
        "notes": list(adopted.notes),
        "serve": f"mulle serve --bundle {sealed.path}",
    }
    what = adopted.task if not adopted.classes else f"{adopted.task}: {', '.join(adopted.classes)}"
    line = f"adopted {sealed.manifest.model!r} ({what}), {len(adopted.schema)} columns, checked on {adopted.rows.height:,} rows"
    _tell(result, line, json=json)


def _require_fitting(image: str | None, *, tensors: bool, given: dict[str, Any]) -> None:
    if image is not None and tensors:
        raise SpecError("adopt-options", "--image and --tensors are two kinds of models", fix="say one of them")
    strange = next((option for option, value in given.items() if value is not None), None)
    if strange is not None:
        raise SpecError(
            "adopt-options", f"{strange} means nothing for a model of {'tensors' if tensors else 'pictures'}", fix=f"leave {strange} out"
        )


def _take_in(
    model: str, sample: Path | None, image: str | None, classes: str | None, positive: str | None, *, logits: bool
) -> "AdoptedTensors":
    from mulle.loop.adopt_tensors import adopt_picture_model, adopt_tensor_model, read_classes

    if image is None:
        return adopt_tensor_model(Path(model), sample)
    named = None if classes is None else read_classes(classes)
    return adopt_picture_model(Path(model), sample, image=image, classes=named, positive=positive, logits=logits)


def _seal(adopted: "AdoptedTensors", name: str, folder: Path) -> "SealedBundle":
    from mulle.loop.adopt_tensors import seal_adopted_tensors

    return seal_adopted_tensors(adopted, name=name, output=folder)


def _tell_tensors(adopted: "AdoptedTensors", sealed: "SealedBundle", *, json: bool) -> None:
    import msgspec

    spec = sealed.manifest.image
    result: dict[str, Any] = {
        "digest": sealed.digest,
        "path": str(sealed.path),
        "model": sealed.manifest.model,
        "task": adopted.task,
        "classes": list(adopted.classes),
        "inputs": {tensor.name: [tensor.dtype, [-1, *(tensor.shape or ())]] for tensor in adopted.info.inputs},
        "outputs": {tensor.name: [tensor.dtype, [-1, *tensor.shape]] for tensor in adopted.info.outputs},
        "image": None if spec is None else msgspec.to_builtins(spec),
        "samples": adopted.n_samples,
        "golden": len(adopted.golden.cases),
        "notes": list(adopted.notes),
        "serve": f"mulle serve --bundle {sealed.path}",
    }
    if spec is None:
        what = f"tensors: {', '.join(result['inputs'])} to {', '.join(result['outputs'])}"
        checked = f"{adopted.n_samples:,} rows"
    else:
        what = f"pictures of {spec.size[0]} × {spec.size[1]}, {len(adopted.classes):,} classes"
        checked = f"{adopted.n_samples:,} pictures"
    _tell(result, f"adopted {sealed.manifest.model!r} ({what}), checked on {checked}", json=json)


def _tell(result: dict[str, Any], line: str, *, json: bool) -> None:
    if json:
        print_json(result)
        return
    for text in result["notes"]:
        note(f"note: {text}")
    say(line)
    say(f"  bundle  {result['digest']}")
    say(f"  folder  {result['path']}")
    say(f"  next    {result['serve']}")


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _name_of(model: str) -> str:
    """Return a name for the model from where it lies: the file's stem, or the middle of `models:/NAME/VERSION`."""
    scheme, _, rest = model.partition(":/")
    if scheme in {"models", "runs"} and rest:
        return rest.strip("/").split("/", maxsplit=1)[0].partition("@")[0]
    path = Path(model)
    return path.stem if path.suffix == ".onnx" else path.name or "model"
