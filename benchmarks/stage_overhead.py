"""What an engine adds to a stage that does nothing: its process, its key, its record on disk, its line of progress."""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import HERE, Context, Values, column, headline, report, run_command, run_json, table, take_turns
from venvs import peer_bin

BODY = "from mulle.loop.stage import StageResult\n\n\ndef run(context):\n    del context\n    return StageResult({})\n"
PROJECT = 'import mulle\n\nproject = mulle.Project("noop", task="binary", target="y")\n'
_USAGES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def cpu_s() -> float:
    """Return CPU seconds of this process and of the children it waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in _USAGES)


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds of `work`."""
    wall, used = time.perf_counter(), cpu_s()
    work()
    return time.perf_counter() - wall, cpu_s() - used


def per_step(zero: tuple[float, float], many: tuple[float, float], n: int) -> dict[str, float]:
    """Return milliseconds a step adds, wall and CPU."""
    return {"wall_ms": 1000 * (many[0] - zero[0]) / n, "cpu_ms": 1000 * (many[1] - zero[1]) / n}


def limits(home: Path, n: int) -> dict[str, Callable[[], Values]]:
    """Return what nobody can go below: a call, a forked process, a fresh interpreter."""

    def call() -> Values:
        def nothing() -> None: ...

        def many() -> None:
            for _ in range(100_000):
                nothing()

        return per_step((0.0, 0.0), spent(many), 100_000)

    def fork() -> Values:
        def many() -> None:
            for _ in range(n):
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)

        return per_step((0.0, 0.0), spent(many), n)

    def python() -> Values:
        cost = run_command([sys.executable, "-c", "pass"], cwd=home)
        return {"wall_ms": 1000 * cost["wall_s"], "cpu_ms": 1000 * cost["cpu_s"]}

    return {
        "a plain function call (bare limit)": call,
        "fork and wait (bare limit of a process)": fork,
        "python -c pass (a fresh process)": python,
    }


def peers(home: Path, n: int) -> dict[str, Callable[[], Values]]:
    """Return the other engines, each in its own environment."""

    def script(peer: str, name: str, size: int) -> Callable[[], Values]:
        variables = {"PREFECT_HOME": str(home / "prefect"), "DAGSTER_HOME": str(home), "PREFECT_LOGGING_LEVEL": "ERROR"}
        return lambda: run_json([peer_bin(peer) / "python", HERE / "peers" / name, size], cwd=home, env=variables, timeout_s=150)

    def metaflow() -> Values:
        size, costs = 6, []
        for count in (0, size):
            path = home / f"flow{count}.py"
            run_command([sys.executable, HERE / "peers" / "metaflow_steps.py", count, path], cwd=home)
            cost = run_command(
                [peer_bin("metaflow") / "python", path, "run"], cwd=home, env={"USERNAME": "bench", "METAFLOW_HOME": str(home)}
            )
            costs.append((cost["wall_s"], cost["cpu_s"]))
        return per_step(costs[0], costs[1], size)

    return {
        "dagster, one process": script("dagster", "dagster_steps.py", n),
        "prefect, its own server": script("prefect", "prefect_steps.py", n),
        "metaflow": metaflow,
    }


def measure_stage_overhead(context: Context) -> dict[str, Any]:
    """Return the cost of one more stage that does nothing."""
    from mulle.loop.plan import RunOptions
    from mulle.loop.run import Runner
    from mulle.loop.settings import load_settings
    from mulle.loop.stage import Stage
    from mulle.loop.wiring import SystemClock

    n = 10 if context.quick else 50
    home = context.fresh("stages")
    (home / "noop_stage.py").write_text(BODY, encoding="utf-8")
    (home / "project.py").write_text(PROJECT, encoding="utf-8")
    (home / "mulle.toml").write_text('[project]\nname = "noop"\n', encoding="utf-8")
    stages = [Stage("s0", 1, "noop_stage:run")]
    stages += [Stage(f"s{i}", 1, "noop_stage:run", inputs=(f"s{i - 1}",)) for i in range(1, n)]
    settings = load_settings(home)

    def run(count: int) -> tuple[float, float]:
        runner = Runner(settings, stages[:count], SystemClock(), python_path=[str(home)])
        return spent(lambda: runner.run(RunOptions(force=True)))

    def mulle() -> Values:
        return per_step(run(0), run(n), n)

    def mulle_marginal() -> Values:
        return per_step(run(1), run(n), n - 1)

    rounds = context.rounds(5)
    slow = {"dagster, one process": 1, "prefect, its own server": 1, "metaflow": 2}
    turns = take_turns(
        {
            "mulle": mulle,
            "mulle, once its engine is up": mulle_marginal,
            **limits(home, n),
            **peers(home, n),
        },
        rounds=rounds,
        rounds_of={name: context.rounds(count) for name, count in slow.items()},
    )
    shown = table(
        "",
        [column("wall_ms", "wall per stage", "ms"), column("cpu_ms", "CPU per stage", "ms")],
        turns.rows,
        ratio="wall_ms",
        headlines=[
            headline("engine overhead per no-op stage, the engine's start included", "mulle", "wall_ms", below=5.0),
            headline("engine overhead of one more no-op stage, as peers count", "mulle, once its engine is up", "wall_ms", below=5.0),
        ],
    )
    notes = [
        (
            f"`mulle`: (wall of {n} stages − wall of none) / {n}, each stage in a process of its own, the start of the engine's server, "
            f"once per run, included. `once its engine is up`: (wall of {n} − wall of one) / {n - 1}."
        ),
        (
            "The peers are measured like the latter: their start is left out. Dagster and Prefect run their steps inside one process; "
            "Metaflow, like Mulle, starts one per step. Prefect's server works behind its client, whose wall says nothing: the CPU is "
            "that of both."
        ),
    ]
    return report("What the engine adds to a stage", [shown], skipped=turns.skipped, notes=notes)
