"""`mulle predict`: a table, or one row, scored by the runtime that serves."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from mulle.apps.cli.output import note, print_json, print_table, say

if TYPE_CHECKING:
    from mulle.serve.runtimes.onnx import OnnxRuntime

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mulle predict --input new.parquet --output scores.parquet      or: mulle predict --row '{\"tenure\": 1}'")
def predict(
    *,
    source: Path | None = typer.Option(None, "--input", "-i", metavar="FILE", help="Parquet, CSV, JSON or JSON lines."),
    output: Path | None = typer.Option(None, "--output", "-o", metavar="FILE", help="Parquet or CSV."),
    row: str | None = typer.Option(None, "--row", metavar="JSON", help="Score one row and print the answer."),
    version: int | None = typer.Option(None, "--version", metavar="N", help="Which model version; the champion by default."),
    bundle: Path | None = typer.Option(None, "--bundle", metavar="DIR", help="Score with this sealed folder, without the registry."),
    project: Path = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder."),
    environment: str = typer.Option("local", "--env", metavar="NAME", help="The environment."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Score a table, or one row, with a model version: the runtime, columns and answers of `mulle serve`."""
    from mulle.core.errors import SpecError

    if (row is None) == (source is None) or (source is None) != (output is None) or (bundle is not None and version is not None):
        raise SpecError(
            "predict-usage",
            "give either --row, or --input with --output; and at most one of --version and --bundle",
            fix="mulle predict --input new.parquet --output scores.parquet",
        )
    values = None if row is None else _parse_row(row)
    runtime = _load(project, environment, version, bundle)
    if values is not None:
        from mulle.loop.predict import predict_row

        answer = predict_row(runtime, values)
        if as_json:
            print_json(answer)
        else:
            _print_answer(answer)
        return
    _score(runtime, cast("Path", source), cast("Path", output), as_json=as_json)


def _load(project: Path, environment: str, version: int | None, bundle: Path | None) -> "OnnxRuntime":
    from mulle.loop.trust import trusted_keys
    from mulle.serve.reload import load_bundle

    if bundle is not None and not (project / "mulle.toml").exists():
        return load_bundle(bundle, trusted=trusted_keys(None))
    from mulle.loop.release import load_state, resolve_bundle
    from mulle.loop.wiring import open_project, open_state

    settings, paths = open_project(project, environment)
    if bundle is not None:
        return load_bundle(bundle, trusted=trusted_keys(settings))
    store = open_state(settings)
    try:
        state = load_state(store)
    finally:
        store.close()
    if version is None:
        version = state.require_deployment(settings.deployment, environment).champion
        if version is None:
            from mulle.core.errors import SpecError

            raise SpecError("champion-missing", "there is no champion to score with", fix="mulle models promote N, or give --version N")
    record = state.require_version(settings.project.name, version)
    return load_bundle(resolve_bundle(paths.root, record), trusted=trusted_keys(settings), digest=record.bundle_digest)


def _parse_row(text: str) -> dict[str, Any]:
    from mulle.core.errors import SpecError
    from mulle.serve.protocols.codec_json import parse_json

    try:
        # What a shell hands over as undecodable bytes are surrogates here, and no UTF-8.
        value = parse_json(text.encode("utf-8", "surrogateescape"))
    except SpecError as error:
        raise SpecError(error.code, error.what, fix="give one JSON object: --row '{\"column\": 1}'", where="--row") from error
    if not isinstance(value, dict):
        raise SpecError("predict-usage", "--row takes one JSON object", fix="--row '{\"column\": 1}'", where="--row")
    return cast("dict[str, Any]", value)


def _score(runtime: "OnnxRuntime", source: Path, output: Path, *, as_json: bool) -> None:
    import time

    from mulle.loop.predict import score_file

    began = time.monotonic()
    live = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        if live:
            sys.stderr.write(f"\r{done:,} of {total:,} rows")

    scored = score_file(runtime, source, output, on_progress=show)
    if live:
        sys.stderr.write("\r\x1b[K")
    seconds = time.monotonic() - began
    if as_json:
        print_json({"rows": scored.n_rows, "columns": list(scored.columns), "output": str(scored.output), "seconds": round(seconds, 3)})
    else:
        say(f"{scored.n_rows:,} rows scored in {seconds:.1f} s: {scored.output}")
        note(f"columns: {', '.join(scored.columns)}")


def _print_answer(answer: dict[str, Any]) -> None:
    if "value" in answer:
        say(f"value: {answer['value']:g}")
        return
    say(f"label: {answer['label']}")
    print_table(("class", "probability"), ((name, f"{p:.4f}") for name, p in answer["probabilities"].items()))
