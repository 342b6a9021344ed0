"""The second run of a pipeline of nine stages when nothing has changed."""

from pathlib import Path
from typing import Any

from measure import BIN, CPU, HERE, WALL, Context, Values, headline, report, run_command, table, take_turns
from venvs import peer_bin

N_STAGES = 9


def dvc_project(folder: Path) -> Path:
    """Write a DVC pipeline of nine stages, each copying the file of the one before, and run it once."""
    dvc = peer_bin("dvc") / "dvc"
    (folder / "f0").write_text("customers\n", encoding="utf-8")
    stages = "\n".join(f"  s{i}:\n    cmd: cp f{i - 1} f{i}\n    deps: [f{i - 1}]\n    outs: [f{i}]" for i in range(1, N_STAGES + 1))
    (folder / "dvc.yaml").write_text(f"stages:\n{stages}\n", encoding="utf-8")
    run_command([dvc, "init", "--no-scm", "--quiet"], cwd=folder)
    run_command([dvc, "repro", "--quiet"], cwd=folder)
    return dvc


def measure_second_run(context: Context) -> dict[str, Any]:
    """Return the cost of finding out that there is nothing to do."""
    project = context.project()
    home = context.fresh("second-run")
    made: dict[str, Path] = {}

    def dvc() -> Values:
        if "dvc" not in made:
            made["dvc"] = dvc_project(home)
        return run_command([made["dvc"], "repro"], cwd=home)

    def prefect() -> Values:
        script = HERE / "peers" / "prefect_cached.py"
        return run_command([peer_bin("prefect") / "python", script], cwd=home, env={"PREFECT_HOME": str(home / "prefect")}, timeout_s=150)

    turns = take_turns(
        {
            "mulle run": lambda: run_command([BIN / "mulle", "run"], cwd=project),
            "python -c pass (bare limit)": lambda: run_command([BIN / "python", "-c", "pass"], cwd=home),
            "dvc repro": dvc,
            "prefect, its own server": prefect,
        },
        rounds=context.rounds(7),
        rounds_of={"dvc repro": context.rounds(3), "prefect, its own server": context.rounds(2)},
    )
    shown = table(
        "",
        [WALL, CPU],
        turns.rows,
        ratio="wall_s",
        headlines=[headline("second `mulle run`, nothing changed", "mulle run", "wall_s", below=1.0)],
    )
    notes = [
        (
            "`mulle run`: the churn project, nine stages, everything as it was. DVC: nine stages that copy a small file. "
            "Prefect: one flow of nine tasks with `cache_policy=INPUTS`, whole process with the server it starts for itself."
        ),
    ]
    return report("Running again when nothing has changed", [shown], skipped=turns.skipped, notes=notes)
