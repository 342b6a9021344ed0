"""How long a person waits for `--help`, beside an interpreter that does nothing and the peers' command lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import BIN, CPU, WALL, Context, Values, headline, report, run_command, table, take_turns
from venvs import peer_bin


def measure_startup(context: Context) -> dict[str, Any]:
    """Return the cost of printing help."""
    home = context.fresh("startup")

    def command(program: Callable[[], Path], *arguments: str) -> Callable[[], Values]:
        return lambda: run_command([program(), *arguments], cwd=home, env={"PREFECT_HOME": str(home), "DAGSTER_HOME": str(home)})

    turns = take_turns(
        {
            "mulle --help": command(lambda: BIN / "mulle", "--help"),
            "python -c pass (bare limit)": command(lambda: BIN / "python", "-c", "pass"),
            "mlflow --help": command(lambda: BIN / "mlflow", "--help"),
            "dvc --help": command(lambda: peer_bin("dvc") / "dvc", "--help"),
            "prefect --help": command(lambda: peer_bin("prefect") / "prefect", "--help"),
            "dagster --help": command(lambda: peer_bin("dagster") / "dagster", "--help"),
        },
        rounds=context.rounds(7),
        rounds_of={f"{peer} --help": context.rounds(3) for peer in ("mlflow", "dvc", "prefect", "dagster")},
    )
    shown = table("", [WALL, CPU], turns.rows, ratio="wall_s", headlines=[headline("`mulle --help`", "mulle --help", "wall_s", below=0.3)])
    return report("Answering `--help`", [shown], skipped=turns.skipped)
