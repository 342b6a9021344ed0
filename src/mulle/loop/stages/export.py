"""Stage 5: one graph from raw columns to the answer, shown to say what the Python model says."""

from typing import TYPE_CHECKING, Any

from mulle.core.canonical import digest_bytes, digest_value
from mulle.loop.paths import StatePaths
from mulle.loop.stage import StageContext, StageResult
from mulle.loop.stages.files import HOLDOUT_SIDE, load_rows, load_side, read_array, read_json, read_version, write_bytes, write_json
from mulle.loop.stages.train import ESTIMATOR, PREPROCESSING, RECORD, SCORES

if TYPE_CHECKING:
    import polars as pl

    from mulle.core.schema import Schema
    from mulle.formats.bundle import ColumnInfo, Manifest

DRAFT, PARITY, VARIANTS = "draft.json", "parity.json", "variants.json"
INT8 = "model.int8.onnx"
MAX_CATEGORIES = 200


def run(context: StageContext) -> StageResult:
    """Join the graphs, compare the whole with the Python model on the holdout, and try an INT8 variant.

    Raises:
        CheckError: the graph and the Python model differ by more than the settings allow.
    """
    from mulle.bundle.graph import attach_model
    from mulle.bundle.parity import check_parity, require_parity
    from mulle.data.arrays import to_arrays

    trained = context.inputs["train"]
    record = read_json(trained / RECORD)
    schema = read_version(context.inputs["snapshot"]).schema
    datasets = StatePaths(context.state_dir).datasets
    held = load_side(context.inputs["snapshot"], context.inputs["split"], datasets, HOLDOUT_SIDE)
    graph = attach_model(
        (trained / PREPROCESSING).read_bytes(), (trained / ESTIMATOR).read_bytes(), task=record["task"], n_classes=len(record["classes"])
    )
    draft = _draft(context, record, schema, load_rows(context.inputs["snapshot"], datasets), graph)
    write_bytes(context.output / draft.graph.file, graph)
    (context.output / DRAFT).write_bytes(draft.to_bytes())
    arrays, y = to_arrays(held, schema.select(c.name for c in draft.columns)), targets(held, draft)
    python = read_array(trained / SCORES)
    scores = score_with(context.output, draft, arrays)
    limits = context.settings.export
    parity = check_parity(
        python,
        scores,
        y,
        task=draft.require_answer(),
        classes=draft.classes,
        positive=draft.positive,
        max_metric_gap=limits.max_metric_gap,
        max_disagreeing_share=limits.max_disagreeing_share,
    )
    write_json(context.output / PARITY, parity.to_dict())
    context.report(f"{parity.n_disagreeing:,} of {parity.n_rows:,} rows differ from the Python model by more than {parity.tolerance:g}")
    require_parity(parity)
    variant = _int8(context, graph, draft, arrays, y, python) if limits.int8 else {"name": "int8", "reason": "switched off: [export] int8"}
    write_json(context.output / VARIANTS, variant)
    outputs = {"graph": digest_bytes(graph), "draft": digest_value(draft.digest()), "variants": digest_value(variant.get("sha256"))}
    facts = {"size_bytes": len(graph), "disagreeing rows": parity.n_disagreeing, "int8": variant["reason"]}
    return StageResult(outputs=outputs, facts=facts)


def _draft(context: StageContext, record: dict[str, Any], schema: "Schema", rows: "pl.DataFrame", graph: bytes) -> "Manifest":
    from mulle.bundle.graph import output_name
    from mulle.core.schema import ColumnType
    from mulle.formats.bundle import GRAPH, FileInfo, Graph, GraphInput, Manifest

    columns = schema.select(record["raw_columns"])
    inputs = tuple(GraphInput(c.name, "string" if c.type is ColumnType.TEXT else "double", (c.name,)) for c in columns)
    return Manifest(
        model=context.settings.project.name,
        task=record["task"],
        graph=Graph(inputs=inputs, output=output_name(graph)),
        columns=tuple(describe_column(rows, c.name, c.type) for c in columns),
        files={GRAPH: FileInfo(digest_bytes(graph), len(graph))},
        classes=tuple(record["classes"]),
        positive=record["positive"],
        threshold=context.settings.evaluate.threshold,
        target=record["target"],
        entity=record["entity"],
    )


