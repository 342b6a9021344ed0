"""`mulle run` of the churn project from nothing: data, training, cross-validation, evaluation, bundle, registration."""

import json
import shutil
from pathlib import Path
from typing import Any

from measure import BIN, CPU, MEMORY, WALL, Context, Values, column, headline, make_project, report, run_command, summary, table, take_turns


def measure_full_run(context: Context) -> dict[str, Any]:
    """Return what the whole wheel costs, and each stage of it; the first project is left for the other benchmarks."""
    documents: list[dict[str, Any]] = []

    def mulle() -> Values:
        folder = context.folder / ("churn" if not documents else f"churn-{len(documents)}")
        make_project(folder)
        cost = run_command([BIN / "mulle", "run"], cwd=folder, timeout_s=400)
        (document,) = Path(folder / ".mulle" / "runs").glob("*.json")
        documents.append(json.loads(document.read_text(encoding="utf-8")))
        if len(documents) > 1:
            shutil.rmtree(folder)
        return cost

    turns = take_turns({"mulle run": mulle}, rounds=context.rounds(2), warm_up=False)
    stages: dict[str, dict[str, Any]] = {}
    for i, entry in enumerate(documents[0]["stages"] if documents else []):
        same = [document["stages"][i] for document in documents]
        stages[entry["stage"]] = {
            "seconds": summary([one["seconds"] for one in same]),
            "memory_mib": summary([one["peak_memory_bytes"] / 2**20 for one in same]),
        }
    whole = table(
        "", [WALL, CPU, MEMORY], turns.rows, headlines=[headline("full `mulle run` of churn, from nothing", "mulle run", "wall_s")]
    )
    whole["headlines"].append(headline("its peak memory", "mulle run", "memory_mib"))
    parts = table(
        "Each stage, in a process of its own", [column("seconds", "wall", "s"), column("memory_mib", "peak memory", "MiB")], stages
    )
    notes = ["5,043 customers, 22 features, five folds of cross-validation, 1,000 bootstrap resamples, ONNX export, signature and SBOM."]
    return report("The whole wheel, once", [whole, parts], skipped=turns.skipped, notes=notes)
