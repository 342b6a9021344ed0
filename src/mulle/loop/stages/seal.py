"""Stage 8: everything the server needs becomes one signed bundle, named by its own digest."""

import json
from typing import TYPE_CHECKING, Any

import msgspec

from mulle.formats.bundle import GRAPH, Manifest
from mulle.loop.paths import StatePaths
from mulle.loop.stage import StageContext, StageResult
from mulle.loop.stages.evaluate import EVALUATION
from mulle.loop.stages.export import DRAFT, INT8, PARITY, VARIANTS, score_with
from mulle.loop.stages.files import HOLDOUT_SIDE, load_rows, load_side, read_json, read_version
from mulle.loop.stages.gate import VERDICT
from mulle.loop.stages.train import RECORD

if TYPE_CHECKING:
    from mulle.core.schema import Schema
    from mulle.formats.rows import Arrays

BUNDLE = "bundle.json"
N_GOLDEN = 16


def run(context: StageContext) -> StageResult:
    """Seal the bundle under `.mulle/bundles/<digest>`."""
    from mulle.bundle.sbom import build_sbom
    from mulle.bundle.seal import BundleContent, seal_bundle
    from mulle.data.arrays import to_arrays
    from mulle.formats.signing import key_path, load_or_create_key
    from mulle.monitor.baseline import build_baseline
    from mulle.train.environment import describe_environment

    paths = StatePaths(context.state_dir)
    exported = context.inputs["export"]
    draft = msgspec.json.decode((exported / DRAFT).read_bytes(), type=Manifest)
    record = read_json(context.inputs["train"] / RECORD)
    version = read_version(context.inputs["snapshot"])
    columns = version.schema.select(c.name for c in draft.columns)
    rows = load_rows(context.inputs["snapshot"], paths.datasets)
    held = load_side(context.inputs["snapshot"], context.inputs["split"], paths.datasets, HOLDOUT_SIDE)
    held_arrays = _as_json_carries(to_arrays(held, columns))
    scores = score_with(exported, draft, held_arrays)
    baseline = build_baseline(
        to_arrays(rows, columns),
        columns,
        scores,
        task=draft.require_answer(),
        classes=draft.classes,
        positive=draft.positive,
        threshold=draft.threshold,
    )
    content = BundleContent(
        model_name=draft.model,
        task=draft.task,
        graph=(exported / GRAPH).read_bytes(),
        graph_info=draft.graph,
        columns=draft.columns,
        baseline=baseline.to_bytes(),
        golden=golden_requests(held_arrays, columns, scores),
        classes=draft.classes,
        positive=draft.positive,
        threshold=draft.threshold,
        target=draft.target,
        entity=draft.entity,
    )
    environment = describe_environment(context.project_dir)
    run_record = {
        "run_id": context.run_id,
        "dataset": version.to_dict(),
        "environment": environment.to_dict(),
        "training": {
            key: record[key] for key in ("model", "estimator", "params", "seed", "features", "n_train", "n_holdout", "mlflow_run_id")
        },
    }
    attestations = {
        "run.json": _json(run_record),
        "evaluation.json": (context.inputs["evaluate"] / EVALUATION).read_bytes(),
        "verdict.json": (context.inputs["gate"] / VERDICT).read_bytes(),
        "parity.json": (exported / PARITY).read_bytes(),
        "variants.json": (exported / VARIANTS).read_bytes(),
        "sbom.cdx.json": build_sbom(draft.model, environment.distributions),
    }
    if (exported / INT8).exists():
        attestations[INT8] = (exported / INT8).read_bytes()
    sealed = seal_bundle(paths.bundles, content, attestations=attestations, private_key=load_or_create_key(key_path()))
    (context.output / BUNDLE).write_bytes(_json({"digest": sealed.digest, "path": f"bundles/{sealed.digest}"}))
    context.report(f"bundle {sealed.digest[:12]}")
    return StageResult(outputs={"bundle": sealed.digest}, facts={"bundle": sealed.digest, "path": str(sealed.path)})


def _as_json_carries(arrays: "Arrays") -> "Arrays":
    """Return the rows as a request can carry them: JSON has no infinite numbers, so they are missing."""
    import numpy as np

    return {name: np.where(np.isinf(values), np.nan, values) if values.dtype.kind == "f" else values for name, values in arrays.items()}


def golden_requests(arrays: "Arrays", columns: "Schema", scores: Any) -> bytes:
    """Return a golden document of rows spread evenly over the scores, so that both ends and the middle are in it.

    Raises:
        SpecError: every row has an infinite number in it, which no request can carry.
    """
    import numpy as np

    from mulle.core.errors import SpecError
    from mulle.formats.golden import Golden
    from mulle.formats.rows import decode_value

    usable = np.ones(len(scores), dtype=bool)
    for values in arrays.values():
        if values.dtype.kind == "f":
            usable &= ~np.isinf(values)
    order = np.argsort(scores[:, -1], kind="stable")
    order = order[usable[order]]
    if not len(order):
        raise SpecError("golden-none", "every row has an infinite number in it", fix="give rows with finite numbers, or none where unknown")
    chosen = np.unique(order[np.linspace(0, len(order) - 1, min(N_GOLDEN, len(order))).astype(np.int64)])
    return Golden(
        rows=tuple({c.name: decode_value(arrays[c.name][i], c.type) for c in columns} for i in chosen),
        outputs=tuple(tuple(float(value) for value in scores[i]) for i in chosen),
    ).to_bytes()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).encode("utf-8")
