"""Bare facts: how fast a dataset is digested, and features computed by the table engine and by the served graph."""

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import Context, Values, column, report, table, take_turns


def measure_throughput(context: Context) -> dict[str, Any]:
    """Return MB/s of digests and rows/s of the same expressions compiled twice."""
    import polars as pl

    from mulle import col
    from mulle.bundle.graph import build_preprocessing, run_graph
    from mulle.core.expr import check_features
    from mulle.data.arrays import to_arrays
    from mulle.data.dataset import infer_schema, logical_digest
    from mulle.data.expr_polars import compute_features
    from mulle.train.preprocess import fit_preprocess

    n = 50_000 if context.quick else 1_000_000
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            **{f"x{i}": rng.normal(size=n) for i in range(4)},
            "n": rng.integers(0, 72, n),
            "계약": rng.choice(["Month-to-month", "One year", "Two year"], n),
            "payment": rng.choice(["Electronic check", "Mailed check", "Bank transfer", "Credit card"], n),
        }
    )
    megabytes = frame.estimated_size() / 1e6
    block = frame.select(f"x{i}" for i in range(4)).to_numpy().tobytes()
    small = frame.head(n // 5)
    schema = infer_schema(small)
    features = {
        "ratio": col("x0") / (col("n") + 1),
        "rest": col("x1").fill_null(0) - col("x2"),
        "young": col("n") < 12,
        "x3": col("x3").clip(-3, 3),
        "계약": col("계약").category(),
        "payment": col("payment").category(),
    }
    computed = compute_features(small, features, schema)
    graph = build_preprocessing(features, schema, fit_preprocess(computed, check_features(features, schema), allow_nan=True))
    arrays = to_arrays(small, schema)

    def speed(work: Callable[[], object], amount: float) -> Callable[[], Values]:
        def once() -> Values:
            wall, used = time.perf_counter(), time.process_time()
            work()
            return {"speed": amount / (time.perf_counter() - wall), "cpu_speed": amount / max(1e-9, time.process_time() - used)}

        return once

    rounds = context.rounds(5)
    digests = take_turns(
        {
            "logical_digest": speed(lambda: logical_digest(frame), megabytes),
            "SHA-256 of bare bytes (bare limit)": speed(lambda: hashlib.sha256(block), len(block) / 1e6),
        },
        rounds=rounds,
    )
    rows = take_turns(
        {
            "Polars (training)": speed(lambda: compute_features(small, features, schema), small.height),
            "ONNX graph (serving), batches of 16,384": speed(lambda: run_graph(graph, arrays, output="features"), small.height),
        },
        rounds=rounds,
    )
    columns = [column("speed", "MB/s", "rate"), column("cpu_speed", "MB per CPU second", "rate")]
    tables = [
        table(f"Content digest of a table, {n:,} rows × {frame.width} columns, {megabytes:.0f} MB", columns, digests.rows, ratio="speed"),
        table(
            f"Six expressions over {small.height:,} rows",
            [column("speed", "rows/s", "rate"), column("cpu_speed", "rows per CPU second", "rate")],
            rows.rows,
        ),
    ]
    return report("Digests and expressions", tables, skipped={**digests.skipped, **rows.skipped})
