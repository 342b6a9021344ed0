"""Stage 6: the graph that would be served is measured, by the runtime that would serve it, beside the champion."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mulle.core.canonical import digest_value
from mulle.formats.bundle import GRAPH, Manifest
from mulle.loop.paths import StatePaths
from mulle.loop.settings.model import Settings
from mulle.loop.stage import StageContext, StageResult
from mulle.loop.stages.export import DRAFT, VARIANTS, targets
from mulle.loop.stages.files import HOLDOUT_SIDE, load_side, read_json, read_version
from mulle.loop.stages.train import RECORD

if TYPE_CHECKING:
    from mulle.evaluate.result import Evaluation

EVALUATION = "evaluation.json"
MIN_RESAMPLES = 200


def run(context: StageContext) -> StageResult:
    """Measure the exported graph on the holdout."""
    import numpy as np

    from mulle.data.arrays import to_arrays
    from mulle.evaluate.evaluation import ChampionInfo, Options, evaluate_graph
    from mulle.loop.stages.tracking import track_evaluation
    from mulle.serve.runtimes.onnx import OnnxRuntime

    exported = context.inputs["export"]
    draft = msgspec.json.decode((exported / DRAFT).read_bytes(), type=Manifest)
    record = read_json(context.inputs["train"] / RECORD)
    schema = read_version(context.inputs["snapshot"]).schema
    held = load_side(context.inputs["snapshot"], context.inputs["split"], StatePaths(context.state_dir).datasets, HOLDOUT_SIDE)
    settings = context.settings.evaluate
    slice_columns = tuple(dict.fromkeys([*settings.slices, *fairness_columns(context.settings)]))
    champion = _champion(context, schema.names)
    needed = {c.name for c in draft.columns} | set(slice_columns) | ({c.name for c in champion[1].columns} if champion else set[str]())
    evaluation = evaluate_graph(
        OnnxRuntime(exported, draft).run,
        to_arrays(held, schema.select(needed)),
        targets(held, draft),
        task=draft.require_answer(),
        rng=np.random.default_rng(record["seed"]),
        classes=draft.classes,
        positive=draft.positive,
        threshold=draft.threshold,
        slices=slice_columns,
        champion_score=champion[2] if champion else None,
        champion=ChampionInfo(champion[0], champion[1].classes, champion[1].threshold) if champion else None,
        folds=record["folds"],
        size_bytes=draft.files[GRAPH].size,
        options=Options(
            # Without resamples nothing can be said about a difference, and the champion gate would have nothing to go by.
            n_resamples=settings.bootstrap or (MIN_RESAMPLES if champion else 0),
            importance_repeats=settings.importance_repeats,
            importance_columns=tuple(c.name for c in draft.columns),
            latency_samples=settings.latency_samples,
        ),
        progress=context.report,
    )
    (context.output / EVALUATION).write_bytes(evaluation.to_bytes())
    track_evaluation(context, record["mlflow_run_id"], evaluation)
    return StageResult(outputs={"evaluation": _identity(evaluation)}, facts=_facts(evaluation, exported))


def fairness_columns(settings: Settings) -> tuple[str, ...]:
    """Return the columns the fairness gate compares."""
    return settings.gates.fairness.slice_by if settings.gates.fairness else ()


def _champion(context: StageContext, known: tuple[str, ...]) -> tuple[str, Manifest, Any] | None:
    """Return the champion's name, manifest and score function; None when there is none, or it reads columns that are gone."""
    if context.situation is None:
        return None
    from mulle.formats.bundle import verify_bundle
    from mulle.serve.runtimes.onnx import OnnxRuntime

    folder = StatePaths(context.state_dir).bundles / context.situation["digest"]
    manifest = verify_bundle(folder, digest=context.situation["digest"])
    name = f"version {context.situation['version']}"
    gone = sorted({c.name for c in manifest.columns} - set(known))
    if gone:
        context.report(f"warning: {name} cannot be compared: its column {gone[0]!r} is not in this dataset")
        return None
    return name, manifest, OnnxRuntime(folder, manifest).run


def _identity(evaluation: "Evaluation") -> str:
    """Return the digest of what gates read: times on this host are measured again only with the rest."""
    return digest_value(evaluation.to_dict())


def _facts(evaluation: "Evaluation", exported: Path) -> dict[str, Any]:
    main = evaluation.metrics[evaluation.main_metric]
    single = next((entry for entry in evaluation.latency if entry.rows == 1), None)
    return {
        evaluation.main_metric: main.value,
        "interval": [main.low, main.high],
        "p99_ms": None if single is None else single.p99_ms,
        "int8": read_json(exported / VARIANTS)["reason"],
    }