def describe_column(rows: "pl.DataFrame", name: str, kind: Any) -> "ColumnInfo":
    """Return what the dataset says about a column: whether values are missing, its categories or its range.

    A column that is never missing in the dataset is required of every request. An infinite number counts as missing, as it
    does in the features, and widens no range.
    """
    from mulle.core.schema import ColumnType
    from mulle.formats.bundle import ColumnInfo

    values = rows.get_column(name)
    present = values.drop_nulls()
    if values.dtype.is_float():
        present = present.filter(present.is_finite())
    nullable = len(present) < len(values)
    if kind is ColumnType.TEXT:
        distinct = present.unique().sort().to_list()
        return ColumnInfo(name, kind, nullable, categories=tuple(distinct) if len(distinct) <= MAX_CATEGORIES else None)
    if kind is not ColumnType.NUMBER or not len(present):
        return ColumnInfo(name, kind, nullable)
    low, high = float(present.min()), float(present.max())  # pyright: ignore[reportArgumentType]  (a number column has numbers)
    return ColumnInfo(name, kind, nullable, minimum=low, maximum=high)


def targets(rows: "pl.DataFrame", manifest: "Manifest") -> Any:
    """Return the target, shape (n,): labels as texts, or numbers for regression; missing ones as None or NaN."""
    import numpy as np

    from mulle.train.target import label_text

    column = rows.get_column(str(manifest.target))
    if manifest.task == "regression":
        return column.cast(float).fill_null(float("nan")).to_numpy()
    return np.array([None if value is None else label_text(value) for value in column.to_list()], dtype=object)


def score_with(folder: Any, manifest: "Manifest", arrays: Any, *, batch: int = 4096) -> Any:
    """Return the scores of all rows from the very runtime that serves."""
    import numpy as np

    from mulle.serve.runtimes.onnx import OnnxRuntime

    runtime = OnnxRuntime(folder, manifest)
    n = len(next(iter(arrays.values())))
    parts = [runtime.run({name: values[i : i + batch] for name, values in arrays.items()}) for i in range(0, n, batch)]
    return np.concatenate(parts) if parts else np.empty((0, runtime.n_outputs), dtype=np.float32)


def _int8(context: StageContext, graph: bytes, draft: "Manifest", arrays: Any, y: Any, python: Any) -> dict[str, Any]:
    """Return what became of the INT8 variant: kept only if every metric stays within the gap."""
    import msgspec

    from mulle.bundle.parity import check_parity
    from mulle.bundle.quantise import quantise_int8

    variant = quantise_int8(graph)
    if variant.graph is None:
        return {"name": variant.name, "reason": variant.reason}
    limits = context.settings.export
    path = context.output / INT8
    write_bytes(path, variant.graph)
    served = msgspec.structs.replace(draft, graph=msgspec.structs.replace(draft.graph, file=INT8))
    parity = check_parity(
        python,
        score_with(context.output, served, arrays),
        y,
        task=draft.require_answer(),
        classes=draft.classes,
        positive=draft.positive,
        max_metric_gap=limits.max_metric_gap,
        max_disagreeing_share=1.0,
    )
    worst = max((gap.gap for gap in parity.metrics), default=0.0)
    if not parity.ok:
        path.unlink()
        return {
            "name": variant.name,
            "reason": f"refused: a metric moves by {worst:.3g}, more than {limits.max_metric_gap:g}",
            "size_bytes": variant.size_bytes,
        }
    return {
        "name": variant.name,
        "reason": f"{variant.reason}; metrics move by at most {worst:.3g}",
        "size_bytes": variant.size_bytes,
        "sha256": digest_bytes(variant.graph),
    }
