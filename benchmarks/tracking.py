"""What a training run with 1,000 metric points pays for its history, on SQLite."""

import os
import time
from collections.abc import Callable
from typing import Any

from measure import CPU, WALL, Context, Values, headline, report, table, take_turns

N_POINTS = 1000


def measure_tracking(context: Context) -> dict[str, Any]:
    """Return the cost of starting a run, logging its points and finishing it."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from mulle.train.tracking import MlflowTracker, quiet_mlflow

    home = context.fresh("tracking")
    uri = f"sqlite:///{home}/mlflow.db"
    tracker = MlflowTracker(uri, home / "artifacts")
    tracker.finish(tracker.start_run("bench"))
    with quiet_mlflow():
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name("bench")
    assert found is not None
    points = [1.0 / (i + 1) for i in range(N_POINTS)]

    def mulle() -> None:
        run = tracker.start_run("bench")
        tracker.log_curves(run, {"loss": points})
        tracker.finish(run)

    def one_by_one() -> None:
        run = client.create_run(found.experiment_id).info.run_id
        for step, value in enumerate(points):
            client.log_metric(run, "loss", value, step=step)
        client.set_terminated(run)

    def batch() -> None:
        run = client.create_run(found.experiment_id).info.run_id
        client.log_batch(run, metrics=[Metric("loss", value, 0, step) for step, value in enumerate(points)])
        client.set_terminated(run)

    def timed(work: Callable[[], None]) -> Callable[[], Values]:
        def once() -> Values:
            wall, used = time.perf_counter(), time.process_time()
            work()
            return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - used}

        return once

    name = "mlflow, one call per point"
    contestants = {"mulle": timed(mulle), "mlflow log_batch": timed(batch), name: timed(one_by_one)}
    turns = take_turns(contestants, rounds=context.rounds(7), warm_up=not context.quick, rounds_of={name: 1})
    shown = table(
        "",
        [WALL, CPU],
        turns.rows,
        ratio="wall_s",
        headlines=[headline(f"tracking a run with {N_POINTS:,} metric points", "mulle", "wall_s", below=0.3)],
    )
    notes = ["A warm client on a SQLite store; start of the run, all points and its end. `mulle` is `MlflowTracker.log_curves`."]
    return report("Tracking", [shown], skipped=turns.skipped, notes=notes)
