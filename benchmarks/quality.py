"""What the model is worth: Mulle's champion beside a plain scikit-learn script on the same sides of the same split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from measure import BIN, CPU, HERE, MEMORY, WALL, Context, column, headline, report, run_command, summary, table

N_RESAMPLES = 2000


def stage_folder(project: Path, stage: str) -> Path:
    """Return the folder of a stage's last result."""
    folders = [record.parent for record in (project / ".mulle" / "stages" / stage).glob("*/record.json")]
    return max(folders, key=lambda folder: folder.stat().st_mtime)


def measure_quality(context: Context) -> dict[str, Any]:
    """Return ROC-AUC with intervals, the paired differences, and what the graph costs against the Python model."""
    from mulle.data.arrays import to_arrays
    from mulle.evaluate.estimates import bootstrap_metrics
    from mulle.formats.bundle import verify_bundle
    from mulle.loop.stages.export import targets
    from mulle.loop.stages.files import load_side
    from mulle.serve.runtimes.onnx import OnnxRuntime
    from mulle.stats.measure import Problem, measure_once
    from mulle.stats.paired import difference_of
    from mulle.stats.resampling import percentile_interval

    project = context.project()
    home = context.fresh("quality")
    folders = {name: stage_folder(project, name) for name in ("snapshot", "split", "train", "seal")}
    (bundle,) = (project / ".mulle" / "bundles").iterdir()
    manifest = verify_bundle(bundle)
    held = load_side(folders["snapshot"], folders["split"], project / ".mulle" / "datasets", "holdout")
    y = (targets(held, manifest) == manifest.positive).astype(np.int64)
    script = [BIN / "python", HERE / "peers" / "plain_sklearn.py", project / "data" / "customers.parquet"]
    script += [folders["split"] / "sides.parquet", folders["train"] / "train.json", home / "scores.npy"]
    costs = [run_command(script, cwd=home) for _ in range(context.rounds(3) + 1)][1:]
    plain = np.load(home / "scores.npy", allow_pickle=False)
    scores = {
        "mulle, the served graph": OnnxRuntime(bundle, manifest).run(to_arrays(held, manifest.schema)).astype(np.float64),
        "mulle, its Python model": np.load(folders["train"] / "python_scores.npy", allow_pickle=False).astype(np.float64),
        "plain scikit-learn script": np.stack([1 - plain, plain], axis=1),
    }
    problem = Problem("binary", positive=manifest.classes.index(str(manifest.positive)))
    points = {name: measure_once(y, values, problem) for name, values in scores.items()}
    samples = {name: bootstrap_metrics(y, values, problem, N_RESAMPLES, np.random.default_rng(0)) for name, values in scores.items()}
    rows: dict[str, dict[str, Any]] = {}
    served = "mulle, the served graph"
    for name in scores:
        low, high = percentile_interval(samples[name]["roc_auc"])
        rows[name] = {"roc_auc": points[name]["roc_auc"], "low": low, "high": high, "log_loss": points[name]["log_loss"]}
        if name != served:
            gap = difference_of(
                (points[served]["roc_auc"], samples[served]["roc_auc"]), (points[name]["roc_auc"], samples[name]["roc_auc"])
            )
            rows[name] |= {"difference": gap.difference, "difference_low": gap.low, "difference_high": gap.high}
    parity = json.loads((stage_folder(project, "export") / "parity.json").read_text(encoding="utf-8"))
    quality = table(
        f"On the {held.height} held-back customers (95 % bootstrap intervals, {N_RESAMPLES:,} resamples, the same ones for all)",
        [
            column("roc_auc", "ROC-AUC", "share"),
            column("low", "from", "share"),
            column("high", "to", "share"),
            column("log_loss", "log-loss", "share"),
            column("difference", "served graph − this", "signed"),
            column("difference_low", "from", "signed"),
            column("difference_high", "to", "signed"),
        ],
        rows,
        headlines=[headline("ROC-AUC of the served graph on held-back customers", served, "roc_auc")],
    )
    script_row = {key: summary([cost[key] for cost in costs]) for key in costs[0]}
    cost = table("The plain script as a whole process", [WALL, CPU, MEMORY], {"plain scikit-learn script": script_row})
    notes = [
        (
            "The script: pandas, `OneHotEncoder` on the text columns, the numbers as they are, the same HistGradientBoosting parameters, "
            "the same training rows. "
            "It has no expectations, evaluation, export, tracking or registration: its time is a lower bound for a run."
        ),
        (
            f"Python model against served graph: {parity['n_disagreeing']} of {parity['n_rows']} rows differ by more than "
            f"{parity['tolerance']:g}; the largest difference is {parity['max_difference']:.1e}."
        ),
    ]
    return report("What the model is worth", [quality, cost], notes=notes)
