"""How everything here is measured: commands with their CPU time, contestants that take turns, and what a table is made of."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mulle.core.errors import MulleError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BIN = Path(sys.executable).parent
Values = Mapping[str, float]


class SkippedError(Exception):
    """A contestant cannot take part; its text is published as the reason."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a benchmark is given.

    Attributes:
        folder: Scratch folder of this whole run; benchmarks share the trained project in it.
        quick: Few rounds and small sizes: for developing a benchmark, not for publishing.
    """

    folder: Path
    quick: bool = False

    def rounds(self, n: int) -> int:
        """Return how many rounds to do where `n` are wanted."""
        return 1 if self.quick else n

    def fresh(self, name: str) -> Path:
        """Return a new empty folder of this benchmark."""
        path = self.folder / "scratch" / f"{name}-{time.time_ns()}"
        path.mkdir(parents=True)
        return path

    def project(self) -> Path:
        """Return the churn project after one whole `mulle run`; made by the first benchmark that needs it."""
        path = self.folder / "churn"
        if not (path / ".mulle" / "serving" / "churn.json").exists():
            make_project(path)
            run_command([BIN / "mulle", "run"], cwd=path, timeout_s=400)
        return path


def make_project(path: Path) -> None:
    """Write the churn template into `path`."""
    run_command([BIN / "mulle", "init", "churn", str(path)], cwd=path.parent)


def quiet_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of every process here: nobody phones home, and output is UTF-8."""
    return {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONUTF8": "1",
        "PYTHONWARNINGS": "ignore",
        "OMP_WAIT_POLICY": "PASSIVE",
        **(extra or {}),
    }


def run_command(
    command: Sequence[Any], *, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 120.0, output: Path | None = None
) -> dict[str, float]:
    """Return wall seconds, CPU seconds (user and system) and peak memory of a command with everything it waited for.

    Args:
        command: Program and arguments.
        cwd: Where it runs.
        env: Added to the environment.
        timeout_s: After this it is killed.
        output: Where its standard output goes.

    Raises:
        SkippedError: it did not end well, or not in time; with the end of what it said.
    """
    said = cwd / f".said-{os.getpid()}"
    with said.open("w+b") as complaints, (output or Path(os.devnull)).open("wb") as out:
        before = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command], cwd=cwd, env=quiet_environment(env), stdout=out, stderr=complaints, start_new_session=True
        )
        deadline = before + timeout_s
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        while not pid:
            if time.perf_counter() > deadline:
                os.killpg(process.pid, 9)
                os.wait4(process.pid, 0)
                raise SkippedError(f"{Path(str(command[0])).name} did not end within {timeout_s:.0f} s")
            time.sleep(0.002)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        wall = time.perf_counter() - before
        process.returncode = os.waitstatus_to_exitcode(status)
        complaints.seek(0)
        tail = complaints.read().decode("utf-8", "replace").strip().splitlines()[-3:]
    said.unlink(missing_ok=True)
    if process.returncode:
        name = Path(str(command[0])).name
        raise SkippedError(f"{name} exited with {process.returncode}: {' / '.join(tail)[-300:]}")
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "memory_mib": usage.ru_maxrss / 1024}


def run_json(command: Sequence[Any], *, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 120.0) -> Any:
    """Return what a command wrote as the last line of its output, as JSON."""
    output = cwd / f".out-{os.getpid()}"
    run_command(command, cwd=cwd, env=env, timeout_s=timeout_s, output=output)
    lines = output.read_text(encoding="utf-8").strip().splitlines()
    output.unlink()
    return json.loads(lines[-1])


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the median of some measurements and how far apart they were."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


@dataclass(slots=True)
class Turns:
    """Contestants that take turns, so that a busy minute of the machine hits all of them.

    Attributes:
        rows: Contestant to figure to its summary, in the order they were given.
        skipped: Contestant to the reason it did not take part.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    skipped: dict[str, str] = field(default_factory=dict[str, str])


def take_turns(
    contestants: Mapping[str, Callable[[], Values]], *, rounds: int, warm_up: bool = True, rounds_of: Mapping[str, int] | None = None
) -> Turns:
    """Return each contestant's figures over several rounds.

    Args:
        contestants: Name to one measurement.
        rounds: How many rounds each takes part in.
        warm_up: Whether a first, uncounted round fills caches and writes byte code; not for those that take part once.
        rounds_of: Fewer rounds for slow ones.
    """
    found: dict[str, list[Values]] = {name: [] for name in contestants}
    turns = Turns()
    for number in range(-1 if warm_up else 0, rounds):
        for name, once in contestants.items():
            own = (rounds_of or {}).get(name, rounds)
            if name in turns.skipped or number >= own or (number < 0 and own == 1 < rounds):
                continue
            try:
                values = once()
            except (SkippedError, MulleError, OSError) as reason:
                turns.skipped[name] = str(reason)
                continue
            if number >= 0:
                found[name].append(values)
    for name, runs in found.items():
        if runs and name not in turns.skipped:
            turns.rows[name] = {key: summary([run[key] for run in runs]) for key in runs[0]}
    return turns


def column(key: str, label: str, unit: str = "") -> dict[str, str]:
    """Return how a column of a table is headed, and the unit its figures are in."""
    return {"key": key, "label": label, "unit": unit}


def headline(what: str, row: str, key: str, *, below: float | None = None) -> dict[str, Any]:
    """Return what the README shows of a table: one row's figure, the limit it was promised to stay below, the others beside it."""
    return {"what": what, "row": row, "key": key, "below": below}


def table(
    title: str,
    columns: Sequence[Mapping[str, str]],
    rows: Mapping[str, Mapping[str, Any]],
    *,
    ratio: str | None = None,
    headlines: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return one table: columns, rows, which figure is shown as a ratio to the first row, and what goes into the README."""
    return {"title": title, "columns": list(columns), "rows": dict(rows), "ratio": ratio, "headlines": list(headlines)}


def report(
    title: str, tables: Sequence[Mapping[str, Any]], *, skipped: Mapping[str, str] | None = None, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what a benchmark gives back."""
    return {"title": title, "tables": list(tables), "skipped": dict(skipped or {}), "notes": list(notes)}


WALL, CPU, MEMORY = column("wall_s", "wall", "s"), column("cpu_s", "CPU", "s"), column("memory_mib", "peak memory", "MiB")
