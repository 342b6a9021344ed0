"""From a model somebody already has to a sealed bundle: baseline and golden requests come from the sample's own rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mulle.core.errors import SpecError
from mulle.core.names import require_name
from mulle.core.project import Task

if TYPE_CHECKING:
    import polars as pl

    from mulle.bundle.adopt import Adopted
    from mulle.bundle.seal import SealedBundle
    from mulle.formats.bundle import ColumnInfo

DEFAULT_OUTPUT = Path(".mulle") / "bundles"
_ENDINGS = (".parquet", ".csv", ".tsv")


def adopt_model(
    source: str,
    sample: Path,
    *,
    target: str | None = None,
    task: Task | None = None,
    columns: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    positive: str | None = None,
    logits: bool = False,
    tracking_uri: str | None = None,
) -> "Adopted":
    """Return the model at `source` (an ONNX file, or an MLflow folder or address) fitted to the rows of a sample file.

    Raises:
        SpecError: see `bundle/adopt.py` and `bundle/adopt_mlflow.py`.
    """
    from mulle.bundle.adopt import adopt_onnx
    from mulle.bundle.adopt_mlflow import adopt_mlflow, is_mlflow

    rows = read_sample_file(sample)
    options: dict[str, Any] = {
        "target": target,
        "task": task,
        "columns": columns,
        "classes": classes,
        "positive": positive,
        "logits": logits,
    }
    if is_mlflow(source):
        return adopt_mlflow(source, rows, tracking_uri=tracking_uri, **options)
    if Path(source).is_dir():
        raise SpecError(
            "adopt-folder",
            f"the folder {source[:120]!r} is no MLflow model: it has no file MLmodel",
            fix="name the ONNX file itself, or an MLflow model's folder",
            where=source[:200],
        )
    return adopt_onnx(source, rows, **options)


def read_sample_file(path: Path) -> "pl.DataFrame":
    """Return the table in a CSV, TSV or Parquet file.

    Raises:
        SpecError: missing, unreadable, or of another kind.
    """
    from mulle.data.sources import read_csv, read_parquet

    ending = path.suffix.casefold()
    if ending not in _ENDINGS:
        raise SpecError(
            "adopt-sample-kind",
            f"the sample {path.name!r} is no table Mulle reads",
            fix=f"give one of {', '.join(_ENDINGS)}",
            where=str(path),
        )
    full = path.absolute()
    if ending == ".parquet":
        return read_parquet(full)
    return read_csv(full, separator="\t" if ending == ".tsv" else ",")


def seal_adopted(adopted: "Adopted", *, name: str, output: Path = DEFAULT_OUTPUT, entity: str | None = None) -> "SealedBundle":
    """Return the sealed, signed bundle of an adopted model; the same model and sample give the same digest.

    Args:
        adopted: What `adopt_onnx` or `adopt_estimator` returned.
        name: The model's name.
        output: The folder of bundles; the bundle is `output/<digest>`.
        entity: The column that names who a row is about, if requests carry one.

    Raises:
        SpecError: an unusable name, or a folder that cannot be written.
    """
    from mulle.bundle.sbom import build_sbom
    from mulle.bundle.seal import BundleContent, seal_bundle
    from mulle.data.arrays import to_arrays
    from mulle.formats.signing import key_path, load_or_create_key
    from mulle.loop.stages.seal import golden_requests
    from mulle.monitor.baseline import build_baseline
    from mulle.train.environment import used_distributions

    require_name(name, "a model")
    arrays = to_arrays(adopted.rows, adopted.schema)
    baseline = build_baseline(
        arrays,
        adopted.schema,
        adopted.scores,
        task=adopted.task,
        classes=adopted.classes,
        positive=adopted.positive,
    )
    content = BundleContent(
        model_name=name,
        task=adopted.task,
        graph=adopted.graph,
        graph_info=adopted.info,
        columns=_describe(adopted),
        baseline=baseline.to_bytes(),
        golden=golden_requests(arrays, adopted.schema, adopted.scores),
        classes=adopted.classes,
        positive=adopted.positive,
        target=adopted.target,
        entity=entity,
    )
    attestations = {
        "adoption.json": _json({"origin": adopted.origin, "sample_rows": adopted.rows.height, "notes": list(adopted.notes)}),
        "sbom.cdx.json": build_sbom(name, used_distributions(["mulle", "numpy", "onnx", "onnxruntime"])),
    }
    if adopted.parity is not None:
        attestations["parity.json"] = _json(adopted.parity.to_dict())
    return seal_bundle(output, content, attestations=attestations, private_key=load_or_create_key(key_path()))


def _describe(adopted: "Adopted") -> "tuple[ColumnInfo, ...]":
    """Return what the sample says about each column; one that travels as integer or boolean cannot be missing."""
    import msgspec

    from mulle.loop.stages.export import describe_column

    whole = {name for item in adopted.info.inputs if item.dtype in {"int64", "bool"} for name in item.columns}
    found = [describe_column(adopted.rows, column.name, column.type) for column in adopted.schema]
    return tuple(msgspec.structs.replace(c, nullable=False) if c.name in whole else c for c in found)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).encode("utf-8")
