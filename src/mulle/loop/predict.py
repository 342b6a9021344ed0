# pyright: reportUnknownMemberType=false
"""Scoring a table, or one row, with a sealed bundle: the same runtime, the same columns, the same answers as serving."""

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mulle.core.errors import MulleError, SpecError, UnavailableError
from mulle.core.schema import ColumnType
from mulle.formats.bundle import Manifest
from mulle.formats.rows import encode_rows
from mulle.serve.protocols.codec_json import choose_labels, render_predictions
from mulle.serve.runtimes.onnx import OnnxRuntime

if TYPE_CHECKING:
    import polars as pl

BATCH_ROWS = 8_192
READABLE = (".parquet", ".csv", ".json", ".ndjson", ".jsonl")
WRITABLE = (".parquet", ".csv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What scoring a table did.

    Attributes:
        n_rows: Rows scored.
        columns: Columns of the table written.
        output: The file.
    """

    n_rows: int
    columns: tuple[str, ...]
    output: Path


def predict_row(runtime: OnnxRuntime, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer for one row of JSON values, spelt as `/predict` spells it.

    Raises:
        SpecError: a value does not fit its column.
    """
    runtime.require_kind("columns")
    manifest = runtime.manifest
    ignore = {manifest.entity} if manifest.entity else set[str]()
    return render_predictions(manifest, runtime.run(encode_rows([row], manifest.columns, ignore=ignore)))[0]


def score_file(
    runtime: OnnxRuntime, source: Path, output: Path, *, on_progress: Callable[[int, int], None] | None = None, batch_rows: int = BATCH_ROWS
) -> Scored:
    """Score the table in `source` and write the answers to `output`, whole or not at all.

    Args:
        runtime: From a verified bundle.
        source: Parquet, CSV, JSON (a list of objects) or JSON lines.
        output: Parquet or CSV, by its ending.
        on_progress: Called with rows done and rows in all.
        batch_rows: Rows scored together.

    Raises:
        SpecError: an unknown ending, an unreadable table, columns that are missing or of another type.
        UnavailableError: the output cannot be written.
    """
    runtime.require_kind("columns")
    _require_ending(output, WRITABLE, "--output")
    frame = read_table(source, runtime.manifest)
    table = score_table(runtime, frame, on_progress=on_progress, batch_rows=batch_rows)
    write_table(table, output)
    return Scored(n_rows=table.height, columns=tuple(table.columns), output=output)


def score_table(
    runtime: OnnxRuntime, frame: "pl.DataFrame", *, on_progress: Callable[[int, int], None] | None = None, batch_rows: int = BATCH_ROWS
) -> "pl.DataFrame":
    """Return the entity column (where the table has it), `prediction`, and per class `probability_<class>`.

    Args:
        runtime: From a verified bundle.
        frame: A polars table with the model's raw columns; others are left out.
        on_progress: Called with rows done and rows in all.
        batch_rows: Rows scored together: it changes memory, not answers.

    Raises:
        SpecError: columns that are missing or of another type; missing values where the model cannot do without.
    """
    import polars as pl

    from mulle.data.arrays import to_arrays

    manifest = runtime.manifest
    arrays = to_arrays(frame, manifest.schema)
    _require_present(frame, manifest)
    parts: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    for start in range(0, frame.height, batch_rows):
        rows = slice(start, start + batch_rows)
        parts.append(runtime.run({name: values[rows] for name, values in arrays.items()}))
        if on_progress is not None:
            on_progress(min(start + batch_rows, frame.height), frame.height)
    scores = np.concatenate(parts) if parts else np.empty((0, runtime.n_outputs), dtype=np.float32)
    entity = manifest.entity
    columns = [frame[entity]] if entity is not None and entity in frame.columns else []
    if not manifest.classes:
        return pl.DataFrame([*columns, pl.Series("prediction", scores[:, 0])])
    columns.append(pl.Series("prediction", choose_labels(manifest, scores), dtype=pl.String))
    columns += [pl.Series(f"probability_{name}", scores[:, i]) for i, name in enumerate(manifest.classes)]
    return pl.DataFrame(columns)


def read_table(path: Path, manifest: Manifest) -> "pl.DataFrame":
    """Return the table at `path`; in text formats the model's columns are read with the model's types.

    Raises:
        SpecError: an unknown ending, missing, or unreadable.
    """
    import polars as pl

    from mulle.data.sources import read_csv, read_parquet

    _require_ending(path, READABLE, "--input")
    # Readers take relative paths from the project's folder; a command takes them from where it is typed.
    path = path.resolve()
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix == ".csv":
        present = _csv_header(path)
        return read_csv(path, types={c.name: c.type.value for c in manifest.columns if c.name in present})
    if not path.is_file():
        raise SpecError("file-missing", f"there is no file {path.name!r}", fix="check the path", where=str(path))
    kinds = {ColumnType.TEXT: pl.String, ColumnType.NUMBER: pl.Float64, ColumnType.BOOLEAN: pl.Boolean}
    overrides = {c.name: kinds[c.type] for c in manifest.columns if c.type in kinds}
    try:
        frame = pl.read_json(path, infer_schema_length=None) if path.suffix == ".json" else pl.read_ndjson(path, infer_schema_length=None)
        return frame.with_columns(pl.col(name).cast(kind) for name, kind in overrides.items() if name in frame.columns)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise SpecError(
            "table-unreadable",
            f"{path.name!r} cannot be read as a table: {' '.join(str(error).split())[:200]}",
            fix="write a list of flat objects, or use Parquet or CSV",
            where=str(path),
        ) from error


def write_table(frame: "pl.DataFrame", path: Path) -> None:
    """Write a table to `path` in one step.

    Raises:
        UnavailableError: the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".csv":
            frame.write_csv(draft)
        else:
            frame.write_parquet(draft)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UnavailableError(
            "output-unwritable",
            f"{path.name!r} cannot be written: {error.strerror or error}",
            fix="check the folder, its permissions and the space on the disk",
            where=str(path),
        ) from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _csv_header(path: Path) -> set[str]:
    # Only a hint of which columns are there: the reader behind it reports everything that is wrong with the file.
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {name.strip() for name in next(csv.reader(file), list[str]())}
    except (OSError, UnicodeDecodeError, csv.Error):
        return set()


def _require_present(frame: "pl.DataFrame", manifest: Manifest) -> None:
    for column in manifest.columns:
        n_missing = 0 if column.nullable else frame[column.name].null_count()
        if n_missing:
            raise SpecError(
                "rows-missing-column",
                f"column {column.name!r} is missing in {n_missing:,} rows, and the model cannot do without it",
                fix="fill it in the table, or leave these rows out",
                where=column.name,
            )


def _require_ending(path: Path, known: tuple[str, ...], option: str) -> None:
    if path.suffix not in known:
        error: MulleError = SpecError(
            "table-ending", f"{path.name!r} ends in {path.suffix!r}", fix=f"use one of {', '.join(known)}", where=option
        )
        raise error
